"""Keeps the screen of `run` on the terminal, the overview of `top`: one frame a second, log lines above it.

Rules of this file: a frame that says the same as the last one is not drawn again; only what fits is drawn; whatever is
written to stdout or stderr meanwhile goes above the screen, line by line (rich's redirection).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ..snapshot import RuntimeSnapshot
from .views import Choice, Line, lines_of

__all__ = ["LiveScreen", "can_show", "draw"]

INTERVAL_S: Final = 1.0
"""Nobody reads numbers that change faster."""

STYLES: Final = {"title": "bold", "head": "dim", "plain": "", "alarm": "yellow", "dim": "dim"}
"""Colour only where something needs attention, so that a screen without colour says the same."""


def can_show(console: Console) -> bool:
    """Whether the console is a terminal that can move its cursor."""
    return console.is_terminal and not console.is_dumb_terminal


class LiveScreen:
    """Use as an async context manager around the run."""

    def __init__(
        self, console: Console, snapshot: Callable[[], RuntimeSnapshot], interval_s: float = INTERVAL_S
    ) -> None:
        self._console = console
        self._snapshot = snapshot
        self._interval_s = interval_s
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")
        self._shown: list[Line] | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> LiveScreen:
        self._live.start()
        self._task = asyncio.get_running_loop().create_task(self._refresh())
        return self

    async def __aexit__(self, *exc: object) -> None:
        """The last frame stays on the terminal."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        try:
            self._show()
        finally:
            self._live.stop()

    async def _refresh(self) -> None:
        while True:
            self._show()
            await asyncio.sleep(self._interval_s)

    def _show(self) -> None:
        now = lines_of(self._snapshot(), Choice(), self._console.width, self._console.height - 1, keys=False)
        if now != self._shown:
            self._shown = now
            self._live.update(draw(now), refresh=True)


def draw(lines: list[Line]) -> RenderableType:
    """For rich; `Text` and never markup, because agents' names are the user's."""
    return Group(*(Text(line.text, style=STYLES[line.style], no_wrap=True, overflow="crop") for line in lines))
