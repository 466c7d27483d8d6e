"""Every transport: what a mailbox promises to those who send to it and to the one who reads it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import Any

import pytest

from civitas_shm.errors import AgentStopped, MailboxFull, MessageRoutingError, TransportClosed
from civitas_shm.messages import LANE_CONTROL, LANE_NORMAL, LANE_PRIORITY, Message
from civitas_shm.serializer import decode
from civitas_shm.transport import CLOSED, FULL, SENDER_PROGRAM, SENT, Delivery, Port


def post(port: Port, mailbox: int, payload: bytes, lane: int = LANE_NORMAL) -> int:
    return port.post(mailbox, payload, "t", SENDER_PROGRAM, None, lane, 0)


async def taken(port: Port, mailbox: int, done: int = -1) -> Delivery:
    """The next message; a transport may need some turns of the loop to show it."""
    while True:
        delivery = port.take(mailbox, done)
        if delivery is not None:
            return delivery
        done = -1
        await asyncio.sleep(0)


def listen(port: Port, mailbox: int) -> asyncio.Event:
    ready = asyncio.Event()
    port.listen(mailbox, ready.set)
    return ready


# --- order and capacity -------------------------------------------------------------------------------------------


def test_messages_of_one_sender_arrive_in_their_order_through_a_mailbox_smaller_than_their_number(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("sink", capacity=7)
        listen(world.b, mailbox)

        async def send_all() -> None:
            for number in range(500):
                await world_bus.send("sink", {"n": number})

        world_bus = world.bus
        sending = asyncio.create_task(send_all())
        seen, done = [], -1
        for _ in range(500):
            delivery = await taken(world.b, mailbox, done)
            done = delivery[0]
            seen.append(decode(delivery[4])["n"])
        await sending
        assert seen == list(range(500))

    play(scene)


def test_size_five_holds_five_that_wait_beside_the_one_in_hand(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("sink", capacity=5)
        listen(world.b, mailbox)
        assert post(world.a, mailbox, b"in hand") == SENT
        token = (await taken(world.b, mailbox))[0]
        assert [post(world.a, mailbox, b"waits") for _ in range(6)] == [SENT] * 5 + [FULL]
        stats = world.b.stats(mailbox)
        assert (stats.name, stats.capacity, stats.waiting, stats.in_hand) == ("sink", 5, 5, 1)
        world.b.release(mailbox, token)
        assert post(world.a, mailbox, b"the place in hand is not one of the five") == FULL
        assert await taken(world.b, mailbox)
        assert post(world.a, mailbox, b"room again") == SENT

    play(scene)


def test_room_resolves_when_a_message_is_taken_from_a_full_mailbox(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("sink", capacity=1)
        listen(world.b, mailbox)
        assert [post(world.a, mailbox, b"x") for _ in range(2)] == [SENT, FULL]
        room = world.a.room(mailbox)
        await asyncio.sleep(0)
        await taken(world.b, mailbox)
        await room
        assert post(world.a, mailbox, b"y") == SENT

    play(scene)


def test_waiters_for_one_full_mailbox_are_served_in_the_order_in_which_they_came(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("sink", capacity=1)
        listen(world.b, mailbox)
        bus = world.bus
        await bus.send("sink", {"n": 0})
        waiters = []
        for number in range(1, 20):
            waiters.append(asyncio.create_task(bus.send("sink", {"n": number})))
            await asyncio.sleep(0)
        seen, done = [], -1
        for _ in range(20):
            delivery = await taken(world.b, mailbox, done)
            done = delivery[0]
            seen.append(decode(delivery[4])["n"])
        await asyncio.gather(*waiters)
        assert seen == list(range(20))

    play(scene)


def test_a_message_is_handed_over_with_its_type_sender_and_header(play: Any) -> None:
    async def scene(world: Any) -> None:
        sender, mailbox = world.mailbox("source"), world.mailbox("sink")
        listen(world.b, mailbox)
        assert world.a.post(mailbox, b"first", "cause", SENDER_PROGRAM) == SENT
        _, cause, kind, name, payload, delivery = await taken(world.b, mailbox)
        assert (kind, name, payload, delivery) == ("cause", "_runtime", b"first", 1)
        assert world.a.post(mailbox, b"second", "effect", sender, cause, LANE_NORMAL, 3) == SENT
        _, header, kind, name, payload, _ = await taken(world.b, mailbox)
        assert (kind, name, payload) == ("effect", "source", b"second")
        first = Message.received(cause, "cause", "", "", {}, 1)
        second = Message.received(header, kind, name, "sink", {}, 1)
        assert second.trace_id == first.trace_id
        assert second.parent_span_id == first.span_id
        assert second.id != first.id
        assert second.priority == 3
        assert second.correlation_id is None

    play(scene)


def test_control_overtakes_priority_and_priority_overtakes_normal(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("sink")
        for lane in (LANE_NORMAL, LANE_PRIORITY, LANE_CONTROL, LANE_NORMAL, LANE_PRIORITY, LANE_CONTROL):
            assert post(world.a, mailbox, str(lane).encode(), lane) == SENT
        listen(world.b, mailbox)
        seen, done = b"", -1
        for _ in range(6):
            delivery = await taken(world.b, mailbox, done)
            done, seen = delivery[0], seen + delivery[4]
        assert seen == b"001122"

    play(scene)


def test_priority_has_places_of_its_own_when_the_normal_lane_is_full(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("sink", capacity=1)
        assert [post(world.a, mailbox, b"x") for _ in range(2)] == [SENT, FULL]
        await world.bus.send("sink", {"urgent": True}, priority=1)
        listen(world.b, mailbox)
        assert decode((await taken(world.b, mailbox))[4]) == {"urgent": True}

    play(scene)


def test_eight_mebibytes_arrive_unchanged(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("sink")
        listen(world.b, mailbox)
        payload = os.urandom(8 << 20)
        assert post(world.a, mailbox, payload) == SENT
        token, _, _, _, arrived, _ = await taken(world.b, mailbox)
        assert hashlib.sha256(arrived).digest() == hashlib.sha256(payload).digest()
        world.b.release(mailbox, token)

    play(scene)


# --- overflow -----------------------------------------------------------------------------------------------------


def test_block_waits_until_the_deadline_and_the_error_says_whose_how_large_how_long_and_who(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("sink", capacity=2)
        listen(world.b, mailbox)
        post(world.a, mailbox, b"in hand")
        await taken(world.b, mailbox)
        bus = world.bus
        await bus.send("sink", {})
        await bus.send("sink", {})
        with pytest.raises(MailboxFull) as caught:
            await bus.send("sink", {}, timeout=0.05)
        assert (caught.value.name, caught.value.capacity) == ("sink", 2)
        assert caught.value.waited_s >= 0.04
        assert "has been handling" in caught.value.holder
        assert world.a.stats(mailbox).waiting == 2

    play(scene)


def test_error_refuses_at_once_even_a_sender_that_would_wait_for_ever(play: Any) -> None:
    async def scene(world: Any) -> None:
        world.mailbox("sink", capacity=1, overflow="error")
        bus = world.bus
        await bus.send("sink", {})
        with pytest.raises(MailboxFull):
            await bus.send("sink", {}, timeout=None)

    play(scene)


def test_drop_oldest_keeps_the_newest_and_counts_what_it_dropped(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("sink", capacity=3, overflow="drop_oldest")
        listen(world.b, mailbox)
        for number in range(10):
            assert post(world.a, mailbox, bytes([number])) == SENT
        assert world.a.stats(mailbox).waiting == 3
        assert world.a.stats(mailbox).dropped == 7
        seen, done = b"", -1
        for _ in range(3):
            delivery = await taken(world.b, mailbox, done)
            done, seen = delivery[0], seen + delivery[4]
        assert seen == bytes([7, 8, 9])

    play(scene)


def test_latest_keeps_the_newest_alone_and_never_drops_what_is_in_hand(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("sink", capacity=1, overflow="latest")
        listen(world.b, mailbox)
        assert post(world.a, mailbox, b"in hand") == SENT
        token = (await taken(world.b, mailbox))[0]
        for number in range(10):
            assert post(world.a, mailbox, bytes([number])) == SENT
        assert world.b.stats(mailbox).in_hand == 1
        assert (await taken(world.b, mailbox, token))[4] == bytes([9])

    play(scene)


# --- names and closing --------------------------------------------------------------------------------------------


def test_an_unknown_name_fails_at_once_and_the_error_has_the_names_that_come_close(play: Any) -> None:
    async def scene(world: Any) -> None:
        world.mailbox("planner")
        assert world.a.resolve("plannner") == -1
        with pytest.raises(MessageRoutingError, match="'planner'"):
            await world.bus.send("plannner", {})

    play(scene)


def test_names_are_those_of_open_mailboxes(play: Any) -> None:
    async def scene(world: Any) -> None:
        world.mailbox("one")
        gone = world.mailbox("two")
        assert {"one", "two"} <= set(world.a.names())
        world.admin.close_mailbox(gone)
        assert "one" in world.a.names()
        assert "two" not in world.a.names()

    play(scene)


def test_after_a_close_nothing_is_committed_and_what_waited_is_given_back(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("sink")
        assert [post(world.a, mailbox, b"x") for _ in range(3)] == [SENT] * 3
        removed = world.admin.close_mailbox(mailbox)
        assert [(one.type, one.payload_len) for one in removed] == [("t", 1)] * 3
        assert post(world.a, mailbox, b"late") == CLOSED
        assert world.a.stats(mailbox).closed
        with pytest.raises(AgentStopped):
            await world.bus.send("sink", {})

    play(scene)


def test_a_sender_that_waits_for_room_learns_of_the_close(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("sink", capacity=1)
        bus = world.bus
        await bus.send("sink", {})
        waiters = [asyncio.create_task(bus.send("sink", {}, timeout=None)) for _ in range(3)]
        for _ in range(5):
            await asyncio.sleep(0)
        world.admin.close_mailbox(mailbox)
        results = await asyncio.gather(*waiters, return_exceptions=True)
        assert [type(result) for result in results] == [AgentStopped] * 3

    play(scene)


def test_a_port_that_has_left_neither_sends_nor_waits(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("sink", capacity=1)
        post(world.a, mailbox, b"x")
        room = world.a.room(mailbox)
        world.a.stop()
        with pytest.raises(TransportClosed):
            await room
        with pytest.raises(TransportClosed):
            post(world.a, mailbox, b"y")
        world.a.stop()

    play(scene)


# --- redelivery and state -----------------------------------------------------------------------------------------


def test_what_was_in_hand_at_a_death_comes_first_to_the_successor_with_a_raised_count(play: Any) -> None:
    async def scene(world: Any) -> None:
        world.need("succession")
        mailbox = world.mailbox("sink")
        listen(world.b, mailbox)
        for number in range(4):
            post(world.a, mailbox, bytes([number]))
        token = (await taken(world.b, mailbox))[0]
        await taken(world.b, mailbox, token)
        heir = world.successor()
        listen(heir, mailbox)
        seen, done = [], -1
        for _ in range(3):
            delivery = await taken(heir, mailbox, done)
            done = delivery[0]
            seen.append((delivery[4], delivery[5]))
        assert seen == [(b"\x01", 2), (b"\x02", 1), (b"\x03", 1)]

    play(scene)


def test_a_reader_that_leaves_without_a_release_leaves_the_message_to_the_next(play: Any) -> None:
    async def scene(world: Any) -> None:
        if "succession" not in world.cannot:
            pytest.skip("a reader that lives keeps what it has in hand; the test above shows its death")
        mailbox = world.mailbox("sink")
        listen(world.b, mailbox)
        post(world.a, mailbox, b"x")
        await taken(world.b, mailbox)
        world.b.unlisten(mailbox)
        listen(world.b, mailbox)
        delivery = await taken(world.b, mailbox)
        assert delivery[4:] == (b"x", 2)

    play(scene)


def test_news_of_the_runtime_are_counted_apart_and_are_nothing_that_is_unfinished(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("sink")
        listen(world.b, mailbox)
        for lane in (LANE_CONTROL, LANE_CONTROL, LANE_NORMAL):
            assert world.a.post(mailbox, b"x", "m", SENDER_PROGRAM, None, lane) == SENT
        token = (await taken(world.b, mailbox))[0]  # news come first
        stats = world.a.stats(mailbox)
        assert (stats.waiting, stats.in_hand, stats.news, stats.unfinished) == (2, 1, 2, 1)
        assert world.admin.waiting() == {"sink": 1}
        token = (await taken(world.b, mailbox, token))[0]
        world.b.release(mailbox, (await taken(world.b, mailbox, token))[0])
        assert world.a.stats(mailbox).news == 0
        assert world.admin.waiting() == {}

    play(scene)


def test_committed_state_is_stored_with_the_identity_of_its_message(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("sink")
        listen(world.b, mailbox)
        assert world.b.stored_state(mailbox) is None
        for state in (b"one", b"two" * 10_000):
            post(world.a, mailbox, b"x")
            token, header, *_ = await taken(world.b, mailbox)
            assert world.b.commit_state(mailbox, token, state) == SENT
            world.b.release(mailbox, token)
            assert world.b.stored_state(mailbox) == (state, header[32:48])

    play(scene)


def test_state_survives_the_death_of_its_process(play: Any) -> None:
    async def scene(world: Any) -> None:
        world.need("succession")
        mailbox = world.mailbox("sink")
        listen(world.b, mailbox)
        post(world.a, mailbox, b"x")
        token, header, *_ = await taken(world.b, mailbox)
        world.b.commit_state(mailbox, token, b"kept")
        heir = world.successor()
        listen(heir, mailbox)
        assert heir.stored_state(mailbox) == (b"kept", header[32:48])
        assert (await taken(heir, mailbox))[1][32:48] == header[32:48]

    play(scene)
