"""The account of what a supervision tree owes: which child must run, be stopped, wait or be given up after each event.

Rules of this file: written from the tables in `supervision.tree`, `policy` and `backoff`, not from their code, as a
second way to the same answers: objects that change in place, and a count of what lives in each group instead of a walk
with a queue. What is due is taken out of `Asked`; what is due and was not asked for is a Violation.

Within one step the order of things that do not depend on each other is the tree's own choice: whether a next group is
still started before a supervisor above is found to have given up, say. The account follows the tree there, and insists
at the end of the step that nothing is missing (`turns`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..supervision.events import AddChild
from ..topology.model import SupervisorSpec
from .asked import Violation
from .found import Found, found_down
from .turns import Turns
from .units import (
    CLEARING,
    ENDING,
    FAILED,
    FINISHED,
    HALTED,
    HOLDING,
    OFF,
    READY,
    STARTING,
    STOPPING,
    UP,
    Child,
    Supervisor,
    Unit,
    add_living,
    forget,
)  # fmt: skip

__all__ = ["Account"]


class Account(Turns):
    """Of one tree, from its Start to its end. Events say whether they concern anything."""

    choices: Sequence[int] = ()
    """Which of the supervisors that nothing lives in any more is found to be down first in this step, second, …: by its
    place among those that `found_down` offers then. Beyond its end the likeliest.
    """
    offered: list[int]
    """How many could be chosen from, each time in this step."""

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
            self.started = self.going_down = True
            self._take_end("Stopped")
            return True
        if self.root.mode == ENDING:
            self.fired["stop: going down"] += 1
            return False
        self.fired["stop: started"] += 1
        self.going_down = True
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
            add_living(child, -1)
            if child.removing:
                self._remove(child, "despawned")
            elif was == STOPPING:
                self.fired["ended: stopping"] += 1
                self._rest(child.home, child)
            else:
                self.fired["ended: starting" if was == STARTING else "ended: ready"] += 1
                fell.setdefault(child.home, []).append(child)
        if not lived:
            return False
        if process:
            self._count_process(lived, counts)
        self.cause += 1
        homes = {child.home for child in lived}
        for supervisor in self.supervisors:
            if supervisor in fell:
                self._fall(supervisor, [*fell[supervisor]], how, self.cause, counts)
            if supervisor in homes:
                self._queue.append(supervisor)
        self._settle()
        return True

    def add(self, wanted: AddChild) -> bool:
        """AddChild."""
        agent = wanted.agent
        home = self.by_name.get(wanted.supervisor)
        if home is None or not self._may_spawn(home, wanted):
            self.fired["spawn: refused"] += 1
            return False
        child = Child(agent.name, home, 0, agent)
        child.spawner = wanted.spawner
        child.incarnation = self.last_of.get(agent.name, 0)
        self.children[agent.name] = child
        home.groups[0].append(child)
        home.spawned[wanted.spawner] = home.spawned.get(wanted.spawner, 0) + 1
        if self.started:
            self.fired["spawn: starts"] += 1
            self._restart(child)
        else:
            self.fired["spawn: before start"] += 1
        return True

    def _may_spawn(self, home: Supervisor, wanted: AddChild) -> bool:
        quota, agent, spawner = home.spec.dynamic, wanted.agent, wanted.spawner
        if quota is None or (self.started and home.mode != UP) or agent.replicas != 1:
            return False
        taken = agent.name in self.by_name or agent.name in self.children or f"{agent.name}#0" in self.children
        if taken or (spawner and quota.spawner_allowlist is not None and spawner not in quota.spawner_allowlist):
            return False
        alive = [unit for unit in home.groups[0] if isinstance(unit, Child)]
        return all(
            most is None or value < most
            for most, value in (
                (quota.max_children, len(alive)),
                (quota.max_total_spawns, sum(home.spawned.values())),
                (quota.max_children_per_class.get(agent.type), sum(unit.type == agent.type for unit in alive)),
                (quota.max_children_per_spawner, sum(unit.spawner == spawner for unit in alive)),
                (quota.max_total_spawns_per_spawner, home.spawned.get(spawner, 0)),
            )
        )

    def remove(self, key: str, timeout_s: float | None) -> bool:
        """RemoveChild."""
        child = self.children.get(key)
        if child is None or child.spawner is None or child.removing:
            self.fired["despawn: nothing"] += 1
            return False
        child.removing = True
        if not child.lives:
            self._remove(child, "despawned")
        elif child.state != STOPPING:
            self.fired["despawn: stops"] += 1
            if not self._take_stop(child, timeout_s):
                raise Violation("no limbo", f"{key} is removed, and is not told to stop")
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

    # --- falls --------------------------------------------------------------------------------------------------------

    def _fall(self, supervisor: Supervisor, units: list[Unit], how: str, cause: int, counts: bool) -> None:
        if supervisor.mode in (HALTED, ENDING):
            self.fired["fall: going down"] += 1
            return
        restarted: list[Unit] = []
        significant = False
        for unit in units:
            if supervisor.mode == CLEARING and unit.group >= supervisor.scope:
                self._rest(supervisor, unit)
                continue
            if isinstance(unit, Child) and unit.spawner is not None:
                self._spawned_falls(unit, how, cause, counts)
                continue
            self.fired[f"restart: {unit.restart} {how}"] += 1
            if how != "stopped" and (unit.restart == "permanent" or (unit.restart == "transient" and how == FAILED)):
                restarted.append(unit)
                continue
            self.fired["fall: not restarted"] += 1
            if isinstance(unit, Supervisor):
                self.fired["fall: not restarted, supervisor"] += 1
            self._give_up(supervisor, unit)
            significant = significant or unit.significant
        if significant and self._shuts_down(supervisor, cause, counts):
            return
        if not restarted:
            return
        lo_s = hi_s = 0.0
        if counts:
            used = self._count(supervisor, cause)
            if used > supervisor.spec.max_restarts:
                self._gives_up(supervisor, cause)
                return
            lo_s, hi_s = self._backoff(supervisor)
        supervisor.up_since_s = None
        if supervisor.spec.strategy == "ONE_FOR_ONE":
            self._one_for_one(supervisor, restarted, lo_s, hi_s)
        elif supervisor.spec.strategy == "ONE_FOR_ALL":
            self.fired["fall: one_for_all"] += 1
            self._clear(supervisor, 0, lo_s, hi_s)
        else:
            self.fired["fall: rest_for_one"] += 1
            self._clear(supervisor, min(unit.group for unit in restarted) + 1, lo_s, hi_s)

    def _spawned_falls(self, child: Child, how: str, cause: int, counts: bool) -> None:
        """A window of its own; nobody else is concerned, and nothing escalates."""
        spec = child.home.spec
        self.fired[f"restart: {child.restart} {how}"] += 1
        if how == "stopped" or child.restart == "temporary" or (child.restart == "transient" and how != FAILED):
            self._remove(child, "crashed" if how == FAILED else "clean_exit")
            return
        lo_s = hi_s = 0.0
        if counts:
            child.window = self._in_window(child.window, cause, spec.restart_window_s)
            if len(child.window) > spec.max_restarts:
                self._remove(child, "restarts_exhausted")
                return
            lo_s, hi_s = self._wait_of(spec, len(child.window))
        self.fired["dynamic: restarted"] += 1
        self._one_for_one(child.home, [child], lo_s, hi_s)

    def _shuts_down(self, supervisor: Supervisor, cause: int, counts: bool) -> bool:
        """A significant child of it has ended for good."""
        kind = supervisor.spec.auto_shutdown
        if kind == "all_significant" and any(
            unit.significant and not unit.is_over for group in supervisor.groups for unit in group
        ):
            self.fired["shutdown: all_significant, others left"] += 1
            return False
        self.fired[f"shutdown: {kind}"] += 1
        if supervisor.key not in self.asked.shutdowns:
            raise Violation("auto-shutdown", f"{supervisor.key} must shut down ({kind}) and does not")
        self.asked.shutdowns.remove(supervisor.key)
        self._ends_itself(supervisor, cause, FINISHED, counts)
        return True

    def _gives_up(self, supervisor: Supervisor, cause: int) -> None:
        self.fired["fall: gives up"] += 1
        if supervisor.key not in self.asked.escalations:
            raise Violation("intensity", f"{supervisor.key} has no restart left and does not give up")
        self.asked.escalations.remove(supervisor.key)
        if not any(supervisor.living):
            self.fired["fall: gives up, all down"] += 1
        self._ends_itself(supervisor, cause, FAILED, True)

    def _ends_itself(self, supervisor: Supervisor, cause: int, how: str, counts: bool) -> None:
        self._end(supervisor)
        supervisor.fall = (cause, how, counts)
        self.going_down = self.going_down or supervisor is self.root

    def _count(self, supervisor: Supervisor, cause: int) -> int:
        """The restarts in its window, with this one."""
        supervisor.window = self._in_window(supervisor.window, cause, supervisor.spec.restart_window_s)
        reset_s = supervisor.spec.backoff_reset_s
        if reset_s is not None and supervisor.up_since_s is not None and self.now_s - supervisor.up_since_s >= reset_s:
            self.fired["backoff: stable"] += 1
            supervisor.series = cause
        return len(supervisor.window)

    def _in_window(self, window: list[tuple[float, int]], cause: int, span_s: float) -> list[tuple[float, int]]:
        kept = []
        for at_s, earlier in window:
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
        return kept

    def _backoff(self, supervisor: Supervisor) -> tuple[float, float]:
        """Bounds of the wait before the restart that was just counted."""
        return self._wait_of(supervisor.spec, sum(cause >= supervisor.series for _, cause in supervisor.window))

    def _wait_of(self, spec: SupervisorSpec, used: int) -> tuple[float, float]:
        if used <= 1:
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
        self._queue.append(supervisor)

    def _end(self, supervisor: Supervisor) -> None:
        self._halt(supervisor)
        supervisor.mode, supervisor.scope = ENDING, 0
        self._queue.append(supervisor)

    # --- what follows of it -------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Supervisors of which nothing lives any more fall or start again, until none is left."""
        self._follow()
        while self._one_is_down():
            self._follow()
        self._queue.clear()
        self._insist()

    def _one_is_down(self) -> bool:
        """One of them is found to be down. Which is the first is the tree's choice: see `choices`."""
        found = found_down(self.supervisors, self._queue, self.asked, self.now_s)
        if not found:
            return False
        decision = len(self.offered)
        self.offered.append(len(found))
        what, supervisor = found[self.choices[decision] if decision < len(self.choices) else 0]
        if isinstance(what, Supervisor):
            forget(what)
            self._rest(supervisor, what)
        elif what is Found.DOWN:
            self._all_down(supervisor)
        else:
            self._cleared(supervisor)
        return True

    def _all_down(self, supervisor: Supervisor) -> None:
        fall = supervisor.fall
        forget(supervisor)
        parent = supervisor.parent
        if parent is None:
            self._take_end("Failed" if fall is not None and fall[1] == FAILED else "Stopped")
            return
        if fall is None:
            self._rest(parent, supervisor)
        else:
            self.fired["fall: of a supervisor"] += 1
            self._fall(parent, [supervisor], fall[1], fall[0], fall[2])
        self._coming_up[parent] = None

    def _cleared(self, supervisor: Supervisor) -> None:
        """Its fallen groups are down. It waits for the rest of the backoff, or starts again at once."""
        for group in supervisor.groups[: supervisor.scope - 1 if supervisor.scope else None : -1]:
            self._pass(supervisor, group)
        timer = self.asked.take_timer([supervisor.key])
        if timer is not None:
            self.fired["clearing: waits"] += 1
            supervisor.mode = HOLDING
            self._timer_is_set(timer.id, timer.at_s, supervisor, (), supervisor.hold_lo_s, supervisor.hold_hi_s)
        else:
            self._resume(supervisor)
