"""Processes of a run: made, watched, killed, reaped. The host's only way to a worker.

Guarantees:
- the end of a process is one call of `on_death`, after its pidfd said so and its last words were read; what a process
  has said before is handed over before;
- every process that this host ever gets as a child is reaped, and descendants that outlive their worker are killed;
- a fork server that dies, or is stopped, costs time and nothing else: it is replaced, and what it had not yet forked
  is forked by its successor;
- nothing here blocks: all talk goes through `wire.Channel` and pidfds in the loop.

What this file does not know: agents, mailboxes, supervision. Who dies and why is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from . import descriptors, kernel, wire
from .births import Worker
from .cgroups import Groups
from .forking import ForkServer, spawn
from .forkserver import Preload
from .kernel import Exit
from .leftovers import Leftovers
from .logs import OutputReader, output_pair
from .protocol import Assign, FromWorker, Hello, Leave, Line, ToWorker

__all__ = ["Pool", "PoolBroken", "Worker"]

FORK_TIMEOUT_S: Final = 5.0
"""A process is there 3 ms after it was asked for; a fork server that takes this long is stopped or stuck: replaced."""

SERVER_START_TIMEOUT_S: Final = 30.0
"""Until its first process: an interpreter and its modules from a cold disk on a busy machine."""

LOST_GRACE_S: Final = 1.0
"""A process that closed its control socket is about to end; if it has not by then it cannot be controlled: killed."""

FORK_ATTEMPTS_MAX: Final = 8
FORK_RETRY_S: Final = 0.01
"""A process that was not born is asked for again after 20, 40, 80 ms …: 2.5 s in all, then the pool gives up."""

SERVER_STABLE_S: Final = 2.0
SHORT_LIVED_MAX: Final = 5
"""Fork servers in a row that die within SERVER_STABLE_S of their start and before they made a process: they cannot."""
KILLED_MAX: Final = 50
"""The same for SIGKILL, which comes from outside: somebody's hand, or a memory limit that will not go away."""

GROUPS_TIMEOUT_S: Final = 2.0
GROUPS_LOOK_S: Final = 0.005
"""A process leaves its cgroup a moment after it was reaped; one in the middle of a disk's answer takes longer."""

REPLENISH_AFTER_S: Final = 0.02
"""The next standby is made once the one that was just handed out has begun: forking takes a core for milliseconds."""

_PRELOAD: Final = ("civitas_shm.host.worker", "uvloop")


class PoolBroken(Exception):
    """No process can be made on this machine any more; the text says what was tried."""


OnMessage = Callable[[Worker, Any], None]
OnDeath = Callable[[Worker, Exit | None], None]


class Pool:
    """All processes under one host."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        transport: str = "",
        preload: Sequence[str] = (),
        user_preload: Sequence[str] = (),
        import_paths: Sequence[str] = (),
        on_line: Callable[[Line], None],
        on_broken: Callable[[PoolBroken], None],
        groups: Groups | None = None,
    ) -> None:
        """Starts the fork server, which reads its modules meanwhile. `transport`: empty, and processes are attached to
        nothing. `groups`: where each process gets a cgroup."""
        self._loop = loop
        self._groups = groups
        self._memory_fds: list[int] = []
        self._preload = Preload([*_PRELOAD, *preload], list(import_paths), list(user_preload), transport)
        self._keeper = 0
        self._standby_target = 0
        self._on_message: OnMessage
        self._on_death: OnDeath
        self._on_line = on_line
        self._on_broken = on_broken
        self._broken: PoolBroken | None = None
        self._is_open = False
        self._death_read, self._death_write = os.pipe()  # the host alone holds the writing end: not inherited by exec
        self._workers: list[Worker] = []
        self._standbys: list[Worker] = []
        self._server: ForkServer | None = None
        self._reaped = asyncio.Event()
        self._closing = False
        self._leftovers = Leftovers(loop, self._workers, self._own_helpers, groups, self._reaped.set)
        self._short_lived = 0
        self.fork_servers = 0
        """How many were started."""
        self._start_server()

    # --- what the driver asks for ------------------------------------------------------------------------------------

    def open(
        self, memory_fds: Sequence[int], *, standby: int, on_message: OnMessage, on_death: OnDeath, keeper: int = 0
    ) -> None:
        """From now on processes can be made, with these descriptors; make the standbys. `keeper`: the host's own."""
        self._memory_fds = list(memory_fds)
        self._keeper = keeper
        self._standby_target = standby
        self._on_message = on_message
        self._on_death = on_death
        self._is_open = True
        if self._server is not None:
            self._server.give(self._memory_fds)
        if self._broken is not None:
            self._loop.call_soon(self._on_broken, self._broken)
        self.replenish()

    def assign(self, order: Assign, *, exec_env: dict[str, str] | None = None, memory_max_bytes: int = 0) -> Worker:
        """Make a process of the run: a standby, else a forked one, or with `exec_env` a fresh interpreter.

        `exec_env` is added to the environment before the interpreter starts (devices of a GPU). `memory_max_bytes`:
        what it and all that it starts may take, where the kernel keeps such a limit; 0: anything.
        """
        if exec_env is not None:
            worker = self._exec(exec_env)
        elif self._standbys:
            worker = self._standbys.pop(0)
            _put_on(worker, order.cpus)
            self._loop.call_later(REPLENISH_AFTER_S, self.replenish)
        else:
            worker = self._fork()
        worker.process = order.process
        worker.slot = order.slot
        worker.limit_memory(memory_max_bytes)
        if worker.connected:
            worker.output.process = order.process
        self.order(worker, order, soon=True)  # what its agents are told comes right behind
        return worker

    def order(self, worker: Worker, message: ToWorker, *, soon: bool = False) -> None:
        """Send it an order; one to a process that is about to be seen dead is lost with it. `soon`: see `wire`."""
        if not worker.pid:
            worker.unheard.append(message)
        if worker.connected and (worker.pid or self._groups is None):
            worker.channel.send(message, soon=soon)

    def kill(self, worker: Worker, because: str) -> None:
        """SIGKILL, also when it is stopped. `on_death` follows; the first reason stays."""
        worker.killed_because = worker.killed_because or because
        if worker.pidfd >= 0:
            kernel.kill(worker.pidfd)
        # else: not born yet; killed when it says hello

    def replenish(self) -> None:
        """Fork standbys until there are as many as wanted."""
        while not self._closing and len(self._standbys) < self._standby_target:
            self._standbys.append(self._fork())

    def workers(self) -> list[Worker]:
        """All processes that live or are being born, standbys included."""
        return list(self._workers)

    def standbys(self) -> list[Worker]:
        """Those that have no slot yet."""
        return list(self._standbys)

    def tend(self) -> None:
        """Once in a while: whoever became a child of ours since is reaped when it ends, or killed if it must be."""
        self._leftovers.tend()

    def _own_helpers(self) -> set[int]:
        return {self._keeper} | ({self._server.pid} if self._server else set())

    @property
    def fork_server_pid(self) -> int | None:
        return self._server.pid if self._server else None

    async def dismiss(self, timeout_s: float) -> None:
        """Tell all processes of the run to leave, and give them time to do it by themselves."""
        deadline_s = self._loop.time() + timeout_s
        leaving = [worker for worker in self._workers if worker.process]
        for worker in leaving:
            self.order(worker, Leave())
        while any(worker in self._workers for worker in leaving) and self._loop.time() < deadline_s:
            self._reaped.clear()
            try:
                async with asyncio.timeout_at(deadline_s):
                    await self._reaped.wait()
            except TimeoutError:
                return

    async def close(self) -> None:
        """Kill whatever is left and wait until the kernel says that it is gone. No `on_death` for these. Idempotent."""
        if self._closing:
            return
        self._closing = True
        self._leftovers.close()
        if self._server:
            self._server.kill()
        for worker in self.workers():
            self.kill(worker, "the run ended")
        os.close(self._death_write)  # ends also those that are not known to us yet
        # A process that is being born is our child at the latest when the fork server and the one in between are gone.
        while self._server or self._leftovers or self._leftovers.sweep() or any(w.pid for w in self._workers):
            self._reaped.clear()
            await self._reaped.wait()
        for worker in self.workers():  # never born
            self._bury(worker, None)
        await self._leave_groups()
        os.close(self._death_read)

    async def _leave_groups(self) -> None:
        """What is in them has been killed; the kernel takes its time to say so. After that they are the next run's."""
        until_s = self._loop.time() + GROUPS_TIMEOUT_S
        while self._groups is not None and not self._groups.close() and self._loop.time() < until_s:
            await asyncio.sleep(GROUPS_LOOK_S)

    # --- birth -------------------------------------------------------------------------------------------------------

    def _start_server(self) -> None:
        self.fork_servers += 1
        try:
            self._server = ForkServer(self._loop, self._death_read, self._preload, self._server_died)
            if self._is_open:
                self._server.give(self._memory_fds)
        except OSError as error:
            if not descriptors.exhausted(error):
                raise
            self._break(PoolBroken(f"the fork server could not be started: {descriptors.account(error)}"))

    def _break(self, error: PoolBroken) -> None:
        """No process can be made any more; told once it is known who wants some."""
        self._broken = error
        if self._is_open:
            self._on_broken(error)

    def _server_died(self, exit_: Exit, lived_s: float) -> None:
        """What it had not forked is noticed by the sockets of those processes, and asked for again."""
        self._server = None
        self._reaped.set()
        if self._closing:
            return
        self._short_lived = self._short_lived + 1 if lived_s < SERVER_STABLE_S else 0
        if self._short_lived >= (KILLED_MAX if exit_.signal == signal.SIGKILL else SHORT_LIVED_MAX):
            self._break(
                PoolBroken(
                    f"the fork server died {self._short_lived} times within {SERVER_STABLE_S:g} s of its start, lately "
                    f"of {exit_}; what it wrote to stderr says why"
                )
            )
            return
        self._start_server()

    def _fork(self) -> Worker:
        worker = Worker(fresh_exec=False)
        self._workers.append(worker)
        self._ask_for(worker)
        return worker

    def _ask_for(self, worker: Worker) -> None:
        """Ask the fork server, and again should nothing come of it."""
        server = self._server
        if server is None or self._closing:  # broken or closing: nobody makes processes any more
            return
        worker.attempts += 1
        try:
            self._connect(worker, server.fork)
        except OSError as error:
            if not descriptors.exhausted(error):
                raise
            self._unborn(worker, f"a process could not be made: {descriptors.account(error)}")
            return
        if self._groups is None:  # else it is told when it is in its group: what it starts is born there
            for message in worker.unheard:
                worker.channel.send(message)
        self._loop.call_later(FORK_TIMEOUT_S, self._check_born, worker, server)

    def _check_born(self, worker: Worker, server: ForkServer) -> None:
        if worker.pid or worker not in self._workers or self._server is not server:
            return
        if server.warm or server.age_s() > SERVER_START_TIMEOUT_S:
            server.kill()
        else:
            self._loop.call_later(FORK_TIMEOUT_S, self._check_born, worker, server)

    def _exec(self, env: dict[str, str]) -> Worker:
        born: list[int] = []

        def start(fds: list[int]) -> None:
            argv = [sys.executable, "-m", "civitas_shm.host.worker", *map(str, fds), str(os.getpid())]
            born.append(spawn(argv, [*fds, *self._memory_fds], {**os.environ, **env}))

        worker = Worker(fresh_exec=True)
        self._workers.append(worker)
        try:
            self._connect(worker, start)
        except OSError as error:
            if not descriptors.exhausted(error):
                raise
            self._break(PoolBroken(f"a process could not be made: {descriptors.account(error)}"))
            return worker
        self._watch(worker, born[0])
        return worker

    def _connect(self, worker: Worker, start: Callable[[list[int]], None]) -> None:
        """Make both ends of everything that ties one process to the host; `start` gives away the other ends.

        OSError when there are no descriptors for all of it; then there is none of it.
        """
        with contextlib.ExitStack() as undo:

            def had(*opened: Any) -> Any:
                for one in opened:
                    undo.callback(os.close if isinstance(one, int) else socket.socket.close, one)
                return opened

            control, control_there = had(*wire.socket_pair())
            records, records_there = had(*output_pair())
            out_read, out_write = had(*os.pipe())
            err_read, err_write = had(*os.pipe())
            (worker.spare_fd,) = had(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            undo.pop_all()
        worker.output = OutputReader(self._loop, records, out_read, err_read, self._on_line)
        worker.output.process = worker.process or "standby"
        worker.channel = wire.Channel(
            self._loop,
            control,
            FromWorker,
            lambda message, fds: self._heard(worker, message),
            lambda error: self._lost(worker, error),
        )
        worker.connected = True
        try:
            start([control_there.fileno(), records_there.fileno(), out_write, err_write, self._death_read])
        finally:
            control_there.close()
            records_there.close()
            os.close(out_write)
            os.close(err_write)

    def _heard(self, worker: Worker, message: FromWorker) -> None:
        if not isinstance(message, Hello):
            self._on_message(worker, message)
        elif not worker.pid:
            self._watch(worker, message.pid)
            if self._server is not None:
                self._server.warm = True

    def _watch(self, worker: Worker, pid: int) -> None:
        """From now on its end is an event. Until then the pid is not reused: only `_ended` reaps our child."""
        worker.watch(pid)
        if self._groups is not None:
            worker.enter(self._groups)
            for message in worker.unheard:
                worker.channel.send(message)
        worker.unheard.clear()
        self._short_lived = 0
        self._loop.add_reader(worker.pidfd, self._ended, worker)
        if worker.killed_because:
            kernel.kill(worker.pidfd)

    # --- death -------------------------------------------------------------------------------------------------------

    def _lost(self, worker: Worker, error: Exception | None) -> None:
        """Its control socket is closed: it was never born, it is dying, or it is out of its mind."""
        if error is not None:
            self.kill(worker, f"it broke the control protocol: {error}")
        if worker.pid:
            self._loop.call_later(LOST_GRACE_S, self._kill_if_alive, worker)
        elif worker.killed_because:
            self._bury(worker, None)
        else:
            self._unborn(
                worker,
                f"a process could not be made in {worker.attempts} attempts; is there memory, is there a limit on "
                "processes (ulimit -u, pids.max)? The fork server's stderr says more",
            )

    def _unborn(self, worker: Worker, why: str) -> None:
        """Nothing came of asking for it: once more, or the end of the run."""
        if worker.attempts >= FORK_ATTEMPTS_MAX:
            self._break(PoolBroken(why))
            return
        if not worker.connected:  # a fork server that dies is replaced without a word
            print(f"{why}. It is tried again.", file=sys.stderr)
        # Not at once: if the fork server has died, that is known in a moment and another one takes the request.
        self._loop.call_later(FORK_RETRY_S * 2**worker.attempts, self._fork_again, worker)

    def _fork_again(self, worker: Worker) -> None:
        worker.disconnect()
        worker.connected = False
        if worker.killed_because:
            self._bury(worker, None)
        else:
            self._ask_for(worker)

    def _kill_if_alive(self, worker: Worker) -> None:
        if worker.pidfd >= 0:
            self.kill(worker, "it closed its control connection")

    def _ended(self, worker: Worker) -> None:
        exit_ = kernel.reap(worker.pidfd)
        if exit_ is None:
            return
        self._loop.remove_reader(worker.pidfd)
        os.close(worker.pidfd)
        worker.pidfd = -1
        worker.channel.read_rest()
        self._bury(worker, exit_)

    def _bury(self, worker: Worker, exit_: Exit | None) -> None:
        """The one place where a process leaves the pool."""
        worker.disconnect()
        if self._groups is not None:
            worker.leave(self._groups)
        self._workers.remove(worker)
        if worker in self._standbys:
            self._standbys.remove(worker)
        self._reaped.set()
        if self._closing:
            return
        self._on_death(worker, exit_)
        self._loop.call_later(REPLENISH_AFTER_S, self.replenish)
        self._leftovers.after_death()


def _put_on(standby: Worker, cpus: Sequence[int]) -> None:
    """While it sleeps: it wakes up on a core that it may use, instead of moving there on its way."""
    if cpus and standby.pid:
        with contextlib.suppress(OSError):  # it has died; or the cores are not ours any more, which it says itself
            os.sched_setaffinity(standby.pid, cpus)
