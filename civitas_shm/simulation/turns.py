"""Whose turn it is: the half of the account that knows order. Groups start one after the other and stop in reverse.

Rules of this file: what is due is taken out of `Asked`. `_follow` takes what is due by now, as far as the tree has
asked for it, because the order of things that do not depend on each other is the tree's own choice; `_insist` comes at
the end of the step, and what is due then and was not asked for is a Violation.
"""

from __future__ import annotations

from ..supervision.state import child_keys
from ..topology.model import SupervisorSpec
from .asked import Asked, Violation
from .clauses import CLAUSES
from .units import (
    CLEARING,
    DOWN,
    ENDING,
    GONE,
    HALTED,
    OFF,
    OVER,
    READY,
    STARTING,
    STOPPING,
    UP,
    Child,
    Supervisor,
    Unit,
    add_living,
    children_below,
    forget,
)  # fmt: skip

__all__ = ["Turns"]

RUNNING = "that all is up for the first time"


class Turns:
    """The state of the account, and what is due by the order of groups."""

    def __init__(self, spec: SupervisorSpec, fired: dict[str, int] | None = None) -> None:
        self.fired = dict.fromkeys(CLAUSES, 0) if fired is None else fired
        self.children: dict[str, Child] = {}
        self.supervisors: list[Supervisor] = []
        """Parents first."""
        self.root = self._plant(spec, None, 0)
        self._queue: list[Supervisor] = []
        """Supervisors that something has happened to in this step, in order."""
        self.by_name = {supervisor.key: supervisor for supervisor in self.supervisors}
        self.timers: dict[int, tuple[Supervisor, tuple[Unit, ...]]] = {}
        """Set, and neither come nor cancelled: whose, and what waits for it (nothing: the supervisor's own groups)."""
        self.asked = Asked()
        self.now_s = 0.0
        self.cause = 0
        self.used_timers: set[int] = set()
        self.last_of: dict[str, int] = {}
        """By name: the highest incarnation of spawned children that have left."""
        self.started = self.has_run = False
        self.going_down = False
        """The tree is asked to stop, or its root gave up or shuts down."""
        self.outcome: str | None = None
        self._coming_up: dict[Supervisor, None] = {}
        """Supervisors whose next group may have become due in this step."""

    def _plant(self, spec: SupervisorSpec, parent: Supervisor | None, group: int) -> Supervisor:
        supervisor = Supervisor(spec, parent, group)
        self.supervisors.append(supervisor)
        for index, below in enumerate(spec.children):
            if isinstance(below, SupervisorSpec):
                supervisor.groups.append([self._plant(below, supervisor, index)])
                continue
            children = [Child(key, supervisor, index, below) for key in child_keys(below)]
            self.children.update((child.key, child) for child in children)
            supervisor.groups.append([*children])
        if spec.dynamic is not None:
            supervisor.groups.append([])
        supervisor.living = [0] * len(supervisor.groups)
        return supervisor

    # --- up and down, in order ----------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """What is due by now, as far as the tree has asked for it."""
        for supervisor in [*self._coming_up]:
            self._bring_up(supervisor, over=False)
        if self.asked.stops:
            self._bring_down(over=False)

    def _insist(self) -> None:
        """The step is over: what is due by now must have been asked for."""
        while self._coming_up:
            supervisor, _ = self._coming_up.popitem()
            late = self._bring_up(supervisor)
            if late == RUNNING:
                raise Violation("running", "all is up for the first time, and Running is not said")
            if late:
                raise Violation("no limbo", f"{late} of {supervisor.key} is due, and is not started")
        late = self._bring_down(over=True)
        if late:
            raise Violation("no limbo", f"{late} is due to stop, and is not told to")

    def _begin(self, supervisor: Supervisor) -> None:
        """All its children start, in order, those that were gone too."""
        supervisor.mode, supervisor.frontier, supervisor.ready = UP, 0, False
        for group in supervisor.groups:
            for unit in group:
                if unit.is_over:
                    self.fired["begins anew"] += 1
                if isinstance(unit, Child):
                    unit.state = OFF
                else:
                    unit.mode = DOWN
        self._coming_up[supervisor] = None
        self._bring_up(supervisor)

    def _resume(self, supervisor: Supervisor) -> None:
        """The fallen groups start again, the child that fell (REST_FOR_ONE) before them."""
        self.fired["clearing: over"] += 1
        supervisor.mode, supervisor.frontier = UP, max(supervisor.scope - 1, 0)
        for group in supervisor.groups[supervisor.scope :]:
            for unit in group:
                if unit.is_over and unit.restart != "temporary":
                    if isinstance(unit, Child):
                        unit.state = OFF
                    else:
                        unit.mode = DOWN
        self._coming_up[supervisor] = None

    def _bring_up(self, supervisor: Supervisor, over: bool = True) -> str | None:
        """Groups from the frontier on are due, each when the one before is up. What is due and was not asked for: a
        child, or RUNNING. Not `over`: it may still be found to fall in this step, before anybody has seen it up.
        """
        if supervisor.mode != UP:
            return None
        late = self._start_groups(supervisor)
        if supervisor.spec.backoff_reset_s is not None:
            if not all(unit.is_up for group in supervisor.groups for unit in group):
                supervisor.up_since_s = None
            elif supervisor.up_since_s is None:
                supervisor.up_since_s = self.now_s
        if not supervisor.ready and supervisor.frontier == len(supervisor.groups):
            if supervisor.parent is None and not self.has_run and not self.asked.running:
                return RUNNING  # unless it is found to fall in this very step
            if not over and not self._was_seen_up(supervisor):
                return late
            supervisor.ready = True
            if supervisor.parent is not None:
                self._coming_up[supervisor.parent] = None
            elif not self.has_run:
                self._take_running()
        return late

    def _was_seen_up(self, supervisor: Supervisor) -> bool:
        """Whether the tree has started what comes behind it; behind the root comes Running."""
        home = supervisor.parent
        if home is None:
            return self.has_run or self.asked.running
        if supervisor.group + 1 == len(home.groups):
            return self._was_seen_up(home)
        behind = home.groups[supervisor.group + 1]
        return any(child.key in self.asked.starts for unit in behind for child in children_below(unit))

    def _start_groups(self, supervisor: Supervisor) -> str | None:
        groups = supervisor.groups
        late = None
        while supervisor.frontier < len(groups):
            up = True
            for unit in groups[supervisor.frontier]:
                if isinstance(unit, Supervisor):
                    if unit.mode == DOWN and not unit.waits:
                        self._begin(unit)
                    up = up and unit.is_up
                elif unit.state == OFF:
                    up = False
                    if not unit.waits and not self._take_start(unit):
                        late = unit.key
                elif unit.state not in (READY, GONE):
                    up = False
            if not up:
                return late
            supervisor.frontier += 1
            if supervisor.frontier < len(groups):
                self.fired["start: next group"] += 1
        return None

    def _bring_down(self, over: bool) -> str | None:
        """`over`: the step is. A child that is due to stop and not told."""
        late = None
        for supervisor in self.supervisors:
            if supervisor.mode in (CLEARING, ENDING):
                late = self._lower(supervisor, over) or late
        return late

    def _lower(self, supervisor: Supervisor, over: bool) -> str | None:
        """The last group in which something lives is due to stop. A supervisor whose turn has come goes on stopping,
        whatever happens to those above it in the meantime.
        """
        living = supervisor.living
        late = None
        for index in range(len(living) - 1, supervisor.scope - 1, -1):
            if not living[index]:
                if over:
                    self._pass(supervisor, supervisor.groups[index])
            else:
                for unit in supervisor.groups[index]:
                    if isinstance(unit, Child):
                        if unit.state in (STARTING, READY) and not self._take_stop(unit):
                            late = unit.key
                    elif unit.mode != ENDING:
                        mode, scope, asked = unit.mode, unit.scope, len(self.asked.stops)
                        unit.mode, unit.scope = ENDING, 0
                        late = self._lower(unit, over) or late
                        if not over and len(self.asked.stops) == asked:
                            unit.mode, unit.scope = mode, scope
                return late
        return None

    def _pass(self, supervisor: Supervisor, group: list[Unit]) -> None:
        """Its turn to stop has come, and nothing of it lives."""
        for unit in group:
            if isinstance(unit, Supervisor) and unit.mode not in (DOWN, OVER):
                forget(unit)
                self._rest(supervisor, unit)

    def _halt(self, supervisor: Supervisor) -> None:
        """Nothing below it starts any more."""
        if supervisor.mode in (DOWN, OVER, HALTED, ENDING):
            return
        self._cancel_timers(supervisor)
        supervisor.mode = HALTED
        for group in supervisor.groups:
            for unit in group:
                if isinstance(unit, Supervisor):
                    self._halt(unit)

    def _cancel_timers(self, supervisor: Supervisor) -> None:
        for timer in supervisor.timers:
            if timer not in self.asked.cancels:
                raise Violation("timers", f"timer {timer} of {supervisor.key} is not cancelled; nobody waits for it")
            self.asked.cancels.discard(timer)
            for unit in self.timers.pop(timer)[1]:
                unit.waits = False
        supervisor.timers.clear()

    def _rest(self, supervisor: Supervisor, unit: Unit) -> None:
        """Down because it was taken down, or fell while it was about to be."""
        if supervisor.mode != CLEARING:
            return
        if unit.restart == "temporary":
            self.fired["fall: clearing, temporary"] += 1
            self._give_up(supervisor, unit)
        else:
            self.fired["fall: clearing, other"] += 1

    def _give_up(self, supervisor: Supervisor, unit: Unit) -> None:
        if isinstance(unit, Supervisor):
            unit.mode = OVER
            for group in unit.groups:
                for below in [*group]:
                    self._give_up(unit, below)
        elif unit.spawner is not None:
            self._remove(unit, "given_up")
        elif unit.state != GONE:
            unit.state = GONE
            incarnation = self.asked.give_ups.pop(unit.key, None)
            if incarnation is None:
                raise Violation("given up", f"{unit.key} is not restarted, and is not given up")
            if incarnation != unit.incarnation:
                raise Violation("incarnations", f"{unit.key} is given up as {incarnation}, not {unit.incarnation}")
        self._coming_up[supervisor] = None

    # --- taking what was asked for ------------------------------------------------------------------------------------

    def _take_start(self, child: Child) -> bool:
        incarnation = self.asked.starts.pop(child.key, None)
        if incarnation is None:
            return False
        if incarnation <= child.incarnation or (child.begun and incarnation != child.incarnation + 1):
            raise Violation("incarnations", f"{child.key} starts as {incarnation}; the last is {child.incarnation}")
        child.incarnation, child.begun, child.state = incarnation, True, STARTING
        add_living(child, 1)
        return True

    def _remove(self, child: Child, why: str) -> None:
        """A spawned child leaves the tree; it does not live, and what it waited for is called off."""
        home = child.home
        self.fired[f"dynamic: {why}"] += 1
        if child.waits:
            timer = next(number for number, (_, waiting) in self.timers.items() if child in waiting)
            if timer not in self.asked.cancels:
                raise Violation("timers", f"timer {timer} of {child.key} is not cancelled; it is removed")
            self.asked.cancels.discard(timer)
            del self.timers[timer]
            home.timers.discard(timer)
        removal = self.asked.removals.pop(child.key, None)
        if removal is None or removal.why != why:
            raise Violation("removal", f"{child.key} must be removed ({why}); said is {removal}")
        if (child.begun and removal.incarnation != child.incarnation) or removal.spawner != child.spawner:
            raise Violation("incarnations", f"{removal}; the last is {child.incarnation}, of {child.spawner!r}")
        del self.children[child.key]
        self.last_of[child.key] = child.incarnation
        home.groups[0].remove(child)
        self._coming_up[home] = None

    def _take_stop(self, child: Child, timeout_s: float | None = None) -> bool:
        action = self.asked.stops.pop(child.key, None)
        if action is None:
            return False
        if action.incarnation != child.incarnation:
            raise Violation("incarnations", f"{action}; the last is {child.incarnation}")
        timeout_s = child.timeout_s if timeout_s is None else timeout_s
        if action.deadline_s != self.now_s + timeout_s:
            raise Violation("told once", f"{action} at {self.now_s}: its shutdown timeout is {timeout_s} s")
        self.fired["stops in reverse"] += 1
        child.state = STOPPING
        return True

    def _take_running(self) -> None:
        self.fired["start: running"] += 1
        self.asked.running, self.has_run = False, True

    def _take_end(self, which: str) -> None:
        if self.asked.ends != [which]:
            raise Violation("the end", f"nothing lives any more: {which} is due, said is {self.asked.ends}")
        self.asked.ends.clear()
        self.outcome = which.lower()
        self.fired[f"end: {self.outcome}"] += 1
