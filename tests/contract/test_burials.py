"""Every transport: messages that are given up, handed over at most once, or struck; and their letters' way back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from civitas_shm.clock import SystemClock
from civitas_shm.dead_letters import DeadLetterOffice, MemoryLetters
from civitas_shm.letters import Note
from civitas_shm.messages import HEADER, LANE_PRIORITY
from civitas_shm.port_bus import PortBus
from civitas_shm.serializer import encode
from civitas_shm.transport import CLOSED, FULL, SENDER_PROGRAM, SENT, STRIKES_MAX, Buried, Delivery, Port


async def taken(port: Port, mailbox: int, done: int = -1) -> Delivery:
    """The next message; a transport may need some turns of the loop to show it."""
    while True:
        delivery = port.take(mailbox, done)
        if delivery is not None:
            return delivery
        done = -1
        await asyncio.sleep(0)


def post(port: Port, mailbox: int, payload: bytes, sender: int = SENDER_PROGRAM) -> None:
    assert port.post(mailbox, payload, "t", sender) == SENT


def office_of(world: Any) -> DeadLetterOffice:
    return DeadLetterOffice(world.admin, MemoryLetters, SystemClock())


def bury(port: Port, mailbox: int, delivery: Delivery, note: Note) -> None:
    assert port.bury(mailbox, delivery[0], delivery[1], note.encode()) == SENT


# --- giving up ----------------------------------------------------------------------------------------------------


def test_a_buried_message_is_kept_whole_until_it_is_discarded_and_nobody_gets_it_again(play: Any) -> None:
    async def scene(world: Any) -> None:
        sender, mailbox = world.mailbox("source"), world.mailbox("sink")
        world.b.listen(mailbox, lambda: None)
        post(world.a, mailbox, b"bad", sender)
        post(world.a, mailbox, b"good", sender)
        delivery = await taken(world.b, mailbox)
        bury(world.b, mailbox, delivery, Note("it was bad", "traceback", 2))
        assert (await taken(world.b, mailbox, delivery[0]))[4] == b"good"
        for _ in range(2):
            (grave,) = world.admin.buried()
            assert (grave.payload, grave.type, grave.sender, grave.recipient) == (b"bad", "t", "source", "sink")
            assert (grave.header, grave.delivery, grave.sound, grave.once) == (delivery[1], 1, True, False)
            assert Note.decode(grave.note) == Note("it was bad", "traceback", 2)
        assert world.admin.waiting()["sink"] >= 1
        world.admin.discard(grave.mailbox, grave.token)
        assert world.admin.buried() == []

    play(scene)


def test_without_a_note_a_burial_always_finds_room(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("sink")
        world.b.listen(mailbox, lambda: None)
        notes = 0
        for number in range(60):
            post(world.a, mailbox, b"%d" % number)
            token, header, *_ = await taken(world.b, mailbox)
            outcome = world.b.bury(mailbox, token, header, Note(f"why {number}").encode())
            notes += outcome == SENT
            if outcome != SENT:
                assert outcome == FULL
                assert world.b.bury(mailbox, token, header, b"") == SENT
        graves = world.admin.buried()
        assert [grave.payload for grave in graves] == [b"%d" % number for number in range(60)]
        assert sum(bool(grave.note) for grave in graves) == notes
        for grave in graves:
            world.admin.discard(grave.mailbox, grave.token)
        assert world.b.stats(mailbox).in_hand == 0

    play(scene)


def test_letters_of_many_buried_messages_are_written_with_what_was_said_about_each(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("sink")
        world.b.listen(mailbox, lambda: None)
        office = office_of(world)
        for number in range(300):
            post(world.a, mailbox, b"%d" % number)
            delivery = await taken(world.b, mailbox)
            bury(world.b, mailbox, delivery, Note(f"why {number}"))
            if number % 7 == 0:
                office.collect()
        office.collect()
        letters = list(reversed(office.store.letters(payloads=True)))
        assert [(letter.payload, letter.cause) for letter in letters] == [
            (b"%d" % number, f"why {number}") for number in range(300)
        ]
        assert {letter.recipient for letter in letters} == {"sink"}
        assert world.b.stats(mailbox).in_hand == 0
        assert world.admin.buried() == []

    play(scene)


def test_who_asked_is_told_when_the_message_is_convicted(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("sink")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        assert world.a.post_ask(mailbox, b"", "question", SENDER_PROGRAM, future, 0) > 0
        _, header, *_ = await taken(world.b, mailbox)
        world.admin.answer_failed(header, encode({"type": "ProcessDied", "text": "why"}), mailbox)
        reply = await future
        assert reply[5] is True

    play(scene)


# --- strikes and at-most-once -------------------------------------------------------------------------------------


def test_a_struck_message_is_handed_over_again_and_its_strikes_are_kept(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("sink")
        post(world.a, mailbox, b"x")
        for strikes in range(1, STRIKES_MAX + 3):
            world.b.listen(mailbox, lambda: None)
            token, header, *_, count = await taken(world.b, mailbox)
            assert count == strikes
            if strikes <= STRIKES_MAX + 1:
                assert world.b.strike(mailbox, token) == min(strikes, STRIKES_MAX)
                world.b.unlisten(mailbox)
        bury(world.b, mailbox, (token, header, "", "", b"", 1), Note("enough"))
        (grave,) = world.admin.buried()
        assert (grave.strikes, grave.delivery) == (STRIKES_MAX, STRIKES_MAX + 2)

    play(scene)


def test_what_is_to_be_had_once_is_buried_by_the_next_incarnation_and_not_handed_over(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("sink")
        world.b.listen(mailbox, lambda: None)
        for payload in (b"finished", b"cut off", b"next"):
            post(world.a, mailbox, payload)
        done = (await taken(world.b, mailbox))[0]
        assert world.b.forgo(mailbox, done)
        token = (await taken(world.b, mailbox, done))[0]
        assert world.b.forgo(mailbox, token)
        world.b.unlisten(mailbox)
        world.b.listen(mailbox, lambda: None)
        token, *_, payload, count = await taken(world.b, mailbox)
        assert (payload, count) == (b"next", 1)
        world.b.release(mailbox, token)
        (grave,) = world.admin.buried()
        assert (grave.payload, grave.once, grave.note) == (b"cut off", True, b"")
        office = office_of(world)
        office.collect()
        assert "at_most_once" in office.store.letters()[0].cause

    play(scene)


def test_the_numbers_of_a_handler_are_the_same_at_most_once(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("sink")
        world.b.listen(mailbox, lambda: None)
        post(world.a, mailbox, b"x")
        token = (await taken(world.b, mailbox))[0]
        world.b.forgo(mailbox, token)
        assert world.b.stats(mailbox).busy_since_ns > 0
        world.b.release(mailbox, token)
        stats = world.b.stats(mailbox)
        assert (stats.handled, stats.busy_since_ns, stats.in_hand) == (1, 0, 0)

    play(scene)


# --- replay -------------------------------------------------------------------------------------------------------


def test_a_replayed_letter_is_a_new_message_of_the_same_trace_one_hop_on(play: Any) -> None:
    async def scene(world: Any) -> None:
        sender, mailbox = world.mailbox("source"), world.mailbox("sink")
        world.b.listen(mailbox, lambda: None)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        assert world.a.post_ask(mailbox, b"question", "t", sender, future, 0, None, LANE_PRIORITY, 5) > 0
        office = office_of(world)
        first = await taken(world.b, mailbox)
        bury(world.b, mailbox, first, Note("later"))
        headers = [HEADER.unpack(first[1])]
        for hops in (1, 2):
            office.collect()
            (letter,) = office.store.letters()
            assert letter.hops == hops - 1
            assert office.replay(letter.id[:20]) is None
            assert len(office.store) == 0
            token, header, kind, name, payload, count = again = await taken(world.b, mailbox)
            assert (kind, name, payload, count) == ("t", "source", b"question", 1)
            fields = HEADER.unpack(header)
            assert fields[10] == hops
            assert fields[13] == 5, "its priority"
            assert fields[14] == 0, "nobody waits for its answer"
            assert fields[17] == headers[0][17], "its trace"
            assert fields[19] == headers[-1][18], "its parent is what it is a copy of"
            assert fields[11] not in {each[11] for each in headers}
            headers.append(fields)
            if hops == 1:
                bury(world.b, mailbox, again, Note("again"))
            else:
                world.b.release(mailbox, token)

    play(scene)


def test_a_letter_stays_where_its_recipient_cannot_take_it(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("sink", capacity=1)
        world.b.listen(mailbox, lambda: None)
        post(world.a, mailbox, b"bad")
        bury(world.b, mailbox, await taken(world.b, mailbox), Note("x"))
        office = office_of(world)
        office.collect()
        (letter,) = office.store.letters()
        post(world.a, mailbox, b"in the way")
        assert "is full" in str(office.replay(letter.id))
        world.admin.close_mailbox(mailbox)
        assert "stopped" in str(office.replay(letter.id))
        assert len(office.store) == 1
        again = world.mailbox("sink", capacity=1)
        assert again != mailbox
        assert office.replay(letter.id) is None, "the name has a mailbox again"

    play(scene)


def test_what_is_left_in_a_closed_mailbox_is_given_to_who_keeps_it_before_it_goes(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("sink")
        for number in range(100):
            post(world.a, mailbox, b"%d" % number)
        kept: list[Buried] = []
        removed = world.admin.close_mailbox(mailbox, kept.append)
        assert len(removed) == 100
        assert [each.payload for each in kept] == [b"%d" % number for number in range(100)]
        assert {(each.recipient, each.delivery) for each in kept} == {("sink", 0)}
        assert world.a.post(mailbox, b"", "t", SENDER_PROGRAM) == CLOSED

    play(scene)


# --- deaths (where processes die) ---------------------------------------------------------------------------------


def test_a_buried_message_and_its_note_outlive_their_reader(play: Any) -> None:
    async def scene(world: Any) -> None:
        world.need("succession")
        mailbox = world.mailbox("sink")
        world.b.listen(mailbox, lambda: None)
        post(world.a, mailbox, b"bad")
        bury(world.b, mailbox, await taken(world.b, mailbox), Note("why"))
        heir = world.successor()
        heir.listen(mailbox, lambda: None)
        for _ in range(20):
            assert heir.take(mailbox) is None
            await asyncio.sleep(0)
        (grave,) = world.admin.buried()
        assert (grave.payload, Note.decode(grave.note).cause) == (b"bad", "why")

    play(scene)


def test_a_suspect_waits_until_it_begins_and_is_counted_then(play: Any) -> None:
    async def scene(world: Any) -> None:
        world.need("succession")
        mailbox = world.mailbox("sink")
        world.b.listen(mailbox, lambda: None)
        post(world.a, mailbox, b"x")
        token = (await taken(world.b, mailbox))[0]
        (entry,) = world.admin.in_hand(world.b.slot)
        assert (entry.running, entry.strikes, entry.kills, entry.delivery) == (True, 0, 0, 1)
        heir = world.successor()  # which judges nobody: as the world's host
        (entry,) = world.admin.in_hand(heir.slot)
        world.admin.judge(entry, 1, 2, True)
        heir.listen(mailbox, lambda: None)
        token, *_, count = await taken(heir, mailbox)
        assert count == -1
        (entry,) = world.admin.in_hand(heir.slot)
        assert (entry.running, entry.strikes, entry.kills, entry.delivery) == (False, 1, 2, 1)
        assert heir.begin(mailbox, token) == 2
        (entry,) = world.admin.in_hand(heir.slot)
        assert (entry.running, entry.delivery) == (True, 2)
        heir.release(mailbox, token)
        assert world.admin.in_hand(heir.slot) == []

    play(scene)


def test_a_note_whose_message_was_handled_after_all_is_let_go(play: Any) -> None:
    async def scene(world: Any) -> None:
        world.need("succession")
        mailbox = world.mailbox("sink")
        world.b.listen(mailbox, lambda: None)
        post(world.a, mailbox, b"x")
        token, header, *_ = await taken(world.b, mailbox)
        native = world.b._native
        world.b._native = type("Dies", (), {"post": native.post, "bury": staticmethod(lambda *_: None)})()
        assert world.b.bury(mailbox, token, header, Note("about to").encode()) == SENT
        world.b._native = native
        assert world.admin.buried() == []
        heir = world.successor()
        heir.listen(mailbox, lambda: None)
        token, *_, count = await taken(heir, mailbox)
        assert count == 2
        assert world.admin.buried() == []
        heir.release(mailbox, token)
        assert world.admin.buried() == []
        assert world.admin._notes_read == {}

    play(scene)


def test_what_is_no_note_among_the_notes_is_let_go(play: Any) -> None:
    async def scene(world: Any) -> None:
        world.need("succession")
        world.mailbox("sink")
        notes = world.admin._notes
        for foreign in (b"", b"short", bytes(24), b"\xff" * 24 + b"no note"):
            assert world.a._native.post(notes, foreign, "note", SENDER_PROGRAM, None, 0) == SENT
        assert world.admin.buried() == []
        assert world.admin._notes_read == {}
        assert world.admin._native.in_hand(notes) == []

    play(scene)


def test_a_note_that_is_read_just_before_its_burial_stays_for_the_letter(play: Any) -> None:
    async def scene(world: Any) -> None:
        world.need("succession")
        mailbox = world.mailbox("sink")
        world.b.listen(mailbox, lambda: None)
        post(world.a, mailbox, b"bad")
        token, header, *_ = await taken(world.b, mailbox)
        reader, host = world.b._native, world.admin._native

        class BuriesBefore:
            """The host's view, in which the reader goes on just before the host looks who still has the message."""

            def in_hand(self, of: int) -> Any:
                reader.bury(mailbox, token)
                return host.in_hand(of)

            def __getattr__(self, name: str) -> Any:
                return getattr(host, name)

        world.b._native = type("Stops", (), {"post": reader.post, "bury": staticmethod(lambda *_: None)})()
        assert world.b.bury(mailbox, token, header, Note("why").encode()) == SENT
        world.b._native, world.admin._native = reader, BuriesBefore()
        assert world.admin.buried() == []
        world.admin._native = host
        (grave,) = world.admin.buried()
        assert (grave.payload, Note.decode(grave.note).cause) == (b"bad", "why")

    play(scene)


@pytest.mark.parametrize("order", ["stored", "not stored"])
def test_a_host_that_died_between_storing_and_letting_go_does_no_harm(play: Any, order: str) -> None:
    async def scene(world: Any) -> None:
        world.need("succession")
        mailbox = world.mailbox("sink")
        world.b.listen(mailbox, lambda: None)
        post(world.a, mailbox, b"x")
        await taken(world.b, mailbox)
        office = office_of(world)
        (entry,) = world.admin.in_hand(world.b.slot)
        if order == "stored":
            office.keep(world.admin.read(entry), Note("convicted"))
        world.b.stop()
        world.admin.slot_died(entry.reader)
        assert office.settle([entry]) == (order == "stored")
        left = world.admin.in_hand(entry.reader)
        assert len(left) == (0 if order == "stored" else 1)

    play(scene)


def test_broadcasts_and_names_do_not_know_the_mailbox_of_the_notes(play: Any) -> None:
    async def scene(world: Any) -> None:
        world.mailbox("sink")
        assert world.a.names() == ["sink"]
        assert PortBus(world.a).directory.lookup_all("*") == ["sink"]

    play(scene)
