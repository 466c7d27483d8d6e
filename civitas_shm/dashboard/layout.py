"""Columns that fit: which are shown, how wide each is, and the line that comes of a row. Pure text, no terminal.

Rules of this file: a line is never wider than asked for, so nothing wraps; a number is never cut: when there is not
room for all columns, whole columns go, the least needed first, and texts are shortened with an ellipsis before that.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Column", "cells_of", "choose_columns", "fit", "line_of", "widths_of"]

GAP = 2
LEAST = 8
"""Characters that a text keeps when it must give way."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column."""

    head: str
    number: bool = False
    rank: int = 0
    """The higher, the earlier it goes when there is no room; 0: it always stays."""


def width_of(text: str) -> int:
    """Cells of a terminal that a text takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def fit(text: str, width: int) -> str:
    """The text in at most so many cells; what is not printable is shown as a dot, so that no name moves the cursor."""
    text = "".join(c if c.isprintable() else "·" for c in text)
    if width_of(text) <= width:
        return text
    kept = ""
    for c in text:
        if width_of(kept) + width_of(c) > width - 1:
            break
        kept += c
    return kept + "…" if width > 0 else ""


def widths_of(columns: Sequence[Column], rows: Sequence[Sequence[str]], shown: Sequence[int]) -> dict[int, int]:
    """What each of the shown columns would like to have."""
    return {at: max([width_of(columns[at].head), *(width_of(row[at]) for row in rows)]) for at in shown}


def choose_columns(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> dict[int, int]:
    """Which columns are shown in so many cells, and how wide each is."""
    shown = list(range(len(columns)))
    while True:
        wanted = widths_of(columns, rows, shown)
        texts = [at for at in shown if not columns[at].number]
        room = width - GAP * (len(shown) - 1)
        least = sum(wanted[at] if columns[at].number else min(LEAST, wanted[at]) for at in shown)
        droppable = [at for at in shown if columns[at].rank]
        if least <= room or not droppable:
            break
        shown.remove(max(droppable, key=lambda at: columns[at].rank))
    over = sum(wanted.values()) - room
    while over > 0 and texts:  # the widest text gives way first
        widest = max(texts, key=lambda at: wanted[at])
        floor = min(LEAST, wanted[widest])
        if wanted[widest] <= floor:
            break
        wanted[widest] -= 1
        over -= 1
    return wanted


def cells_of(columns: Sequence[Column], row: Sequence[str], widths: dict[int, int]) -> list[str]:
    """The cells of one row, each as wide as its column."""
    found = []
    for at, width in widths.items():
        text = fit(row[at], width)
        pad = " " * (width - width_of(text))
        found.append(pad + text if columns[at].number else text + pad)
    return found


def line_of(columns: Sequence[Column], row: Sequence[str], widths: dict[int, int], width: int) -> str:
    """One line."""
    return fit((" " * GAP).join(cells_of(columns, row, widths)).rstrip(), width)
