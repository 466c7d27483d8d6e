"""How much room there is where segments lie, and who has it: for the texts of errors.

Rules of this file: it reads directories and /proc, so nothing on the way of a message calls it; it changes nothing;
what cannot be read is left out of the text, never guessed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from .names import SHM, segment_owner

__all__ = ["mapped_place", "room_text"]

REMEDY: Final = (
    "Make it larger (docker run --shm-size=1g; Kubernetes: an emptyDir with medium Memory at /dev/shm), or remove what "
    "dead runs left there (civitas-shm gc)."
)

HOLDERS_MAX: Final = 5
"""Named in a text, the largest first."""


def mapped_place() -> Path | None:
    """Where the segments lie that this process has mapped; None: they have no name (memfd), or there are none."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            for line in maps:
                path = Path(line.split(maxsplit=5)[-1].rstrip()) if "/civitas-" in line else None
                if path is not None and segment_owner(path.name.removesuffix(" (deleted)")):
                    return path.parent
    except OSError:
        return None
    return None


def room_text(place: Path | None) -> str:
    """`/dev/shm has 0.0 MiB free of 16.0 MiB: the run 'a' holds 9.0 MiB, other files 7.0 MiB.`, and the way out."""
    return f"{_room(place)}. {REMEDY}"


def _room(place: Path | None) -> str:
    if place is None:
        return "the kernel gives no more memory (a memory limit of the container?)"
    try:
        stat = os.statvfs(place)
    except OSError:
        return f"{place} cannot be looked at"
    text = f"{place} has {_mib(stat.f_bavail * stat.f_frsize)} free of {_mib(stat.f_blocks * stat.f_frsize)}"
    if place != SHM:
        return text  # a file system that others use too: whose it is there is not ours to add up
    used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    runs = _held_by_runs(place)
    holders = [(f"the run {name!r} holds", size) for name, size in runs.items()]
    holders += [("other files", used - sum(runs.values()))]
    largest = sorted(((who, size) for who, size in holders if size > 0), key=lambda held: -held[1])[:HOLDERS_MAX]
    return f"{text}: {', '.join(f'{who} {_mib(size)}' for who, size in largest)}" if largest else text


def _held_by_runs(place: Path) -> dict[str, int]:
    """Bytes that the kernel has really given, by name of the run, whoever owns it."""
    held: dict[str, int] = {}
    for entry in os.scandir(place):
        owner = segment_owner(entry.name)
        if owner is None:
            continue
        try:
            held[owner] = held.get(owner, 0) + entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError:  # removed meanwhile
            continue
    return held


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"
