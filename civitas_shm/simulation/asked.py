"""What a tree asked for in one step, to be taken away piece by piece by the account of what is due.

Rules of this file: nothing is decided here. The account takes each thing that it knows to be due; what it does not
find, and what is left when it has taken all, are violations.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..supervision.events import (
    Action,
    CancelTimer,
    ChildRemoved,
    Escalated,
    Failed,
    GiveUpChild,
    Running,
    SetTimer,
    ShutDown,
    StartChild,
    StopChild,
    Stopped,
)

__all__ = ["Asked", "Violation"]


class Violation(AssertionError):
    """An invariant does not hold."""

    def __init__(self, invariant: str, text: str) -> None:
        self.invariant = invariant
        """One of the first column of the table in `audit`."""
        self.text = text
        super().__init__(f"{invariant}: {text}")


class Asked:
    """The actions of one step by kind."""

    __slots__ = (
        "cancels",
        "ends",
        "escalations",
        "give_ups",
        "removals",
        "running",
        "shutdowns",
        "starts",
        "stops",
        "timers",
    )

    def __init__(self) -> None:
        self.starts: dict[str, int] = {}
        """Child: incarnation."""
        self.stops: dict[str, StopChild] = {}
        self.timers: list[SetTimer] = []
        self.cancels: set[int] = set()
        self.give_ups: dict[str, int] = {}
        self.removals: dict[str, ChildRemoved] = {}
        self.escalations: list[str] = []
        self.shutdowns: list[str] = []
        self.running = False
        self.ends: list[str] = []

    def put(self, actions: Sequence[Action]) -> None:
        """The actions of a step; nothing of the last one is left."""
        for action in actions:
            kind = type(action)
            if self.ends:
                raise Violation("the end", f"{action} after {self.ends[0]}")
            if kind is StartChild:
                self._once(action.child in self.starts, action)  # type: ignore[union-attr]
                self.starts[action.child] = action.incarnation  # type: ignore[union-attr]
            elif kind is StopChild:
                if action.child in self.stops:  # type: ignore[union-attr]
                    raise Violation("told once", f"{action} twice in one step")
                self.stops[action.child] = action  # type: ignore[union-attr,assignment]
            elif kind is SetTimer:
                self.timers.append(action)  # type: ignore[arg-type]
            elif kind is CancelTimer:
                self._once(action.id in self.cancels, action)  # type: ignore[union-attr]
                self.cancels.add(action.id)  # type: ignore[union-attr]
            elif kind is GiveUpChild:
                self._once(action.child in self.give_ups, action)  # type: ignore[union-attr]
                self.give_ups[action.child] = action.incarnation  # type: ignore[union-attr]
            elif kind is ChildRemoved:
                self._once(action.child in self.removals, action)  # type: ignore[union-attr]
                self.removals[action.child] = action  # type: ignore[union-attr,assignment]
            elif kind is Escalated:
                self.escalations.append(action.supervisor)  # type: ignore[union-attr]
            elif kind is ShutDown:
                self.shutdowns.append(action.supervisor)  # type: ignore[union-attr]
            elif kind is Running:
                if self.running:
                    raise Violation("running", "Running is said twice in one step")
                self.running = True
            else:
                assert kind in (Stopped, Failed), kind
                self.ends.append(kind.__name__)

    def take_timer(self, names: Sequence[str]) -> SetTimer | None:
        """The timer that these wait for, in whatever order it names them."""
        wanted = sorted(names)
        for index, timer in enumerate(self.timers):
            if sorted(timer.children) == wanted:
                return self.timers.pop(index)
        return None

    @staticmethod
    def _once(again: bool, action: Action) -> None:
        if again:
            raise Violation("only what must", f"{action} twice in one step")
