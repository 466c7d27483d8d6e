"""The fork server: a warm process from which workers are forked, `python -m civitas_shm.host.forkserver`.

Rules of this file:
- one thread, no loop, no CUDA, no user code but what `pool: {preload}` names: what is forked is as good as fresh;
- there is a process in between, so that the worker becomes a child of the host (a subreaper): the host gets its exit
  status, and this process's death harms no worker. The transport may know how to do that with one copy of the page
  tables instead of two (`fork_away`): a copy costs a millisecond, the faults that follow it as much again. Of workers
  that are asked for together, up to BATCH_MAX come from one process in between, beside the next batch on another core;
- beside the run's memory, which all workers share, it holds nothing that a worker needs after its fork; the host starts
  another one at once when it dies;
- it is tied to the host as workers are (`kernel`), and ends at the end of its socket.
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from ..transport import load_transport
from . import kernel, wire
from .protocol import Memory, ToForkServer

__all__ = ["Preload", "WorkerFds", "ignore_interrupts", "keep_descriptors_here", "main"]


BATCH_MAX: Final = 8
"""With five descriptors each they still fit the smallest table that the host allows itself (`descriptors`)."""


@dataclass(frozen=True, slots=True)
class WorkerFds:
    """What a worker is born with, in the order of the descriptors of `Fork`."""

    control: int
    records: int
    stdout: int
    stderr: int
    death: int
    memory: tuple[int, ...] = ()
    """Shared by all processes of the run, and not closed with the others."""

    @classmethod
    def born_with(cls, fds: Sequence[int], memory: tuple[int, ...] = ()) -> WorkerFds:
        control, records, stdout, stderr, death = fds
        return cls(control, records, stdout, stderr, death, memory)

    def all(self) -> tuple[int, ...]:
        return (self.control, self.records, self.stdout, self.stderr, self.death)


@dataclass(frozen=True, slots=True)
class Preload:
    """What is imported before the first fork, so that no worker has to."""

    own: list[str]
    """Of this project: without these nothing works."""
    paths: list[str]
    """`import_paths` of the topology."""
    users: list[str]
    """`pool: {preload}`: the one piece of user code here, on its user's word that it starts nothing."""
    transport: str = ""
    """Its name; empty: none."""

    def to_argument(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_argument(cls, text: str) -> Preload:
        return cls(**json.loads(text))

    def load(self) -> None:
        """A user's module that cannot be imported is a sentence on stderr: the agent that needs it says it again."""
        for name in self.own:
            importlib.import_module(name)
        if self.transport:
            load_transport(self.transport)
        sys.path[:0] = [path for path in self.paths if path not in sys.path]
        for name in self.users:
            try:
                importlib.import_module(name)
            except BaseException as error:  # noqa: BLE001 - whatever it does must not end the fork server
                print(f"pool.preload: {name!r} cannot be imported: {type(error).__name__}: {error}", file=sys.stderr)
            tasks = len(os.listdir("/proc/self/task"))
            if tasks > 1:
                print(
                    f"pool.preload: {name!r} has started {tasks - 1} thread(s), which no forked worker will have; "
                    "take it out of pool.preload, or start them in on_start",
                    file=sys.stderr,
                )


def ignore_interrupts() -> None:
    """Ctrl-C is the caller's. A handler that does nothing, because an ignored signal stays ignored in programs that
    user code starts, where `Popen.send_signal(SIGINT)` would have no effect."""
    signal.signal(signal.SIGINT, _do_nothing)


def keep_descriptors_here() -> None:
    """Descriptors that came with the exec are ours; programs that user code starts must not inherit them."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2:
            try:
                os.set_inheritable(fd, False)
            except OSError as error:
                if error.errno != errno.EBADF:  # the one that listed the directory
                    raise


def _do_nothing(number: int, frame: Any) -> None:
    pass


def main(argv: list[str]) -> int:
    """`control_fd death_fd host_pid preload`. Returns at the end of this process and of each worker."""
    sock = socket.socket(fileno=int(argv[0]))
    host_pid = int(argv[2])
    kernel.set_name("civ-fork")
    kernel.die_with_parent(host_pid)
    death_fd = kernel.arm_death_pipe(int(argv[1]))
    ignore_interrupts()
    keep_descriptors_here()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the processes in between are reaped by the kernel
    preload = Preload.from_argument(argv[3])
    preload.load()
    fork_away = load_transport(preload.transport).fork_away if preload.transport else None
    gc.collect()
    gc.freeze()  # a collection in a worker must not write to (and so copy) pages that are shared
    born = _serve(sock, host_pid, fork_away)
    if born is None:
        return 0
    # From here on this is a worker; it leaves by the interpreter's usual end, so that atexit and threads are served.
    sock.close()
    os.close(death_fd)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sys.argv = ["civitas-shm worker"]
    from . import worker

    return worker.main(born, host_pid, preload.transport)


def _serve(sock: socket.socket, host_pid: int, fork_away: Callable[[], tuple[bool, int]] | None) -> WorkerFds | None:
    """Fork on request, until the host closes (None), or this is a worker (what it is born with).

    A fork that fails is seen by the host as closed sockets.
    """
    decoder: wire.FrameDecoder[ToForkServer] = wire.FrameDecoder(ToForkServer)
    requests: list[ToForkServer] = []
    fds: list[int] = []
    memory: tuple[int, ...] = ()
    more = select.poll()
    more.register(sock, select.POLLIN)
    while True:
        try:
            while not requests or (len(requests) < BATCH_MAX and more.poll(0)):
                came, with_them = wire.receive(sock, decoder)
                requests += came
                fds += with_them
        except (EOFError, ConnectionError):
            return None
        batch: list[WorkerFds] = []
        while requests and len(batch) < BATCH_MAX:
            request = requests.pop(0)
            its, fds = fds[: request.fds], fds[request.fds :]
            if isinstance(request, Memory):
                memory = tuple(its)
            else:
                batch.append(WorkerFds.born_with(its, memory))
        if len(batch) == 1 and fork_away is not None:
            born = _fork_one(batch[0], host_pid, fork_away)
        else:
            born = _fork_batch(batch, host_pid) if batch else None
        for fd in (fd for one in batch if one is not born for fd in one.all()):
            os.close(fd)
        if born is not None:
            for fd in fds:  # of requests behind these
                os.close(fd)
            return born


def _fork_one(one: WorkerFds, host_pid: int, fork_away: Callable[[], tuple[bool, int]]) -> WorkerFds | None:
    """As `_fork_batch`."""
    try:
        is_new, between_pid = fork_away()
    except OSError as error:
        print(f"the fork server cannot fork: {error}", file=sys.stderr)
        return None
    if is_new:
        kernel.wait_for_parent(between_pid, host_pid)
    return one if is_new else None


def _fork_batch(batch: list[WorkerFds], host_pid: int) -> WorkerFds | None:
    """What it is born with in each new process, once that is the host's child; None in the fork server."""
    server_pid = os.getpid()
    try:
        if os.fork():
            return None
    except OSError as error:
        print(f"the fork server cannot fork: {error}", file=sys.stderr)
        return None
    # The process in between. Were the server killed just now, the host would become its parent, which is all right.
    between_pid = os.getpid()
    for one in batch:
        try:
            is_worker = os.fork() == 0
        except OSError as error:
            print(f"the fork server's child (of {server_pid}) cannot fork: {error}", file=sys.stderr)
            os._exit(1)
        if is_worker:
            kernel.wait_for_parent(between_pid, host_pid)
            return one
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
