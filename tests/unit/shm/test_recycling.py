"""Mailboxes that change hands: when, for whom, and what an old handle is good for afterwards."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from civitas_shm.errors import AgentStopped, ConfigurationError, MessageRoutingError
from civitas_shm.port_bus import PortBus
from civitas_shm.transport import CLOSED, SENDER_PROGRAM, SENT, MailboxSpec, MemoryPlan

pytest.importorskip("civitas_shm_transports.shm", reason="shared memory needs Linux")

from civitas_shm_transports.shm.memory import ShmRunMemory, create
from civitas_shm_transports.shm.transport import ShmPort, attach

SLOTS, AGENTS = 4, 11
"""With the reply lanes and the mailbox of notes 16 mailboxes: two of them are kept in reserve."""

A, B = 2, 3


class Hold:
    """A run with room for AGENTS agents, and a process at each of two slots."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = f"recycling-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.ports: dict[int, ShmPort] = {}
        self.memory = self.make()

    def make(self, **options: Any) -> ShmRunMemory:
        plan = MemoryPlan(slots=SLOTS, mailboxes=AGENTS, arena_bytes=4 << 20, mailbox_bytes=4 << 20)
        return create(self.name, plan, run_dir=self.path, **options)

    def join(self, slot: int) -> ShmPort:
        spec = self.memory.attach_spec(slot, self.memory.incarnation(slot) + 1, 0)
        port = self.ports[slot] = attach(spec, self.memory.fds())
        return port

    def turn(self) -> None:
        """The loop of every process turns once."""
        for port in self.ports.values():
            port._native.poll(0, False)

    def add(self, name: str, **fields: Any) -> int:
        return self.memory.add_mailbox(MailboxSpec(name, **fields))

    def come_and_go(self, name: str) -> int:
        mailbox = self.add(name)
        self.memory.close_mailbox(mailbox)
        return mailbox

    def fill(self) -> list[int]:
        """Every mailbox was used, and its agent is gone; the first ones are given up when little is left."""
        return [self.come_and_go(f"first-{number}") for number in range(AGENTS)]


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    hold = Hold(tmp_path)
    hold.join(A)
    hold.join(B)
    yield hold
    for port in hold.ports.values():
        port.stop()
    hold.memory.close(keep=False)


def test_while_there_is_plenty_a_name_that_is_gone_still_says_so(hold: Hold) -> None:
    mailbox = hold.come_and_go("x")
    assert hold.ports[A].resolve("x") == mailbox
    assert hold.ports[A].post(mailbox, b"", "m", SENDER_PROGRAM) == CLOSED


def test_a_run_spawns_without_end(hold: Hold) -> None:
    handles = set()
    for number in range(1000):
        handles.add(hold.come_and_go(f"agent-{number}"))
        hold.turn()
    assert len(handles) == 1000, "a handle never comes again"
    assert len({handle & 0x3FFF for handle in handles}) == AGENTS


def test_no_mailbox_is_used_again_before_the_loop_of_every_process_has_turned(hold: Hold) -> None:
    hold.fill()
    hold.ports[A]._native.poll(0, False)
    with pytest.raises(ConfigurationError, match=r"all are taken; .* wait for the loops of slots \[3\]"):
        hold.add("late")
    hold.ports[B]._native.poll(0, False)
    assert hold.add("late") >= 1 << 14


def test_a_process_that_has_died_is_not_waited_for_and_its_successor_neither(hold: Hold) -> None:
    hold.fill()
    hold.ports[A]._native.poll(0, False)
    hold.ports.pop(B).stop()
    hold.memory.slot_died(B)
    hold.join(B)
    assert hold.add("late") >= 1 << 14


def test_an_old_handle_is_refused_and_its_name_forgotten(hold: Hold) -> None:
    old = hold.fill()[0]
    hold.turn()
    new = hold.add("new")
    assert new & 0x3FFF == old & 0x3FFF
    port = hold.ports[A]
    assert port.post(old, b"for the first", "m", SENDER_PROGRAM) == CLOSED
    assert port.resolve("first-0") == -1
    assert port.take(old) is None
    assert port.stats(old).name == "_gone"
    assert port.post(new, b"for the new", "m", SENDER_PROGRAM) == SENT
    hold.memory.set_readers(new, [B])
    hold.ports[B]._native.listen(new, True)
    assert hold.ports[B].take(new)[4] == b"for the new"  # type: ignore[index]


def test_whoever_remembers_a_name_finds_its_new_mailbox_or_that_there_is_none(hold: Hold) -> None:
    async def play() -> None:
        port = hold.ports[A]
        port.start(asyncio.get_running_loop())
        bus = PortBus(port)
        first = hold.add("x")
        await bus.send("x", {"n": 1})
        hold.memory.close_mailbox(first)
        with pytest.raises(AgentStopped):
            await bus.send("x", {"n": 2})
        for number in range(AGENTS):
            hold.come_and_go(f"other-{number}")
            hold.turn()
        assert port.resolve("x") == -1
        with pytest.raises(MessageRoutingError):
            await bus.send("x", {"n": 3})
        again = hold.add("x")
        await bus.send("x", {"n": 4})
        assert port.stats(again).waiting == 1

    asyncio.run(play())


def test_a_message_of_an_agent_that_is_gone_is_nobody_elses(hold: Hold) -> None:
    sender, reader = hold.add("sender"), hold.add("reader")
    hold.memory.set_readers(reader, [B])
    hold.ports[B]._native.listen(reader, True)
    for _ in range(2):
        assert hold.ports[A].post(reader, b"", "m", sender) == SENT
    token, _, _, name, *_ = hold.ports[B].take(reader)  # type: ignore[misc]
    assert name == "sender"
    hold.memory.close_mailbox(sender)
    while hold.come_and_go(f"x{uuid.uuid4().hex}") & 0x3FFF != sender & 0x3FFF:
        hold.turn()
    assert hold.ports[B].take(reader, token)[3] == "sender", "read by one who has known it"  # type: ignore[index]
    assert [entry.sender for entry in hold.memory.in_hand(B)] == ["_gone"], "and by one who has not"


def test_a_new_agent_begins_with_nothing_of_the_last_one(hold: Hold) -> None:
    old = hold.add("old")
    hold.memory.set_readers(old, [B])
    reader = hold.ports[B]
    reader._native.listen(old, True)
    hold.ports[A].post(old, b"", "m", SENDER_PROGRAM)
    token = reader.take(old)[0]  # type: ignore[index]
    assert reader.commit_state(old, token, b"its state") == SENT
    reader.release(old, token)
    reader._native.listen(old, False)
    hold.memory.close_mailbox(old)
    while (new := hold.come_and_go(f"x{uuid.uuid4().hex}")) & 0x3FFF != old & 0x3FFF:
        hold.turn()
    assert reader.stored_state(new) is None
    stats = hold.memory._native.stats(new)
    assert stats[4] == 0, "handled"


def test_what_still_has_something_in_it_is_not_given_up(hold: Hold) -> None:
    busy = hold.add("busy")
    hold.memory.set_readers(busy, [B])
    hold.ports[B]._native.listen(busy, True)
    hold.ports[A].post(busy, b"", "m", SENDER_PROGRAM)
    assert hold.ports[B].take(busy) is not None  # in its hand, and never finished
    hold.memory.close_mailbox(busy)
    for number in range(50):
        assert hold.come_and_go(f"agent-{number}") & 0x3FFF != busy & 0x3FFF
        hold.turn()


def test_what_an_agent_leaves_in_hand_in_a_process_that_lives_on_is_the_hosts(hold: Hold) -> None:
    """Its handler was cut off: who asked is told, the message is kept, and the mailbox goes to others."""

    async def play() -> None:
        asker, reader = hold.ports[A], hold.ports[B]
        asker.start(asyncio.get_running_loop())
        bus = PortBus(asker)
        handles, kept = set(), []
        for number in range(3 * AGENTS):
            name = f"agent-{number}"
            mailbox = hold.add(name)
            handles.add(mailbox)
            hold.memory.set_readers(mailbox, [B])
            reader._native.listen(mailbox, True)
            asking = asyncio.ensure_future(bus.ask(name, {"n": number}, timeout=60))
            while (taken := reader.take(mailbox)) is None:
                await asyncio.sleep(0)
            reader._native.listen(mailbox, False)  # it has ended, and its handler goes on for all that it knows
            removed = hold.memory.close_mailbox(mailbox, kept.append)
            assert [(entry.mailbox, entry.delivery) for entry in removed] == [(mailbox, 1)]
            with pytest.raises(AgentStopped):
                await asking
            reader.release(mailbox, taken[0])  # it ends now
            hold.turn()
        assert len(handles) == 3 * AGENTS
        assert [letter.recipient for letter in kept] == [f"agent-{number}" for number in range(3 * AGENTS)]

    asyncio.run(play())


def test_what_a_replica_leaves_in_hand_in_a_process_that_lives_on_is_another_ones(hold: Hold) -> None:
    mailbox = hold.add("several", replicas=2)
    hold.memory.set_readers(mailbox, [A, B])
    left, stays = hold.ports[A], hold.ports[B]
    for port in (left, stays):
        port._native.listen(mailbox, True)
    for data in (b"1", b"2"):
        assert stays.post(mailbox, data, "m", SENDER_PROGRAM) == SENT
    old = left.take(mailbox)
    mine = stays.take(mailbox)
    assert old is not None
    assert mine is not None
    hold.memory.set_readers(mailbox, [B])
    assert [entry[:2] for entry in stays._native.in_hand(mailbox)] == [(old[0], A), (mine[0], B)], "it has not ended"
    left._native.listen(mailbox, False)
    hold.memory.set_readers(mailbox, [B])
    hold.turn()
    left.release(mailbox, old[0])
    again = stays.take(mailbox, mine[0])
    assert again is not None
    assert (again[4], again[5]) == (b"1", 2)
    assert stays.take(mailbox, again[0]) is None


@pytest.mark.parametrize("gives_up", [True, False], ids=["retired", "closed"])
def test_the_next_host_goes_on_where_the_last_one_died(hold: Hold, gives_up: bool) -> None:
    handles = set(hold.fill()) if gives_up else {hold.come_and_go("x")}
    for port in hold.ports.values():
        port.stop()
    hold.ports.clear()
    hold.memory._let_go()
    hold.memory._directory.release()
    hold.memory = hold.make(resume=True)
    for number in range(50):
        handle = hold.come_and_go(f"agent-{number}")
        assert handle not in handles
        handles.add(handle)
