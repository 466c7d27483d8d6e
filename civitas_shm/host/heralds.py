"""Telling processes what the host knows of the agents (`roster`): those that have asked for it, and the program.

Rules of this file:
- a process that has not asked is told nothing, so a run that uses none of it pays nothing, restarts least of all;
- changes of one turn of the loop go out together; `flush` before an answer, so that who hears that something is done
  knows what has come of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from ..placement import MAIN
from ..roster import Roster, Traits
from .pool import Worker
from .protocol import Known
from .seats import Seat

__all__ = ["Heralds"]

AGENTS_AT_ONCE: Final = 500
"""In one message: some hundred kilobytes at most, where the metadata is small."""


class Heralds:
    """One run's."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, roster: Roster, order: Callable[[Seat, Known], None], main: Seat
    ) -> None:
        self._loop = loop
        self._roster = roster
        self._order = order
        self._listening: dict[str, tuple[Seat, Worker | None]] = {main.name: (main, None)}
        self._news: dict[str, Traits | None] = {}
        roster.listen(self._changed)

    def subscribe(self, seat: Seat) -> None:
        """Tell this process everything, and from now on every change."""
        self.flush()
        self._listening[seat.name] = (seat, seat.worker)
        everybody = list(self._roster)
        for start in range(0, len(everybody), AGENTS_AT_ONCE):
            self._order(seat, Known(dict(everybody[start : start + AGENTS_AT_ONCE])))
        self._order(seat, Known({}, all=[name for name, _ in everybody]))

    def _changed(self, agent: str, before: Traits | None, traits: Traits | None) -> None:
        if not self._news:
            self._loop.call_soon(self.flush)
        self._news[agent] = traits

    def flush(self) -> None:
        """Tell what is new."""
        if not self._news:
            return
        news, self._news = Known(self._news), {}
        for name, (seat, worker) in list(self._listening.items()):
            if name == MAIN or (worker is not None and seat.worker is worker):
                self._order(seat, news)
            else:
                del self._listening[name]  # that process is dead, and its successor has not asked
