"""Numbers of a measurement: percentiles, medians, ratios. Pure functions, so that a test can check them.

Times are p50, p99 and p99.9 of single round trips in microseconds; rates are messages (or round trips) per second.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TypedDict

__all__ = ["Figures", "from_rate", "from_times", "median_of", "percentile", "ratio"]


class Figures(TypedDict, total=False):
    """What one repetition of one case gives; a case without single times has the rate alone."""

    n: int
    p50_us: float
    p99_us: float
    p999_us: float
    per_s: float


def percentile(ordered: Sequence[int], fraction: float) -> int:
    """The smallest value that at least `fraction` of all are not above (nearest rank); `ordered` ascends."""
    if not ordered:
        raise ValueError("no percentile of nothing")
    rank = -(-len(ordered) * round(fraction * 1_000_000) // 1_000_000)
    return ordered[max(rank, 1) - 1]


def from_times(times_ns: Sequence[int], elapsed_ns: int) -> Figures:
    """Single times and the time that all of them took together."""
    ordered = sorted(times_ns)
    return {
        "n": len(ordered),
        "p50_us": percentile(ordered, 0.5) / 1e3,
        "p99_us": percentile(ordered, 0.99) / 1e3,
        "p999_us": percentile(ordered, 0.999) / 1e3,
        "per_s": len(ordered) / (elapsed_ns / 1e9),
    }


def from_rate(n: int, elapsed_ns: int) -> Figures:
    """A count and the time that it took."""
    return {"n": n, "per_s": n / (elapsed_ns / 1e9)}


def median_of(repetitions: Sequence[Figures]) -> Figures:
    """The median of each figure by itself."""
    names = [name for name in Figures.__annotations__ if all(name in one for one in repetitions)]
    return {name: median(one[name] for one in repetitions) for name in names}  # type: ignore[literal-required,return-value]


def ratio(figures: Figures, reference: Figures) -> float:
    """How many times the reference: of the median time where both have one, else of the rate."""
    name = "p50_us" if "p50_us" in figures and "p50_us" in reference else "per_s"
    return figures[name] / reference[name]  # type: ignore[literal-required,no-any-return]
