"""The host's hold on a run: create or adopt, add mailboxes, say who reads, repair after proof of death.

Contract: `civitas_shm.transport.RunMemory`. Rules of this file: it runs in the host alone (slot 0), which writes the
directory; whatever it may be killed in the middle of is harmless, because native/directory.h publishes by one word
last; and nothing here waits for a process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from civitas_shm.delay_store import count_delayed
from civitas_shm.errors import ConfigurationError, PayloadTooLarge, RunHasMessages, SharedMemoryFull
from civitas_shm.letters import count_letters
from civitas_shm.messages import LANE_CONTROL
from civitas_shm.transport import (
    DELAYS,
    SENDER_PROGRAM,
    SLOT_HOST,
    Buried,
    InHand,
    MailboxSpec,
    MailboxStats,
    MemoryPlan,
    Wait,
)

from . import _shm
from .orders import Orders
from .recycling import SLOT_DEAD, SLOT_LIVE, Recycler
from .room import mapped_place, room_text
from .segments import RunDirectory, RunFiles, Segments, UnreadableRun, new_run_files, runs_directory
from .transport import OVERFLOW, read_stats, read_waits
from .waiting import host_port, waiting_in

__all__ = ["ShmRunMemory", "create"]

CONTROL_CAPACITY: Final = 63
REPLY_CAPACITY: Final = 2 * _shm.REPLY_PLACES - 1
"""Twice as many places as asks at once: late replies of forgotten asks take places too, until they are collected."""

TYPE_STOPPED: Final = "civitas.error"

NOTES: Final = "_dead_letters"
"""The mailbox in which readers leave why they give a message up. Read by the host; right behind the reply lanes."""
_NOTE_KEY: Final = struct.Struct("<II16s")
"""mailbox, token, message id; `letters.Note` follows."""
_ID: Final = slice(32, 48)


class ShmRunMemory(Orders):
    """One run in shared memory, as its host holds it."""

    def __init__(self, directory: RunDirectory, segments: Segments, plan: MemoryPlan, first_lap: int) -> None:
        self._directory = directory
        self._segments = segments
        self._first_lap = first_lap
        self._closed = False
        files = segments.files
        self.name = files.name
        self.run_id = files.run_id
        self.run_dir = directory.path
        self.plan = plan
        self.adopted = False
        self.place = files.place
        segments.hold()
        self._slot_locks = directory.open_slot_locks()
        self._doors = [_shm.eventfd() for _ in range(files.slots)]
        self._native = host_port(segments, self._doors, 1)
        self._notes = files.slots
        """Index of the mailbox NOTES."""
        self._recycler: Recycler | None = None
        """Once the run has begun."""
        self._notes_read: dict[bytes, tuple[int, bytes]] = {}
        """By key: (token, note) of those that are in the host's hand."""
        self.told: list[str] = []
        """Sentences for the user about what was found here and what became of it."""

    # --- for the processes of the run ---------------------------------------------------------------------------------

    def fds(self) -> list[int]:
        first, arenas = self._segments.fds[:3], self._segments.fds[3:]
        return [*first, self._slot_locks, *arenas, *self._doors]

    def attach_spec(self, slot: int, incarnation: int, spin_ns: int) -> dict[str, Any]:
        # Stored before the spawn: a reply to an earlier incarnation is refused from here on.
        self._native.set_slot(slot, incarnation, SLOT_LIVE, 0)
        return {"slot": slot, "incarnation": incarnation, "spin_ns": spin_ns, "slots": self._segments.files.slots}

    def incarnation(self, slot: int) -> int:
        """The last incarnation of a slot, 0 when it was never used; an adopted run goes on counting from it."""
        return self._native.slot(slot)[0]

    def begin_life(self, mailbox: int, incarnation: int) -> None:
        self._native.begin_life(mailbox, incarnation)

    def last_incarnation(self) -> int:
        return self._native.last_incarnation()

    # --- mailboxes ----------------------------------------------------------------------------------------------------

    def add_mailbox(self, spec: MailboxSpec) -> int:
        known = self._find(spec.name)
        if known is not None:
            stats = read_stats(self._native, known)
            if stats.capacity != spec.capacity or stats.overflow != spec.overflow:
                raise ConfigurationError(
                    f"agent {spec.name!r}: its mailbox in the resumed run has {stats.capacity} places and policy "
                    f"{stats.overflow!r}, the topology wants {spec.capacity} and {spec.overflow!r}. "
                    "Keep them, or start --fresh."
                )
            return known
        most = _shm.CAPACITY_MAX
        for what, value in (("mailbox_size", spec.capacity), ("priority capacity", spec.priority_capacity)):
            if not 1 <= value <= most:
                raise ConfigurationError(f"agent {spec.name!r}: {what} must be between 1 and {most:,}, not {value:,}.")
        return self._add(spec.name, spec.priority_capacity, spec.capacity, OVERFLOW.index(spec.overflow), spec.replicas)

    def _add(self, name: str, priority: int, normal: int, overflow: int, replicas: int) -> int:
        if self._recycler is not None:
            self._recycler.tend()
            if self._native.records() >= self._segments.files.mailboxes:
                capacities = (CONTROL_CAPACITY, priority, normal)
                if (reused := self._recycler.take(name, capacities, overflow, replicas)) is not None:
                    return reused
        try:
            return self._native.add_mailbox(
                name, CONTROL_CAPACITY, priority, normal, overflow, replicas, self._first_lap
            )
        except OSError as error:
            records, most = self._native.records(), self._segments.files.mailboxes
            if records >= most:
                held_up = self._recycler.held_up_by() if self._recycler is not None else []
                late = f"those of agents that are gone wait for the loops of slots {held_up}; " if held_up else ""
                raise ConfigurationError(
                    f"agent {name!r}: the run has {most:,} mailboxes and all are taken; {late}raise "
                    "transport.mailboxes."
                ) from error
            if error.errno == errno.EINVAL:
                raise ConfigurationError(
                    f"agent {name!r}: a name takes 1 to {_shm.NAME_MAX} bytes of UTF-8 (this one "
                    f"{len(name.encode())}), and replicas are 1 to {_shm.REPLICAS_MAX} (here {replicas})."
                ) from error
            raise SharedMemoryFull(
                f"There is no shared memory for the mailbox of {name!r}: {error.strerror}; {room_text(mapped_place())}"
            ) from error

    def _find(self, name: str) -> int | None:
        mailbox = self._native.find(name)
        return mailbox if mailbox >= 0 and self._native.record(mailbox)[1] else None

    def _agents(self) -> list[int]:
        return self._native.mailboxes(self._notes + 1)

    def set_readers(self, mailbox: int, slots: list[int]) -> None:
        every = range(SLOT_HOST + 1, self._segments.files.slots)
        dead = [slot for slot in every if self._native.slot(slot)[1] != SLOT_LIVE]
        self._native.set_readers(mailbox, slots, dead)
        self._native.ring_all()

    def close_mailbox(self, mailbox: int, keep: Callable[[Buried], object] | None = None) -> list[InHand]:
        removed: list[InHand] = []
        while not self._native.close_lanes(mailbox):
            one = list(self._remove_one(mailbox, keep))
            if not one:
                break  # damaged words: nothing more can be had from this lane
            removed.extend(one)
        # What dead readers had in hand comes to the host, which answers and releases it.
        live = [s for s in read_stats(self._native, mailbox).readers if self._native.slot(s)[1] == SLOT_LIVE]
        self.set_readers(mailbox, [SLOT_HOST])
        self._native.listen(mailbox, True)
        while one := list(self._remove_one(mailbox, keep)):
            removed.extend(one)
        self._native.listen(mailbox, False)
        self.set_readers(mailbox, [s for s in live if s != SLOT_HOST])
        if self._recycler is not None:
            self._recycler.closed(mailbox)
        return removed

    def _remove_one(self, mailbox: int, keep: Callable[[Buried], object] | None) -> Iterator[InHand]:
        taken = self._native.take(mailbox)
        if taken is None:
            return
        token, header, type_, sender, payload, delivery = taken
        delivery = abs(delivery) - (delivery > 0)  # to the host it was handed over for its end only
        if keep is not None:
            recipient = self._native.record(mailbox)[0]
            keep(Buried(mailbox, token, delivery, 0, header, type_, sender, payload, recipient=recipient))
        # A failed reply without payload says: closed before anybody answered. Without memory for it the asker learns of
        # it by its deadline; closing goes on.
        with contextlib.suppress(SharedMemoryFull):
            self._native.post_reply(header, b"", TYPE_STOPPED, mailbox, True)
        self._native.release(mailbox, token)
        yield InHand(mailbox, token, SLOT_HOST, delivery, header, type_, sender, len(payload))

    def post_notice(self, mailbox: int, type: str, data: bytes) -> int:
        return self._native.post(mailbox, data, type, SENDER_PROGRAM, None, LANE_CONTROL, 0)

    def finish_closing(self, keep: Callable[[Buried], object] | None) -> list[InHand]:
        closed = (mailbox for mailbox in self._agents() if read_stats(self._native, mailbox).closed)
        return [entry for mailbox in closed for entry in self.close_mailbox(mailbox, keep)]

    # --- messages that were given up ----------------------------------------------------------------------------------

    def resolve(self, name: str) -> int:
        return self._native.find(name)

    def buried(self) -> list[Buried]:
        # Entries first, then notes: the note of every message that is buried was committed before it.
        entries = self._native.buried()
        while (taken := self._native.take(self._notes)) is not None:
            token, _, _, _, note, _ = taken
            if len(note) < _NOTE_KEY.size:  # no note of ours
                self._native.release(self._notes, token)
                continue
            self._let_go_of_note(note[: _NOTE_KEY.size])
            self._notes_read[note[: _NOTE_KEY.size]] = (token, note[_NOTE_KEY.size :])
        found = [self._read(entry) for entry in entries]
        if not found and self._notes_read:
            self._let_go_of_stale_notes()
        return found

    def discard(self, mailbox: int, token: int) -> None:
        try:
            header = self._native.read(mailbox, token)[4]
        except LookupError:  # its record was damaged since it was read
            return
        self._native.discard(mailbox, token)
        self._let_go_of_note(_NOTE_KEY.pack(mailbox, token, header[_ID]))

    def read(self, entry: InHand) -> Buried:
        return self._read(self._native.read(entry.mailbox, entry.token))

    def _read(self, entry: Any) -> Buried:
        mailbox, token, delivery, strikes, header, type_, sender, payload, sound, once = entry
        _, note = self._notes_read.get(_NOTE_KEY.pack(mailbox, token, header[_ID]), (-1, b""))
        name = self._native.record(mailbox)[0]
        return Buried(mailbox, token, delivery, strikes, header, type_, sender, payload, note, sound, once, name)

    def answer_failed(self, header: bytes, payload: bytes, mailbox: int) -> None:
        with contextlib.suppress(SharedMemoryFull, PayloadTooLarge):  # then the asker learns of it by its deadline
            self._native.post_reply(header, payload, "error", mailbox, True)

    def repost(self, mailbox: int, letter: Buried, sender: int) -> int:
        known = SENDER_PROGRAM if sender < 0 else sender
        return self._native.repost(mailbox, letter.header, letter.payload, letter.type, known)

    def _let_go_of_note(self, key: bytes) -> None:
        token, _ = self._notes_read.pop(key, (-1, b""))
        if token >= 0:
            self._native.release(self._notes, token)

    def _let_go_of_stale_notes(self) -> None:
        """Of messages that are in nobody's hand any more: the burial that they announced never came."""
        stale = []
        for key in self._notes_read:
            mailbox, token, id_ = _NOTE_KEY.unpack(key)
            if not any(entry[0] == token and entry[3][_ID] == id_ for entry in self._in_hand_of(mailbox)):
                stale.append(key)
        # What runs first, what is buried second: a reader may bury what it announced at this very moment.
        buried = {_NOTE_KEY.pack(entry[0], entry[1], entry[4][_ID]) for entry in self._native.buried()} if stale else ()
        for key in stale:
            if key not in buried:
                self._let_go_of_note(key)

    def _in_hand_of(self, mailbox: int) -> list[Any]:
        return self._native.in_hand(mailbox) if mailbox in self._agents() else []

    # --- life and death of processes ----------------------------------------------------------------------------------

    def slot_died(self, slot: int) -> list[InHand]:
        incarnation = self._native.slot(slot)[0]
        self._native.set_slot(slot, incarnation, SLOT_DEAD, 0)
        self._native.recover(slot)
        return self.in_hand(slot)

    def judge(self, entry: InHand, strikes: int, kills: int, alone: bool) -> None:
        self._native.judge(entry.mailbox, entry.token, entry.reader, strikes, kills, alone)

    def in_hand(self, slot: int) -> list[InHand]:
        return [
            InHand(mailbox, *entry)
            for mailbox in self._agents()
            for entry in self._native.in_hand(mailbox)
            if entry[1] == slot
        ]

    def waits(self) -> list[Wait]:
        return read_waits(self._native)

    def probe(self, slot: int) -> None:
        self._native.probe(slot)

    def answered(self, slot: int) -> bool:
        return not self._native.probe_open(slot)

    def safety_poll(self) -> int:
        return self._native.safety_poll()

    # --- looking ------------------------------------------------------------------------------------------------------

    def waiting(self, *, news: bool = False) -> dict[str, int]:
        return waiting_in(self._native, self._agents(), news=news)

    def stats(self) -> list[MailboxStats]:
        return [stats for mailbox in self._agents() if not (stats := read_stats(self._native, mailbox)).closed]

    def stored_states(self) -> dict[str, int]:
        found = ((stats.name, self.stored_state(stats.name)) for stats in self.stats())
        return {name: len(state[0]) for name, state in found if state is not None}

    def stored_state(self, name: str) -> tuple[bytes, bytes] | None:
        mailbox = self._find(name)
        if mailbox is None:
            return None
        read, again = self._native.stored_state(mailbox), self._native.stored_state(mailbox)
        while read != again:  # it was replaced, and its memory perhaps used anew, while it was copied
            read, again = again, self._native.stored_state(mailbox)
        return again

    def used_bytes(self) -> int:
        return self._segments.used_bytes()

    # --- end ----------------------------------------------------------------------------------------------------------

    def close(self, *, keep: bool) -> None:
        if self._closed:
            return
        self._let_go()
        if keep and self.place != "memfd":
            self._directory.release()
        else:
            self._directory.remove(self._segments.files)

    # --- beginnings ---------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """The first mailboxes are the reply lanes, one for each slot; nobody sends there but `post_reply`."""
        slots = self._segments.files.slots
        for slot in range(self._native.records(), slots):
            self._add(f"_process.{slot}", 1, REPLY_CAPACITY, OVERFLOW.index("error"), 1)
        for slot in range(slots):
            self._native.set_readers(slot, [slot], [])
        if self._native.records() == self._notes:
            self._add(NOTES, 1, 1, OVERFLOW.index("error"), 1)
        self._native.set_readers(self._notes, [SLOT_HOST], [])
        self._native.set_slot(SLOT_HOST, self.incarnation(SLOT_HOST) + 1, SLOT_LIVE, os.getpid())
        self._native.listen(self._notes, True)  # what an earlier host had in hand comes first
        files = self._segments.files
        self._recycler = Recycler(self._native, files.mailboxes, files.slots, self._notes + 1)

    def _adopt(self) -> None:
        """Repair what the dead processes left half done. All are dead: the lock of each slot was had."""
        self.adopted = True
        for slot in range(self._segments.files.slots):
            incarnation = self._native.slot(slot)[0]
            self._native.set_slot(slot, incarnation, SLOT_DEAD, 0)
            self._native.recover(slot)
            for entry in self.in_hand(slot):
                self.judge(entry, 0, 0, False)  # the death of the host is nobody's doing

    def _let_go(self) -> None:
        self._closed = True
        self._close_delays()
        self._native.close()
        for fd in [self._slot_locks, *self._doors]:
            os.close(fd)
        self._segments.close()


def create(
    name: str,
    plan: MemoryPlan,
    *,
    run_dir: Path | None = None,
    fresh: bool = False,
    resume: bool = False,
    first_lap: int = 0,
) -> ShmRunMemory:
    """Make the run `name`, or adopt what a dead one of that name left.

    A dead run without messages is swept. With messages: RunHasMessages, unless `resume` (go on with them) or `fresh`
    (drop them). RunAlive when its host lives. `run_dir` is where run directories are (default `runs_directory()`).
    """
    if resume and plan.kind == "memfd":
        raise ConfigurationError(
            "segments: memfd dies with its processes, so there is nothing to --resume; use segments: named."
        )
    directory = RunDirectory.take((run_dir or runs_directory()) / name)
    with contextlib.ExitStack() as undo:
        undo.callback(directory.release)
        try:
            old = directory.files()
        except UnreadableRun as reason:
            old = None
            directory.wait_for_the_dead()
            if directory.may_hold_messages() and not fresh:
                raise RunHasMessages(
                    f"The run {name!r} died and left what cannot be read: {reason}. Messages may wait there. "
                    + ("It cannot be resumed by this version. " if resume else "")
                    + "Go on with them with the version that made it; drop them: --fresh."
                ) from reason
            directory = _emptied(directory, None, undo)
        lost: list[str] = []
        if old is not None:
            directory.wait_for_the_dead(old.slots)
            lost = [] if fresh else _about_lost_memory(directory, old)
            memory = None if fresh else _adopt(directory, old, plan, resume)
            if memory is not None:
                undo.pop_all()
                return memory
            directory = _emptied(directory, old, undo)
        told = lost + _about_letters(directory, fresh)
        if fresh:
            directory.drop_rest()
        files = new_run_files(name, plan)
        undo.callback(directory.remove, files)
        directory.write(files)
        segments = Segments.create(files, directory.path)
        undo.callback(segments.close)
        memory = ShmRunMemory(directory, segments, plan, first_lap)
        undo.callback(memory._let_go)
        memory.told.extend(told)
        memory._begin()
        directory.mark_made()
        undo.pop_all()
        return memory


def _about_lost_memory(directory: RunDirectory, old: RunFiles) -> list[str]:
    """A run that had begun, and whose memory nobody here has removed, is gone with all that waited in it."""
    if not directory.is_made() or Segments.remains(old, directory.path):
        return []
    return [
        f"The memory of the run {old.name!r} is gone, with whatever waited in it: the machine was started anew, or "
        "somebody has removed its segments (gc --yes under another CIVITAS_SHM_DIR does). It begins anew."
    ]


def _about_letters(directory: RunDirectory, fresh: bool) -> list[str]:
    """What becomes of the dead letters of earlier runs: `fresh` drops them, else they stay."""
    count = count_letters(directory.path)
    if count is None:
        what = "dropped all the same (--fresh)" if fresh else "left where they are"
        return [f"The dead letters of earlier runs of this name cannot be read; they are {what}."]
    if not count:
        return []
    letters = f"{count:,} dead letter{'s' if count != 1 else ''} of earlier runs of this name"
    return [f"{letters} dropped (--fresh)." if fresh else f"{letters} kept: civitas-shm dead list."]


def _delayed(directory: RunDirectory) -> dict[str, int]:
    """Messages that wait for their time, by recipient; what cannot be read counts as one, so that it is not dropped."""
    try:
        return count_delayed(directory.path)
    except OSError:
        return {DELAYS: 1}


def _emptied(directory: RunDirectory, old: RunFiles | None, undo: contextlib.ExitStack) -> RunDirectory:
    """The same directory, made anew, with nothing of the earlier run but its log."""
    if old is None:
        directory.remove_unread()
    else:
        directory.remove(old)
    undo.pop_all()
    directory = RunDirectory.take(directory.path)
    undo.callback(directory.release)
    return directory


def _adopt(directory: RunDirectory, old: RunFiles, plan: MemoryPlan, resume: bool) -> ShmRunMemory | None:
    """The old run's memory when it is wanted; None when it holds nothing and may go. RunHasMessages otherwise."""
    try:
        segments = Segments.open(old, directory.path)
    except ValueError as error:
        remains = directory.is_made() and Segments.remains(old, directory.path)
        if resume and remains:
            raise ConfigurationError(f"The run {old.name!r} cannot be resumed: {error}. Start with --fresh.") from error
        if remains:
            raise RunHasMessages(
                f"The run {old.name!r} died and left memory that cannot be read: {error}. Messages may wait there; "
                "--fresh drops them."
            ) from error
        return None  # killed before it began, or the machine was started anew: there is nothing to resume either
    if resume and plan.slots > old.slots:
        segments.close()
        raise ConfigurationError(
            f"The run {old.name!r} was made for {old.slots} processes; the topology now wants {plan.slots}. "
            "Resume with fewer workers, or start --fresh."
        )
    memory = ShmRunMemory(directory, segments, plan, 0)
    memory._adopt()
    directory.let_slots_go()
    if resume:
        memory._begin()
        directory.mark_made()  # the host that made it may have died just before it did
        return memory
    waiting = memory.waiting()
    for agent, n in _delayed(directory).items():
        waiting[agent] = waiting.get(agent, 0) + n
    memory._let_go()
    if waiting:
        total = sum(waiting.values())
        most = ", ".join(f"{agent} {n}" for agent, n in sorted(waiting.items(), key=lambda item: -item[1])[:5])
        raise RunHasMessages(
            f"The run {old.name!r} died with {total} message{'s' if total != 1 else ''} waiting ({most}). "
            "Go on with them: --resume. Drop them: --fresh."
        )
    return None
