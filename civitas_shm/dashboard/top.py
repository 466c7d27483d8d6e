"""The loop of `top`: readings in, frames out, keys in between.

Rules of this file: one reading a second, whatever is pressed; a key redraws at once from what was read last. A
recording is a file of readings, one to a line, so what is replayed goes the very same way as what is live.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from ..inspection import Looker, Reading, Scene, snapshot_of
from ..inspection.readings import decode_reading, encode_reading
from ..snapshot import RuntimeSnapshot
from .terminal import Frames, raw, read_keys
from .views import Choice, lines_of, press

__all__ = ["Live", "Replay", "Source", "run_top"]

INTERVAL_S: Final = 1.0


class Source(Protocol):
    """Where snapshots come from."""

    def next(self, step: int) -> RuntimeSnapshot:
        """The next one; `step` readings back or on, where that can be."""
        ...


class Live:
    """A run, read now."""

    def __init__(self, looker: Looker, record: BinaryIO | None = None) -> None:
        self._looker = looker
        self._record = record
        self._before: Reading | None = None

    def next(self, step: int = 1) -> RuntimeSnapshot:
        now = self._looker.look()
        if self._record is not None:
            self._record.write(encode_reading(now) + b"\n")
            self._record.flush()
        before, self._before = self._before, now
        return snapshot_of(Scene(before, now))


class Replay:
    """A recording. ValueError when it is none."""

    def __init__(self, path: Path) -> None:
        self._lines = [line for line in path.read_bytes().splitlines() if line.strip()]
        if not self._lines:
            raise ValueError("it is empty")
        self._at = -1
        decode_reading(self._lines[0])

    def next(self, step: int = 1) -> RuntimeSnapshot:
        self._at = max(0, min(self._at + step, len(self._lines) - 1))
        before = decode_reading(self._lines[self._at - 1]) if self._at else None
        return snapshot_of(Scene(before, decode_reading(self._lines[self._at])))

    def last(self) -> RuntimeSnapshot:
        """That of its end."""
        self._at = len(self._lines)
        return self.next(0)


def run_top(source: Source, interval_s: float = INTERVAL_S, choice: Choice | None = None) -> None:
    """Until it is left. On a terminal only."""
    choice = choice or Choice()
    frames = Frames(color=not os.environ.get("NO_COLOR"))
    fd = sys.stdin.fileno()
    with raw(fd, sys.stdout):
        snapshot = source.next(1)
        due_s = time.monotonic() + min(interval_s, 0.3)  # the first rates soon
        while not choice.quit:
            size = shutil.get_terminal_size()
            frames.show(lines_of(snapshot, choice, size.columns, size.lines))
            for key in read_keys(fd, due_s - time.monotonic()):
                choice = press(choice, key, max(1, size.lines - 5))
            if choice.step:
                snapshot, choice = source.next(choice.step), replace(choice, step=0)
            if time.monotonic() >= due_s:
                if not choice.paused:
                    snapshot = source.next(1)
                due_s = time.monotonic() + interval_s
