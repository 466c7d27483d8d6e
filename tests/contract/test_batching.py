"""Every transport: agents that take several waiting messages at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from civitas_shm.errors import ErrorAction
from civitas_shm.messages import Message
from civitas_shm.process import AgentProcess, ProcessStatus
from civitas_shm.runner import AgentFailed, AgentRunner
from civitas_shm.topology.model import AgentSpec
from civitas_shm.transport import SENDER_PROGRAM, SENT


class Writer(AgentProcess):
    batch_size = 4

    def __init__(self, name: str, **rest: Any) -> None:
        super().__init__(name, **rest)
        self.batches: list[list[tuple[int, int]]] = []
        self.gate: asyncio.Event | None = None

    async def handle_batch(self, messages: list[Message]) -> None:
        self.batches.append([(message.payload["n"], message.delivery) for message in messages])
        if self.gate is not None:
            await self.gate.wait()
        if any(message.payload.get("bad") for message in messages):
            raise ValueError("bad")
        for message in messages:
            if message.correlation_id:
                await self.reply_to(message, {"n": message.payload["n"] * 10})

    async def on_error(self, exc: Exception, message: Message) -> ErrorAction:
        return ErrorAction.SKIP


async def started(world: Any, agent: AgentProcess, **spec: Any) -> AgentRunner:
    runner = AgentRunner(world.b)
    mailbox = world.b.resolve(agent.name)
    assert await runner.start(agent, mailbox, AgentSpec(agent.name, "tests.Agent", **spec))
    return runner


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_a_batch_is_what_waits_up_to_its_size_in_order_and_asks_are_answered(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("writer")
        for n in range(10):
            await world.bus.send("writer", {"n": n})
        asking = asyncio.create_task(world.bus.ask("writer", {"n": 10}))
        await asyncio.sleep(0)
        writer = Writer("writer")
        runner = await started(world, writer)
        assert (await asking).payload == {"n": 100}
        assert [n for batch in writer.batches for n, _ in batch] == list(range(11))
        assert max(map(len, writer.batches)) == 4
        assert (await world.bus.ask("writer", {"n": 11})).payload == {"n": 110}  # it waits for no full batch
        await runner.stop_all("all")
        assert world.b.stats(mailbox).unfinished == 0

    play(scene)


def test_when_a_batch_fails_each_message_is_tried_alone_and_only_the_bad_one_is_skipped(play: Any) -> None:
    async def scene(world: Any) -> None:
        world.mailbox("writer")
        for n in range(4):
            await world.bus.send("writer", {"n": n, "bad": n == 2})
        writer = Writer("writer")
        runner = await started(world, writer)
        await until(lambda: len(writer.batches) >= 5)
        assert [[n for n, _ in batch] for batch in writer.batches] == [[0, 1, 2, 3], [0], [1], [2], [3]]
        await runner.stop_all("all")

    play(scene)


def test_after_a_death_every_message_of_the_batch_comes_again_alone_and_what_waited_follows(play: Any) -> None:
    async def scene(world: Any) -> None:
        world.need("succession")
        mailbox = world.mailbox("writer")
        for n in range(6):
            await world.bus.send("writer", {"n": n})
        first = Writer("writer")
        first.gate = asyncio.Event()
        await started(world, first)
        await until(lambda: first.batches)
        assert first.batches == [[(0, 1), (1, 1), (2, 1), (3, 1)]]
        world.successor()
        second = Writer("writer")
        runner = await started(world, second)
        await until(lambda: sum(map(len, second.batches)) == 6)
        assert second.batches == [[(0, 2)], [(1, 2)], [(2, 2)], [(3, 2)], [(4, 1), (5, 1)]]
        await runner.stop_all("all")
        assert world.b.stats(mailbox).unfinished == 0

    play(scene)


class Careful(Writer):
    async def handle_batch(self, messages: list[Message]) -> None:
        await super().handle_batch(messages)
        if any(message.payload.get("asks") for message in messages):
            await self.suspend_for_approval("these")


def test_a_suspension_begins_behind_the_batch_and_nothing_is_skipped_when_it_ends(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("writer")
        for n in range(4):
            await world.bus.send("writer", {"n": n, "asks": n == 1})
        writer = Careful("writer")
        runner = await started(world, writer)
        await until(lambda: writer.status is ProcessStatus.SUSPENDED)
        await world.bus.send("writer", {"n": 4})
        assert [n for batch in writer.batches for n, _ in batch] == [0, 1, 2, 3]
        assert (world.b.stats(mailbox).waiting, world.b.stats(mailbox).in_hand) == (1, 0)
        await writer.resume("ada")
        await until(lambda: len(writer.batches) == 2)
        assert writer.batches[1] == [(4, 1)]
        writer.gate = asyncio.Event()
        await world.bus.send("writer", {"n": 5})
        await until(lambda: len(writer.batches) == 3)
        suspended = asyncio.create_task(runner.steer("writer", "suspend", {"reason": "look"}))
        await asyncio.sleep(0)
        await world.bus.send("writer", {"n": 6})
        writer.gate.set()
        await suspended
        assert (len(writer.batches), writer.suspend_category) == (3, "manual"), "the message in hand was finished"
        await writer.resume("ada")
        await until(lambda: len(writer.batches) == 4)
        await runner.stop_all("all")
        assert world.b.stats(mailbox).unfinished == 0

    play(scene)


def test_what_ended_a_batch_stays_in_hand_through_a_suspension_and_is_dealt_with_once_behind_it(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("writer")
        await world.bus.send("writer", {"n": 0, "asks": True})
        assert world.a.post(mailbox, b"\xc1 no payload", "message", SENDER_PROGRAM) == SENT
        writer = Careful("writer")
        runner = await started(world, writer)
        await until(lambda: writer.status is ProcessStatus.SUSPENDED)
        assert (world.b.stats(mailbox).waiting, world.b.stats(mailbox).in_hand) == (0, 1)
        await writer.resume("ada")
        await world.bus.send("writer", {"n": 1})
        await until(lambda: len(writer.batches) == 2)
        assert writer.batches == [[(0, 1)], [(1, 1)]]
        await runner.stop_all("current")
        stats = world.b.stats(mailbox)
        assert (stats.waiting, stats.redelivered, stats.handled) == (0, 0, 3), "it went to the dead letters, once"

    play(scene)


@pytest.mark.parametrize(
    ("size", "spec", "words"),
    [
        (0, {}, "batch_size of 'writer' is 0"),
        (61, {}, "must be 1 to 60"),
        (4, {"state": "shm"}, "state: shm"),
        (4, {"delivery": "at_most_once"}, "at_least_once"),
    ],
)
def test_a_batch_that_cannot_keep_its_promise_is_refused_at_the_start(
    play: Any, size: int, spec: dict[str, Any], words: str
) -> None:
    async def scene(world: Any) -> None:
        events: list[Any] = []
        mailbox = world.mailbox("writer")
        runner = AgentRunner(world.b, on_event=events.append)
        writer = Writer("writer")
        writer.batch_size = size
        assert not await runner.start(writer, mailbox, AgentSpec("writer", "tests.Agent", **spec))
        (failed,) = [event for event in events if isinstance(event, AgentFailed)]
        assert words in failed.text

    play(scene)
