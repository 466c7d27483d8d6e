"""Children of the host that it has not asked for: what workers start, once it has lost its own parent.

Rules of this file:
- what a dead worker has left is killed, a moment after the worker's death; what a living one has sent away (a daemon)
  is let live until that worker dies;
- every such child is reaped; nobody is judged while a process is being born, which is our child before it says hello.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Final

from . import kernel, strays
from .births import Worker
from .cgroups import Groups

__all__ = ["Leftovers"]

SWEEP_AFTER_S: Final = 0.05
"""After a death: its successor has begun by then, and its keeper (`TransportModule.keep_memory`) has gone by itself."""
SWEEP_RETRY_S: Final = 0.05


class Leftovers:
    """Under one host."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        workers: Sequence[Worker],
        ours: Callable[[], set[int]],
        groups: Groups | None,
        on_reaped: Callable[[], None],
    ) -> None:
        """`workers`: those of the pool, at any time. `ours`: other children that the host has made itself."""
        self._loop = loop
        self._workers = workers
        self._ours = ours
        self._groups = groups
        self._on_reaped = on_reaped
        self._orphans: dict[int, int] = {}
        """Pid -> pidfd: killed, or ended."""
        self._daemons: dict[int, tuple[int, int]] = {}
        """Pid -> (pidfd, pid of the living worker that it comes from)."""
        self._waits = False
        self._closed = False

    def __bool__(self) -> bool:
        """Whether some are dying that nobody has reaped."""
        return bool(self._orphans)

    def after_death(self) -> None:
        """A worker has died: end what it has left."""
        self._loop.call_later(SWEEP_AFTER_S, self.tend)

    def tend(self) -> None:
        """Look for some, when no process is being born."""
        if self._closed:
            return
        if self._groups is not None:
            self._groups.tend()
        if all(worker.pid for worker in self._workers):
            self.sweep()
        elif not self._waits:
            self._waits = True
            self._loop.call_later(SWEEP_RETRY_S, self._tend_again)

    def close(self) -> None:
        """From now on only `sweep` looks for some."""
        self._closed = True

    def sweep(self) -> bool:
        """Kill children that are nobody's. Whether there were any."""
        living = {worker.pid for worker in self._workers if worker.pid}
        fatherless = [pidfd for pidfd, owner in self._daemons.values() if owner not in living]
        for pidfd in fatherless:
            kernel.kill(pidfd)
        known = living | self._ours() | self._orphans.keys() | self._daemons.keys()
        left = bool(fatherless)
        for pid in (pid for pid in kernel.children() if pid not in known):
            pidfd = os.pidfd_open(pid)
            owner = self._owner_of(pid)
            if owner in living and owner is not None:
                self._daemons[pid] = (pidfd, owner)
                self._loop.add_reader(pidfd, self._daemon_ended, pid)
                continue
            left = True
            self._orphans[pid] = pidfd
            kernel.kill(pidfd)
            self._loop.add_reader(pidfd, self._orphan_ended, pid)
        return left

    def _tend_again(self) -> None:
        self._waits = False
        self.tend()

    def _owner_of(self, pid: int) -> int | None:
        """The worker that a child of ours comes from: by its group, which nobody leaves, else by its marks."""
        for worker in self._workers:
            if worker.group is not None and worker.group.holds(pid):
                return worker.pid
        return strays.owner_of(pid)

    def _daemon_ended(self, pid: int) -> None:
        if pid in self._daemons:
            pidfd, _ = self._daemons.pop(pid)
            self._orphans[pid] = pidfd
            self._loop.remove_reader(pidfd)
            self._loop.add_reader(pidfd, self._orphan_ended, pid)

    def _orphan_ended(self, pid: int) -> None:
        pidfd = self._orphans[pid]
        if kernel.reap(pidfd) is None:
            return
        self._loop.remove_reader(pidfd)
        os.close(pidfd)
        del self._orphans[pid]
        self._on_reaped()
        self._loop.call_soon(self.tend)  # its own children are ours now
