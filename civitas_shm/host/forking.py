"""The host's end of one fork server: started, asked for processes, watched.

Rules of this file: what the fork server itself does is in `forkserver`; when there is one, and what becomes of the
processes that it had not yet forked when it died, is the pool's to say.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

from . import kernel, wire
from .forkserver import Preload
from .kernel import Exit
from .protocol import Fork, Memory, ToForkServer

__all__ = ["ForkServer", "spawn"]


def spawn(argv: list[str], fds: Sequence[int], env: dict[str, str] | None = None) -> int:
    """A fresh interpreter with these descriptors, under the same numbers. Its pid; the caller reaps it."""
    process = subprocess.Popen(argv, env=env, pass_fds=fds, stdin=subprocess.DEVNULL)
    process.returncode = 0  # by its pidfd: Popen itself must not
    return process.pid


class ForkServer:
    """The host's end of one fork server."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        death_read: int,
        preload: Preload,
        on_end: Callable[[Exit, float], None],
    ) -> None:
        mine, its = wire.socket_pair()
        with its:
            fds = [its.fileno(), death_read]
            words = [*map(str, fds), str(os.getpid()), preload.to_argument()]
            argv = [sys.executable, "-m", "civitas_shm.host.forkserver", *words]
            self.pid = spawn(argv, fds)
        self._loop = loop
        self._on_end = on_end
        self._started_s = loop.time()
        self.warm = False
        """A process was born: it has read its modules, and is as fast as it will ever be."""
        self._pidfd = os.pidfd_open(self.pid)
        self._channel: wire.Channel[ToForkServer] = wire.Channel(loop, mine, ToForkServer, self._heard, self._closed)
        loop.add_reader(self._pidfd, self._ended)

    def give(self, memory_fds: Sequence[int]) -> None:
        """What all processes that it makes from now on are born with; duplicated."""
        self._channel.send(Memory(fds=len(memory_fds)), memory_fds)

    def fork(self, fds: list[int]) -> None:
        """Ask for one process that is born with these descriptors; they are duplicated."""
        self._channel.send(Fork(fds=len(fds)), fds)

    def age_s(self) -> float:
        return self._loop.time() - self._started_s

    def kill(self) -> None:
        kernel.kill(self._pidfd)

    def _heard(self, message: ToForkServer, fds: list[int]) -> None:
        raise wire.WireError("the fork server never says anything")

    def _closed(self, error: Exception | None) -> None:
        self.kill()

    def _ended(self) -> None:
        exit_ = kernel.reap(self._pidfd)
        if exit_ is None:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._channel.close()
        self._on_end(exit_, self.age_s())
