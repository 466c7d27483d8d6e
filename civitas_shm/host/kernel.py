"""What is asked of the Linux kernel to start, tie together, watch and end processes.

Rules of this file:
- a signal goes through a pidfd, never to a pid: a pid may belong to somebody else by then;
- a process is tied to the host twice: PR_SET_PDEATHSIG (fires even when the death pipe is not armed yet) and a death
  pipe with O_ASYNC (fires even when the process was forked by another one). Both deliver SIGKILL from the kernel, so
  they work while the process is stopped or holds the GIL in C;
- nothing here knows about messages, agents or asyncio.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import time
from dataclasses import dataclass
from typing import Final

__all__ = [
    "Exit",
    "arm_death_pipe",
    "available_cpus",
    "become_subreaper",
    "children",
    "counted",
    "cpu_list",
    "die_with_parent",
    "kill",
    "numa_nodes",
    "pid_of",
    "process_state",
    "reap",
    "set_name",
    "wait_for_parent",
]

# linux/prctl.h
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36

_WALL: Final = 0x40000000  # children that were made without a signal for their end, too
_NAME_BYTES: Final = 15
"""Longest name of a process that the kernel keeps (TASK_COMM_LEN less the zero)."""

_REPARENT_POLL_S: Final = 50e-6
"""Where no event tells of it. (The end of a pipe would be seen before the re-parenting, the pidfd's is after it.)"""

_COUNTERS_BYTES_MAX: Final = 1 << 16
"""Of a file of counters: /proc/vmstat has 5 KB."""

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int | bytes) -> None:
    argument: ctypes.c_ulong | ctypes.c_char_p = (
        ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_ulong(value)
    )
    if _libc.prctl(option, argument, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


# --- who is whose child -----------------------------------------------------------------------------------------


def become_subreaper(on: bool = True) -> None:
    """From now on orphaned descendants become children of this process: it gets their exit status."""
    _prctl(_PR_SET_CHILD_SUBREAPER, int(on))


def die_with_parent(parent_pid: int) -> None:
    """SIGKILL for this process when its parent dies; ends it here and now if that has happened already.

    Promise: on return `parent_pid` was the parent *after* the signal was set. It belongs to the parent's thread that
    forked: that must be its main thread.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(EXIT_ORPHANED)


EXIT_ORPHANED: Final = 113
"""Status of a process that found its host gone before it was tied to it."""


def wait_for_parent(old_pid: int, new_pid: int) -> None:
    """Return when this process has been re-parented from `old_pid` to `new_pid`; end it if anybody else took it.

    PDEATHSIG must not be set before: it fires at any re-parenting.
    """
    with contextlib.suppress(OSError):  # gone already; or no more descriptors
        old = os.pidfd_open(old_pid)
        try:
            if os.getppid() == old_pid:  # so the pid was not another's when it was opened
                poll = select.poll()
                poll.register(old, select.POLLIN)
                poll.poll()
        finally:
            os.close(old)
    while (parent := os.getppid()) == old_pid:
        time.sleep(_REPARENT_POLL_S)
    if parent != new_pid:
        os._exit(EXIT_ORPHANED)


def arm_death_pipe(read_fd: int) -> int:
    """SIGKILL for this process when the last writer of the pipe is gone. Closes `read_fd`; keep the one returned open.

    The pipe is opened anew, because owner and signal belong to the open file description: with one that is shared by
    several processes only the last to arm it would be killed.
    """
    fd = os.open(f"/proc/self/fd/{read_fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.close(read_fd)
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(fd, 0)  # POLLHUP is always reported
    if poll.poll(0):
        os._exit(EXIT_ORPHANED)  # the writer was gone before the signal was armed
    return fd


def set_name(name: str) -> None:
    """What `ps` and `top` show; the kernel keeps 15 bytes."""
    _prctl(_PR_SET_NAME, name.encode()[:_NAME_BYTES] + b"\0")


def children() -> list[int]:
    """Pids of all children of this process, dead ones that nobody has reaped included."""
    found: list[int] = []
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children", encoding="ascii") as listing:
            found.extend(int(pid) for pid in listing.read().split())
    return found


# --- how processes end ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: an exit status, or the signal that killed it."""

    status: int
    signal: int = 0

    def __str__(self) -> str:
        if not self.signal:
            return f"exit code {self.status}"
        try:
            return signal.Signals(self.signal).name
        except ValueError:  # a real-time signal has no name of its own
            return f"signal {self.signal}"


def reap(pidfd: int) -> Exit | None:
    """Take the exit status of a child; None while it runs. Closes nothing.

    A child that somebody else reaped (nobody in the host does) would raise ChildProcessError.
    """
    result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    if result is None:
        return None
    if result.si_code == os.CLD_EXITED:
        return Exit(result.si_status)
    return Exit(0, signal=result.si_status)


def process_state(pid: int) -> tuple[str, bool]:
    """(letter of its state in /proc, whether a debugger traces it). `X` when it is gone.

    For pids that cannot have been reused: of children that nobody has reaped.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            state = chr(stat.read().rpartition(b") ")[2][0])
        if state not in "Tt":
            return state, False
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as lines:
            tracer = next((line.split()[1] for line in lines if line.startswith("TracerPid:")), "0")
        return state, tracer != "0"
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return "X", False


def pid_of(pidfd: int) -> int:
    """The pid behind a pidfd, for reports; -1 when it has ended."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as lines:
        for line in lines:
            key, _, value = line.partition(":")
            if key == "Pid":
                return int(value)
    raise ValueError(f"descriptor {pidfd} is no pidfd")


def end_keeper(pid: int) -> None:
    """End the child that keeps this process's memory (`TransportModule.keep_memory`), and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, _WALL)


def kill(pidfd: int, number: int = signal.SIGKILL) -> bool:
    """Send a signal; False if the process has ended. SIGKILL also ends a stopped process."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


# --- cores and memory -------------------------------------------------------------------------------------------


def available_cpus() -> list[int]:
    """Cores that this process may run on (cpuset and affinity honoured), in order."""
    return sorted(os.sched_getaffinity(0))


def numa_nodes() -> dict[int, list[int]]:
    """Cores of each memory node; empty where the kernel does not say."""
    nodes: dict[int, list[int]] = {}
    base = "/sys/devices/system/node"
    for name in sorted(os.listdir(base)) if os.path.isdir(base) else []:
        if name.startswith("node") and name[4:].isdigit():
            with open(f"{base}/{name}/cpulist", encoding="ascii") as listing:
                nodes[int(name[4:])] = cpu_list(listing.read())
    return nodes


def cpu_list(text: str) -> list[int]:
    """The kernel's form of a set of cores: `0-3,6`."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cpus.extend(range(int(first), int(last or first) + 1))
    return cpus


class OomKills:
    """How many processes of this process's memory cgroup the kernel has killed for lack of memory.

    cgroup v2: `memory.events`, v1: `memory.oom_control`; where neither can be read, the machine's count in
    `/proc/vmstat`, which may be somebody else's. Which one is found out once: it is read at every death.
    """

    def __init__(self) -> None:
        self._path = next((path for path in _oom_counters() if counted(path, "oom_kill") is not None), None)

    def __call__(self) -> int:
        """0 where it is not to be known, or not just now."""
        return counted(self._path, "oom_kill") or 0 if self._path is not None else 0


def counted(path: str | os.PathLike[str], key: str) -> int | None:
    """The number behind a key in a file of such lines; None when it is not there, or cannot be read just now."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # not `open`: read at every death, and its layers cost more
        try:
            text = b"\n" + os.read(fd, _COUNTERS_BYTES_MAX)
        finally:
            os.close(fd)
        _, found, behind = text.partition(b"\n%b " % key.encode())
        return int(behind.split(None, 1)[0]) if found else None
    return None


def _oom_counters() -> list[str]:
    paths: list[str] = []
    # OSError: a kernel without cgroups, no descriptor left.
    with contextlib.suppress(OSError), open("/proc/self/cgroup", encoding="utf-8") as lines:
        for line in lines:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if controllers == "memory":
                paths += [f"/sys/fs/cgroup/memory{path}/memory.oom_control"]
                paths += ["/sys/fs/cgroup/memory/memory.oom_control"]  # a container sees its own group as the root
            elif controllers == "":
                paths += [f"/sys/fs/cgroup{path}/memory.events", "/sys/fs/cgroup/memory.events"]
    return [*paths, "/proc/vmstat"]
