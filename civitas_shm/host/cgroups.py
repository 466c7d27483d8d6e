"""A cgroup (v2) of its own for each worker, where this process was given a place to make some.

What it is for: `memory.max` ends a process that takes more than its limit between two looks of the host, and says so in
`memory.events`; `cgroup.kill` ends whatever a worker has started, whatever that has hidden from.

Where: only below a group that was delegated to us. Groups belong to somebody (systemd, a container's manager), and
whoever makes some elsewhere is in its way. `find_place` says where, or in one sentence why nowhere.

    PLACE/civitas.RUN.HOST/              one run; pid and start time name its host, so a dead one's is known (`sweep`)
        N/                               one worker, and all that it starts

Rules of this file: files only, no knowledge of agents; what cannot be had is None or False, because a run without
groups is better than none; whoever calls gets no OSError. Blocking: moving a process takes about 1 ms, the rest 0.1 ms.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .kernel import counted

__all__ = ["PLACE_VARIABLE", "Group", "Groups", "Place", "find_place", "sweep"]

PLACE_VARIABLE: Final = "CIVITAS_SHM_CGROUP"
"""Names a delegated group by hand, where nothing marks it as one."""

DELEGATED: Final = ("trusted.delegate", "user.delegate")
"""What systemd writes (value 1) on groups that it has given away."""

PREFIX: Final = "civitas."
EVENTS: Final = "memory.events"

SWEEP_TRIES: Final = 100
SWEEP_TRY_S: Final = 0.002
"""What a dead run's processes get to be gone, at the start of the next one; a group that is not empty then stays."""

REMEDY: Final = "Delegate=yes and DelegateSubgroup=main in the systemd unit (docs/deployment.md)"


@dataclass(frozen=True, slots=True)
class Place:
    """A group below which groups may be made."""

    path: Path
    no_memory: str
    """Why there is no `memory.max` below it; empty where there is."""


# --- where ------------------------------------------------------------------------------------------------------------


def find_place(
    environ: Mapping[str, str] = os.environ, proc: Path = Path("/proc"), delegated: Callable[[Path], bool] | None = None
) -> Place | str:
    """Where groups may be made; or why nowhere, a sentence without a full stop. Changes nothing.

    `delegated`: whether a group was given away, instead of its marks.
    """
    by_hand = environ.get(PLACE_VARIABLE)
    if by_hand:
        place = Path(by_hand)
    else:
        mounted = _mounted(proc)
        if mounted is None:
            return "no cgroup v2 is mounted here"
        own = _own(mounted, proc)
        if own is None:
            return "this process's cgroup lies outside of what is mounted here"
        # With DelegateSubgroup= the service's processes are one level below what was given to it.
        marked = delegated or _is_delegated
        given = [group for group in (own.parent, own) if group.is_relative_to(mounted[1]) and marked(group)]
        if not given:
            return f"this process's cgroup ({own}) was not given to it; {REMEDY}"
        place = given[0]
    if not (place / "cgroup.procs").exists():
        return f"{place} is no cgroup v2"
    if not all(os.access(path, os.W_OK) for path in (place, place / "cgroup.procs")):
        return f"{place} cannot be written by this user"
    return Place(place, _no_memory(place))


def _mounted(proc: Path) -> tuple[str, Path] | None:
    """(root within the hierarchy, mount point) of cgroup v2."""
    for line in _read(proc / "self/mountinfo").splitlines():
        fields, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 "):
            root, point = fields.split()[3:5]
            return root, Path(point)
    return None


def _own(mounted: tuple[str, Path], proc: Path) -> Path | None:
    """The directory of the group that this process is in."""
    root, point = mounted
    for line in _read(proc / "self/cgroup").splitlines():
        number, _, path = line.split(":", 2)
        if number == "0" and Path(path).is_relative_to(root):
            return point / Path(path).relative_to(root)
    return None


def _is_delegated(group: Path) -> bool:
    for name in DELEGATED:
        with contextlib.suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False


def _no_memory(place: Path) -> str:
    """Why groups below cannot have the memory controller; empty when they can."""
    if "memory" not in _read(place / "cgroup.controllers").split():
        return f"{place} has no memory controller (cgroup v1 has it here, or it was not handed down)"
    if "memory" not in _read(place / "cgroup.subtree_control").split() and _read(place / "cgroup.procs").split():
        return f"{place} has processes itself, so no controller can be handed down from it; {REMEDY}"
    return ""


# --- groups -----------------------------------------------------------------------------------------------------------


class Group:
    """One worker's."""

    def __init__(self, path: Path, *, memory: bool) -> None:
        self.path = path
        self.memory = memory
        """Whether the kernel counts its memory, and says here when it killed for it."""
        self.memory_max_bytes = 0
        """0: no limit."""

    def put(self, pid: int) -> bool:
        """Move a process there; its children are born there."""
        return _write(self.path / "cgroup.procs", str(pid))

    def holds(self, pid: int) -> bool:
        """Whether that process is in it."""
        return str(pid) in _read(self.path / "cgroup.procs").split()

    def limit(self, memory_max_bytes: int) -> bool:
        """From now on the kernel kills all of it when it takes more. What it has taken before elsewhere is not counted.
        False: no limit can be kept here."""
        if not self.memory or not _write(self.path / "memory.max", str(memory_max_bytes)):
            return False
        _write(self.path / "memory.swap.max", "0")  # not there without swap
        _write(self.path / "memory.oom.group", "1")  # a worker whose child was shot would go on half
        self.memory_max_bytes = memory_max_bytes
        return True

    def oom_kills(self) -> int:
        """How many of its processes the kernel has killed for want of memory, its own limit's or another's."""
        return counted(self.path / EVENTS, "oom_kill") or 0

    def reached_its_limit(self) -> bool:
        return bool(self.memory_max_bytes and counted(self.path / EVENTS, "oom"))

    def end(self) -> bool:
        """Kill whatever is in it and remove it. False: something is still dying; call again."""
        _write(self.path / "cgroup.kill", "1")
        return _removed(self.path)


class Groups:
    """One run's."""

    def __init__(self, path: Path, *, memory: bool) -> None:
        self._path = path
        self._memory = memory
        self._made = 0
        self._ending: list[Group] = []

    @classmethod
    def open(cls, place: Place, host: str) -> Groups | None:
        """`host`: as `strays.host_id` names it. None: the kernel does not want it."""
        path = place.path / f"{PREFIX}{host}"
        try:
            path.mkdir()
        except OSError:
            return None
        handed_down = all(_write(group / "cgroup.subtree_control", "+memory") for group in (place.path, path))
        return cls(path, memory=not place.no_memory and handed_down)

    def make(self) -> Group | None:
        """A group for one process. None: it could not be had."""
        self.tend()
        self._made += 1
        path = self._path / str(self._made)
        try:
            path.mkdir()
        except OSError:
            return None
        return Group(path, memory=self._memory)

    def end(self, group: Group) -> None:
        """Its worker is dead: so is all that it has started, at one of the next calls of `tend`."""
        self._ending.append(group)

    def tend(self) -> None:
        """Remove what has died meanwhile."""
        self._ending = [group for group in self._ending if not group.end()]

    def close(self) -> bool:
        """At the end of the run. False: something is still dying; call again."""
        self.tend()
        return _removed(self._path)


def sweep(place: Place, lives: Callable[[str], bool]) -> list[str]:
    """End what dead runs have left in groups; of which. `lives`: whether a host does, by its name in `Groups.open`."""
    ended = []
    for path in sorted(place.path.glob(f"{PREFIX}*")):
        host = path.name.removeprefix(PREFIX)
        if path.is_dir() and not lives(host):
            _write(path / "cgroup.kill", "1")  # everything below, too
            for _ in range(SWEEP_TRIES):
                if all(_removed(below) for below in path.iterdir() if below.is_dir()) and _removed(path):
                    ended.append(host)
                    break
                time.sleep(SWEEP_TRY_S)  # they die, and whoever adopted them has to reap them
    return ended


# --- files ------------------------------------------------------------------------------------------------------------


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _write(path: Path, text: str) -> bool:
    """Whether the kernel took it."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(fd, text.encode("ascii"))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _removed(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
