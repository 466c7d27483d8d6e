"""What the host tells its caller: in order, and not in the middle of a restart.

Rules of this file: what is said `soon` is written at the end of the loop's turn, because each write wakes the caller
up, on a core that somebody else may need just now; what is said `now` comes behind it. Output of agents is dropped, and
counted, when the caller does not read; nothing else is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from . import wire
from .protocol import FromCaller, Line, Output

__all__ = ["Announcer"]


class Announcer:
    """To one caller."""

    def __init__(self, loop: asyncio.AbstractEventLoop, channel: wire.Channel[FromCaller]) -> None:
        self._loop = loop
        self._channel = channel
        self._waiting: list[msgspec.Struct] = []
        self._lines: list[Line] = []
        self._lost_lines = 0
        self.dropped_lines = 0
        """In the whole run."""

    def now(self, message: Any, fds: Sequence[int] = (), *, droppable: bool = False) -> bool:
        """False when it was dropped, or nobody is there. The descriptors are duplicated."""
        self._say_waiting()
        return self._channel.send(message, fds, droppable=droppable)

    def soon(self, message: msgspec.Struct) -> None:
        """At the end of this turn."""
        if not self._waiting:
            self._loop.call_soon(self._say_waiting)
        self._waiting.append(message)

    def line(self, line: Line) -> None:
        """A line of some process, with all others of this turn."""
        if not self._lines:
            self._loop.call_soon(self._say_lines)
        self._lines.append(line)

    def flush(self) -> None:
        """Say what waits."""
        self._say_waiting()
        self._say_lines()

    def _say_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for message in waiting:
            self._channel.send(message)

    def _say_lines(self) -> None:
        lines, self._lines = self._lines, []
        if not lines:
            return
        if self.now(Output(lines, self._lost_lines), droppable=True):
            self._lost_lines = 0
        else:
            self._lost_lines += len(lines)
            self.dropped_lines += len(lines)
