"""What a handler has sent is remembered beside its message: which sends of its next life are dropped, which are not.

A handler here is a native port that has one message in hand; its death is `run.die`. Kills at every instruction are in
tests/native/kill_sweep.c, every interleaving in tests/native/models/effect.pml, agents in tests/process.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from civitas_shm.messages import FLAG_ASK, FLAG_REPEATED, Message
from civitas_shm.transport import CLOSED, FULL, SENT
from civitas_shm_transports.shm import _shm

FEEDER, AGENT, SINK, NEIGHBOUR = 0, 1, 2, 3
FLAGS = 19


class Chain:
    """feeder -> agent -> sink, and the agent's present life."""

    def __init__(self, run: Any, replicas: tuple[int, ...] = (AGENT,), capacity: int = 5000) -> None:
        self.run = run
        self.agent = run.mailbox("agent", readers=replicas)
        self.sink = run.mailbox("sink", capacity, readers=(SINK,))
        self.other = run.mailbox("other", readers=(SINK,))
        self.feeder = run.port(FEEDER)
        self.receiver = run.port(SINK)
        self.receiver.listen(self.sink, True)
        self.warnings: list[int] = []
        self.came: list[bytes] = []
        """What was taken while the agent's process was dead, of the message in hand."""
        self.cause = b""
        self.token = -1
        self.slot = AGENT
        self.live(AGENT)

    def live(self, slot: int) -> None:
        self.slot = slot
        self.port = self.run.port(slot)
        self.port.bind({}, lambda: None, lambda mailbox: self.warnings.append(mailbox), lambda reply: None)
        self.port.listen(self.agent, True)

    def begin(self, payload: bytes = b"go") -> int:
        """A new message is in hand."""
        self.warnings, self.came = [], []
        assert self.feeder.post(self.agent, payload, "t", 0xFFFFFFFF) == SENT
        return self.take()

    def take(self, done: int = -1) -> int:
        """The message in hand, new or redelivered; how often it has been handed over."""
        got = self.port.take(self.agent, done)
        assert got is not None
        self.token, self.cause, deliveries = got[0], got[1], got[5]
        return int(deliveries)

    def send(self, *payloads: bytes, type_: str = "t", to: int | None = None) -> None:
        for payload in payloads:
            mailbox = self.sink if to is None else to
            assert self.port.post(mailbox, payload, type_, self.agent, self.cause) == SENT

    def again(self, *, taken: bool = False, slot: int = AGENT) -> None:
        """The process dies; its successor has the message in hand. `taken`: all that was sent is taken before that."""
        self.came += self.received() if taken else []
        self.run.die(self.slot)
        if slot != self.slot:
            self.run.memory.set_readers(self.agent, [slot])
        self.live(slot)
        assert self.take() > 1

    def received(self, mailbox: int | None = None) -> list[bytes]:
        found, done = [], -1
        while (got := self.receiver.take(self.sink if mailbox is None else mailbox, done)) is not None:
            done = got[0]
            found.append(got[4])
        return found

    def counts(self) -> tuple[int, int, int]:
        """(replay dropped, replay diverged, not remembered)"""
        return tuple(self.port.stats(self.agent)[16:19])  # type: ignore[return-value]


@pytest.fixture
def chain(run: Any) -> Chain:
    return Chain(run)


@pytest.mark.parametrize("taken", [False, True])
def test_a_handler_that_repeats_has_each_send_once(chain: Chain, taken: bool) -> None:
    chain.begin()
    chain.send(b"1", b"2")
    chain.again(taken=taken)
    chain.send(b"1", b"2", b"3")
    chain.again(taken=False)
    chain.send(b"1", b"2", b"3", b"4")
    assert chain.came + chain.received() == [b"1", b"2", b"3", b"4"]
    assert chain.counts() == (5, 0, 0)


def test_a_handler_that_goes_on_loses_nothing_and_is_counted(chain: Chain) -> None:
    chain.begin()
    chain.send(b"1", b"2")
    chain.again()
    chain.send(b"3", b"4")
    assert chain.received() == [b"1", b"2", b"3", b"4"]
    assert chain.counts() == (0, 2, 0)


def test_equal_sends_are_told_apart_by_their_number(chain: Chain) -> None:
    chain.begin()
    chain.send(b"tick", b"tick")
    chain.again()
    chain.send(b"tick", b"tick", b"tick")
    assert chain.received() == [b"tick"] * 3
    assert chain.counts() == (2, 0, 0)


def test_the_order_of_repeated_sends_does_not_matter(chain: Chain) -> None:
    chain.begin()
    chain.send(b"1", b"2", b"3")
    chain.again()
    chain.send(b"3", b"1", b"4", b"2")
    assert chain.received() == [b"1", b"2", b"3", b"4"]
    assert chain.counts() == (3, 1, 0)


def test_recipient_type_and_every_byte_count(chain: Chain) -> None:
    large = os.urandom(10_000)
    chain.begin()
    chain.send(b"1", b"", large)
    chain.again()
    chain.send(b"1", to=chain.other)
    chain.send(b"1", type_="u")
    for at in (0, 5_000, 9_999):
        chain.send(large[:at] + bytes([large[at] ^ 1]) + large[at + 1 :])
    chain.send(b"", b"1", large)
    assert chain.counts() == (3, 5, 0)
    assert len(chain.received()) == 3 + 4
    assert chain.received(chain.other) == [b"1"]


@pytest.mark.parametrize("size", [*range(20), 31, 32, 33, 63, 64, 65, 80, 127, 128, 1000])
def test_a_digest_sees_each_byte_of_every_size(chain: Chain, size: int) -> None:
    payload = os.urandom(size)
    chain.begin()
    chain.send(payload)
    chain.again()
    for at in range(size):
        chain.send(payload[:at] + bytes([payload[at] ^ 0x80]) + payload[at + 1 :])
    chain.send(payload + b"\0", payload)
    assert chain.counts() == (1, size + 1, 0)


def test_what_another_message_sent_is_never_taken_for_its_own(chain: Chain) -> None:
    chain.begin()
    chain.send(b"1")
    chain.port.release(chain.agent, chain.token)
    chain.begin()
    chain.again()  # it died before it sent anything
    chain.send(b"1")
    chain.port.release(chain.agent, chain.token)
    chain.begin()
    chain.send(b"1")
    assert chain.received() == [b"1"] * 3
    assert chain.counts() == (0, 0, 0)


def test_a_refused_send_is_not_remembered(run: Any) -> None:
    chain = Chain(run, capacity=2)
    chain.begin()
    chain.send(b"1", b"2")
    for _ in range(3):
        assert chain.port.post(chain.sink, b"3", "t", chain.agent, chain.cause) == FULL
    assert chain.received() == [b"1", b"2"]
    chain.send(b"3")
    chain.again(taken=True)
    chain.send(b"1", b"2", b"3", b"4")
    assert chain.came == [b"3"]
    assert chain.counts() == (3, 0, 0)
    run.memory.close_mailbox(chain.sink)
    for _ in range(2):  # in both lives
        assert chain.port.post(chain.sink, b"5", "t", chain.agent, chain.cause) == CLOSED
        chain.send(b"6", to=chain.other)
        chain.again()
    assert chain.received(chain.other) == [b"6"]


@pytest.mark.parametrize("moves", [1, 3])
def test_the_memory_follows_the_agent_to_another_process(chain: Chain, moves: int) -> None:
    sent: list[bytes] = []
    chain.begin()
    for move in range(moves):
        chain.send(*sent)
        fresh = [b"%d/%d" % (move, n) for n in range(20)]  # more than a first log holds
        chain.send(*fresh)
        sent += fresh
        chain.again(taken=True, slot=NEIGHBOUR if chain.slot == AGENT else AGENT)
    chain.send(*sent, b"end")
    assert chain.came + chain.received() == [*sent, b"end"]
    chain.port.release(chain.agent, chain.token)
    for port in chain.run.ports.values():
        port.trim(0)
    assert sum(port.memory()[0] for port in chain.run.ports.values()) <= 32 << 10, "old logs were given back"


@pytest.mark.parametrize("sends", [16, 64])
def test_a_log_that_is_just_full_when_the_agent_moves_grows_and_harms_no_neighbour(chain: Chain, sends: int) -> None:
    sent = [b"%d" % n for n in range(sends)]
    chain.begin()
    chain.send(*sent)
    chain.again(taken=True, slot=NEIGHBOUR)
    log = bytes(8 * sends - len("t"))  # as many granules as the log takes
    for _ in range(2):
        assert chain.port.post(chain.other, log, "t", 0xFFFFFFFF) == SENT
    token, _, _, _, first, _ = chain.receiver.take(chain.other)
    chain.receiver.release(chain.other, token)
    chain.port.trim(0)  # the place of the first, right before the second, is free
    chain.send(*sent, b"one more", b"and another")
    assert chain.received(chain.other) == [first], "a message that waits beside the log is whole"
    chain.again(slot=AGENT)
    chain.send(*sent, b"one more", b"and another", b"end")
    assert chain.received() == [b"one more", b"and another", b"end"]
    assert chain.counts()[0] == sends + sends + 2


def test_sends_beyond_the_bound_are_committed_counted_and_marked_when_repeated(chain: Chain) -> None:
    bound, beyond = _shm.EFFECT_MAX, 4
    payloads = [b"%d" % n for n in range(bound + beyond)]
    chain.begin()
    chain.send(*payloads)
    assert chain.warnings == [chain.agent], "told once, not for every send"
    assert chain.counts() == (0, 0, beyond)
    chain.again(taken=True)
    assert chain.came == payloads
    chain.send(*payloads)
    assert chain.counts() == (bound, 0, 2 * beyond)
    done, found = -1, []
    while (got := chain.receiver.take(chain.sink, done)) is not None:
        done = got[0]
        found.append((got[4], bool(got[1][FLAGS] & FLAG_REPEATED)))
    assert found == [(payload, True) for payload in payloads[bound:]]


def test_without_memory_for_the_log_a_send_is_committed_all_the_same(run: Any) -> None:
    chain = Chain(run)
    chain.begin()
    filler = run.mailbox("filler", 5000, readers=(SINK,))
    for size in (100_000, 1_000, 100):
        while chain.port.post(filler, bytes(size), "t", chain.agent, None) == SENT:
            pass
        filler = run.mailbox(f"filler {size}", 5000, readers=(SINK,))
    outcomes = {chain.port.post(chain.sink, b"x" * n, "t", chain.agent, chain.cause) for n in range(64)}
    assert outcomes <= {SENT, -3}
    assert chain.counts()[2] == len(chain.received())


def test_an_agent_with_replicas_and_the_program_itself_remember_nothing(run: Any) -> None:
    chain = Chain(run, replicas=(AGENT, NEIGHBOUR))
    chain.begin()
    chain.send(b"1")
    assert chain.port.post(chain.sink, b"2", "t", 0xFFFFFFFF) == SENT
    run.die(AGENT)
    chain.live(AGENT)
    assert chain.take() == 2
    chain.send(b"1")
    assert chain.port.post(chain.sink, b"2", "t", 0xFFFFFFFF) == SENT
    assert chain.received() == [b"1", b"2", b"1", b"2"]
    assert chain.counts() == (0, 0, 0)


def test_a_task_that_outlives_its_handler_sends_as_the_program_does(chain: Chain) -> None:
    chain.begin()
    late = chain.cause
    chain.send(b"1")
    chain.port.release(chain.agent, chain.token)
    assert chain.port.post(chain.sink, b"late", "t", chain.agent, late) == SENT
    chain.begin()
    chain.send(b"2")
    assert chain.port.post(chain.sink, b"late", "t", chain.agent, late) == SENT
    chain.again()
    chain.send(b"2")
    assert chain.port.post(chain.sink, b"late", "t", chain.agent, late) == SENT
    assert chain.received() == [b"1", b"late", b"2", b"late", b"late"]


def test_a_state_that_is_saved_in_between_begins_a_new_memory(chain: Chain) -> None:
    chain.begin()
    chain.send(b"tick", b"tick")
    assert chain.port.commit_state(chain.agent, -1, b"two are sent") == SENT
    chain.again()
    chain.send(b"tick")  # it goes on from the state: the third
    chain.again()
    chain.send(b"tick", b"tick")  # the third again, then the fourth
    assert chain.received() == [b"tick"] * 4
    assert chain.counts() == (1, 0, 0)


def test_a_message_that_comes_again_in_a_living_process_is_remembered_too(chain: Chain) -> None:
    chain.begin()
    chain.send(b"1")
    chain.port.listen(chain.agent, False)
    chain.port.listen(chain.agent, True)
    assert chain.take() == 2
    chain.send(b"1", b"2")
    assert chain.received() == [b"1", b"2"]


def test_an_ask_is_asked_again_with_the_same_id_and_says_so(chain: Chain) -> None:
    loop = asyncio.new_event_loop()

    def asks(*payloads: bytes) -> list[tuple[str, bytes, bool]]:
        for payload in payloads:
            chain.port.post_ask(chain.sink, payload, "q", chain.agent, loop.create_future(), 0, chain.cause)
        found, done = [], -1
        while (got := chain.receiver.take(chain.sink, done)) is not None:
            done = got[0]
            message = Message.received(got[1], got[2], got[3], "sink", {}, got[5])
            assert got[1][FLAGS] & FLAG_ASK
            found.append((message.id, got[4], message.repeated))
        return found

    chain.begin()
    first = asks(b"1", b"1", b"2")
    assert [repeated for *_, repeated in first] == [False] * 3
    assert len({id_ for id_, *_ in first}) == 3
    chain.again()
    again = asks(b"1", b"1", b"3")
    assert [entry[:2] for entry in again[:2]] == [entry[:2] for entry in first[:2]]
    assert again[2][0] not in {id_ for id_, *_ in first}, "another question is another id"
    assert [repeated for *_, repeated in again] == [True] * 3
    assert all(id_.split("-")[2].startswith("7") and id_.split("-")[3][0] in "89ab" for id_, *_ in first)
    loop.close()


def test_a_damaged_log_is_no_memory_and_no_crash(run: Any) -> None:
    """Sends are at least once then; nothing is lost. The words are those of line 4 of the mailbox, see layout.h."""
    for word, value in ((0, 1 << 39), (0, 1 << 38), (0, 12345), (1, 1 << 40), (1, 70_000), (3, 0), (5, (1 << 64) - 1)):
        chain = Chain(run)
        chain.begin()
        chain.send(b"1")
        line = mailbox_at(run, chain.agent) + 4 * 128
        os.pwrite(run.memory.fds()[2], value.to_bytes(8, "little"), line + 8 * word)
        chain.again()
        chain.send(b"1", b"2")
        assert set(chain.received()) == {b"1", b"2"}
        run.die(AGENT), run.die(SINK), run.die(FEEDER)
        for mailbox in (chain.agent, chain.sink, chain.other):
            run.memory.close_mailbox(mailbox)


def mailbox_at(run: Any, mailbox: int) -> int:
    """Offset of a mailbox in the mail segment: the one that begins with its magic word."""
    magic = 0x314D485353495643 ^ mailbox
    data = os.pread(run.memory.fds()[2], 4 << 20, 0)
    return data.index(magic.to_bytes(8, "little") + mailbox.to_bytes(4, "little"))


def test_a_publish_is_known_by_its_number_while_it_waits_when_it_is_taken_and_ever_after(run: Any) -> None:
    """What the keeper of delayed messages asks after the death of the one before."""
    sink = run.mailbox("sink", readers=(SINK,))
    keeper, reader = run.port(FEEDER), run.port(SINK)
    reader.listen(sink, True)
    assert keeper.post(sink, b"x", "order", 0xFFFFFFFF) == SENT
    header = reader.take(sink)[1]
    reader.release(sink, 0)
    numbers = [keeper.next_number() for _ in range(3)]
    for number, priority in zip(numbers, (0, 1, 0), strict=True):
        assert not keeper.was_sent(sink, number)
        assert keeper.fire(sink, header, b"due", "t", 0xFFFFFFFF, priority, 0, number) == SENT
        assert keeper.was_sent(sink, number)
    last = numbers[-1]
    run.die(FEEDER)
    keeper = run.port(FEEDER)
    assert keeper.next_number() > last
    assert keeper.was_sent(sink, last)  # it waits
    while (taken := reader.take(sink)) is not None:
        assert keeper.was_sent(sink, last)  # it is in hand, or was
        reader.release(sink, taken[0])
    assert keeper.was_sent(sink, last)
    assert not keeper.was_sent(sink, keeper.next_number())
