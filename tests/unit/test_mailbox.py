"""The mailbox of one process: order, bounds, age."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import pytest

from civitas_shm.messages import Message
from civitas_shm.process import Mailbox


def message(n: int, priority: int = 0, **fields: Any) -> Message:
    return Message(payload={"n": n}, priority=priority, **fields)


def old(n: int, priority: int = 0) -> Message:
    return message(n, priority, timestamp=1_000.0, ttl=5.0)


def numbers(messages: list[Message]) -> list[int]:
    return [one.payload["n"] for one in messages]


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_urgent_messages_come_first_and_each_queue_keeps_its_order() -> None:
    async def scene() -> None:
        mailbox = Mailbox()
        for n, priority in ((1, 0), (2, 1), (3, 0), (4, 7)):
            await mailbox.put(message(n, priority))
        assert mailbox.depth() == 4
        assert numbers(mailbox.peek()) == [2, 4, 1, 3]
        assert numbers(mailbox.peek(2)) == [2, 4]
        assert [(await mailbox.get()).payload["n"] for _ in range(4)] == [2, 4, 1, 3]
        assert mailbox.empty()

    run(scene())


def test_put_waits_for_room_and_put_nowait_says_there_is_none() -> None:
    async def scene() -> None:
        mailbox = Mailbox(1, priority_maxsize=1)
        mailbox.put_nowait(message(1))
        mailbox.put_nowait(message(2, 1))
        with pytest.raises(asyncio.QueueFull, match="the normal queue holds 1"):
            mailbox.put_nowait(message(3))
        with pytest.raises(asyncio.QueueFull, match="the priority queue holds 1"):
            mailbox.put_nowait(message(3, 1))
        waiting = asyncio.create_task(mailbox.put(message(3)))
        await turns()
        assert not waiting.done()
        assert (await mailbox.get()).payload["n"] == 2
        await turns()
        assert not waiting.done()  # room was made, but not in its queue
        assert (await mailbox.get()).payload["n"] == 1
        await waiting
        assert numbers(mailbox.drain()) == [3]

    run(scene())


def test_who_waits_gets_what_comes_and_one_who_gives_up_takes_nothing() -> None:
    async def scene() -> None:
        mailbox = Mailbox()
        gone = asyncio.create_task(mailbox.get())
        urgent = asyncio.create_task(mailbox.get_priority())
        await turns()
        gone.cancel()
        await mailbox.put(message(1))
        await turns()
        assert gone.cancelled()
        assert not urgent.done()
        await mailbox.put(message(2, 1))
        assert (await urgent).payload["n"] == 2
        assert numbers(mailbox.peek()) == [1]

    run(scene())


def test_what_has_outlived_its_ttl_is_dropped_with_a_warning_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        mailbox = Mailbox(2)
        mailbox.put_nowait(old(1))
        mailbox.put_nowait(message(2, ttl=3600.0))
        mailbox.put_nowait(old(3, 1))
        full = asyncio.create_task(mailbox.put(message(4)))
        assert (await mailbox.get()).payload["n"] == 2
        await full  # what is dropped makes room
        assert mailbox.expired == 2

    with caplog.at_level(logging.WARNING):
        run(scene())
    assert caplog.text.count("older than its ttl of 5 s") == 2


def test_drain_empties_both_queues_and_lets_those_in_who_wait() -> None:
    async def scene() -> None:
        mailbox = Mailbox(1)
        mailbox.put_nowait(message(1))
        mailbox.put_nowait(message(2, 1))
        waiting = asyncio.create_task(mailbox.put(message(3)))
        await turns()
        assert numbers(mailbox.drain()) == [2, 1]
        await waiting
        assert mailbox.depth() == 1

    run(scene())


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0)])
def test_a_mailbox_holds_at_least_one_message(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1 message must fit"):
        Mailbox(*sizes)
