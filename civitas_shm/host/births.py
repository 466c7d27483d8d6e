"""One process as the host holds it: its pidfd, its sockets, its cgroup, and what is known of its end.

Rules of this file: notes and the descriptors that belong to them, opened and closed together; when a process is asked
for, watched and buried is the pool's to say.
"""

from __future__ import annotations

import os

from . import wire
from .cgroups import Group, Groups
from .logs import OutputReader
from .protocol import FromWorker, ToWorker

__all__ = ["Worker"]


class Worker:
    """One process, from the moment it was asked for. `process` and `slot` are set when it is assigned."""

    def __init__(self, *, fresh_exec: bool) -> None:
        self.fresh_exec = fresh_exec
        self.pid = 0
        """0 until it said hello."""
        self.pidfd = -1
        """Open from then until it was reaped."""
        self.process = ""
        self.slot = -1
        self.killed_because = ""
        """Why the host killed it; empty when it did not."""
        self.attempts = 0
        self.connected = False
        """Whether `output` and `channel` are there. Not while the host has no descriptors for them."""
        self.spare_fd = -1
        """Keeps a place in the host's table until the pidfd takes it: a process that is born can be watched."""
        self.unheard: list[ToWorker] = []
        """Sent before it said hello: sent again should the fork server die before this process was born."""
        self.output: OutputReader
        self.channel: wire.Channel[FromWorker]
        self.group: Group | None = None
        """What it and all that it starts is in; none where no cgroup can be had, and before it said hello."""
        self.memory_max_bytes = 0
        """Of the group, once there is one; 0: no limit."""
        self.oom_kills = 0
        """After its death: how many of its group the kernel has killed for want of memory."""
        self.reached_its_limit = False
        """After its death: the group's limit was what it died of."""

    @property
    def tail(self) -> list[str]:
        """The last lines of its stderr and log."""
        return list(self.output.tail) if self.connected else []

    def watch(self, pid: int) -> None:
        """From now on its end can be seen."""
        if self.spare_fd >= 0:
            os.close(self.spare_fd)
            self.spare_fd = -1
        self.pidfd = os.pidfd_open(pid)
        self.pid = self.output.pid = pid

    def disconnect(self) -> None:
        """Close what ties it to the host, but for the pidfd. What it wrote last stays to be read. Idempotent."""
        if self.spare_fd >= 0:
            os.close(self.spare_fd)
            self.spare_fd = -1
        if self.connected:
            self.channel.close()
            self.output.close()

    # --- its group ----------------------------------------------------------------------------------------------------

    def enter(self, groups: Groups) -> None:
        """Before it may run user code: what it starts from now on is in the group."""
        self.group = groups.make()
        if self.group is not None:
            self.group.put(self.pid)
            self.limit_memory(self.memory_max_bytes)

    def limit_memory(self, memory_max_bytes: int) -> None:
        """Now, or when it has a group. 0: none."""
        self.memory_max_bytes = memory_max_bytes
        if self.group is not None and memory_max_bytes:
            self.group.limit(memory_max_bytes)

    def leave(self, groups: Groups) -> None:
        """It is dead: note what of; what it has started is ended soon."""
        if self.group is not None:
            self.oom_kills = self.group.oom_kills()
            self.reached_its_limit = self.group.reached_its_limit()
            groups.end(self.group)
