"""The Port of shared memory: an asyncio face for the native calls.

Rules of this file: no protocol is decided here (native/ does), only when to poll, spin and sleep. The hot operations of
the Port are the native methods themselves, bound as attributes, so that no Python frame stands between.

When it polls: after every poll that found something it comes again in the next turn of the loop (`call_soon`), so under
load there is no system call and no wake-up. With nothing found it spins in slices, because a slice is the most that a
callback which is ready in this process waits for it, and then parks. `add_reader` is called once for the life of the
process (uvloop pays an epoll_ctl for each).
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import struct
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from civitas_shm.errors import SharedMemoryFull, TransportClosed
from civitas_shm.messages import HEADER, LANE_CONTROL
from civitas_shm.transport import (
    DELAYS,
    FULL,
    NO_MEMORY,
    SENDER_PROGRAM,
    SENT,
    MailboxStats,
    Overflow,
    Reply,
    Sink,
    Wait,
)

from . import _shm
from .room import mapped_place, room_text

__all__ = ["ShmPort", "approach", "attach", "read_stats"]

SPIN_SLICE_NS: Final = 4_000
"""One look of a spinning poll; a callback that is ready here waits at most this long for it."""

REPLY_SPIN_NS: Final = 120_000
"""How long a process that has just asked spins for the reply: about twice what it takes to wake the other one (40 to 60
µs on a virtual machine) and let it answer. Sleeping then would cost a second wake-up."""

HOPE_EVERY: Final = 16
"""After a reply that was not near, only every 16th sleep is put off for so long: the cost where replies take long."""

LOOKS: Final = 1
"""Empty turns of the loop that only look, before the spin begins."""

ALARM_SCAN: Final = 1
ALARM_ROOM: Final = 2

WAIT_KINDS: Final[tuple[Literal["ask", "room"], ...]] = ("ask", "room")

OVERFLOW: Final[tuple[Overflow, ...]] = ("block", "error", "drop_oldest", "latest")

_NOTE_KEY: Final = struct.Struct("<II16s")
"""What a note begins with: mailbox, token, message id. Notes go to the mailbox behind the reply lanes (LAYOUT.md)."""
_ID: Final = slice(32, 48)

_CORRELATION: Final = struct.Struct("<Q")
_CORRELATION_AT: Final = 56
"""In the header: slot 7 | incarnation 17 | counter 40."""
_SLOT_AT: Final = 57
_INCARNATION_AT: Final = 40
_INCARNATION_MASK: Final = (1 << 17) - 1
_SLOT_LIVE: Final = 1

_ports: weakref.WeakSet[ShmPort] = weakref.WeakSet()


def _detach_in_child() -> None:
    for port in _ports:
        port._native.detach()


os.register_at_fork(after_in_child=_detach_in_child)


class ShmPort:
    """One process's door to a run in shared memory. The contract is `civitas_shm.transport.Port`."""

    def __init__(self, native: _shm.Port, slot: int, slots: int, door_fd: int, spin_ns: int) -> None:
        self.slot = slot
        limit_bytes = native.memory()[2]
        self.payload_max_bytes = limit_bytes // 8 * 7 // 2 - HEADER.size  # as port_chunk in native/port.h
        self.state_max_bytes = limit_bytes // 8 * 7 // 4 - HEADER.size  # as port_commit_state
        self._native = native
        self._slots = slots
        self._door_fd = door_fd
        self._turns_before_park = LOOKS + spin_ns // SPIN_SLICE_NS if spin_ns else 1
        self._turns_for_reply = LOOKS + REPLY_SPIN_NS // SPIN_SLICE_NS if spin_ns else 1
        self._parks_without_hope = 0
        self._idle_turns = 0
        self._awake = False
        self._stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending: dict[int, asyncio.Future[Reply] | Sink] = {}
        self._handlers: dict[int, Callable[[], None]] = {}
        self._room: list[asyncio.Future[None]] = []
        self._noted: set[int] = set()
        self.on_death: Callable[[], object] | None = None
        self.on_stranger: Callable[[Reply], object] | None = None
        # The hot operations, without a Python frame between.
        self.post = native.post
        self.post_reply = native.post_reply
        self.take = native.take
        self.release = native.release
        self.begin = native.begin
        self.forgo = native.forgo
        self.strike = native.strike
        self.commit_state = native.commit_state
        self.stored_state = native.stored_state
        self.state_elsewhere = native.state_elsewhere
        self._poll = native.poll
        self._again = self._drain  # one bound method for all turns
        self.post_ask = native.post_ask
        self.new_correlation = native.new_correlation
        self.keep = self._pending.__setitem__
        self.note_suspended = native.note_suspended
        _ports.add(self)

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._native.bind(self._pending, self._on_door, self._on_forgetful, self._on_late)
        loop.add_reader(self._door_fd, self._on_door)
        self._wake()

    def stop(self, why: str = "") -> None:
        if self._stopped:
            return
        self._stopped = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._door_fd)
        waiting: list[asyncio.Future[Any] | Sink] = [*self._pending.values(), *self._room]
        for future in waiting:
            if not future.done():
                future.set_exception(TransportClosed(why or "This process has left the run."))
        self._pending.clear()
        self._room.clear()
        self._handlers.clear()
        self._native.close(why)

    # --- when to poll -------------------------------------------------------------------------------------------------

    def _on_door(self) -> None:
        self._native.unpark()
        self._wake()

    def _wake(self) -> None:
        if not self._awake and self._loop is not None:
            self._awake = True
            self._idle_turns = 0
            self._loop.call_soon(self._again)

    def _drain(self) -> None:
        if self._stopped:
            return
        assert self._loop is not None
        idle = self._idle_turns
        hoping = self._pending and not self._parks_without_hope
        if idle < (self._turns_for_reply if hoping else self._turns_before_park):
            # The first empty turns only look, so that callbacks of this process have theirs; then it spins in slices.
            found = self._poll(SPIN_SLICE_NS if idle >= LOOKS else 0, False)
            if found is None:
                self._idle_turns = idle + 1
                self._loop.call_soon(self._again)
                return
        else:
            if hoping:  # in vain
                self._parks_without_hope = HOPE_EVERY
            elif self._parks_without_hope:
                self._parks_without_hope -= 1
            found = self._poll(0, True)
            if found is None:  # asleep; the doorbell will ring
                self._awake = False
                return
        mailboxes, replies, alarm = found
        if replies and self._room:
            alarm |= ALARM_ROOM  # places for asks are free again
        handlers = self._handlers
        ready = iter(list(handlers) if alarm & ALARM_SCAN else mailboxes)
        try:
            for mailbox in ready:
                handler = handlers.get(mailbox)
                if handler is not None:
                    handler()
        finally:  # a callback that raises must not make this process deaf, nor its neighbours
            for mailbox in ready:
                self._loop.call_soon(self._look, mailbox)
            if alarm:
                self._tell_room()
                if alarm & ALARM_SCAN and self.on_death is not None:
                    self.on_death()
            self._idle_turns = 0
            self._loop.call_soon(self._again)

    def _tell_room(self) -> None:
        waiting, self._room = self._room, []
        for room in waiting:
            if not room.done():
                room.set_result(None)

    # --- sending ------------------------------------------------------------------------------------------------------

    def forget(self, correlation: int) -> None:
        if self._pending.pop(correlation, None) is not None and self._room:
            self._tell_room()  # its place is free

    def room(self, mailbox: int) -> asyncio.Future[None]:
        assert self._loop is not None
        future = self._loop.create_future()
        verdict = self._native.want_room(mailbox)
        if verdict < 0:
            future.set_exception(SharedMemoryFull(self._no_memory()))
        elif verdict > 0 and len(self._pending) < _shm.REPLY_PLACES:
            future.set_result(None)
        else:
            self._room.append(future)
        return future

    def lives(self, cause: bytes) -> bool:
        correlation: int = _CORRELATION.unpack_from(cause, _CORRELATION_AT)[0]
        slot = correlation >> _SLOT_AT
        if slot >= self._slots or not correlation:
            return False
        incarnation, state, *_ = self._native.slot(slot)
        return state == _SLOT_LIVE and (correlation >> _INCARNATION_AT ^ incarnation) & _INCARNATION_MASK == 0

    def reply_room(self, cause: bytes) -> asyncio.Future[None]:
        return self.room(_CORRELATION.unpack_from(cause, _CORRELATION_AT)[0] >> _SLOT_AT)  # its reply lane: LAYOUT.md

    def _on_late(self, reply: Reply) -> None:
        if self.on_stranger is not None:
            self.on_stranger(reply)

    def _no_memory(self) -> str:
        used, backed, limit, refusal = self._native.memory()
        if refusal:
            return (
                f"Shared memory cannot grow: {os.strerror(refusal)}; this process has {backed >> 20} MiB of it, and "
                f"{room_text(mapped_place())}"
            )
        return (
            f"The states of this process's agents take {used >> 20} of the {limit >> 20} MiB of its arena and leave no "
            "room for this message. Raise transport.arena_mb in the topology."
        )

    def _on_forgetful(self, mailbox: int) -> None:
        """Once for each agent and life of it: a bound was hit, and what follows from that."""
        name = self._native.record(mailbox)[0]
        logging.getLogger(f"civitas_shm.agent.{name}").warning(
            "%r sends more from one handler than is remembered of it (%s messages): if its process dies before that "
            "handler ends, the later ones come twice. Send less from one handler, or let the receivers know doubles.",
            name, f"{_shm.EFFECT_MAX:,}",
        )  # fmt: skip

    # --- giving up ----------------------------------------------------------------------------------------------------

    def bury(self, mailbox: int, token: int, header: bytes, note: bytes, /) -> int:
        if note:  # committed before: whoever sees the message buried finds it
            key = _NOTE_KEY.pack(mailbox, token, header[_ID])
            outcome = self._native.post(self._slots, key + note, "note", SENDER_PROGRAM, header, LANE_CONTROL)
            if outcome in (FULL, NO_MEMORY):
                return outcome
        self._native.bury(mailbox, token)
        return SENT

    # --- names --------------------------------------------------------------------------------------------------------

    def resolve(self, name: str) -> int:
        return self._native.find(name)

    def names(self) -> list[str]:
        records = map(self._native.record, self._native.mailboxes(self._slots + 1))  # behind reply lanes and notes
        return [name for name, is_open in records if is_open and name != DELAYS]

    # --- receiving ----------------------------------------------------------------------------------------------------

    def listen(self, mailbox: int, on_ready: Callable[[], None]) -> None:
        assert self._loop is not None
        self._native.listen(mailbox, True)
        self._handlers[mailbox] = on_ready
        self._loop.call_soon(self._look, mailbox)

    def _look(self, mailbox: int) -> None:
        ready = self._handlers.get(mailbox)
        if ready is not None:
            ready()

    def unlisten(self, mailbox: int, comes_back: bool = False) -> None:
        if self._handlers.pop(mailbox, None) is not None and not self._stopped:
            self._native.listen(mailbox, False)

    # --- who waits for whom -------------------------------------------------------------------------------------------

    def collect(self) -> None:
        """One poll out of turn: replies resolve their futures; the readers of what else was found are called later."""
        if self._stopped or (found := self._poll(0, False)) is None:
            return
        assert self._loop is not None
        mailboxes, replies, alarm = found
        for mailbox in list(self._handlers) if alarm & ALARM_SCAN else mailboxes:
            self._loop.call_soon(self._look, mailbox)
        if alarm or (replies and self._room):
            self._tell_room()
        if alarm & ALARM_SCAN and self.on_death is not None:
            self._loop.call_soon(self.on_death)

    def note_waits(self, waits: Sequence[Wait]) -> None:
        if self._stopped:
            return
        for agent in self._noted - {wait.agent for wait in waits}:
            self._native.clear_wait(agent)
        for wait in waits:
            kind = WAIT_KINDS.index(wait.kind)
            self._native.note_wait(wait.agent, wait.target, kind, wait.id, wait.since_ns, wait.seen_ns, wait.type)
        self._noted = {wait.agent for wait in waits}

    def held(self) -> tuple[int, list[tuple[str, int]], str]:
        most = sorted(self._native.held(), key=lambda entry: -entry[1])[:5]
        held = [(self._native.record(mailbox)[0], size) for mailbox, size in most]
        if len(self._pending) >= _shm.REPLY_PLACES:
            held.insert(0, (f"{_shm.REPLY_PLACES:,} asks at once, the most that one process may have;", 0))
        _, _, limit, refusal = self._native.memory()
        return limit, held, room_text(mapped_place()) if refusal else ""

    def stats(self, mailbox: int) -> MailboxStats:
        return read_stats(self._native, mailbox)


def read_stats(native: _shm.Port | _shm.Reader, mailbox: int) -> MailboxStats:
    """One reading of a mailbox and its cell."""
    name, is_open = native.record(mailbox)
    (overflow, capacity, waiting, in_hand, handled, sent, redelivered, dropped, garbage, busy_since_ns, asking,
     room, readers, histogram, bytes_in, bytes_out, replay_dropped, replay_diverged, not_remembered, news, suspended_ns,
    ) = native.stats(mailbox)  # fmt: skip
    return MailboxStats(
        name=name,
        capacity=capacity,
        waiting=waiting,
        in_hand=in_hand,
        handled=handled,
        sent=sent,
        redelivered=redelivered,
        dropped=dropped,
        garbage=garbage,
        busy_since_ns=busy_since_ns,
        handler_ns=tuple(histogram),
        readers=tuple(readers),
        closed=not is_open,
        asking=asking,
        wants_room_in=room,
        overflow=OVERFLOW[overflow],
        replay_dropped=replay_dropped,
        replay_diverged=replay_diverged,
        not_remembered=not_remembered,
        news=news,
        suspended_since_s=suspended_ns / 1e9,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        mailbox=mailbox,
    )


def read_waits(native: _shm.Port | _shm.Reader) -> list[Wait]:
    """What all processes noted; `RunMemory.waits`."""
    return [
        Wait(agent, target, WAIT_KINDS[kind], number, since_ns, seen_ns, type_)
        for agent, target, kind, number, since_ns, seen_ns, type_ in native.waits()
    ]


def approach(fds: list[int]) -> Callable[[dict[str, Any]], ShmPort]:
    """`attach` in two steps: map a run's segments for whatever slot it may be, changing nothing there; what is returned
    becomes its process, once. ValueError in either step, BlockingIOError in the second."""
    native = _shm.Port(*_of_native(fds))

    def enter(spec: dict[str, Any]) -> ShmPort:
        slot = int(spec["slot"])
        _prove_life(fds, slot)
        native.enter(slot, int(spec["incarnation"]))
        return _port(native, spec, fds)

    return enter


def attach(spec: dict[str, Any], fds: list[int]) -> ShmPort:
    """Join a run: map its segments as the process of `spec["slot"]`, after taking the lock that proves we live.

    `fds` as `RunMemory.fds()` gives them: directory, cells, mail, slot locks, then arenas and doorbells by slot. They
    stay open for the life of the process: closing any descriptor of the lock file would release the lock.
    ValueError when a segment does not check out; BlockingIOError when another process holds the slot.
    """
    slot = int(spec["slot"])
    _prove_life(fds, slot)
    return _port(_shm.Port(*_of_native(fds), slot, int(spec["incarnation"])), spec, fds)


def _of_native(fds: list[int]) -> tuple[int, int, int, list[int], list[int]]:
    directory, cells, mail, _, *rest = fds
    return directory, cells, mail, rest[: len(rest) // 2], rest[len(rest) // 2 :]


def _prove_life(fds: list[int], slot: int) -> None:
    fcntl.lockf(fds[3], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)


def _port(native: _shm.Port, spec: dict[str, Any], fds: list[int]) -> ShmPort:
    slot, slots = int(spec["slot"]), int(spec["slots"])
    return ShmPort(native, slot, slots, fds[4 + slots + slot], int(spec["spin_ns"]))
