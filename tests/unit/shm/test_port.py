"""Native ports, operation by operation: header, memory, refusals, succession. What random play seldom meets."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from civitas_shm.errors import ConfigurationError, PayloadTooLarge, TransportClosed
from civitas_shm.messages import FLAG_ASK, HEADER, LANE_PRIORITY, Message
from civitas_shm.transport import CLOSED, FULL, NO_MEMORY, SENT, TOO_LARGE, MemoryPlan
from civitas_shm_transports.shm import _shm

LARGE = 300_000


def take(port: Any, mailbox: int) -> bytes:
    got = port.take(mailbox)
    assert got is not None
    port.release(mailbox, got[0])
    payload: bytes = got[4]
    return payload


# --- what travels -----------------------------------------------------------------------------------------------------


def test_header_has_the_fields_of_messages_header_at_their_places(run: Any) -> None:
    a, b = run.port(1), run.port(2)
    first, second = run.mailbox("first"), run.mailbox("second")
    assert a.post(first, b"cause", "c", second) == SENT
    cause = b.take(first)[1]
    before_ns = time.time_ns()
    assert a.post(second, b"payload", "type", first, cause, LANE_PRIORITY, -5) == SENT
    header = b.take(second)[1]
    (
        check, granules, payload_len, type_len, codec, flags, mailbox, position, lane, attempt, hops, id_, sender,
        priority, correlation, deadline_ns, time_ns, trace, span, parent, seq, reserved, reserved1,
    ) = HEADER.unpack(header)  # fmt: skip
    assert len(header) == HEADER.size == 128
    assert check != 0
    assert granules == -(-(128 + 4 + 7) // 64)
    assert (payload_len, type_len, codec, flags, mailbox, position) == (7, 4, 1, 0, second, 0)
    assert (lane, attempt, hops, sender, priority) == (LANE_PRIORITY, 0, 0, first, -5)
    assert (correlation, deadline_ns, seq, reserved, reserved1) == (0, 0, 0, 0, 0)
    assert before_ns <= time_ns <= time.time_ns()
    assert trace == HEADER.unpack(cause)[17]
    assert parent == HEADER.unpack(cause)[18] != span
    message = Message.received(header, "type", "first", "second", {}, 1)
    assert message.id.split("-")[2].startswith("7"), "a version 7 uuid"
    assert int.from_bytes(id_[:6], "big") == time_ns // 1_000_000
    assert (message.priority, message.trace_id, message.parent_span_id) == (-5, trace.hex(), parent.hex())


@pytest.mark.parametrize("type_", ["", "t", "x" * 64, "x" * 65, "é" * 300, "\U0001f9ea" * 5000])
def test_types_of_every_length_arrive(run: Any, type_: str) -> None:
    a, b = run.port(1), run.port(2)
    mailbox = run.mailbox("box")
    assert a.post(mailbox, b"", type_, mailbox) == SENT
    assert b.take(mailbox)[2] == type_


@pytest.mark.parametrize("size", [0, 1, 127, 128, 129, 4095, 16_256, 16_257, 65_408, 65_409, 1_000_000])
def test_payloads_on_either_side_of_each_size_class_arrive_unchanged(run: Any, size: int) -> None:
    a, b = run.port(1), run.port(2)
    mailbox = run.mailbox("box")
    for _ in range(3):
        payloads = [os.urandom(size) for _ in range(1 if size > LARGE else 5)]
        for payload in payloads:
            assert a.post(mailbox, payload, "t", mailbox) == SENT
        for payload in payloads:
            assert take(b, mailbox) == payload
    a.trim(0)
    assert a.memory()[0] == 0


# --- memory -----------------------------------------------------------------------------------------------------------


def test_trim_gives_memory_back_to_the_kernel(run: Any) -> None:
    a, b = run.port(1), run.port(2)
    mailbox = run.mailbox("box")
    before = run.memory.used_bytes()
    for _ in range(4):
        assert a.post(mailbox, bytes(LARGE), "t", mailbox) == SENT
    assert run.memory.used_bytes() >= before + 4 * LARGE
    for _ in range(4):
        take(b, mailbox)
    assert a.trim(0) >= 1 << 20
    used, backed, _, _ = a.memory()
    assert (used, backed) == (0, 1 << 20)
    assert run.memory.used_bytes() <= before + (1 << 20)
    assert a.post(mailbox, bytes(LARGE), "t", mailbox) == SENT, "what was given back can be had again"
    assert take(b, mailbox) == bytes(LARGE)


def test_one_mailbox_may_hold_half_and_the_others_have_the_rest(run: Any) -> None:
    a, b = run.port(1), run.port(2)
    slow, other = run.mailbox("slow"), run.mailbox("other")
    while (outcome := a.post(slow, bytes(LARGE), "t", slow)) == SENT:
        pass
    assert outcome == NO_MEMORY
    assert a.want_room(slow) == 0
    assert a.post(other, bytes(LARGE), "t", other) == SENT
    take(b, slow)
    assert a.post(slow, bytes(LARGE), "t", slow) == SENT


def test_a_payload_that_can_never_fit_is_too_large_at_once(run: Any) -> None:
    a = run.port(1)
    mailbox = run.mailbox("box")
    most = a.memory()[2] // 8 * 7 // 2 - HEADER.size
    assert a.post(mailbox, bytes(most + 1), "", mailbox) == TOO_LARGE
    assert a.post(mailbox, bytes(most), "", mailbox) == SENT


def test_an_eighth_of_the_arena_is_kept_for_replies(run: Any) -> None:
    a, b = run.port(1), run.port(2)
    boxes = [run.mailbox(f"box{i}") for i in range(3)]
    header = asked(a, b, boxes[0])
    for mailbox in boxes:
        while b.post(mailbox, bytes(100_000), "t", mailbox) == SENT:
            pass
    assert b.post(boxes[2], bytes(200_000), "t", boxes[2]) == NO_MEMORY
    assert b.post_reply(header, bytes(200_000), "t", boxes[0])


def test_a_reply_that_cannot_be_stored_is_the_repliers_error_and_not_silence(run: Any) -> None:
    a, b = run.port(1), run.port(2)
    mailbox = run.mailbox("box")
    header = asked(a, b, mailbox)
    with pytest.raises(PayloadTooLarge) as error:
        b.post_reply(header, bytes(3 << 20), "t", mailbox)
    assert error.value.size_bytes == 3 << 20
    assert b.post_reply(header, b"small", "t", mailbox)


def asked(a: Any, b: Any, mailbox: int) -> bytes:
    """The header of an ask of `a` to `b`; made by hand, so that no future is needed."""
    assert a.post(mailbox, b"?", "t", mailbox) == SENT
    token, raw, *_ = b.take(mailbox)
    b.release(mailbox, token)
    header = bytearray(raw)
    header[19] |= FLAG_ASK
    incarnation = 1
    struct.pack_into("<Q", header, 56, 1 << 57 | incarnation << 40 | 1)
    return bytes(header)


def test_a_reply_to_an_earlier_incarnation_is_dropped(run: Any) -> None:
    a, b = run.port(1), run.port(2)
    mailbox = run.mailbox("box")
    header = asked(a, b, mailbox)
    run.die(1)
    run.port(1)
    assert b.post_reply(header, b"late", "t", mailbox) is False


def test_a_reply_after_the_deadline_is_dropped(run: Any) -> None:
    a, b = run.port(1), run.port(2)
    mailbox = run.mailbox("box")
    header = bytearray(asked(a, b, mailbox))
    struct.pack_into("<Q", header, 64, time.monotonic_ns() - 1)
    assert b.post_reply(bytes(header), b"late", "t", mailbox) is False


@pytest.mark.parametrize("correlation", [0, 2**64 - 1, 127 << 57, 5 << 57 | 1 << 40])
def test_a_forged_correlation_is_answered_to_nobody(run: Any, correlation: int) -> None:
    a, b = run.port(1), run.port(2)
    mailbox = run.mailbox("box")
    header = bytearray(asked(a, b, mailbox))
    struct.pack_into("<Q", header, 56, correlation)
    assert b.post_reply(bytes(header), b"", "t", mailbox) is False


# --- succession -------------------------------------------------------------------------------------------------------


def test_what_a_dead_replica_had_in_hand_goes_to_one_that_lives_and_reads_already(run: Any) -> None:
    a, b, c = run.port(1), run.port(2), run.port(3)
    mailbox = run.mailbox("box", readers=(2, 3))
    for port in (b, c):
        port.listen(mailbox, True)
    assert a.post(mailbox, b"mine", "t", mailbox) == SENT
    assert a.post(mailbox, b"yours", "t", mailbox) == SENT
    kept = b.take(mailbox)
    assert c.take(mailbox)[4] == b"yours"
    run.die(3)
    run.memory.set_readers(mailbox, [2])  # it is not started again
    assert b.poll(0, False) is not None, "the heir is told"
    got = b.take(mailbox)
    assert (got[4], got[5]) == (b"yours", 2)
    assert b.take(mailbox) is None, "what it has in hand itself does not come again"
    b.release(mailbox, kept[0])
    b.release(mailbox, got[0])
    assert b.take(mailbox) is None


def test_an_agent_that_is_restarted_in_its_process_gets_what_it_had_in_hand(run: Any) -> None:
    a, b = run.port(1), run.port(2)
    mailbox = run.mailbox("box")
    b.listen(mailbox, True)
    assert a.post(mailbox, b"once", "t", mailbox) == SENT
    assert b.take(mailbox)[5] == 1
    b.listen(mailbox, False)
    b.listen(mailbox, True)
    assert b.take(mailbox)[4:] == (b"once", 2)


def test_64_deaths_while_a_reply_is_copied_leave_the_reply_lane_usable(run: Any) -> None:
    a = run.port(1)
    b = run.port(2)
    mailbox = run.mailbox("box")
    for _ in range(70):
        header = bytearray(asked(a, b, mailbox))
        struct.pack_into("<Q", header, 56, 1 << 57 | run.memory.incarnation(1) << 40 | 1)
        assert b.post_reply(bytes(header), b"!", "t", mailbox)
        assert a.take(1) is not None  # its reply lane; and it dies with the reply in hand
        run.die(1)
        a = run.port(1)
    assert run.memory._native.stats(1)[3] == 0


def test_a_successor_is_awake_whatever_its_predecessor_was(run: Any) -> None:
    b = run.port(2)
    while b.poll(0, True) is not None:
        pass
    assert run.memory._native.slot(2)[3], "asleep"
    run.die(2)
    run.port(2)
    assert not run.memory._native.slot(2)[3]


# --- misuse and refusals ----------------------------------------------------------------------------------------------


def test_nothing_works_after_close(run: Any) -> None:
    a = run.port(1)
    mailbox = run.mailbox("box")
    a.close()
    a.close()
    calls: list[Callable[[], Any]] = [
        lambda: a.post(mailbox, b"", "t", mailbox), lambda: a.take(mailbox), lambda: a.poll(0, True), a.records,
        lambda: a.stats(mailbox), a.unpark, lambda: a.trim(0), a.memory, lambda: a.want_room(mailbox),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(TransportClosed):
            call()


@pytest.mark.parametrize("mailbox", [9_999, 2**32 - 1])
def test_a_mailbox_that_does_not_exist_is_an_index_error(run: Any, mailbox: int) -> None:
    a = run.port(1)
    calls: list[Callable[[], Any]] = [
        lambda: a.post(mailbox, b"", "t", 0),
        lambda: a.commit_state(mailbox, 0, b""),
        lambda: a.listen(mailbox, True),
        *(partial(call, mailbox) for call in (a.take, a.stats, a.record, a.want_room, a.in_hand)),
    ]
    for call in calls:
        with pytest.raises(IndexError):
            call()


@pytest.mark.parametrize("token", [63, 64, 10**6, 2**62])
def test_a_token_of_nobody_releases_nothing(run: Any, token: int) -> None:
    a, b = run.port(1), run.port(2)
    mailbox = run.mailbox("box")
    assert a.post(mailbox, b"kept", "t", mailbox) == SENT
    assert b.take(mailbox)[4] == b"kept"
    assert b.take(mailbox, token) is None
    if token < 2**32:
        b.release(mailbox, token)
    assert run.memory._native.stats(mailbox)[3] == 1


def test_a_reader_cannot_release_what_another_has_in_hand(run: Any) -> None:
    a, b, c = run.port(1), run.port(2), run.port(3)
    mailbox = run.mailbox("box", readers=(2, 3))
    assert a.post(mailbox, b"kept", "t", mailbox) == SENT
    token = b.take(mailbox)[0]
    c.release(mailbox, token)
    assert run.memory._native.stats(mailbox)[3] == 1


def test_64_in_hand_are_the_most_and_the_next_comes_when_one_is_released(run: Any) -> None:
    a, b = run.port(1), run.port(2)
    mailbox = run.mailbox("box")
    for number in range(65):
        assert a.post(mailbox, bytes([number]), "t", mailbox) == SENT
    tokens = [b.take(mailbox)[0] for _ in range(64)]
    assert b.take(mailbox) is None
    assert b.take(mailbox, tokens[10])[4] == bytes([64])


def test_closed_is_final_and_full_is_not(run: Any) -> None:
    a, b = run.port(1), run.port(2)
    mailbox = run.mailbox("box", 1)
    assert [a.post(mailbox, b"", "t", mailbox) for _ in range(2)] == [SENT, FULL]
    take(b, mailbox)
    assert a.post(mailbox, b"", "t", mailbox) == SENT
    assert len(run.memory.close_mailbox(mailbox)) == 1
    assert a.post(mailbox, b"", "t", mailbox) == CLOSED


def segment(kind: int, size: int = 1 << 20, slots: int = 3, mailboxes: int = 8) -> int:
    fd = os.memfd_create("civitas-unit", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    _shm.format(fd, kind, bytes(16), slots, mailboxes, 0, min(size, 16 << 10))
    return fd


REFUSALS: dict[str, tuple[Callable[[int], Any], str]] = {
    "magic": (lambda fd: os.pwrite(fd, b"?", 0), "magic"),
    "layout version": (lambda fd: os.pwrite(fd, b"\x63", 8), "another layout version"),
    "kind": (lambda fd: None, "another kind"),
    "damaged": (lambda fd: os.pwrite(fd, b"\x63", 20), "checksum"),
    "cut": (lambda fd: os.ftruncate(fd, 1 << 16), "not the one in its header"),
    "tiny": (lambda fd: os.ftruncate(fd, 100), "smaller than a header"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_segment_is_refused_with_the_reason(what: str) -> None:
    harm, reason = REFUSALS[what]
    fd = segment(3)
    try:
        assert _shm.inspect(fd, 3) == (3, 8, bytes(16))
        harm(fd)
        seen = _shm.inspect(fd, 2 if what == "kind" else 3)
        assert isinstance(seen, str)
        assert reason in seen
    finally:
        os.close(fd)


def test_a_port_refuses_an_arena_that_is_not_as_large_as_its_own(run: Any) -> None:
    directory, cells, mail, _, *rest = run.memory.fds()
    slots = len(rest) // 2
    arenas = [*rest[: slots - 1], small := segment(4, 1 << 20, slots)]
    try:
        with pytest.raises(ValueError, match="not as large as the others"):
            _shm.Port(directory, cells, mail, arenas, rest[slots:], 1, 1)
    finally:
        os.close(small)


def test_a_port_refuses_segments_of_two_runs(tmp_path: Path, make_run: Any) -> None:
    one, two = make_run(tmp_path), make_run(tmp_path)
    try:
        directory, _, mail, _, *rest = one.memory.fds()
        cells = two.memory.fds()[1]
        slots = len(rest) // 2
        with pytest.raises(ValueError, match="another run"):
            _shm.Port(directory, cells, mail, rest[:slots], rest[slots:], 1, 1)
    finally:
        one.end()
        two.end()


def test_a_name_that_is_too_long_is_a_sentence(run: Any) -> None:
    run.mailbox("é" * 91)
    with pytest.raises(ConfigurationError, match="183 bytes"):
        run.mailbox("é" * 92)
    with pytest.raises(ConfigurationError, match="183 bytes"):
        run.mailbox("")


def test_more_mailboxes_than_a_run_has_is_a_sentence(tmp_path: Path, make_run: Any) -> None:
    plan = MemoryPlan(slots=3, mailboxes=2, arena_bytes=4 << 20, mailbox_bytes=4 << 20, kind="memfd")
    run = make_run(tmp_path, 0, plan)
    try:
        run.mailbox("one")
        run.mailbox("two")
        with pytest.raises(ConfigurationError, match=r"'three'.*6 mailboxes"):
            run.mailbox("three")
    finally:
        run.end()


# --- in two steps -----------------------------------------------------------------------------------------------------


def without_slot(run: Any) -> Any:
    directory, cells, mail, _, *rest = run.memory.fds()
    return _shm.Port(directory, cells, mail, rest[: len(rest) // 2], rest[len(rest) // 2 :])


def segments_of(run: Any) -> list[bytes]:
    directory, cells, mail, _, *rest = run.memory.fds()
    return [os.pread(fd, 1 << 20, 0) for fd in (directory, cells, mail, *rest[: len(rest) // 2])]


def test_a_port_without_a_slot_changes_nothing_and_is_closed_for_everything(run: Any) -> None:
    a = run.port(1)
    mailbox = run.mailbox("box")
    assert a.post(mailbox, b"x", "t", mailbox) == SENT
    before = segments_of(run)
    standby = without_slot(run)
    for operation in (
        lambda: standby.post(mailbox, b"", "t", mailbox),
        lambda: standby.take(mailbox),
        lambda: standby.listen(mailbox, True),
        lambda: standby.poll(0, True),
        lambda: standby.set_slot(2, 1, 1, 0),
    ):
        with pytest.raises(TransportClosed, match="no slot of the run yet"):
            operation()
    standby.close()
    assert segments_of(run) == before
    with pytest.raises(TransportClosed, match="has left the run"):
        standby.take(mailbox)


def test_a_port_that_enters_is_the_process_of_its_slot(run: Any) -> None:
    a, old = run.port(1), run.port(2)
    mailbox = run.mailbox("box")
    standby = without_slot(run)
    assert a.post(mailbox, b"before", "t", mailbox) == SENT
    old.listen(mailbox, True)
    assert old.take(mailbox) is not None
    run.die(2)
    incarnation = run.memory.incarnation(2) + 1
    run.memory.attach_spec(2, incarnation, 0)
    standby.enter(2, incarnation)
    standby.listen(mailbox, True)
    assert a.post(mailbox, b"after", "t", mailbox) == SENT
    assert [take(standby, mailbox) for _ in range(2)] == [b"before", b"after"]
    assert standby.post(mailbox, b"own arena", "t", mailbox) == SENT
    assert take(standby, mailbox) == b"own arena"
    with pytest.raises(RuntimeError, match="that has a slot"):
        standby.enter(2, incarnation)
    standby.close()


@pytest.mark.parametrize(
    ("slot", "late", "reason"), [(2, 1, "no longer that of its incarnation"), (9, 0, "slot 9 of 4")]
)
def test_a_port_that_may_not_enter_stays_outside(run: Any, slot: int, late: int, reason: str) -> None:
    standby = without_slot(run)
    run.memory.attach_spec(2, 5, 0)
    before = segments_of(run)
    with pytest.raises(ValueError, match=reason):
        standby.enter(slot, 5 - late)
    assert segments_of(run) == before
    with pytest.raises(RuntimeError, match="closed"):
        standby.enter(2, 5)


def test_a_ready_bit_of_no_mailbox_is_nobodys(run: Any) -> None:
    box = run.mailbox("box", readers=(2,))
    sender, reader = run.port(1), run.port(2)
    reader.listen(box, True)
    reader.poll(0, False)
    directory = run.memory.fds()[0]
    size = os.fstat(directory).st_size
    before = os.pread(directory, size, 0)
    assert sender.post(box, b"", "t", box) == SENT
    after = os.pread(directory, size, 0)
    words = [at for at in range(0, size, 8) if before[at : at + 8] != after[at : at + 8]]
    (bits,) = (at for at in words if int.from_bytes(after[at : at + 8], "little") == 1 << box)
    os.pwrite(directory, b"\xff" * 8, bits)
    mailboxes, _, _ = reader.poll(0, False)
    own = 1  # a process's own is looked into for replies, and not told
    assert len(mailboxes) == run.memory._segments.files.mailboxes - own < 63
