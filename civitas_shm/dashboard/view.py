"""Draws a `Screen` with rich: two tables under one title line.

Rules of this file: no decision about what is shown (that is `model`), only about how; cells are `Text`, never markup,
because agents' names are the user's; colour only where something needs attention, so that a screen without colour says
the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from .model import AGENT_COLUMNS, PROCESS_COLUMNS, Column, Screen, Table

__all__ = ["draw"]

_ATTENTION = "yellow"


def draw(screen: Screen) -> RenderableType:
    """What `rich.live.Live` shows."""
    parts: list[RenderableType] = [Text(screen.title, style="bold", no_wrap=True, overflow="ellipsis"), Text("")]
    if screen.processes.rows:
        parts += [_draw_table(PROCESS_COLUMNS, screen.processes, "processes"), Text("")]
    parts.append(_draw_table(AGENT_COLUMNS, screen.agents, "agents"))
    return Group(*parts)


def _draw_table(columns: Sequence[Column], table: Table, what: str) -> RenderableType:
    drawn = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True, header_style="dim")
    for index, column in enumerate(columns):
        # names give way first; numbers never do
        drawn.add_column(
            column.head,
            justify="right" if column.number else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=None if column.number else (2 if index == 0 else 1),
        )
    for row, calm in zip(table.rows, table.calm, strict=True):
        drawn.add_row(*(Text(cell) for cell in row), style=None if calm else _ATTENTION)
    if not table.hidden:
        return drawn
    return Group(drawn, Text(f"… and {table.hidden} more {what}", style="dim"))
