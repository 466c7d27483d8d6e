"""A run of shared memory in one process: its host's hold on it, and native ports of several slots.

A port that is dropped without a release is a death, after `memory.slot_died`: nothing of it is left but shared memory.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_shm = pytest.importorskip("civitas_shm_transports.shm._shm", reason="the native part is not built")

from civitas_shm.transport import MailboxSpec, MemoryPlan  # noqa: E402
from civitas_shm_transports.shm.memory import ShmRunMemory, create  # noqa: E402
from civitas_shm_transports.shm.survey import remove_stale, stale_runs  # noqa: E402


@pytest.fixture
def name() -> str:
    """Of a run that nobody else has."""
    return f"unit-{os.getpid()}-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Path]:
    """Where the run directories are; whatever is left there is removed, segments too."""
    folder = tmp_path / "runs"
    yield folder
    for run in stale_runs(folder):
        remove_stale(run)


class Run:
    """One run, and the ports that a test opens on it."""

    def __init__(self, folder: Path, plan: MemoryPlan, first_lap: int = 0) -> None:
        name = f"unit-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.memory: ShmRunMemory = create(name, plan, run_dir=folder, first_lap=first_lap)
        self.ports: dict[int, Any] = {}

    def port(self, slot: int) -> Any:
        """The process of that slot: the first, or the successor of one that died."""
        incarnation = self.memory.incarnation(slot) + 1
        self.memory.attach_spec(slot, incarnation, 0)
        directory, cells, mail, _, *rest = self.memory.fds()
        slots = len(rest) // 2
        self.ports[slot] = _shm.Port(directory, cells, mail, rest[:slots], rest[slots:], slot, incarnation)
        return self.ports[slot]

    def die(self, slot: int) -> list[Any]:
        """The process of that slot is gone, and its death was proved."""
        self.ports.pop(slot).close()  # private memory only: shared memory is as it was
        return self.memory.slot_died(slot)

    def mailbox(self, name: str, capacity: int = 1000, readers: tuple[int, ...] = (2,), **options: Any) -> int:
        mailbox = self.memory.add_mailbox(MailboxSpec(name, capacity, replicas=len(readers), **options))
        self.memory.set_readers(mailbox, list(readers))
        return mailbox

    def end(self) -> None:
        for port in self.ports.values():
            port.close()
        self.memory.close(keep=False)


SMALL = MemoryPlan(slots=4, mailboxes=32, arena_bytes=4 << 20, mailbox_bytes=4 << 20, kind="memfd")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path, SMALL)
    yield run
    run.end()


@pytest.fixture(scope="session")
def make_run() -> Any:
    """`make_run(folder, first_lap)`: for tests that make many."""
    return lambda folder, first_lap=0, plan=SMALL: Run(folder, plan, first_lap)
