"""The streams of one process: who holds how many places of its reply lane, and what concerns all of them.

A reply lane of shared memory has 8,191 places: 4,096 are for asks, PLACES for streams, the rest for what comes late,
after nobody waits any more (`LAYOUT.md`). A stream holds a place for each credit that it has given out and EXTRA for
what goes without one. It begins with FIRST credits and doubles them as it is read, up to its `maxsize`; the more
streams there are the less each may hold, and one that holds more gives it back as it is read. So one stream is fast,
and hundreds fit; who finds no place waits for one, as long as it would wait for its first chunk.

Rules of this file: all methods run on the loop; nothing here knows what a chunk is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from ..errors import TransportClosed
from ..messages import new_header
from ..transport import SENDER_PROGRAM, Port, Reply
from .frames import CANCEL, OPEN, OPENING, seq_of

if TYPE_CHECKING:
    from ..port_bus import PortBus

__all__ = ["EXTRA", "FEW", "FIRST", "PLACES", "Streams"]

PLACES: Final = 2048
EXTRA: Final = 4
"""An opening for each of two lives of the writer, a last answer, an end."""
FIRST: Final = 32
"""Credits of a new stream: as many chunks as pass while the first credit is on its way, when both ends are awake."""
FEW: Final = 4
"""Fewer would make each chunk wait for the last one."""


class Watcher(Protocol):
    """An end that wants to know of deaths."""

    def somebody_died(self) -> None: ...


class Streams:
    """Of one process. `PortBus.streams` makes it when the first stream begins."""

    def __init__(self, bus: PortBus) -> None:
        self.bus = bus
        self.port: Port = bus.port
        self.waits = bus.waits
        self.free = PLACES
        self.readers = 0
        self.writers: set[Watcher] = set()
        self._line: deque[tuple[int, asyncio.Future[int]]] = deque()
        self.port.on_death = self._somebody_died
        self.port.on_stranger = self._stranger

    # --- places ---------------------------------------------------------------------------------------------------

    async def begin(self, most: int, timeout_s: float | None) -> int:
        """Credits for a new stream, at most `most`; they and EXTRA are taken. TimeoutError: no place in that time."""
        if self.free >= FEW + EXTRA and not self._line:
            return self._admit(most)
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._line.append((most, turn))
        try:
            async with asyncio.timeout(timeout_s):
                return await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.end(turn.result() + EXTRA)  # it was our turn already
            else:
                with contextlib.suppress(ValueError):
                    self._line.remove((most, turn))
            raise

    def _admit(self, most: int) -> int:
        credits = min(most, FIRST, max(FEW, self.free // 16))
        self.readers += 1
        self.free -= credits + EXTRA
        return credits

    def share(self, window: int, most: int) -> int:
        """How many credits a stream that was read in time should have now instead of `window`."""
        fair = min(most, max(FEW, min(2 * window, PLACES // max(1, self.readers))))
        return min(fair, window + max(0, self.free))

    def give_back(self, places: int) -> None:
        self.free += places
        self._next()

    def end(self, places: int) -> None:
        """A stream is over."""
        self.readers -= 1
        self.give_back(places)

    def _next(self) -> None:
        while self.free >= FEW + EXTRA and self._line:
            most, turn = self._line.popleft()
            if not turn.done():
                turn.set_result(self._admit(most))

    # --- what concerns all ----------------------------------------------------------------------------------------

    def _somebody_died(self) -> None:
        for writer in list(self.writers):
            writer.somebody_died()

    def _stranger(self, reply: Reply) -> None:
        """Somebody opens a stream that nobody reads any more: it timed out, or was read to its end by now."""
        _, header, kind, _, data, failed = reply
        if kind == OPEN and seq_of(header) and not failed:
            to = new_header(correlation=OPENING.unpack(data)[0], sender=SENDER_PROGRAM)
            try:
                self.port.post_reply(to, b"", CANCEL, SENDER_PROGRAM, False, 1)
            except TransportClosed:
                pass
