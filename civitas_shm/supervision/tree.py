"""The supervision tree: `step(tree, event, now_s) -> (tree, actions)`. This text is its specification.

Rules of this file: no I/O, no clock, no asyncio, no global chance; a Tree is never changed; all policy comes from
`policy` and `backoff`; whatever is not in this table changes nothing (then `step` returns the very same tree).

    tree = Tree.from_spec(topology.supervision, seed=random.getrandbits(64))
    tree, actions = step(tree, Start(), clock.monotonic_s())
    # perform the actions in order; send what comes of them as later events, one at a time:
    tree, actions = step(tree, ChildReady("planner", 1), clock.monotonic_s())
    tree, actions = step(tree, ProcessDied("w1", (("planner", 1), ("critic", 1)), reason="signal 9"), now_s)
    # until an action is Stopped() or Failed(reason)

| event                    | condition                          | what happens                                       |
|--------------------------|------------------------------------|----------------------------------------------------|
| any                      | unknown child, old incarnation,    | nothing                                            |
|                          | timer not set, tree at its end     |                                                    |
| Start                    | not started                        | groups start in order, each when all of the one    |
|                          |                                    | before are ready or gone; a supervisor is ready    |
|                          |                                    | when its last group is; then Running               |
| ChildReady               | STARTING                           | READY; the next group may start                    |
|                          | STOPPING (the stop overtook it)    | nothing                                            |
| ChildFailed, ChildExited | STOPPING                           | down; the group before it may stop                 |
|                          | STARTING or READY                  | it *falls*, see below                              |
| ProcessDied              |                                    | all that lived in it are down at once, then fall:  |
|                          |                                    | children of a supervisor before those of           |
|                          |                                    | supervisors below it; one *cause* for all of them  |
| Timer                    | set and not cancelled              | what waits for it starts                           |
| AddChild, RemoveChild    | see the table in `dynamic`         |                                                    |
| StopRequested            | not started                        | Stopped                                            |
|                          | started                            | from now on nothing is started; groups stop in     |
|                          |                                    | reverse order; then Stopped                        |
|                          | the root has given up              | nothing: it is going down, and will be Failed      |

A child *falls*, or a supervisor that gave up (FAILED) or shut down (FINISHED). The first line that fits:

| its supervisor                      | the child                           | what happens                           |
|-------------------------------------|-------------------------------------|----------------------------------------|
| is going down, or one above it is   | any                                 | down; not counted, not restarted       |
| is CLEARING the child's group       | temporary                           | GiveUpChild                            |
|                                     | any other                           | down; not counted; it starts again     |
|                                     |                                     | with its group                         |
| any                                 | not restarted (policy: **Restart**) | GiveUpChild; of a supervisor, for each |
|                                     |                                     | child below                            |
|                                     | and the last significant one        | ShutDown; all its children stop in     |
|                                     | (policy: **Auto-shutdown**)         | reverse order, then it has ended       |
|                                     |                                     | itself; the root: Stopped              |
| has no restart left (**Intensity**) | restarted                           | Escalated; all its children stop in    |
|                                     |                                     | reverse order, then it falls itself,   |
|                                     |                                     | of the same cause; at the root: Failed |
| ONE_FOR_ONE                         | restarted                           | it starts, now or after the backoff;   |
|                                     |                                     | those that fell together start         |
|                                     |                                     | together                               |
| ONE_FOR_ALL, REST_FOR_ONE           | restarted                           | groups in scope (policy: **Scope**)    |
|                                     |                                     | stop in reverse order, backoff, then   |
|                                     |                                     | start in order; another fall meanwhile |
|                                     |                                     | is counted and widens the scope        |

Guarantees:
- a child is started only when its last incarnation has ended, and incarnations only grow, also when a spawned child
  has left and its name is used again: an event of its earlier bearer means nothing to the new one;
- a stop beats a restart: from StopRequested, and from the moment the root gives up or shuts down, no StartChild is
  emitted; a shutdown beats the restart of a child that fell in the same event;
- one cause is counted once against each supervisor, also when it reaches it through several supervisors below;
- a start that fails is counted like a crash, the very first one too (OTP gives up at once; here a service that is a
  second late at boot gets the same patience as later);
- `counts=False` deaths, and what falls over them, are not counted and restart at once;
- no limbo: as long as a driver keeps its promises (see `events`), every tree comes to all-running, Stopped or Failed.
  `civitas_shm/simulation` plays it under random schedules.

A supervisor that is restarted begins anew: empty window, all its children start, those that were gone too.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from ..topology.model import Drain, SupervisorSpec
from .backoff import backoff_s, next_random
from .dynamic import refusal
from .events import (
    Action,
    AddChild,
    ChildExited,
    ChildFailed,
    ChildReady,
    Escalated,
    Event,
    Failed,
    ProcessDied,
    RemoveChild,
    Running,
    ShutDown,
    Start,
    StopChild,
    Stopped,
    StopRequested,
    Timer,
)
from .policy import (
    Ending,
    add_restart,
    backoff_number,
    first_fallen_group,
    is_restarted,
    is_stable,
    shuts_down,
)
from .state import ChildState, ChildStatus, DynamicChild, Fall, Phase, SupervisorState, TimerTarget, Tree
from .work import Work, flat

__all__ = ["Tree", "step"]


def step(tree: Tree, event: Event, now_s: float) -> tuple[Tree, list[Action]]:
    """The next state, and what the driver shall do, in this order. The table above, and nothing else."""
    if tree.outcome is not None:
        return tree, []
    work = _Step(tree, now_s)
    if not work.take(event):
        return tree, []
    work.settle()
    return work.tree(), work.actions


class _Step(Work):
    """One step.

    `take` handles the event; whatever makes a supervisor look again at its children puts it in the queue; `settle`
    lets each look until none has to. Only `_advance` walks over groups, and it is called from `settle` alone, so
    no supervisor's walk is ever interrupted by another's.
    """

    # --- events ---------------------------------------------------------------------------------------------------

    def take(self, event: Event) -> bool:
        """Whether the event concerned anything."""
        match event:
            case Start():
                return self._start_tree()
            case ChildReady(child, incarnation):
                return self._ready(child, incarnation)
            case ChildFailed(child, incarnation, reason, counts):
                return self._ended(((child, incarnation),), Ending.FAILED, reason, counts)
            case ChildExited(child, incarnation, normal, stop_action):
                ending = Ending.FAILED if not normal else Ending.STOPPED if stop_action else Ending.FINISHED
                return self._ended(((child, incarnation),), ending, f"ended ({ending.value})", counts=True)
            case ProcessDied(process, children, counts, reason):
                reason = f"process {process!r} died" + (f": {reason}" if reason else "")
                return self._ended(children, Ending.FAILED, reason, counts)
            case Timer(id):
                return self._time_has_come(id)
            case AddChild():
                return self._add(event)
            case RemoveChild(child, drain, timeout_s):
                return self._remove_child(child, drain, timeout_s)
            case StopRequested():
                return self._stop_tree()

    def settle(self) -> None:
        """Let every supervisor concerned look at its children until nothing is left to do. Who does not come up looks
        first: what that takes down with it is not started in vain.
        """
        while self._queue:
            name = next((name for name in self._queue if self._supervisors[name].phase is not Phase.UP), self._queue[0])
            self._queue.remove(name)
            self._advance(self._supervisors[name])

    def _start_tree(self) -> bool:
        if self._supervisors[self._before.root].phase is not Phase.DOWN:
            return False
        self._start(self._before.root)
        return True

    def _stop_tree(self) -> bool:
        root = self._supervisors[self._before.root]
        if root.phase is Phase.STOPPING:
            return False
        if root.phase is Phase.DOWN:
            self._end("stopped", Stopped())
        else:
            self._take_down(root)
        return True

    def _ready(self, key: str, incarnation: int) -> bool:
        child = self._children.get(key)
        if child is None or child.incarnation != incarnation or child.status is not ChildStatus.STARTING:
            return False
        self._set_child(child, ChildStatus.READY)
        self._queue.append(child.supervisor)
        return True

    def _ended(self, ended: Iterable[tuple[str, int]], ending: Ending, reason: str, counts: bool) -> bool:
        """These children run no more. First all of them are down, then their supervisors decide, parents first."""
        fell: dict[str, list[str]] = {}
        concerned: set[str] = set()
        for key, incarnation in ended:
            child = self._children.get(key)
            if child is None or child.incarnation != incarnation or not child.lives:
                continue
            concerned.add(child.supervisor)
            if child.dynamic is not None and child.dynamic.removing:
                self._remove(child, "despawned", "despawned")
            elif child.status is ChildStatus.STOPPING:
                self._rest(key, "taken down")
            else:
                self._set_child(child, ChildStatus.DOWN)
                fell.setdefault(child.supervisor, []).append(key)
        if not concerned:
            return False
        cause = self._next_cause
        self._next_cause += 1
        for name in self._supervisors:  # parents stand before their children
            if name in fell:
                keys = sorted(fell[name], key=lambda key: (self._children[key].group, self._children[key].replica))
                self._fall(self._supervisors[name], keys, ending, Fall(cause, counts, reason, name, keys[-1]))
            if name in concerned:
                self._queue.append(name)
        return True

    def _add(self, wanted: AddChild) -> bool:
        if refusal(self._before, wanted) is not None:
            return False
        agent, supervisor = wanted.agent, self._supervisors[wanted.supervisor]
        self._children[agent.name] = ChildState(
            key=agent.name,
            agent=agent.name,
            replica=0,
            supervisor=supervisor.name,
            group=0,
            restart=agent.restart,
            shutdown_timeout_s=agent.shutdown_timeout_s,
            incarnation=self._departed,
            dynamic=DynamicChild(agent.type, wanted.spawner),
            before=self._departed,
        )
        quota = supervisor.spec.dynamic
        assert quota is not None
        # By spawner only where that is asked for: there may be as many of them as there are spawns.
        spawner = "" if quota.max_total_spawns_per_spawner is None else wanted.spawner
        spawned = {**supervisor.spawned, spawner: supervisor.spawned.get(spawner, 0) + 1}
        self._set(supervisor, groups=((*supervisor.groups[0], agent.name),), spawned=spawned)
        if supervisor.phase is Phase.UP:
            self._start(agent.name)
        return True

    def _remove_child(self, key: str, drain: Drain | None, timeout_s: float | None) -> bool:
        child = self._children.get(key)
        if child is None or child.dynamic is None or child.dynamic.removing:
            return False
        child = replace(child, dynamic=replace(child.dynamic, removing=True))
        self._children[key] = child
        if not child.lives:
            self._remove(child, "despawned", "despawned")
        elif child.status is not ChildStatus.STOPPING:
            self._tell_to_stop(child, child.shutdown_timeout_s if timeout_s is None else timeout_s, drain)
        return True

    def _tell_to_stop(self, child: ChildState, timeout_s: float, drain: Drain | None = None) -> None:
        self._set_child(child, ChildStatus.STOPPING)
        self.actions.append(StopChild(child.key, child.incarnation, self._now_s + timeout_s, drain))

    def _time_has_come(self, timer: int) -> bool:
        target = self._timers.pop(timer, None)
        if target is None:
            return False
        if target.names:
            for name in target.names:
                self._start(name)
        else:
            self._resume(self._supervisors[target.supervisor])
        return True

    # --- a fall: the second table ---------------------------------------------------------------------------------

    def _fall(self, supervisor: SupervisorState, names: list[str], ending: Ending, fall: Fall) -> None:
        """`names` (down already, in start order) fell together; decide what becomes of them and of the others."""
        if supervisor.phase in (Phase.HALTED, Phase.STOPPING):
            return
        restarted: list[str] = []
        significant: str | None = None
        for name in names:
            if supervisor.spec.dynamic is not None:
                self._dynamic_fall(supervisor.spec, self._children[name], ending, fall)
                continue
            if supervisor.phase is Phase.CLEARING and self._group(name) >= supervisor.scope:
                self._rest(name, fall.reason)
            elif is_restarted(self._restart_of(name), ending):
                restarted.append(name)
            else:
                self._give_up(name, fall.reason)
                significant = name if self._is_significant(name) else significant
        if significant is not None and self._shuts_down(supervisor):
            self._shut_down(supervisor, significant, fall)
            return
        if not restarted:
            return
        spec = supervisor.spec
        delay_s = 0.0
        if fall.counts:
            counted, allowed = add_restart(
                supervisor.counted, self._now_s, fall.cause, spec.max_restarts, spec.restart_window_s
            )
            if is_stable(supervisor.up_since_s, self._now_s, spec.backoff_reset_s):
                supervisor = self._set(supervisor, series=fall.cause)
            supervisor = self._set(supervisor, counted=counted)
            if not allowed:
                self._escalate(supervisor, restarted[-1], fall)
                return
            self._seed, random01 = next_random(self._seed)
            number = backoff_number(counted, supervisor.series)
            delay_s = backoff_s(spec.backoff, spec.backoff_base_s, spec.backoff_max_s, number, random01)
        supervisor = self._set(supervisor, up_since_s=None)
        if spec.strategy == "ONE_FOR_ONE":
            self._restart(supervisor, restarted, delay_s)
        else:
            self._clear(supervisor, min(map(self._group, restarted)), delay_s)

    def _dynamic_fall(self, spec: SupervisorSpec, child: ChildState, ending: Ending, fall: Fall) -> None:
        """The table in `dynamic`: each child has a window of its own, and nothing escalates."""
        assert child.dynamic is not None
        if not is_restarted(child.restart, ending):
            self._remove(child, "crashed" if ending is Ending.FAILED else "clean_exit", fall.reason)
            return
        delay_s = 0.0
        if fall.counts:
            counted, allowed = add_restart(
                child.dynamic.counted, self._now_s, fall.cause, spec.max_restarts, spec.restart_window_s
            )
            if not allowed:
                reason = (
                    f"{child.key!r} needed {len(counted)} restarts within {spec.restart_window_s:g} s, max_restarts of "
                    f"{spec.name!r} is {spec.max_restarts}. Last: {fall.reason}"
                )
                self._remove(child, "restarts_exhausted", reason)
                return
            self._children[child.key] = replace(child, dynamic=replace(child.dynamic, counted=counted))
            self._seed, random01 = next_random(self._seed)
            delay_s = backoff_s(spec.backoff, spec.backoff_base_s, spec.backoff_max_s, len(counted), random01)
        self._restart(self._supervisors[spec.name], [child.key], delay_s)

    def _shuts_down(self, supervisor: SupervisorState) -> bool:
        left = any(self._is_significant(name) and not self._is_over(name) for name in flat(supervisor.groups))
        return shuts_down(supervisor.spec.auto_shutdown, True, left)

    def _shut_down(self, supervisor: SupervisorState, name: str, fall: Fall) -> None:
        reason = (
            f"supervisor {supervisor.name!r} shuts down ({supervisor.spec.auto_shutdown}): {name!r} has ended and is "
            f"not restarted: {fall.reason}"
        )
        self.actions.append(ShutDown(supervisor.name, name, reason))
        self._take_down(supervisor)
        self._set(self._supervisors[supervisor.name], shutdown=replace(fall, reason=reason))

    def _restart(self, supervisor: SupervisorState, names: list[str], delay_s: float) -> None:
        if delay_s <= 0:
            for name in names:
                self._start(name)
            return
        for name in names:
            if name in self._children:
                self._set_child(self._children[name], ChildStatus.WAITING)
            else:
                self._set(self._supervisors[name], phase=Phase.WAITING)
        self._set_timer(TimerTarget(supervisor.name, tuple(names)), self._now_s + delay_s)

    def _clear(self, supervisor: SupervisorState, group: int, delay_s: float) -> None:
        """Take down what falls with a child of `group`.

        When something is being taken down already, the child stood before it (else it had fallen with it): the new
        scope is the wider one, and the longer backoff holds.
        """
        scope = first_fallen_group(supervisor.spec.strategy, group, len(supervisor.groups))
        hold_until_s = self._now_s + delay_s
        if supervisor.phase is not Phase.UP:
            hold_until_s = max(hold_until_s, supervisor.hold_until_s)
        self._cancel_timers(supervisor)
        supervisor = self._set(
            supervisor,
            phase=Phase.CLEARING,
            frontier=_top(supervisor),
            scope=scope,
            hold_until_s=hold_until_s,
        )
        for name in flat(supervisor.groups[scope:]):
            self._halt(name)
        self._queue.append(supervisor.name)

    def _escalate(self, supervisor: SupervisorState, name: str, fall: Fall) -> None:
        spec = supervisor.spec
        what = repr(name) if name in self._children else "below it"
        reason = (
            f"supervisor {spec.name!r} gave up: {len(supervisor.counted)} restarts needed within "
            f"{spec.restart_window_s:g} s, max_restarts is {spec.max_restarts}. Last, {what}: {fall.reason}"
        )
        self.actions.append(Escalated(spec.name, name, reason))
        self._take_down(supervisor)
        self._set(self._supervisors[spec.name], escalation=replace(fall, counts=True, reason=reason))

    # --- one supervisor looks at its children -----------------------------------------------------------------------

    def _advance(self, supervisor: SupervisorState) -> None:
        if supervisor.phase is Phase.UP:
            self._bring_up(supervisor)
        elif supervisor.phase is Phase.CLEARING:
            supervisor = self._bring_down(supervisor)
            if supervisor.frontier > supervisor.scope:
                return
            if self._now_s >= supervisor.hold_until_s:
                self._resume(supervisor)
            else:
                self._set(supervisor, phase=Phase.HOLDING)
                self._set_timer(TimerTarget(supervisor.name, ()), supervisor.hold_until_s)
        elif supervisor.phase is Phase.STOPPING:
            supervisor = self._bring_down(supervisor)
            if supervisor.frontier == 0:
                self._is_down(supervisor)

    def _bring_up(self, supervisor: SupervisorState) -> None:
        """Start groups from the frontier on, each when the one before is ready or gone."""
        frontier = supervisor.frontier
        while frontier < len(supervisor.groups):
            group = supervisor.groups[frontier]
            for name in group:
                if self._is_idle(name):
                    self._start(name)
            if not all(map(self._is_up, group)):
                break
            frontier += 1
        was_ready = supervisor.ready
        ready = was_ready or frontier == len(supervisor.groups)
        all_up = supervisor.spec.backoff_reset_s is not None and all(map(self._is_up, flat(supervisor.groups)))
        up_since_s = (self._now_s if supervisor.up_since_s is None else supervisor.up_since_s) if all_up else None
        self._set(supervisor, frontier=frontier, ready=ready, up_since_s=up_since_s)
        if ready and not was_ready:
            if supervisor.parent is None:
                self.actions.append(Running())
            else:
                self._queue.append(supervisor.parent)

    def _bring_down(self, supervisor: SupervisorState) -> SupervisorState:
        """Stop groups from the last one down to the scope, each when the one after it is down."""
        frontier = supervisor.frontier
        while frontier > supervisor.scope:
            group = supervisor.groups[frontier - 1]
            for name in group:
                child = self._children.get(name)
                if child is None:
                    self._take_down(self._supervisors[name])
                elif child.status in (ChildStatus.STARTING, ChildStatus.READY):
                    self._tell_to_stop(child, child.shutdown_timeout_s)
            if not all(map(self._is_down_now, group)):
                break
            frontier -= 1
        return self._set(supervisor, frontier=frontier)

    def _is_down(self, supervisor: SupervisorState) -> None:
        """Everything below is down: tell the parent, or end."""
        gave_up, shut_down = supervisor.escalation, supervisor.shutdown
        fresh = replace(supervisor, ready=False, counted=(), series=0, up_since_s=None, escalation=None, shutdown=None)
        self._set(fresh, phase=Phase.DOWN)
        if supervisor.parent is None:
            if gave_up is None:
                self._end("stopped", Stopped())
            else:
                self._end("failed", Failed(gave_up.reason, gave_up.supervisor, gave_up.child))
            return
        parent = self._supervisors[supervisor.parent]
        if gave_up is not None:
            self._fall(parent, [supervisor.name], Ending.FAILED, gave_up)
        elif shut_down is not None:
            self._fall(parent, [supervisor.name], Ending.FINISHED, shut_down)
        else:
            self._rest(supervisor.name, "taken down")
        self._queue.append(supervisor.parent)

    def _resume(self, supervisor: SupervisorState) -> None:
        """What had to fall is down and the backoff is over: start again, from the group of the child that fell."""
        for name in flat(supervisor.groups[supervisor.scope :]):
            if self._is_over(name) and self._restart_of(name) != "temporary":
                self._set_down(name)
        self._set(supervisor, phase=Phase.UP, frontier=max(supervisor.scope - 1, 0))
        self._queue.append(supervisor.name)

    def _take_down(self, supervisor: SupervisorState) -> None:
        """Begin to stop all of it, unless it is down or about to be."""
        if supervisor.phase in (Phase.DOWN, Phase.GONE, Phase.STOPPING):
            return
        self._halt(supervisor.name)
        self._set(self._supervisors[supervisor.name], phase=Phase.STOPPING, scope=0)
        self._queue.append(supervisor.name)

    def _halt(self, name: str) -> None:
        """From here on nothing below `name` is started; nothing is stopped yet. A child has nothing below it."""
        supervisor = self._supervisors.get(name)
        if supervisor is None or supervisor.phase in (Phase.DOWN, Phase.GONE, Phase.HALTED, Phase.STOPPING):
            return
        self._cancel_timers(supervisor)
        self._set(supervisor, phase=Phase.HALTED, frontier=_top(supervisor))
        for below in flat(supervisor.groups):
            self._halt(below)


def _top(supervisor: SupervisorState) -> int:
    """The first group that is surely down: where taking down begins."""
    if supervisor.phase is Phase.UP:
        return min(supervisor.frontier + 1, len(supervisor.groups))
    return supervisor.frontier
