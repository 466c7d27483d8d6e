"""Faults on purpose (`run --chaos kill=0.1s,stop=0.3s/0.2s`): workers killed and stopped while the run goes on.

Rules of this file:
- only processes that are ready are hit, and never when the run is to stop;
- a death by chaos counts against no restart budget; a stop is a SIGSTOP and, after its time, a SIGCONT;
- what was stopped is continued at the latest when the chaos ends, so that nobody hangs at the end of a run.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable
from typing import Protocol

from . import kernel
from .pool import Worker
from .protocol import Chaos
from .seats import Seat

__all__ = ["ChaosMaker"]


class Driver(Protocol):
    """What is needed of `driver.Driver`."""

    def victims(self) -> list[Seat]: ...
    def kill_for_chaos(self, seat: Seat) -> None: ...
    def note_stop(self, seat: Seat, for_s: float) -> None: ...


class ChaosMaker:
    """Does it, from its making to `close`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        chaos: Chaos,
        driver: Driver,
        choose: Callable[[list[Seat]], Seat] = random.choice,
    ) -> None:
        self._loop = loop
        self._chaos = chaos
        self._driver = driver
        self._choose = choose
        self._stopped: dict[Worker, asyncio.TimerHandle] = {}
        self._next: dict[str, asyncio.TimerHandle] = {}
        if chaos.kill_s is not None:
            self._repeat("kill", chaos.kill_s, self._kill)
        if chaos.stop_s is not None:
            self._repeat("stop", chaos.stop_s, self._stop)

    def close(self) -> None:
        """No more of it; whoever is stopped goes on."""
        for handle in self._next.values():
            handle.cancel()
        for worker in list(self._stopped):
            self._continue(worker)

    def _repeat(self, what: str, interval_s: float, do: Callable[[], None]) -> None:
        def now() -> None:
            self._repeat(what, interval_s, do)
            do()

        self._next[what] = self._loop.call_later(interval_s, now)

    def _kill(self) -> None:
        victims = self._driver.victims()
        if victims:
            self._driver.kill_for_chaos(self._choose(victims))

    def _stop(self) -> None:
        victims = [seat for seat in self._driver.victims() if seat.worker not in self._stopped]
        if not victims:
            return
        seat = self._choose(victims)
        worker = seat.worker
        assert worker is not None  # it is ready
        if worker.pidfd >= 0 and kernel.kill(worker.pidfd, signal.SIGSTOP):
            self._stopped[worker] = self._loop.call_later(self._chaos.stop_for_s, self._continue, worker)
            self._driver.note_stop(seat, self._chaos.stop_for_s)

    def _continue(self, worker: Worker) -> None:
        self._stopped.pop(worker).cancel()
        if worker.pidfd >= 0:  # else it was killed meanwhile
            kernel.kill(worker.pidfd, signal.SIGCONT)
