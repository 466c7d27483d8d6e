"""A look into a run from outside. Contract: `civitas_shm.transport.RunReader`.

Rules of this file: everything is opened read-only; no lock is taken but the shared one by which `is_held` looks, for a
moment; of locks of slots it is only asked who holds them (F_GETLK). A process that itself holds one of these must not
look: closing any descriptor of the lock file would give its lock up.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import Final, cast

from civitas_shm.errors import RunNotFound
from civitas_shm.transport import SLOT_HOST, MailboxStats, Peeked, SlotView, Wait
from civitas_shm.transport.reader import Where

from . import _shm
from .segments import RunDirectory, RunFiles, Segments, UnreadableRun, is_held
from .transport import read_stats, read_waits

__all__ = ["ShmRunReader", "look"]

_FLOCK: Final = struct.Struct("hhqqi4x")
"""struct flock of Linux with 64-bit offsets: type, whence, start, length, pid."""


class ShmRunReader:
    """One run."""

    def __init__(self, path: Path, files: RunFiles, segments: Segments) -> None:
        self.name = files.name
        self.run_id = files.run_id
        self.path = path
        self._files = files
        self._segments = segments
        directory, cells, mail, *arenas = segments.fds
        self._native = _shm.Reader(directory, cells, mail, arenas)
        self._locks = -1
        try:
            self._locks = os.open(path / "slots", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:  # it is being removed
            pass

    def stats(self) -> list[MailboxStats]:
        return [read_stats(self._native, mailbox) for mailbox in self._native.mailboxes(self._files.slots + 1)]

    def life(self, mailbox: int) -> int:
        """Incarnation of the last start of its agent."""
        return self._native.life(mailbox)

    def waits(self) -> list[Wait]:
        return read_waits(self._native)

    def slots(self) -> list[SlotView]:
        found = []
        alive = self.alive()
        for slot in range(self._files.slots):
            incarnation, _, host_pid, parked, _ = self._native.slot(slot)
            if not incarnation:
                continue
            pid = host_pid if slot == SLOT_HOST else self._holder(slot)
            if slot == SLOT_HOST and not alive:
                pid = 0
            held, most = self._arena(slot)
            asked = self._native.probe_open(slot)
            found.append(SlotView(slot, incarnation, bool(pid), pid, parked, asked, held, most))
        return found

    def peek(self, mailbox: int, most: int, bytes_most: int) -> list[Peeked]:
        return [
            Peeked(cast(Where, where), lane, deliveries, reader, strikes, once, header, type_, sender, payload)
            for where, lane, deliveries, reader, strikes, once, header, type_, sender, payload in self._native.peek(
                mailbox, most, bytes_most
            )
        ]

    def alive(self) -> bool:
        return is_held(self.path) and not self.replaced()

    def replaced(self) -> bool:
        try:
            files = RunDirectory(self.path, -1).files()
        except UnreadableRun:
            return True
        return files is None or files.run_id != self.run_id

    def used_bytes(self) -> int:
        return self._segments.used_bytes()

    def close(self) -> None:
        self._native.close()
        self._segments.close()
        if self._locks >= 0:
            os.close(self._locks)
            self._locks = -1

    def _holder(self, slot: int) -> int:
        """The process that holds the lock of a slot; 0: nobody. Of another pid namespace it reads as 0 too."""
        if self._locks < 0:
            return 0
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, slot, 1, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(self._locks, fcntl.F_GETLK, asked))
        return 0 if kind == fcntl.F_UNLCK else max(int(pid), 0)

    def _arena(self, slot: int) -> tuple[int, int]:
        stat = os.fstat(self._segments.fds[3 + slot])
        return stat.st_blocks * 512, stat.st_size


def look(path: Path) -> ShmRunReader:
    """Into the run with that directory. RunNotFound when nothing can be seen there, with the reason."""
    try:
        files = RunDirectory(path, -1).files()
        if files is None:
            raise RunNotFound(f"There is no run in {path}, or it has just begun or ended.")
        if files.place == "memfd":
            raise RunNotFound(
                f"The run {files.name!r} has its memory without a name (segments: memfd), so nobody can look into it "
                "from outside; start it with segments: named."
            )
        segments = Segments.open(files, path, read_only=True)
    except (UnreadableRun, ValueError) as error:
        raise RunNotFound(f"The run {path.name!r} cannot be looked into: {error}.") from None
    try:
        return ShmRunReader(path, files, segments)
    except (ValueError, OSError) as error:
        segments.close()
        raise RunNotFound(f"The run {path.name!r} cannot be looked into: {error}.") from None
