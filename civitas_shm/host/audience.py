"""What the host tells the program and asks it: agents that fell or run again, and whether one may be spawned.

Rules of this file: the program is told of what has happened and decides nothing about it; it is asked only where its
own supervisor wants to be (`DynamicSpec.asks`), and a run whose program is gone has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from ..supervision import AddChild, Tree, restart_count
from .protocol import Judge, Life

__all__ = ["Audience"]


class Audience:
    """One run's."""

    def __init__(
        self, to_main: Callable[[msgspec.Struct], object], tree: Callable[[], Tree], restarting: Callable[[str], bool]
    ) -> None:
        self._to_main = to_main
        self._tree = tree
        self._restarting = restarting
        self._judging: dict[int, Callable[[str], None]] = {}
        self._last = 0

    def fell(
        self, child: str, what: Literal["crashed", "died", "hung"], type_name: str, text: str, traceback: str = ""
    ) -> None:
        """Before the tree is told. Not if its restart was asked for."""
        state = self._tree().children.get(child)
        if state is not None and not self._restarting(state.agent):
            self._to_main(Life(state.agent, state.supervisor, what, type_name, text, traceback))

    def runs(self, child: str) -> None:
        """Told if it is not for the first time."""
        tree = self._tree()
        state = tree.children.get(child)
        if state is not None and restart_count(tree, child):
            self._to_main(Life(state.agent, state.supervisor, "replaced"))

    def judge(self, wanted: AddChild, then: Callable[[str], None]) -> None:
        """Ask whether this may be spawned; `then` gets why not, or an empty text."""
        self._last += 1
        self._judging[self._last] = then
        self._to_main(Judge(self._last, wanted.supervisor, msgspec.to_builtins(wanted.agent), wanted.spawner))

    def judged(self, number: int, refused: str) -> None:
        """The program has answered."""
        then = self._judging.pop(number, None)
        if then is not None:
            then(refused)
