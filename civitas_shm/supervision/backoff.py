"""How long to wait before a restart, and where the jitter comes from.

Rules of this file: pure; chance comes in as a number, never from a global generator, so a run can be repeated from
its seed.

| kind        | wait before the n-th delayed restart                                  |
|-------------|-----------------------------------------------------------------------|
| CONSTANT    | min(base, max)                                                        |
| LINEAR      | min(base * n, max)                                                    |
| EXPONENTIAL | uniform over [0, min(base * 2**(n-1), max)): "full jitter"            |

The first restart of a series (policy: **Backoff**; a window is one unless it was stable in between) is immediate and
is not counted in n: the second restart has n = 1.
Full jitter is drawn *below the cap*, so that many crashing systems spread out also when all of them are at the cap.
"""

from __future__ import annotations

from typing import Final, Literal

__all__ = ["Backoff", "backoff_s", "next_random"]

Backoff = Literal["CONSTANT", "LINEAR", "EXPONENTIAL"]

_LARGEST_EXPONENT: Final = 1023
"""2.0**1023 is the last power of two that a float holds; `max` has long decided by then."""

_MASK_64: Final = (1 << 64) - 1


def backoff_s(kind: Backoff, base_s: float, max_s: float, number: int, random01: float) -> float:
    """Seconds to wait before this restart, the `number`-th (1 = the first) of its series."""
    n = number - 1
    if n <= 0:
        return 0.0
    if kind == "CONSTANT":
        return min(base_s, max_s)
    if kind == "LINEAR":
        return min(base_s * n, max_s)
    return random01 * min(base_s * 2.0 ** min(n - 1, _LARGEST_EXPONENT), max_s)


def next_random(seed: int) -> tuple[int, float]:
    """(next seed, a number in [0, 1)): splitmix64, the generator of Steele, Lea and Flood (OOPSLA 2014).

    One 64-bit word is the whole state, so it lives inside the tree's state and a schedule replays exactly.
    """
    seed = (seed + 0x9E3779B97F4A7C15) & _MASK_64
    word = seed
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK_64
    word ^= word >> 31
    return seed, (word >> 11) * 2.0**-53
