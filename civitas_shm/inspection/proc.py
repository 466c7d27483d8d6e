"""What the kernel says of a process, from /proc: its state, time on cores, memory. One file each, about 30 µs.

Rules of this file: reads only; a process that is gone has no sample. (psutil reads the same in ten times the time,
which is what keeps `top` on a hundred processes below two hundredths of a core.)
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

import msgspec

__all__ = ["Sample", "sample"]

_TICKS: Final = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_PAGE: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Sample(msgspec.Struct, frozen=True):
    """One process at one moment."""

    pid: int
    state: str
    """The letter in /proc/PID/stat: R runs, S sleeps, D waits in the kernel, T stopped, t traced, Z dead."""
    traced: bool
    cpu_s: float
    """Time on cores since it began."""
    rss_bytes: int
    threads: int
    core: int
    """Where it ran last."""
    started: int
    """Ticks since boot: with the pid, it tells one process from all others."""


def sample(pids: Iterable[int]) -> dict[int, Sample]:
    """Those of them that are there."""
    found = {pid: one for pid in pids if pid > 0 and (one := _sample(pid)) is not None}
    return found


def _sample(pid: int) -> Sample | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b") ")[2].split()
        state = fields[0].decode()
        return Sample(
            pid=pid,
            state=state,
            traced=state in "Tt" and _is_traced(pid),
            cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS,
            rss_bytes=int(fields[21]) * _PAGE,
            threads=int(fields[17]),
            core=int(fields[36]),
            started=int(fields[19]),
        )
    except (OSError, IndexError, ValueError):
        return None


def _is_traced(pid: int) -> bool:
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as lines:
        return any(line.startswith("TracerPid:") and line.split()[1] != "0" for line in lines)
