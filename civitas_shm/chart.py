"""What shared memory does not say of a run: its tree, its processes by name, and how it stands, written by its host
into the run directory for those who look from outside.

Rules of this file: values and their file. The file is replaced as a whole, so a reader finds an old one or a new one;
it outlives the host, and tells then how things stood at most a moment before its death. Nothing in the run depends on
it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import msgspec

__all__ = [
    "FILE",
    "Chart",
    "ChartChild",
    "ChartProcess",
    "ChartSupervisor",
    "encode_chart",
    "read_chart",
    "write_chart",
]

FILE: Final = "chart.json"
"""In the run directory."""

BYTES_MAX: Final = 64 << 20
"""Of a file that is read: ten thousand agents take two million."""


class ChartProcess(msgspec.Struct, frozen=True):
    """One process of the plan."""

    name: str
    slot: int
    pid: int = 0
    """0: none stands behind the name just now."""
    cpus: tuple[int, ...] = ()
    """Cores that it is pinned to; empty: it is not."""
    state: str = "running"
    """`starting`, `running`, `waiting` (for its backoff)."""
    restarts: int = 0
    verdict: str = ""
    """What the watch says of it, if that is nothing good."""


class ChartSupervisor(msgspec.Struct, frozen=True):
    """One supervisor."""

    name: str
    parent: str = ""
    strategy: str = ""
    state: str = "up"
    """A word of `supervision.Phase`."""
    restarts_in_window: int = 0
    max_restarts: int = 0
    window_s: float = 0.0
    dynamic: bool = False


class ChartChild(msgspec.Struct, frozen=True):
    """One child of the tree: an agent, or a replica of one (`name#1`)."""

    name: str
    agent: str
    supervisor: str = ""
    process: str = ""
    state: str = "ready"
    """A word of `supervision.ChildStatus`."""
    restarts: int = 0
    incarnation: int = 0


class Chart(msgspec.Struct, frozen=True):
    """The run as its host sees it."""

    name: str
    run_id: str
    version: str = ""
    state: str = "starting"
    """`starting`, `running`, `stopping`."""
    host_pid: int = 0
    main_pid: int = 0
    """Of the caller: the program, or the `run` command."""
    since_s: float = 0.0
    """Since 1970."""
    written_s: float = 0.0
    stopped_timeout_s: float = 0.0
    """After which a stopped process is killed; 0: never."""
    processes: tuple[ChartProcess, ...] = ()
    supervisors: tuple[ChartSupervisor, ...] = ()
    children: tuple[ChartChild, ...] = ()
    counts: dict[str, int] = {}


def encode_chart(chart: Chart) -> bytes:
    """For `write_chart`."""
    return msgspec.json.encode(chart)


def write_chart(directory: Path, data: bytes) -> None:
    """Replace the file. OSError when the directory is full or gone."""
    new = directory / f"{FILE}.new"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
    finally:
        os.close(fd)
    os.replace(new, directory / FILE)


def read_chart(directory: Path) -> Chart | None:
    """None: there is none, or what is there cannot be understood; whoever looks then goes without names of
    processes.
    """
    try:
        with (directory / FILE).open("rb") as file:
            data: Any = file.read(BYTES_MAX)
        return msgspec.json.decode(data, type=Chart)
    except (OSError, msgspec.MsgspecError):
        return None
