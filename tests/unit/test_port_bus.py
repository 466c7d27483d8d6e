"""The sending side: what is refused, broadcast, and what happens while a mailbox has no room."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from civitas_shm.errors import (
    AgentStopped,
    DeserializationError,
    MailboxFull,
    MessageRoutingError,
    MessageValidationError,
    PayloadTooLarge,
)
from civitas_shm.port_bus import PortBus
from civitas_shm.serializer import decode
from civitas_shm.transport import NO_MEMORY, SENDER_PROGRAM, TOO_LARGE, MailboxSpec
from civitas_shm_transports.in_process import InProcessPort


def play(scene: Callable[[InProcessPort, PortBus], Any]) -> None:
    async def run() -> None:
        port = InProcessPort()
        port.start(asyncio.get_running_loop())
        try:
            await scene(port, PortBus(port))
        finally:
            port.stop()

    asyncio.run(run())


def payloads(port: InProcessPort, name: str) -> list[dict[str, Any]]:
    """Takes all that waits."""
    found, mailbox, done = [], port.resolve(name), -1
    while (delivery := port.take(mailbox, done)) is not None:
        done = delivery[0]
        found.append(decode(delivery[4]))
    return found


@pytest.mark.parametrize("call", ["send", "ask", "broadcast"])
def test_defect_25_types_of_the_runtime_cannot_be_sent_by_agents(call: str) -> None:
    async def scene(port: InProcessPort, bus: PortBus) -> None:
        port.add_mailbox(MailboxSpec("peer"))
        with pytest.raises(MessageValidationError, match=r"_agency\.shutdown"):
            await getattr(bus, call)("peer", {}, "_agency.shutdown")
        with pytest.raises(MessageValidationError, match="must be str"):
            await getattr(bus, call)("peer", {}, 7)
        assert payloads(port, "peer") == []

    play(scene)


def test_a_payload_that_can_never_fit_is_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InProcessPort, "_admit", lambda *_: TOO_LARGE)
    monkeypatch.setattr(InProcessPort, "payload_max_bytes", 10)

    async def scene(port: InProcessPort, bus: PortBus) -> None:
        port.add_mailbox(MailboxSpec("sink"))
        for call in (bus.send, bus.ask):
            with pytest.raises(PayloadTooLarge) as caught:
                await call("sink", {"data": bytes(20)})
            assert (caught.value.size_bytes, caught.value.limit_bytes) == (28, 10)

    play(scene)


def test_no_memory_is_waited_for_as_a_full_mailbox_is(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [NO_MEMORY, NO_MEMORY]
    admit = InProcessPort._admit

    def scarce(port: InProcessPort, *arguments: Any) -> int:
        return outcomes.pop() if outcomes else admit(port, *arguments)

    monkeypatch.setattr(InProcessPort, "_admit", scarce)

    async def scene(port: InProcessPort, bus: PortBus) -> None:
        port.add_mailbox(MailboxSpec("sink"))
        await bus.send("sink", {"n": 1})
        assert payloads(port, "sink") == [{"n": 1}]

    play(scene)


def test_room_that_is_always_announced_and_never_there_leaves_the_loop_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def announced(port: InProcessPort, mailbox: int) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future

    monkeypatch.setattr(InProcessPort, "room", announced)

    async def scene(port: InProcessPort, bus: PortBus) -> None:
        port.add_mailbox(MailboxSpec("sink", 1))
        await bus.send("sink", {})
        with pytest.raises(MailboxFull):
            await bus.send("sink", {}, timeout=0.02)

    play(scene)


def test_a_waiter_that_is_cancelled_lets_the_next_one_through() -> None:
    async def scene(port: InProcessPort, bus: PortBus) -> None:
        port.add_mailbox(MailboxSpec("sink", 1))
        await bus.send("sink", {"n": 0})
        first, second = (asyncio.create_task(bus.send("sink", {"n": n}, timeout=None)) for n in (1, 2))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        mailbox = port.resolve("sink")
        assert port.take(mailbox) is not None
        await second
        assert payloads(port, "sink") == [{"n": 2}]
        await bus.send("sink", {"n": 3})

    play(scene)


def test_a_newcomer_stands_behind_those_who_wait_even_if_it_comes_just_when_there_is_room() -> None:
    async def scene(port: InProcessPort, bus: PortBus) -> None:
        mailbox = port.add_mailbox(MailboxSpec("sink", 1))
        await bus.send("sink", {"n": 0})
        waiting = asyncio.create_task(bus.send("sink", {"n": 1}, timeout=None))
        await asyncio.sleep(0)
        assert port.take(mailbox) is not None
        for newcomer in (bus.send, bus.ask):
            with pytest.raises(MailboxFull):
                await newcomer("sink", {"n": 2}, timeout=0.02)
        await waiting
        assert payloads(port, "sink") == [{"n": 1}]

    play(scene)


def test_the_error_of_a_full_mailbox_names_the_message_that_holds_it() -> None:
    async def scene(port: InProcessPort, bus: PortBus) -> None:
        mailbox = port.add_mailbox(MailboxSpec("sink", 1))
        await bus.send("sink", {}, "long work")
        with pytest.raises(MailboxFull, match="no process reads it just now"):
            await bus.send("sink", {}, timeout=0.01)
        port.listen(mailbox, lambda: None)
        port.take(mailbox)
        await bus.send("sink", {})
        with pytest.raises(MailboxFull, match="'sink' has been handling a message of type 'long work' for"):
            await bus.send("sink", {}, timeout=0.01)

    play(scene)


# --- broadcast ----------------------------------------------------------------------------------------------------


def test_broadcast_reaches_every_name_that_matches_and_no_hidden_one() -> None:
    async def scene(port: InProcessPort, bus: PortBus) -> None:
        for name in ("worker.1", "worker.2", "other", "_worker.3"):
            port.add_mailbox(MailboxSpec(name))
        await bus.broadcast("worker.*", {"n": 1})
        await bus.broadcast("*", {"n": 2})
        await bus.broadcast("_*", {"n": 3})
        assert payloads(port, "worker.1") == payloads(port, "worker.2") == [{"n": 1}, {"n": 2}]
        assert payloads(port, "other") == [{"n": 2}]
        assert payloads(port, "_worker.3") == [{"n": 3}]
        await bus.broadcast("nobody*", {})

    play(scene)


def test_defect_38_one_full_target_neither_stops_nor_delays_the_others_and_is_reported_at_the_end() -> None:
    async def scene(port: InProcessPort, bus: PortBus) -> None:
        for name in ("a", "b", "c"):
            port.add_mailbox(MailboxSpec(name, 1))
        await bus.send("a", {"n": 0})
        sending = asyncio.create_task(bus.broadcast("*", {"n": 1}, timeout=0.05))
        for _ in range(5):
            await asyncio.sleep(0)
        assert payloads(port, "b") == payloads(port, "c") == [{"n": 1}]
        with pytest.raises(ExceptionGroup) as caught:
            await sending
        assert [(type(one), one.__notes__) for one in caught.value.exceptions] == [
            (MailboxFull, ["while broadcasting to 'a'"])
        ]

    play(scene)


def test_a_broadcast_that_cannot_be_encoded_is_one_error_and_reaches_nobody() -> None:
    async def scene(port: InProcessPort, bus: PortBus) -> None:
        for name in ("a", "b"):
            port.add_mailbox(MailboxSpec(name))
        with pytest.raises(MessageValidationError, match=r"payload\.x"):
            await bus.broadcast("*", {"x": set()})
        assert payloads(port, "a") == payloads(port, "b") == []

    play(scene)


# --- asks ---------------------------------------------------------------------------------------------------------


def test_a_reply_that_cannot_be_decoded_is_a_deserialization_error() -> None:
    async def scene(port: InProcessPort, bus: PortBus) -> None:
        mailbox = port.add_mailbox(MailboxSpec("echo"))
        for failed in (False, True):
            asking = asyncio.create_task(bus.ask("echo", {}))
            await asyncio.sleep(0)
            delivery = port.take(mailbox)
            assert delivery is not None
            port.post_reply(delivery[1], b"\xc1", "reply", mailbox, failed)
            with pytest.raises(DeserializationError):
                await asking

    play(scene)


def test_an_asker_is_seen_to_wait_while_it_does_and_not_afterwards() -> None:
    async def scene(port: InProcessPort, bus: PortBus) -> None:
        asker, mailbox = (port.add_mailbox(MailboxSpec(name)) for name in ("asker", "echo"))
        with pytest.raises(TimeoutError):
            await asyncio.gather(bus.ask("echo", {}, sender=asker, timeout=0.01), looking(port, asker, mailbox))
        assert port.stats(asker).asking == -1

    async def looking(port: InProcessPort, asker: int, mailbox: int) -> None:
        assert port.stats(asker).asking == mailbox

    play(scene)


def test_an_agent_that_was_made_anew_is_reached_under_its_name() -> None:
    async def scene(port: InProcessPort, bus: PortBus) -> None:
        first = port.add_mailbox(MailboxSpec("agent"))
        port.close_mailbox(first)
        with pytest.raises(AgentStopped):
            await bus.send("agent", {})
        assert port.add_mailbox(MailboxSpec("agent")) != first
        await bus.send("agent", {"n": 1})
        assert payloads(port, "agent") == [{"n": 1}]

    play(scene)


def test_nothing_is_left_of_asks_that_were_answered_cancelled_or_late() -> None:
    async def scene(port: InProcessPort, bus: PortBus) -> None:
        mailbox = port.add_mailbox(MailboxSpec("echo"))
        cancelled = asyncio.create_task(bus.ask("echo", {}))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        with pytest.raises(TimeoutError):
            await bus.ask("echo", {}, timeout=0.01)
        assert len(payloads(port, "echo")) == 2
        asking = [asyncio.create_task(bus.ask("echo", {})) for _ in range(10)]
        await asyncio.sleep(0)
        done = -1
        while (delivery := port.take(mailbox, done)) is not None:
            done = delivery[0]
            port.post_reply(delivery[1], delivery[4], "reply", mailbox)
        await asyncio.gather(*asking)
        assert port._asks == {}
        assert bus.waits.asks == {}
        assert bus._lines == {}

    play(scene)


def test_unknown_names_are_told_apart_from_an_empty_run() -> None:
    async def scene(port: InProcessPort, bus: PortBus) -> None:
        with pytest.raises(MessageRoutingError, match="no agent is there"):
            await bus.send("anyone", {})
        port.add_mailbox(MailboxSpec("planner"))
        with pytest.raises(MessageRoutingError, match="1 others are there"):
            await bus.send("zzz", {}, sender=SENDER_PROGRAM)

    play(scene)
