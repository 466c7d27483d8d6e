"""What waits in a run, by agent: for its host, and for those who find it dead.

Rules of this file: looks only. A dead run is opened as its host would, by somebody who holds its lock, and closed.
"""

from __future__ import annotations

import os
from pathlib import Path

from civitas_shm.transport import SLOT_HOST

from . import _shm
from .segments import RunFiles, Segments
from .transport import read_stats

__all__ = ["count_waiting", "host_port", "waiting_in"]


def host_port(segments: Segments, doors: list[int], incarnation: int) -> _shm.Port:
    """A door to the memory as its host."""
    directory, cells, mail, *arenas = segments.fds
    return _shm.Port(directory, cells, mail, arenas, doors, SLOT_HOST, incarnation)


def waiting_in(native: _shm.Port, mailboxes: list[int], *, news: bool = False) -> dict[str, int]:
    """Messages that wait or are in hand, by agent; `RunMemory.waiting`."""
    found: dict[str, int] = {}
    for mailbox in mailboxes:
        stats = read_stats(native, mailbox)
        count = stats.unfinished + (stats.news if news else 0)
        if count:  # closed ones too: their host may have died before it had stored the letters
            found[stats.name] = count
    return found


def count_waiting(files: RunFiles, directory: Path) -> dict[str, int]:
    """Messages in a dead run, by agent. The caller holds its lock."""
    segments = Segments.open(files, directory)
    doors = [_shm.eventfd() for _ in range(files.slots)]
    try:
        native = host_port(segments, doors, 0)
        waiting = waiting_in(native, native.mailboxes(files.slots + 1))
        native.close()
        return waiting
    finally:
        for fd in doors:
            os.close(fd)
        segments.close()
