"""'Did you mean': the one place that decides when two words are close enough to say so."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["closest", "did_you_mean"]

SIMILARITY = 0.6
"""difflib's ratio and its default: `typ` finds `type`, `stratgy` finds `strategy`, while `cpus` does not find `env`."""


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be, whatever its case, or None."""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower()[:100], by_lower, n=1, cutoff=SIMILARITY)
    return by_lower[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The tail of a sentence: a suggestion, or all that is allowed when there are few, or nothing."""
    names = sorted(known)
    close = closest(word, names)
    if close is not None:
        return f"; did you mean {close!r}?"
    if 0 < len(names) <= 12:
        return f"; allowed: {', '.join(names)}"
    return ""
