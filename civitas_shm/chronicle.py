"""The last events of a run, kept in its directory for those who look from outside, also after its death.

Rules of this file: one JSON object per line, as `--events FILE` has them; bounded: of two files of BYTES_MAX each, the
older one is given up when the newer one is full; a line is written at once, so it outlives the host. A line that
cannot be understood is left out. Dead letters are not among them: they have a store of their own, and may be many.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, Final

import msgspec

__all__ = ["BYTES_MAX", "FILE", "Chronicle", "read_events"]

FILE: Final = "events"
"""In the run directory; the older half is `events.1`."""

BYTES_MAX: Final = 256 << 10
"""About a thousand events each."""

LEFT_OUT: Final = frozenset({"dead_letter"})


class Chronicle:
    """The writing end: the host's."""

    def __init__(self, directory: Path, bytes_max: int = BYTES_MAX) -> None:
        """OSError when it cannot be opened."""
        self._path = directory / FILE
        self._bytes_max = bytes_max
        self._fd = self._open()
        self._size = os.fstat(self._fd).st_size

    def note(self, event: str, line: bytes) -> None:
        """Write one event. OSError when it cannot be."""
        if event in LEFT_OUT:
            return
        if self._size + len(line) > self._bytes_max:
            os.close(self._fd)
            self._fd = -1
            os.replace(self._path, self._path.with_name(f"{FILE}.1"))
            self._fd = self._open()
            self._size = 0
        self._size += os.write(self._fd, line)

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def read_events(directory: Path, most: int = 200) -> list[dict[str, Any]]:
    """The last ones, the newest last."""
    lines: list[bytes] = []
    for name in (f"{FILE}.1", FILE):
        with contextlib.suppress(OSError):
            lines += (directory / name).read_bytes().splitlines()
    found = []
    for line in lines[-most:]:
        with contextlib.suppress(msgspec.MsgspecError):
            entry = msgspec.json.decode(line)
            if isinstance(entry, dict) and isinstance(entry.get("event"), str) and _is_time(entry.get("time")):
                found.append(entry)
    return found


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
