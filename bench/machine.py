"""What a number needs beside it: the machine, the versions, and how much processor time a process took."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["cpu_time_ns", "describe", "slug"]

PACKAGES = ("civitas-shm", "uvloop", "msgspec", "pyzmq")


def describe() -> dict[str, object]:
    """The machine and the software, without anything that names a host or a user."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "virtual": "hypervisor" in _cpuinfo(),
        "kernel": platform.release(),
        "cpuidle": _read("/sys/devices/system/cpu/cpuidle/current_driver"),
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in PACKAGES},
        "load_before": os.getloadavg()[0],
    }


def slug(machine: dict[str, object]) -> str:
    """A file name's part: model and number of cores."""
    model = re.sub(r"\((r|tm)\)|@.*|\b(cpu|processor|intel|amd)\b", " ", str(machine["cpu"]).lower())
    words = re.findall(r"[a-z0-9.]+", model)[:4]
    return "-".join([*words, f"{machine['cores']}cores"])


def cpu_time_ns(pid: int) -> int:
    """Nanoseconds on a core, all threads together. `stat` counts in ticks of 10 ms, too coarse for an idle process."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total


def _cpuinfo() -> str:
    return _read("/proc/cpuinfo")


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return "unknown"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
