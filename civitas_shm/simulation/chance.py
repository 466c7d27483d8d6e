"""Chance that can be repeated: the same seed gives the same numbers in every process and under every Python.

Rules of this file: only `random.Random(seed).random()` is used. That a seed gives the same sequence of `random()` is
promised by Python's documentation; of its other methods, and of `hash()`, it is not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

__all__ = ["Chance"]

Item = TypeVar("Item")


class Chance:
    """A source of chance with one state, so every draw depends on those before it."""

    __slots__ = ("random",)

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed).random
        """A number in [0, 1)."""

    def below(self, bound: int) -> int:
        """A whole number from 0 to `bound` - 1."""
        return int(self.random() * bound)

    def between(self, first: int, last: int) -> int:
        """A whole number from `first` to `last`, both included."""
        return first + int(self.random() * (last - first + 1))

    def pick(self, items: Sequence[Item]) -> Item:
        """One of them; twice in the list is twice as likely."""
        return items[int(self.random() * len(items))]
