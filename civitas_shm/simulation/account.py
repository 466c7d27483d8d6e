"""The account of what a supervision tree owes: which child must run, be stopped, wait or be given up after each event.

Rules of this file: written from the tables in `supervision.tree`, `policy` and `backoff`, not from their code, as a
second way to the same answers: objects that change in place, a count of what lives in each group instead of a walk
with a queue. What is due is taken out of `Asked`; what is due and was not asked for is a Violation.

Within one step the order of things that do not depend on each other is the tree's own choice: whether a next group is
still started before a supervisor above is found to have given up, say. The account follows the tree there (`_follow`),
and insists at the end of the step (`_insist`) that nothing is missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ..supervision.state import child_keys
from ..topology.model import AgentSpec, SupervisorSpec
from .asked import Asked, Violation
from .clauses import CLAUSES

__all__ = ["Account", "Child", "Supervisor"]

OFF, STARTING, READY, STOPPING, GONE = range(5)
"""Of a child. OFF: does not live, and will be started when its turn comes or its wait is over."""
DOWN, UP, CLEARING, HOLDING, HALTED, ENDING = range(6)
"""Of a supervisor. ENDING: its children are being stopped because it gave up, or the tree is asked to stop."""

FAILED: Final = "failed"


class Child:
    """One child."""

    __slots__ = ("group", "home", "incarnation", "key", "restart", "state", "timeout_s", "waits")

    def __init__(self, key: str, home: Supervisor, group: int, spec: AgentSpec) -> None:
        self.key = key
        self.home = home
        self.group = group
        self.restart = spec.restart
        self.timeout_s = spec.shutdown_timeout_s
        self.state = OFF
        self.incarnation = 0
        self.waits = False

    @property
    def lives(self) -> bool:
        """As far as the tree has been told."""
        return STARTING <= self.state <= STOPPING


class Supervisor:
    """One supervisor."""

    __slots__ = (
        "fall", "frontier", "group", "groups", "hold_hi_s", "hold_lo_s", "key", "living", "mode", "parent", "ready",
        "scope", "spec", "timers", "waits", "window",
    )  # fmt: skip

    def __init__(self, spec: SupervisorSpec, parent: Supervisor | None, group: int) -> None:
        self.key = spec.name
        self.spec = spec
        self.parent = parent
        self.group = group
        self.groups: list[list[Child | Supervisor]] = []
        self.living: list[int] = []
        """How many children live in each group, at any depth."""
        self.mode = DOWN
        self.ready = False
        self.frontier = 0
        """UP: groups before it have been up."""
        self.scope = 0
        self.hold_lo_s = self.hold_hi_s = 0.0
        """CLEARING, HOLDING: bounds of the time from which it may start again."""
        self.window: list[tuple[float, int]] = []
        """(time, cause) of the restarts that were counted."""
        self.fall: int | None = None
        """ENDING because it gave up: the cause."""
        self.waits = False
        self.timers: set[int] = set()


Unit = Child | Supervisor


class Account:
    """Of one tree, from its Start to its end."""

    def __init__(self, spec: SupervisorSpec, fired: dict[str, int] | None = None) -> None:
        self.fired = dict.fromkeys(CLAUSES, 0) if fired is None else fired
        self.children: dict[str, Child] = {}
        self.supervisors: list[Supervisor] = []
        """Parents first."""
        self.root = self._plant(spec, None, 0)
        self._deepest_first = sorted(self.supervisors, key=_depth, reverse=True)
        self.by_name = {supervisor.key: supervisor for supervisor in self.supervisors}
        self.timers: dict[int, tuple[Supervisor, tuple[Unit, ...]]] = {}
        """Set, and neither come nor cancelled: whose, and what waits for it (nothing: the supervisor's own groups)."""
        self.asked = Asked()
        self.now_s = 0.0
        self.cause = 0
        self.used_timers: set[int] = set()
        self.started = self.stop_requested = self.gave_up = self.has_run = False
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
        supervisor.living = [0] * len(supervisor.groups)
        return supervisor

    # --- events -------------------------------------------------------------------------------------------------------

    def start(self) -> bool:
        """Start."""
        if self.started:
            self.fired["start again"] += 1
            return False
        self.fired["start"] += 1
        self.started = True
        self._begin(self.root)
        self._insist()
        return True

    def stop(self) -> bool:
        """StopRequested."""
        if not self.started:
            self.fired["stop: not started"] += 1
            self.started = self.stop_requested = True
            self._take_end("Stopped")
            return True
        if self.root.mode == ENDING:
            self.fired["stop: going down"] += 1
            return False
        self.fired["stop: started"] += 1
        self.stop_requested = True
        self._end(self.root)
        self._settle()
        return True

    def ready(self, key: str, incarnation: int) -> bool:
        """ChildReady."""
        child = self.children.get(key)
        if child is None:
            self.fired["nothing: unknown child"] += 1
            return False
        if child.incarnation != incarnation or child.state != STARTING:
            stopping = child.incarnation == incarnation and child.state == STOPPING
            self.fired["ready: stopping" if stopping else "nothing: old incarnation"] += 1
            return False
        self.fired["ready: starting"] += 1
        child.state = READY
        self._coming_up[child.home] = None
        self._insist()
        return True

    def ended(self, ended: Iterable[tuple[str, int]], how: str, counts: bool, process: bool = False) -> bool:
        """ChildFailed, ChildExited, ProcessDied: these live no more, all at once."""
        fell: dict[Supervisor, list[Child]] = {}
        lived: list[Child] = []
        for key, incarnation in ended:
            child = self.children.get(key)
            if child is None:
                self.fired["nothing: unknown child"] += 1
                continue
            if child.incarnation != incarnation or not child.lives:
                self.fired["nothing: old incarnation"] += 1
                continue
            lived.append(child)
            was, child.state = child.state, OFF
            _add(child, -1)
            if was == STOPPING:
                self.fired["ended: stopping"] += 1
                self._rest(child)
            else:
                self.fired["ended: starting" if was == STARTING else "ended: ready"] += 1
                fell.setdefault(child.home, []).append(child)
        if not lived:
            return False
        if process:
            self._count_process(lived, counts)
        self.cause += 1
        for supervisor in self.supervisors:
            if supervisor in fell:
                self._fall(supervisor, [*fell[supervisor]], how, self.cause, counts)
        self._settle()
        return True

    def _count_process(self, lived: list[Child], counts: bool) -> None:
        if len(lived) == 1:
            self.fired["process: one child"] += 1
        else:
            several = any(child.home is not lived[0].home for child in lived)
            self.fired["process: several supervisors" if several else "process: several"] += 1
        if not counts:
            self.fired["process: uncounted"] += 1

    def time(self, timer: int) -> bool:
        """Timer."""
        entry = self.timers.pop(timer, None)
        if entry is None:
            self.fired["nothing: timer not set"] += 1
            return False
        supervisor, waiting = entry
        supervisor.timers.discard(timer)
        self.fired["timer: children" if waiting else "timer: groups"] += 1
        if not waiting:
            self._resume(supervisor)
        for unit in waiting:
            unit.waits = False
            self._restart(unit)
        self._insist()
        return True

    # --- falls ----------------------------------------------------------------------------------------------------------

    def _fall(self, supervisor: Supervisor, units: list[Unit], how: str, cause: int, counts: bool) -> None:
        if supervisor.mode in (HALTED, ENDING):
            self.fired["fall: going down"] += 1
            return
        restarted = [unit for unit in units if self._wanted_back(supervisor, unit, how)]
        if not restarted:
            return
        lo_s = hi_s = 0.0
        if counts:
            used = self._count(supervisor, cause)
            if used > supervisor.spec.max_restarts:
                self._gives_up(supervisor, cause)
                return
            lo_s, hi_s = self._backoff(supervisor.spec, used)
        if supervisor.spec.strategy == "ONE_FOR_ONE":
            self._one_for_one(supervisor, restarted, lo_s, hi_s)
        elif supervisor.spec.strategy == "ONE_FOR_ALL":
            self.fired["fall: one_for_all"] += 1
            self._clear(supervisor, 0, lo_s, hi_s)
        else:
            self.fired["fall: rest_for_one"] += 1
            self._clear(supervisor, min(unit.group for unit in restarted) + 1, lo_s, hi_s)

    def _wanted_back(self, supervisor: Supervisor, unit: Unit, how: str) -> bool:
        """For its own sake: not when its group is being taken down, or when its restart type does not want it."""
        taken_down = supervisor.mode == CLEARING and unit.group >= supervisor.scope
        if isinstance(unit, Supervisor):
            return not taken_down
        if taken_down:
            self._rest(unit)
            return False
        self.fired[f"restart: {unit.restart} {how}"] += 1
        if how != "stopped" and (unit.restart == "permanent" or (unit.restart == "transient" and how == FAILED)):
            return True
        self.fired["fall: not restarted"] += 1
        self._give_up(unit)
        return False

    def _gives_up(self, supervisor: Supervisor, cause: int) -> None:
        self.fired["fall: gives up"] += 1
        if supervisor.key not in self.asked.escalations:
            raise Violation("intensity", f"{supervisor.key} has no restart left and does not give up")
        self.asked.escalations.remove(supervisor.key)
        if not any(supervisor.living):
            self.fired["fall: gives up, all down"] += 1
        self._end(supervisor)
        supervisor.fall = cause
        self.gave_up = self.gave_up or supervisor is self.root

    def _count(self, supervisor: Supervisor, cause: int) -> int:
        """The restarts in its window, with this one."""
        span_s = supervisor.spec.restart_window_s
        kept = []
        for at_s, earlier in supervisor.window:
            age_s = self.now_s - at_s
            if age_s > span_s:
                self.fired["window: too old"] += 1
                continue
            if age_s == span_s:
                self.fired["window: exactly as old"] += 1
            kept.append((at_s, earlier))
        if any(earlier == cause for _, earlier in kept):
            self.fired["window: same cause"] += 1
        else:
            kept.append((self.now_s, cause))
        supervisor.window = kept
        return len(kept)

    def _backoff(self, spec: SupervisorSpec, used: int) -> tuple[float, float]:
        """Bounds of the wait before the `used`-th restart in a window."""
        if used == 1:
            self.fired["backoff: immediate"] += 1
            return 0.0, 0.0
        self.fired[f"backoff: {spec.backoff}"] += 1
        base_s, most_s = spec.backoff_base_s, spec.backoff_max_s
        if spec.backoff == "CONSTANT":
            return min(base_s, most_s), min(base_s, most_s)
        if spec.backoff == "LINEAR":
            return min(base_s * (used - 1), most_s), min(base_s * (used - 1), most_s)
        return 0.0, min(base_s * 2.0 ** (used - 2), most_s)

    def _one_for_one(self, supervisor: Supervisor, units: list[Unit], lo_s: float, hi_s: float) -> None:
        if len(units) > 1:
            self.fired["fall: one_for_one, together"] += 1
        if hi_s == 0.0:
            self.fired["fall: one_for_one"] += 1
            for unit in units:
                self._restart(unit)
            return
        self.fired["fall: one_for_one, later"] += 1
        names = [unit.key for unit in units]
        timer = self.asked.take_timer(names)
        if timer is None:
            raise Violation("backoff", f"{names} must wait from {lo_s} to {hi_s} s, and no timer is set for them")
        for unit in units:
            unit.waits = True
        self._timer_is_set(timer.id, timer.at_s, supervisor, tuple(units), self.now_s + lo_s, self.now_s + hi_s)

    def _timer_is_set(
        self, timer: int, at_s: float, whose: Supervisor, waiting: tuple[Unit, ...], lo_s: float, hi_s: float
    ) -> None:
        if timer in self.used_timers:
            raise Violation("timers", f"timer {timer} was used before")
        if not (lo_s <= at_s <= hi_s and at_s > self.now_s):
            raise Violation("backoff", f"timer {timer} of {whose.key} is set to {at_s}; due is from {lo_s} to {hi_s}")
        self.used_timers.add(timer)
        self.timers[timer] = (whose, waiting)
        whose.timers.add(timer)

    def _restart(self, unit: Unit) -> None:
        if isinstance(unit, Supervisor):
            self._begin(unit)
        elif not self._take_start(unit):
            raise Violation("no limbo", f"{unit.key} is due, and is not started")

    def _clear(self, supervisor: Supervisor, scope: int, lo_s: float, hi_s: float) -> None:
        lo_s, hi_s = self.now_s + lo_s, self.now_s + hi_s
        if supervisor.mode in (CLEARING, HOLDING):
            self.fired["fall: widens"] += 1
            lo_s, hi_s = max(lo_s, supervisor.hold_lo_s), max(hi_s, supervisor.hold_hi_s)
        self._cancel_timers(supervisor)
        supervisor.mode, supervisor.scope = CLEARING, scope
        supervisor.hold_lo_s, supervisor.hold_hi_s = lo_s, hi_s
        for group in supervisor.groups[scope:]:
            for unit in group:
                if isinstance(unit, Supervisor):
                    self._halt(unit)

    def _end(self, supervisor: Supervisor) -> None:
        self._halt(supervisor)
        supervisor.mode, supervisor.scope = ENDING, 0

    def _halt(self, supervisor: Supervisor) -> None:
        """Nothing below it starts any more."""
        if supervisor.mode in (DOWN, HALTED, ENDING):
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

    def _rest(self, child: Child) -> None:
        """Down because it was taken down, or fell while it was about to be."""
        if child.home.mode != CLEARING:
            return
        if child.restart == "temporary":
            self.fired["fall: clearing, temporary"] += 1
            self._give_up(child)
        else:
            self.fired["fall: clearing, other"] += 1

    def _give_up(self, child: Child) -> None:
        child.state = GONE
        incarnation = self.asked.give_ups.pop(child.key, None)
        if incarnation is None:
            raise Violation("given up", f"{child.key} is not restarted, and is not given up")
        if incarnation != child.incarnation:
            raise Violation("incarnations", f"{child.key} is given up as {incarnation}; the last is {child.incarnation}")
        self._coming_up[child.home] = None

    # --- what follows of it -----------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Supervisors of which nothing lives any more fall or start again, until none is left."""
        self._follow()
        while self._one_is_down():
            self._follow()
        self._insist()

    def _one_is_down(self) -> bool:
        """One of them is found to be down. The deepest first, unless the tree has evidently gone on elsewhere."""
        for supervisor in self.supervisors:
            if supervisor.mode == CLEARING and self._goes_on(supervisor):
                self._cleared(supervisor)
                return True
        waits: Supervisor | None = None
        for supervisor in self._deepest_first:
            if supervisor.mode == ENDING and not any(supervisor.living):
                self._all_down(supervisor)
                return True
            if supervisor.mode == CLEARING and not any(supervisor.living[supervisor.scope :]):
                if self.now_s < supervisor.hold_lo_s:
                    waits = supervisor  # without a timer: right only if one above is found to go down
                    continue
                self._cleared(supervisor)
                return True
        if waits is not None:
            raise Violation("backoff", f"{waits.key} must wait until {waits.hold_lo_s}, and no timer is set")
        return False

    def _goes_on(self, supervisor: Supervisor) -> bool:
        """Whether the tree has set its timer, or starts what it starts next."""
        if any(supervisor.living[supervisor.scope :]):
            return False
        lo_s, hi_s = supervisor.hold_lo_s, supervisor.hold_hi_s
        if any(timer.children == (supervisor.key,) and lo_s <= timer.at_s <= hi_s for timer in self.asked.timers):
            return True
        return any(unit.key in self.asked.starts for unit in supervisor.groups[max(supervisor.scope - 1, 0)])

    def _all_down(self, supervisor: Supervisor) -> None:
        cause = supervisor.fall
        _forget([[supervisor]])
        if supervisor.parent is None:
            self._take_end("Stopped" if cause is None else "Failed")
        elif cause is not None:
            self.fired["fall: of a supervisor"] += 1
            self._fall(supervisor.parent, [supervisor], FAILED, cause, True)
            self._coming_up[supervisor.parent] = None

    def _cleared(self, supervisor: Supervisor) -> None:
        """Its fallen groups are down. It waits for the rest of the backoff, or starts again at once."""
        _forget(supervisor.groups[supervisor.scope :])
        timer = self.asked.take_timer([supervisor.key])
        if timer is not None:
            self.fired["clearing: waits"] += 1
            supervisor.mode = HOLDING
            self._timer_is_set(timer.id, timer.at_s, supervisor, (), supervisor.hold_lo_s, supervisor.hold_hi_s)
        else:
            self._resume(supervisor)

    def _follow(self) -> None:
        """What is due by now, as far as the tree has asked for it."""
        for supervisor in [*self._coming_up]:
            self._bring_up(supervisor)
        if self.asked.stops:
            self._bring_down(over=False)

    def _insist(self) -> None:
        """The step is over: what is due by now must have been asked for."""
        while self._coming_up:
            supervisor, _ = self._coming_up.popitem()
            late = self._bring_up(supervisor)
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
                if isinstance(unit, Child):
                    if unit.state == GONE:
                        self.fired["begins anew"] += 1
                    unit.state = OFF
        self._coming_up[supervisor] = None
        self._bring_up(supervisor)

    def _resume(self, supervisor: Supervisor) -> None:
        """The fallen groups start again, the child that fell (REST_FOR_ONE) before them."""
        self.fired["clearing: over"] += 1
        supervisor.mode, supervisor.frontier = UP, max(supervisor.scope - 1, 0)
        for group in supervisor.groups[supervisor.scope :]:
            for unit in group:
                if isinstance(unit, Child) and unit.state == GONE and unit.restart != "temporary":
                    unit.state = OFF
        self._coming_up[supervisor] = None

    def _bring_up(self, supervisor: Supervisor) -> str | None:
        """Groups from the frontier on are due, each when the one before is up. A child that is due and not started."""
        if supervisor.mode != UP:
            return None
        groups = supervisor.groups
        late = None
        while supervisor.frontier < len(groups):
            up = True
            for unit in groups[supervisor.frontier]:
                if isinstance(unit, Supervisor):
                    if unit.mode == DOWN and not unit.waits:
                        self._begin(unit)
                    up = up and unit.ready
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
        if not supervisor.ready:
            supervisor.ready = True
            if supervisor.parent is not None:
                self._coming_up[supervisor.parent] = None
            elif not self.has_run:
                self._take_running()
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
            if living[index]:
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

    # --- taking what was asked for ------------------------------------------------------------------------------------------

    def _take_start(self, child: Child) -> bool:
        incarnation = self.asked.starts.pop(child.key, None)
        if incarnation is None:
            return False
        if incarnation != child.incarnation + 1:
            raise Violation("incarnations", f"{child.key} starts as {incarnation}; the last is {child.incarnation}")
        child.incarnation, child.state = incarnation, STARTING
        _add(child, 1)
        return True

    def _take_stop(self, child: Child) -> bool:
        action = self.asked.stops.pop(child.key, None)
        if action is None:
            return False
        if action.incarnation != child.incarnation:
            raise Violation("incarnations", f"{action}; the last is {child.incarnation}")
        if action.deadline_s != self.now_s + child.timeout_s:
            raise Violation("told once", f"{action} at {self.now_s}: its shutdown timeout is {child.timeout_s} s")
        self.fired["stops in reverse"] += 1
        child.state = STOPPING
        return True

    def _take_running(self) -> None:
        if not self.asked.running:
            raise Violation("running", "all is up for the first time, and Running is not said")
        self.fired["start: running"] += 1
        self.asked.running, self.has_run = False, True

    def _take_end(self, which: str) -> None:
        if self.asked.ends != [which]:
            raise Violation("the end", f"nothing lives any more: {which} is due, said is {self.asked.ends}")
        self.asked.ends.clear()
        self.outcome = which.lower()
        self.fired[f"end: {self.outcome}"] += 1


def _depth(supervisor: Supervisor) -> int:
    return 0 if supervisor.parent is None else 1 + _depth(supervisor.parent)


def _add(child: Child, count: int) -> None:
    unit: Unit = child
    home: Supervisor | None = child.home
    while home is not None:
        home.living[unit.group] += count
        unit, home = home, home.parent


def _forget(groups: Iterable[list[Unit]]) -> None:
    """Supervisors of which nothing lives know nothing of before."""
    for group in groups:
        for unit in group:
            if isinstance(unit, Supervisor):
                unit.mode, unit.ready, unit.fall = DOWN, False, None
                unit.window = []
                _forget(unit.groups)
