"""Time that moves only when a test moves it, for agents that live in the test's process.

    @pytest.mark.civitas(clock="manual")
    async def test_the_report_comes_after_an_hour(runtime):
        ...
        await runtime.clock.advance(3600)

It is the time of everything that waits in this process: the loop (`asyncio.sleep`, `asyncio.timeout`, `call_later`),
backoff and restart windows, deadlines of asks, delayed messages. Agents of other processes have clocks of their own, so
there is none for them.

Rules of this file: `advance` goes from timer to timer, and before each lets the loop run until nothing is ready, so
what happens is what would have happened, in that order. A thread of a plain `def handle` is not waited for.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final, TypeVar

from ..clock import ManualClock

__all__ = ["ManualLoop", "ManualTime"]

T = TypeVar("T")

TURNS_MAX: Final = 100_000
"""Turns of the loop in which nothing comes to rest: agents that send to each other without end never do."""

PACKAGES: Final = ("civitas_shm", "civitas_shm_transports")

_CLOCKS: Final = ("monotonic", "monotonic_ns", "time", "time_ns")
_REAL: Final = {name: getattr(time, name) for name in _CLOCKS}


class ManualLoop(asyncio.SelectorEventLoop):
    """A loop whose timers follow a clock that a test moves."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        super().__init__()

    def time(self) -> float:
        return self.clock.monotonic_s()

    # What the base class calls its queue and its heap, in every version from 3.11 to 3.14.
    _ready: Any
    _scheduled: Any

    def next_timer_s(self) -> float | None:
        """When the earliest timer is due; None: there is none."""
        return min((handle.when() for handle in self._scheduled if not handle.cancelled()), default=None)

    def resting(self) -> bool:
        """Whether nothing is ready but who asks, and no timer is due."""
        due_s = self.next_timer_s()
        return not self._ready and (due_s is None or due_s > self.time())


class ManualTime:
    """The clock of one test."""

    def __init__(self) -> None:
        # Both begin where the machine's are: whatever was read before stays in the past.
        self._clock = ManualClock(time.monotonic(), time.time())
        self._began_s = self._clock.monotonic_s()

    @property
    def elapsed_s(self) -> float:
        """How far it has been moved."""
        return self._clock.monotonic_s() - self._began_s

    def new_loop(self) -> ManualLoop:
        """A loop that follows it."""
        return ManualLoop(self._clock)

    async def advance(self, seconds: float) -> None:
        """Let that much time pass: every timer up to then fires, in its order, and what it sets off runs to rest."""
        if seconds < 0:
            raise ValueError(f"time cannot go back ({seconds} s)")
        loop = self._loop()
        until_s = loop.time() + seconds
        await self.settle()
        while (due_s := loop.next_timer_s()) is not None and due_s <= until_s:
            self._clock.advance(max(0.0, due_s - loop.time()))
            await self.settle()
        self._clock.advance(max(0.0, until_s - loop.time()))
        await self.settle()

    async def as_needed(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, for which as much time passes as it waits for: the start and the stop of a run."""
        loop = self._loop()
        task = loop.create_task(work)
        await self.settle()
        while not task.done() and (due_s := loop.next_timer_s()) is not None:
            await self.advance(max(0.0, due_s - loop.time()))
        return await task

    async def settle(self) -> None:
        """Let the loop run, without any time passing, until nothing is left to do."""
        loop = self._loop()
        for _ in range(TURNS_MAX):
            await asyncio.sleep(0)
            if loop.resting():
                return
        raise RuntimeError(
            f"nothing came to rest within {TURNS_MAX:,} turns of the loop: agents send to each other without end, or a "
            "timer is set anew as soon as it fires. Stop them before time is moved."
        )

    def _loop(self) -> ManualLoop:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, ManualLoop) or loop.clock is not self._clock:
            raise RuntimeError("this clock is of another loop: it moves the time of the test that has it, no other's")
        return loop

    @contextmanager
    def in_effect(self) -> Iterator[None]:
        """Inside of this our modules read this clock. What they have imported by name is replaced, and put back."""
        clock = self._clock
        # A tick late: a timer that the loop fires at its time shall find that time come, also in whole nanoseconds.
        ours = {
            "monotonic": clock.monotonic_s,
            "monotonic_ns": lambda: round(clock.monotonic_s() * 1e9) + 1,
            "time": clock.wall_s,
            "time_ns": lambda: round(clock.wall_s() * 1e9),
        }
        stand_in = ModuleType("time")
        vars(stand_in).update(vars(time), **ours)
        replaced: list[tuple[ModuleType, str, Any]] = []
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] not in PACKAGES or module is sys.modules[__name__]:
                continue
            for attribute, value in list(vars(module).items()):
                if value is time:
                    replaced.append((module, attribute, value))
                    setattr(module, attribute, stand_in)
                else:
                    for clock_name, real in _REAL.items():
                        if value is real:
                            replaced.append((module, attribute, value))
                            setattr(module, attribute, ours[clock_name])
        try:
            yield
        finally:
            for module, attribute, value in replaced:
                setattr(module, attribute, value)
