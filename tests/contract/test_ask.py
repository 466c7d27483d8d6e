"""Every transport: questions, answers, deadlines, and what an asker hears when nobody answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from civitas_shm.errors import AgentError, AgentStopped, MailboxFull, MessageDropped, TransportClosed
from civitas_shm.messages import Message
from civitas_shm.port_bus import PortBus
from civitas_shm.serializer import decode, encode
from civitas_shm.transport import SENDER_PROGRAM, SENT, Delivery, Port


async def taken(port: Port, mailbox: int, done: int = -1) -> Delivery:
    while True:
        delivery = port.take(mailbox, done)
        if delivery is not None:
            return delivery
        done = -1
        await asyncio.sleep(0)


def ready() -> None:
    """These scenes look for messages themselves."""


async def echo(port: Port, mailbox: int, count: int) -> None:
    """Answers `count` questions with what they hold."""
    done = -1
    for _ in range(count):
        token, header, _, _, payload, _ = await taken(port, mailbox, done)
        assert port.post_reply(header, payload, "reply", mailbox)
        done = token
    port.release(mailbox, done)


def test_each_asker_gets_the_answer_to_its_own_question(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("echo")
        world.b.listen(mailbox, ready)
        answering = asyncio.create_task(echo(world.b, mailbox, 200))
        bus = world.bus
        replies = await asyncio.gather(*(bus.ask("echo", {"n": number}) for number in range(200)))
        assert [reply.payload["n"] for reply in replies] == list(range(200))
        assert {(reply.type, reply.sender) for reply in replies} == {("reply", "echo")}
        await answering

    play(scene)


def test_an_ask_carries_a_correlation_and_its_reply_the_same_one_and_the_same_trace(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("echo")
        world.b.listen(mailbox, ready)
        asking = asyncio.create_task(world.bus.ask("echo", {}))
        _, header, kind, sender, _, _ = await taken(world.b, mailbox)
        asked = Message.received(header, kind, sender, "echo", {}, 1)
        assert asked.correlation_id is not None
        assert asked.reply_to == f"_reply.{asked.correlation_id}"
        assert asked.deadline_ns > 0
        assert world.b.post_reply(header, encode({}), "reply", mailbox)
        reply = await asking
        assert reply.correlation_id == asked.correlation_id
        assert reply.trace_id == asked.trace_id

    play(scene)


def test_a_failed_reply_is_an_agent_error_with_the_remote_type_text_and_traceback(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("echo")
        world.b.listen(mailbox, ready)
        asking = asyncio.create_task(world.bus.ask("echo", {}))
        _, header, *_ = await taken(world.b, mailbox)
        fields = {"type": "ValueError", "text": "seven", "traceback": "Traceback: here"}
        world.b.post_reply(header, encode(fields), "error", mailbox, True)
        with pytest.raises(AgentError) as caught:
            await asking
        assert (caught.value.agent, caught.value.type_name, caught.value.text) == ("echo", "ValueError", "seven")
        assert caught.value.remote_traceback == "Traceback: here"

    play(scene)


def test_an_ask_that_nobody_answers_ends_at_its_deadline_and_the_late_reply_is_dropped(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("slow")
        world.b.listen(mailbox, ready)
        bus = world.bus
        with pytest.raises(TimeoutError, match="'slow' did not answer 'message' within"):
            await bus.ask("slow", {}, timeout=0.05)
        token, header, *_ = await taken(world.b, mailbox)
        assert not world.b.post_reply(header, encode({}), "reply", mailbox)
        world.b.release(mailbox, token)
        answering = asyncio.create_task(echo(world.b, mailbox, 1))
        assert (await bus.ask("slow", {"next": True})).payload == {"next": True}
        await answering

    play(scene)


def test_defect_23_the_deadline_of_an_ask_covers_the_wait_for_room_and_then_nothing_was_committed(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("full", capacity=1)
        bus = world.bus
        await bus.send("full", {})
        asking = asyncio.create_task(bus.ask("full", {}, timeout=0.05))
        await asyncio.sleep(0.2)  # a timer that begins later and lasts longer fires later, on any machine
        for _ in range(10):
            await asyncio.sleep(0)
        assert asking.done(), "its deadline has passed, and it still waits for room"
        with pytest.raises(TimeoutError) as caught:
            await asking
        assert isinstance(caught.value, MailboxFull)
        assert world.a.stats(mailbox).waiting == 1

    play(scene)


@pytest.mark.parametrize("timeout", [None, 0, -1])
def test_without_a_timeout_an_ask_waits_until_it_is_answered(play: Any, timeout: float | None) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("echo")
        world.b.listen(mailbox, ready)
        asking = asyncio.create_task(world.bus.ask("echo", {"n": 1}, timeout=timeout))
        _, header, _, _, payload, _ = await taken(world.b, mailbox)
        assert Message.received(header, "", "", "", {}, 1).deadline_ns == 0
        await asyncio.sleep(0.02)
        assert world.b.post_reply(header, payload, "reply", mailbox)
        assert (await asking).payload == {"n": 1}

    play(scene)


def test_a_cancelled_ask_takes_nothing_from_the_next_one(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("echo")
        world.b.listen(mailbox, ready)
        bus = world.bus
        asking = asyncio.create_task(bus.ask("echo", {"n": 1}))
        _, header, _, _, payload, _ = await taken(world.b, mailbox)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        world.b.post_reply(header, payload, "reply", mailbox)
        answering = asyncio.create_task(echo(world.b, mailbox, 1))
        assert (await bus.ask("echo", {"n": 2})).payload == {"n": 2}
        await answering

    play(scene)


def test_a_message_that_was_no_ask_cannot_be_answered(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("sink")
        world.b.listen(mailbox, ready)
        assert world.a.post(mailbox, b"x", "t", SENDER_PROGRAM) == SENT
        _, header, *_ = await taken(world.b, mailbox)
        assert not world.b.post_reply(header, b"y", "reply", mailbox)

    play(scene)


def test_only_the_first_of_two_replies_counts(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("echo")
        world.b.listen(mailbox, ready)
        asking = asyncio.create_task(world.bus.ask("echo", {}))
        _, header, *_ = await taken(world.b, mailbox)
        world.b.post_reply(header, encode({"n": 1}), "reply", mailbox)
        world.b.post_reply(header, encode({"n": 2}), "reply", mailbox)
        assert (await asking).payload == {"n": 1}

    play(scene)


def test_defect_42_askers_in_a_mailbox_that_is_closed_hear_at_once_that_the_agent_has_stopped(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("gone")
        bus = world.bus
        asking = [asyncio.create_task(bus.ask("gone", {}, timeout=None)) for _ in range(3)]
        while world.a.stats(mailbox).waiting < 3:
            await asyncio.sleep(0)
        world.admin.close_mailbox(mailbox)
        results = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(result) for result in results] == [AgentStopped] * 3

    play(scene)


def test_pending_asks_fail_when_their_own_process_leaves(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("echo")
        asking = asyncio.create_task(world.bus.ask("echo", {}, timeout=None))
        while not world.a.stats(mailbox).waiting:
            await asyncio.sleep(0)
        world.a.stop()
        with pytest.raises(TransportClosed):
            await asking

    play(scene)


def test_an_ask_survives_the_death_of_the_process_that_was_answering_it(play: Any) -> None:
    async def scene(world: Any) -> None:
        world.need("succession")
        mailbox = world.mailbox("echo")
        world.b.listen(mailbox, ready)
        asking = asyncio.create_task(world.bus.ask("echo", {"n": 1}, timeout=None))
        await taken(world.b, mailbox)
        heir = world.successor()
        heir.listen(mailbox, ready)
        _, header, _, _, payload, delivery = await taken(heir, mailbox)
        assert delivery == 2
        heir.post_reply(header, payload, "reply", mailbox)
        assert (await asking).payload == {"n": 1}

    play(scene)


def test_many_deadlines_end_each_at_its_own_time_and_none_early(play: Any) -> None:
    async def scene(world: Any) -> None:
        world.mailbox("silent")
        bus = PortBus(world.a)
        loop = asyncio.get_running_loop()

        async def one(timeout_s: float) -> bool:
            began = loop.time()
            with pytest.raises(TimeoutError):
                await bus.ask("silent", {}, timeout=timeout_s)
            return loop.time() - began >= timeout_s - 0.002  # uvloop's clock has milliseconds

        assert all(await asyncio.gather(*(one(0.01 + 0.001 * number) for number in range(60))))

    play(scene)


@pytest.mark.parametrize("policy", ["drop_oldest", "latest"])
def test_who_asks_a_mailbox_that_drops_the_question_is_told_at_once(play: Any, policy: str) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("busy", capacity=1, overflow=policy)
        bus = world.bus
        asking = asyncio.create_task(bus.ask("busy", {}, "first", timeout=None))
        while not world.a.stats(mailbox).waiting:
            await asyncio.sleep(0)
        await bus.send("busy", {}, "newer")
        with pytest.raises(MessageDropped) as caught:
            await asking
        error = caught.value
        assert (error.name, error.capacity, error.overflow, error.dropped) == ("busy", 1, policy, 1)
        assert "'first'" in str(error)
        assert world.b.stats(mailbox).dropped == 1

    play(scene)


def test_a_question_that_another_process_drops_is_answered_to_its_asker_and_the_newer_one_is_not(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("busy", capacity=1, overflow="drop_oldest")
        one, other = PortBus(world.a), PortBus(world.b)
        asking = asyncio.create_task(one.ask("busy", {"n": 1}, timeout=None))
        while not world.a.stats(mailbox).waiting:
            await asyncio.sleep(0)
        newer = asyncio.create_task(other.ask("busy", {"n": 2}, timeout=None))
        with pytest.raises(MessageDropped):
            await asking
        world.b.listen(mailbox, ready)
        await echo(world.b, mailbox, 1)
        assert (await newer).payload == {"n": 2}

    play(scene)


def test_a_reply_may_be_as_large_as_a_message(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("echo")
        world.b.listen(mailbox, ready)
        asking = asyncio.create_task(world.bus.ask("echo", {}))
        _, header, *_ = await taken(world.b, mailbox)
        assert world.b.post_reply(header, encode({"data": bytes(8 << 20)}), "reply", mailbox)
        assert decode(encode((await asking).payload)) == {"data": bytes(8 << 20)}

    play(scene)
