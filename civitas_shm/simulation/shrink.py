"""A smaller schedule that still fails: delta debugging (Zeller, Hildebrandt: Simplifying and Isolating
Failure-Inducing Input, 2002).

Rules of this file: pure; what counts as "still fails" is the same invariant, not the same words. The result is minimal
in one sense: when any one of its entries is taken out, it fails no more (unless the budget of replays ran out first).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .schedule import Entry, Schedule

__all__ = ["REPLAYS_MAX", "shrink"]

REPLAYS_MAX: Final = 2_000
"""A replay takes a few milliseconds."""


def shrink(schedule: Schedule, fails: Callable[[Schedule], bool], replays_max: int = REPLAYS_MAX) -> Schedule:
    """Entries taken out as long as it still fails; `schedule` itself when it does not fail at all."""
    left = replays_max

    def still_fails(entries: list[Entry]) -> bool:
        nonlocal left
        left -= 1
        return fails(tuple(entries))

    kept = [*schedule]
    if not still_fails(kept):
        return schedule
    piece = max(len(kept) // 2, 1)
    while kept and left > 0:
        at = 0
        smaller = False
        while at < len(kept) and left > 0:
            without = kept[:at] + kept[at + piece :]
            if still_fails(without):
                kept, smaller = without, True
            else:
                at += piece
        if piece > 1:
            piece //= 2
        elif not smaller:
            break
    return tuple(kept)
