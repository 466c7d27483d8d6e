"""A run of one worker in memory that only its process has, for the rehearsal of a standby.

Rules of this file: everything is as in a real run, so that what is rehearsed is what is played; nothing has a name, so
nothing can be left.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from civitas_shm.serializer import encode
from civitas_shm.transport import SENDER_PROGRAM, SLOT_HOST, MemoryPlan

from . import _shm
from .recycling import SLOT_DEAD, SLOT_LIVE
from .segments import Segments, new_run_files
from .transport import OVERFLOW
from .waiting import host_port

__all__ = ["stage"]

PLAN: Final = MemoryPlan(slots=3, mailboxes=1, arena_bytes=4 << 20, mailbox_bytes=1 << 20, kind="memfd")
"""Host, caller and the one worker."""

CAPACITY: Final = 63
"""Of each lane of each mailbox."""


@contextmanager
def stage(agent: str) -> Iterator[tuple[list[int], dict[str, Any], int]]:
    """A run with a mailbox of that name, whose worker has died with a message (`{"n": 0}`) in hand.

    Descriptors as `RunMemory.fds()`, what `attach` takes for its successor, and the mailbox.
    """
    segments = Segments.create(new_run_files("stage", PLAN), Path())
    lock = os.memfd_create("stage", os.MFD_CLOEXEC)
    doors = [_shm.eventfd() for _ in range(PLAN.slots)]
    host = None
    try:
        host = host_port(segments, doors, 1)
        worker = PLAN.slots - 1
        readers = [*range(PLAN.slots), SLOT_HOST, worker]  # reply lanes, notes of burials, the agent
        for mailbox, reader in enumerate(readers):
            name = agent if mailbox > PLAN.slots else f"_stage.{mailbox}"
            host.add_mailbox(name, CAPACITY, CAPACITY, CAPACITY, OVERFLOW.index("block"), 1, 0)
            host.set_readers(mailbox, [reader], [])
        _die_with_a_message(host, segments, doors, worker, len(readers) - 1)
        host.set_slot(worker, 2, SLOT_LIVE, 0)
        spec = {"slot": worker, "incarnation": 2, "spin_ns": 0, "slots": PLAN.slots}
        yield [*segments.fds[:3], lock, *segments.fds[3:], *doors], spec, len(readers) - 1
    finally:
        if host is not None:
            host.close()
        for fd in [lock, *doors]:
            os.close(fd)
        segments.close()


def _die_with_a_message(host: _shm.Port, segments: Segments, doors: list[int], worker: int, mailbox: int) -> None:
    host.set_slot(worker, 1, SLOT_LIVE, 0)
    directory, cells, mail, *arenas = segments.fds
    first = _shm.Port(directory, cells, mail, arenas, doors, worker, 1)
    first.listen(mailbox, True)
    host.post(mailbox, encode({"n": 0}), "message", SENDER_PROGRAM)
    first.take(mailbox)
    first.close()
    host.set_slot(worker, 1, SLOT_DEAD, 0)
    host.recover(worker)
