"""One step's working copy of a supervision tree: private maps, changed in place, then frozen again.

Rules of this file: small changes and small questions only, each true of one child or supervisor; what is done when, is
in `tree`. Whatever makes a supervisor look again at its children puts its name in the queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Literal

from msgspec.structs import replace

from .events import Action, CancelTimer, ChildRemoved, GiveUpChild, Removal, SetTimer, StartChild
from .policy import Restart
from .state import ChildState, ChildStatus, Phase, SupervisorState, TimerTarget, Tree

__all__ = ["Work", "flat"]


class Work:
    """The copy; `tree()` makes the next state of it."""

    def __init__(self, tree: Tree, now_s: float) -> None:
        self._before = tree
        self._now_s = now_s
        self._children = dict(tree.children)
        self._supervisors = dict(tree.supervisors)
        self._timers = dict(tree.timers)
        self._next_timer = tree.next_timer
        self._next_cause = tree.next_cause
        self._departed = tree.departed
        self._seed = tree.seed
        self._outcome: Literal["stopped", "failed"] | None = None
        self._queue: deque[str] = deque()
        self.actions: list[Action] = []

    def tree(self) -> Tree:
        return Tree(
            root=self._before.root,
            children=self._children,
            supervisors=self._supervisors,
            seed=self._seed,
            timers=self._timers,
            next_timer=self._next_timer,
            next_cause=self._next_cause,
            departed=self._departed,
            outcome=self._outcome,
        )

    # --- small changes ------------------------------------------------------------------------------------------------

    def _start(self, name: str) -> None:
        child = self._children.get(name)
        if child is not None:
            incarnation = child.incarnation + 1
            self._children[name] = replace(child, status=ChildStatus.STARTING, incarnation=incarnation)
            self.actions.append(StartChild(name, incarnation))
            return
        supervisor = self._supervisors[name]
        for below in flat(supervisor.groups):
            if not self._is_idle(below):
                self._set_down(below)
        self._set(supervisor, phase=Phase.UP, frontier=0, scope=0, starts=supervisor.starts + 1)
        self._queue.append(name)

    def _rest(self, name: str, reason: str) -> None:
        """Down because it was taken down. What is temporary does not come back with its group."""
        if self._restart_of(name) == "temporary" and self._supervisors[self._above(name)].phase is Phase.CLEARING:
            self._give_up(name, reason)
        else:
            self._set_down(name)

    def _give_up(self, name: str, reason: str) -> None:
        """Gone; of a supervisor, all that is below it too."""
        child = self._children.get(name)
        if child is None:
            self._set(self._supervisors[name], phase=Phase.GONE)
            for below in flat(self._supervisors[name].groups):
                self._give_up(below, reason)
        elif child.dynamic is not None:
            self._remove(child, "given_up", reason)
        elif child.status is not ChildStatus.GONE:
            self._set_child(child, ChildStatus.GONE)
            self.actions.append(GiveUpChild(child.key, child.incarnation, reason))

    def _remove(self, child: ChildState, why: Removal, reason: str) -> None:
        """Out of the tree; it does not run, and what it waited for is called off."""
        supervisor = self._supervisors[child.supervisor]
        for timer, target in list(self._timers.items()):
            if child.key in target.names:
                del self._timers[timer]
                self.actions.append(CancelTimer(timer))
        assert child.dynamic is not None
        del self._children[child.key]
        self._departed = max(self._departed, child.incarnation)
        self._set(supervisor, groups=(tuple(key for key in supervisor.groups[0] if key != child.key),))
        self._queue.append(supervisor.name)
        self.actions.append(ChildRemoved(child.key, child.incarnation, child.dynamic.spawner, why, reason))

    def _set_down(self, name: str) -> None:
        child = self._children.get(name)
        if child is None:
            self._set(self._supervisors[name], phase=Phase.DOWN)
        else:
            self._set_child(child, ChildStatus.DOWN)

    def _end(self, outcome: Literal["stopped", "failed"], action: Action) -> None:
        self._outcome = outcome
        self.actions.append(action)

    def _set_timer(self, target: TimerTarget, at_s: float) -> None:
        timer = self._next_timer
        self._next_timer += 1
        self._timers[timer] = target
        self.actions.append(SetTimer(timer, at_s, target.names or (target.supervisor,)))

    def _cancel_timers(self, supervisor: SupervisorState) -> None:
        """The supervisor's own timers; what waited for them is down."""
        for timer, target in list(self._timers.items()):
            if target.supervisor != supervisor.name:
                continue
            del self._timers[timer]
            self.actions.append(CancelTimer(timer))
            for name in target.names:
                self._set_down(name)

    def _set(self, supervisor: SupervisorState, **changes: object) -> SupervisorState:
        """The supervisor with these fields changed."""
        changed = replace(supervisor, **changes)
        self._supervisors[supervisor.name] = changed
        return changed

    def _set_child(self, child: ChildState, status: ChildStatus) -> None:
        self._children[child.key] = replace(child, status=status)

    # --- small questions ----------------------------------------------------------------------------------------------

    def _group(self, name: str) -> int:
        child = self._children.get(name)
        return self._supervisors[name].group if child is None else child.group

    def _above(self, name: str) -> str:
        """Its supervisor; not asked of the root."""
        child = self._children.get(name)
        above = self._supervisors[name].parent if child is None else child.supervisor
        assert above is not None
        return above

    def _restart_of(self, name: str) -> Restart:
        child = self._children.get(name)
        return self._supervisors[name].spec.restart if child is None else child.restart

    def _is_significant(self, name: str) -> bool:
        child = self._children.get(name)
        return self._supervisors[name].spec.significant if child is None else child.significant

    def _is_over(self, name: str) -> bool:
        """It does not run, and will not for its own sake."""
        child = self._children.get(name)
        if child is None:
            return self._supervisors[name].phase is Phase.GONE
        return child.status is ChildStatus.GONE

    def _is_idle(self, name: str) -> bool:
        child = self._children.get(name)
        if child is None:
            return self._supervisors[name].phase is Phase.DOWN
        return child.status is ChildStatus.DOWN

    def _is_up(self, name: str) -> bool:
        """Whether what comes after it may start."""
        child = self._children.get(name)
        if child is None:
            return self._supervisors[name].ready or self._is_over(name)
        return child.status in (ChildStatus.READY, ChildStatus.GONE)

    def _is_down_now(self, name: str) -> bool:
        return self._is_idle(name) or self._is_over(name)


def flat(groups: Iterable[tuple[str, ...]]) -> Iterable[str]:
    """All names, in start order."""
    return (name for group in groups for name in group)
