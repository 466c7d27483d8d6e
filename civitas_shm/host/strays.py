"""Processes that outlive whom they belong to: what user code started in a worker, found by a mark in its environment.

Whose a process is:
- every process of a run, and whatever it starts, bears RUN_MARK in its environment: the run's name, and the host's pid,
  start time and pid namespace, which together name one process of this boot, for ever. While that host lives the run
  lives; so a marked process without its host is a stray, and no stranger can be one. No file is needed for it;
- what a worker starts is in the worker's session, and, unless it was forked without exec, bears WORKER_MARK with the
  worker's pid. One that has hidden from both is found as a child of the host (a subreaper), whoever started it.

When they die: with their worker while the host lives (`Pool`; daemons too); when the host is killed, at the next `run`
of this user, or by `gc`. What has cleared its environment is not found then.

Rules of this file: a signal goes through a pidfd, after the mark was read again behind it: a pid may be another's.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Final

from . import cgroups, kernel

__all__ = [
    "RUN_MARK",
    "WORKER_MARK",
    "Stray",
    "end_strays",
    "find_strays",
    "host_id",
    "lives",
    "mark_run",
    "mark_worker",
    "owner_of",
]

RUN_MARK: Final = "CIVITAS_SHM_RUN"
WORKER_MARK: Final = "CIVITAS_SHM_WORKER"


@dataclass(frozen=True, slots=True)
class Stray:
    """A process of a run whose host is dead."""

    pid: int
    run: str
    command: str


def mark_run(name: str) -> None:
    """In the host, before it starts anybody: what it starts from now on bears the mark."""
    os.environ[RUN_MARK] = f"{name}:{os.getpid()}:{_start_ticks(os.getpid())}:{_namespace()}"


def host_id(name: str) -> str:
    """This host, as the groups of its run are named (`cgroups`): `lives` tells it from all others."""
    return f"{name}.{os.getpid()}.{_start_ticks(os.getpid())}.{_namespace()}"


def lives(host: str) -> bool:
    """Whether that host lives, or cannot be told: it is of another pid namespace, or nothing that was named here."""
    parts = host.rsplit(".", 3)
    if len(parts) != 4 or parts[3] != _namespace() or not (parts[1].isdigit() and parts[2].isdigit()):
        return True
    return _start_ticks(int(parts[1])) == int(parts[2])


def mark_worker() -> None:
    """In a worker, before user code runs: its own session, and its pid for what it will exec."""
    os.environ[WORKER_MARK] = str(os.getpid())
    with contextlib.suppress(PermissionError):  # it leads a session already
        os.setsid()


def owner_of(pid: int) -> int | None:
    """The pid of the worker that a child of the host comes from, as far as its environment and session tell."""
    mark = _environment(pid).get(WORKER_MARK, "")
    if mark.isdigit():
        return int(mark)
    try:
        return os.getsid(pid)
    except OSError:
        return None


def find_strays() -> list[Stray]:
    """All of this user in this pid namespace whose run's host is dead."""
    found = []
    namespace, user = _namespace(), os.getuid()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            if os.stat(f"/proc/{entry}").st_uid != user:
                continue
        except OSError:
            continue  # it has ended
        run = _dead_run(int(entry), namespace)
        if run is not None:
            found.append(Stray(int(entry), run, _command(int(entry))))
    return found


def end_strays() -> list[Stray]:
    """Kill them; whom. What has hidden its mark dies too, where its run had a cgroup."""
    place = cgroups.find_place()
    if isinstance(place, cgroups.Place):
        cgroups.sweep(place, lives)
    ended = []
    namespace = _namespace()
    for stray in find_strays():
        try:
            pidfd = os.pidfd_open(stray.pid)
        except OSError:
            continue
        try:
            if _dead_run(stray.pid, namespace) is not None and kernel.kill(pidfd):
                ended.append(stray)
        finally:
            os.close(pidfd)
    return ended


def _dead_run(pid: int, namespace: str) -> str | None:
    """The name of the run that it is a stray of; None when it is none."""
    parts = _environment(pid).get(RUN_MARK, "").rsplit(":", 3)
    if len(parts) != 4:
        return None
    name, host, ticks, its_namespace = parts
    if its_namespace != namespace or not (host.isdigit() and ticks.isdigit()):
        return None  # of a container, say: its pids mean nothing here
    return None if _start_ticks(int(host)) == int(ticks) else name


def _environment(pid: int) -> dict[str, str]:
    """As it was at its last exec; empty when it cannot be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as environ:
            items = environ.read().split(b"\0")
    except OSError:
        return {}
    pairs = (item.decode(errors="replace").partition("=") for item in items)
    return {key: value for key, _, value in pairs}


def _start_ticks(pid: int) -> int:
    """Field 22 of /proc/PID/stat: with the pid it names one process of this boot. 0 when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b") ")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def _namespace() -> str:
    return os.readlink("/proc/self/ns/pid").strip("pid:[]")


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as line:
            return line.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "?"
