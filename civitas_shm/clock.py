"""Time, passed in: decisions never read a clock, so tests own it.

All spans of time are measured on the monotonic clock (a step of the wall clock must not fire a deadline or forgive
a crash loop); wall-clock time only labels what people read.
"""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "ManualClock", "SystemClock"]


class Clock(Protocol):
    """Where "now" comes from."""

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary start, never going back; the same for all processes of one boot."""
        ...

    def wall_s(self) -> float:
        """Seconds since 1970 UTC; may jump. For display only."""
        ...


class SystemClock:
    """The machine's clocks (CLOCK_MONOTONIC, CLOCK_REALTIME)."""

    def monotonic_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()


class ManualClock:
    """A clock that moves only when a test moves it."""

    def __init__(self, monotonic_s: float = 0.0, wall_s: float = 1_700_000_000.0) -> None:
        self._monotonic_s = monotonic_s
        self._wall_s = wall_s

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def wall_s(self) -> float:
        return self._wall_s

    def advance(self, seconds: float) -> None:
        """Move both clocks forward; a negative step is a programming error."""
        if seconds < 0:
            raise ValueError(f"a clock cannot go back ({seconds} s)")
        self._monotonic_s += seconds
        self._wall_s += seconds
