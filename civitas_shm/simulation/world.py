"""A world for a supervision tree: a clock, processes that hold children, agents that start, stop and fail.

Rules of this file: deterministic: topology, schedule and the tree's seed say all that happens; nothing is drawn here.
It is a driver like the host's (`host.driver`), with the same habits: an agent is ordered to start when its process is
there; one that misses a deadline is ended by force, which kills its process and all that is in it; the children of a
death are those that the driver had put into the process until it learned of the death; what comes of an action inside
of its performance is told to the tree afterwards.

Time passes only when nothing is left to be done at its present value. Things of one time happen in the order in which
they came up; entries of the schedule after all others.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Final

from ..placement import MAIN, Placement
from ..supervision.events import (
    Action,
    AddChild,
    CancelTimer,
    ChildExited,
    ChildFailed,
    ChildReady,
    Event,
    ProcessDied,
    RemoveChild,
    SetTimer,
    Start,
    StartChild,
    StopChild,
    StopRequested,
    Timer,
)
from ..supervision.state import Tree, child_keys
from ..topology.model import AgentSpec
from .account import Account
from .audit import Auditor, Violation
from .schedule import Again, Despawn, End, Ending, Entry, Fate, Full, Kill, Pause, Slow, Spawn, Stop

__all__ = ["Step", "World"]

Step = Callable[[Tree, Event, float], tuple[Tree, list[Action]]]

BOOT_S: Final = 0.015625
"""From the order to a process that can take agents: 1/64 s."""
SLOWNESS_S: Final = 2.0
"""What a slow process takes more for each start and stop, however fast it was."""
GRACE_S: Final = 1.5
"""As in the host: beyond an agent's own deadline, before it is ended by force."""

_WELL: Final = Fate("", 0)


class Life:
    """One incarnation of a child, as it is in truth."""

    __slots__ = ("agent", "child", "fate", "incarnation", "ordered", "over", "process", "ready", "stopping")

    def __init__(self, child: str, incarnation: int, agent: AgentSpec, process: Process, fate: Fate) -> None:
        self.child = child
        self.incarnation = incarnation
        self.agent = agent
        self.process = process
        self.fate = fate
        self.ordered = False
        """Its process has been told to start it."""
        self.ready = False
        self.stopping = False
        self.over = False
        """No code of it runs any more."""


class Process:
    """One OS process, or none, under a name."""

    __slots__ = ("booted", "dead", "lives", "name", "number", "paused_until_s", "slow_until_s", "slowness")

    def __init__(self, name: str) -> None:
        self.name = name
        self.number = 0
        """0: there is none. Else counts up with each new process of that name."""
        self.booted = name == MAIN
        self.dead = False
        """It is, and the driver has not learned of it."""
        self.lives: dict[str, Life] = {}
        """What the driver has put into it, by child."""
        self.paused_until_s = 0.0
        self.slow_until_s = 0.0
        self.slowness = 1.0


class World:
    """One run of one topology."""

    def __init__(
        self,
        placement: Placement,
        step: Step,
        seed: int,
        now_s: float,
        fired: dict[str, int],
        fate_of: Callable[[str, int], Fate],
    ) -> None:
        spec = placement.spec.supervision
        self.tree = Tree.from_spec(spec, seed=seed)
        self.auditor = Auditor(Account(spec, fired))
        self.now_s = now_s
        self.events = 0
        """How many have been given to `step`."""
        self.processes = {planned.name: Process(planned.name) for planned in placement.processes}
        self.process_of = {child: self.processes[p.name] for p in placement.processes for child in p.agents}
        self.agents = {key: agent for agent in spec.agents() for key in child_keys(agent)}
        self.lives: dict[str, Life] = {}
        """The last life of each child, or of who bore its name last."""
        self._begun: Counter[str] = Counter()
        """Lives by child."""
        self.past: dict[Event, None] = dict.fromkeys(_OF_NOBODY)
        """Events that have been told, in order."""
        self.faults = dict.fromkeys((End, Kill, Pause, Slow, Full, Again, Stop, Spawn, Despawn), 0)
        """Entries of the schedule that changed something."""
        self._asked_stop = False
        self.forced = 0
        """Deadlines that passed."""
        self._step = step
        self._fate_of = fate_of
        self._full: dict[str, float] = {}
        self._agenda: list[tuple[float, bool, int, tuple[Any, ...]]] = []
        self._number = 0
        self._cancelled: set[int] = set()
        self._inbox: deque[Event] = deque()

    # --- going on -----------------------------------------------------------------------------------------------------

    @property
    def at_rest(self) -> bool:
        """Nothing is under way."""
        return not self._agenda

    @property
    def next_s(self) -> float:
        """When the next thing happens."""
        return self._agenda[0][0]

    def go_on(self) -> None:
        """The next thing happens."""
        self.now_s, _, _, what = heappop(self._agenda)
        what[0](self, *what[1:])

    def start(self) -> None:
        """Bring the tree up."""
        self.past[Start()] = None
        self.feed(Start())

    def check_rest(self) -> None:
        """Nothing is under way: everybody must agree on what lives."""
        self.auditor.check_rest(self.tree)
        truth = {key for key in self.agents if (life := self.lives.get(key)) is not None and not life.over}
        told = {key for key, child in self.auditor.account.children.items() if child.lives}
        if truth != told:
            raise Violation("at rest", f"in truth {sorted(truth)} live; the tree was told of {sorted(told)}")

    def feed(self, event: Event) -> None:
        """Tell the tree; perform what it wants. What comes of that at once is told afterwards, in order."""
        inbox = self._inbox
        inbox.append(event)
        if len(inbox) > 1:
            return
        while inbox:
            event = inbox[0]
            before = self.tree
            self.tree, actions = self._step(before, event, self.now_s)
            self.events += 1
            self.auditor.check(event, self.now_s, before, self.tree, actions)
            for action in actions:
                perform = _PERFORM.get(type(action))
                if perform is not None:
                    perform(self, action)
            inbox.popleft()

    def _later(self, at_s: float, *what: Any) -> None:
        self._number += 1
        heappush(self._agenda, (at_s, False, self._number, what))

    # --- what the tree wants ------------------------------------------------------------------------------------------

    def _start_child(self, action: StartChild) -> None:
        child, incarnation = action.child, action.incarnation
        last = self.lives.get(child)
        if last is not None and not last.over:
            raise Violation("one life", f"{child} is started as {incarnation} while {last.incarnation} runs in truth")
        process = self.process_of[child]
        self._begun[child] += 1
        life = Life(child, incarnation, self.agents[child], process, self._fate_of(child, self._begun[child]))
        self.lives[child] = life
        process.lives[child] = life
        if process.number == 0 and process.name != MAIN:
            process.number = self._number + 1
            self._later(self.now_s + BOOT_S, World._booted, process, process.number)
        elif process.booted:
            self._order_start(life)

    def _stop_child(self, action: StopChild) -> None:
        life = self.lives[action.child]
        if life.over:
            return  # its end is on its way
        if not life.ordered:
            del life.process.lives[life.child]
            life.over = True
            self.feed(ChildExited(life.child, life.incarnation, stop_action=False))
            return
        self._later(action.deadline_s + GRACE_S, World._too_late, life, True)
        self._inside(life.process, max(self.now_s, self._full.get(life.child, 0.0)), World._told_to_stop, life)

    def _set_timer(self, action: SetTimer) -> None:
        self._later(action.at_s, World._time, action.id)

    def _cancel_timer(self, action: CancelTimer) -> None:
        self._cancelled.add(action.id)
        self.past[Timer(action.id)] = None

    def _time(self, timer: int) -> None:
        if timer not in self._cancelled:
            self.past[Timer(timer)] = None
            self.feed(Timer(timer))

    # --- processes ----------------------------------------------------------------------------------------------------

    def _inside(self, process: Process, at_s: float, *what: Any) -> None:
        """It happens in that process, so only while it lives and is not paused."""
        self._later(at_s, World._in_process, process, process.number, what)

    def _in_process(self, process: Process, number: int, what: tuple[Any, ...]) -> None:
        if process.number != number or process.dead:
            return
        if self.now_s < process.paused_until_s:
            self._later(process.paused_until_s, World._in_process, process, number, what)
            return
        what[0](self, *what[1:])

    def _takes(self, process: Process, span_s: float) -> float:
        """How long it takes there."""
        if self.now_s < process.slow_until_s:
            return span_s * process.slowness + SLOWNESS_S
        return span_s

    def _booted(self, process: Process, number: int) -> None:
        if process.number != number or process.dead:
            return
        process.booted = True
        for life in [*process.lives.values()]:
            if not life.ordered:
                self._order_start(life)

    def _order_start(self, life: Life) -> None:
        life.ordered = True
        process = life.process
        self._later(self.now_s + life.agent.start_timeout_s + GRACE_S, World._too_late, life, False)
        if life.fate.start != "hangs":
            at_s = max(self.now_s, self._full.get(life.child, 0.0))
            self._inside(process, at_s + self._takes(process, life.fate.start_s), World._started, life)

    def _die(self, process: Process, counts: bool, report_s: float) -> None:
        """Nothing in it runs any more from now on; the driver learns of it later."""
        process.dead = True
        for life in process.lives.values():
            life.over = True
        self._later(self.now_s + report_s, World._death_noticed, process, process.number, counts)

    def _death_noticed(self, process: Process, number: int, counts: bool) -> None:
        if process.number != number:
            return
        lives = [*process.lives.values()]
        for life in lives:
            life.over = True  # those too that were put into it after its death
        process.lives = {}
        process.number, process.booted, process.dead = 0, False, False
        process.paused_until_s = process.slow_until_s = 0.0
        event = ProcessDied(process.name, tuple((life.child, life.incarnation) for life in lives), counts, "killed")
        self.past[event] = None
        self.feed(event)

    # --- agents -------------------------------------------------------------------------------------------------------

    def _started(self, life: Life) -> None:
        if life.over or life.stopping:
            return
        if life.fate.start == "fails":
            self._ends(life, ChildFailed(life.child, life.incarnation, "its start failed"))
        elif life.fate.start == "ends":
            self._ends(life, ChildExited(life.child, life.incarnation))
        else:
            life.ready = True
            self._later(self.now_s + life.fate.report_s, World._report, ChildReady(life.child, life.incarnation))

    def _told_to_stop(self, life: Life) -> None:
        if life.over:
            return
        life.stopping = True
        if life.fate.stop != "ignores":
            self._inside(life.process, self.now_s + self._takes(life.process, life.fate.stop_s), World._stops, life)

    def _stops(self, life: Life) -> None:
        if life.over:
            return
        if life.fate.stop == "fails":
            self._ends(life, ChildFailed(life.child, life.incarnation, "its stop failed"))
        else:
            self._ends(life, ChildExited(life.child, life.incarnation, stop_action=False))

    def _ends(self, life: Life, event: Event) -> None:
        life.over = True
        self._later(self.now_s + life.fate.report_s, World._end_reported, life, event)

    def _end_reported(self, life: Life, event: Event) -> None:
        process = life.process
        if process.lives.get(life.child) is not life:
            return  # the death of its process was told first
        del process.lives[life.child]
        self._report(event)

    def _report(self, event: Event) -> None:
        self.past[event] = None
        self.feed(event)

    def _too_late(self, life: Life, stopping: bool) -> None:
        """A deadline: of its start, or of its stop. It is ended by force, and its process with it."""
        process = life.process
        if process.lives.get(life.child) is not life or life.over or (life.ready and not stopping):
            return
        self.forced += 1
        if process.name == MAIN:  # nobody but its user may end the caller's own process
            life.over = True
            del process.lives[life.child]
            self._report(ChildFailed(life.child, life.incarnation, "too late"))
        elif not process.dead:
            self._die(process, counts=not self._asked_stop, report_s=0.0)

    # --- the schedule -------------------------------------------------------------------------------------------------

    def put(self, entry: Entry) -> None:
        """An entry of the schedule, for its time. It comes after all else of that time, so that it comes at the same
        point when the schedule is played again. (A Fate is not put, it is asked for.)
        """
        self._number += 1
        heappush(self._agenda, (entry.at_s, True, self._number, (World._happens, entry)))  # type: ignore[union-attr]

    def _happens(self, entry: Entry) -> None:
        if _HAPPEN[type(entry)](self, entry):
            self.faults[type(entry)] += 1

    def _agent_ends(self, entry: End) -> bool:
        life = self.lives.get(entry.child)
        if life is None or life.over or not life.ordered or self.now_s < life.process.paused_until_s:
            return False
        self._ends(life, _ENDINGS[entry.how](life))
        return True

    def _killed(self, entry: Kill) -> bool:
        process = self.processes.get(entry.process)
        if process is None or process.number == 0 or process.dead:
            return False
        self._die(process, entry.counts, entry.report_s)
        return True

    def _paused(self, entry: Pause) -> bool:
        process = self.processes.get(entry.process)
        if process is None or process.number == 0 or process.dead:
            return False
        process.paused_until_s = max(process.paused_until_s, self.now_s + entry.for_s)
        return True

    def _slowed(self, entry: Slow) -> bool:
        process = self.processes.get(entry.process)
        if process is None or (process.number == 0 and process.name != MAIN):
            return False
        process.slow_until_s, process.slowness = self.now_s + entry.for_s, entry.factor
        return True

    def _filled(self, entry: Full) -> bool:
        life = self.lives.get(entry.child)
        if life is None or life.over:
            return False
        self._full[entry.child] = self.now_s + entry.for_s
        return True

    def _comes_again(self, entry: Again) -> bool:
        event, before = entry.event, self.tree
        if event not in self.past:
            return False
        self.feed(event)
        if self.tree is not before and not isinstance(event, RemoveChild):
            raise Violation("nothing twice", f"{event} was told before, and is taken for news")
        return True

    def spawn(self, entry: Spawn) -> bool:
        """Also what the tree must refuse."""
        agent = entry.agent
        if agent.name not in self.tree.children and agent.name not in self.tree.supervisors:
            self.agents[agent.name] = agent
            self.process_of[agent.name] = self.processes[agent.process or MAIN]
        self.feed(AddChild(entry.supervisor, agent, entry.spawner))
        return True

    def _despawned(self, entry: Despawn) -> bool:
        event = RemoveChild(entry.child, timeout_s=entry.timeout_s)
        child = self.auditor.account.children.get(entry.child)
        if child is not None and child.spawner is not None:
            self.past[event] = None
        self.feed(event)
        return True

    def _asked_to_stop(self, _entry: Stop) -> bool:
        self._asked_stop = True
        self.past[StopRequested()] = None
        self.feed(StopRequested())
        return True


_OF_NOBODY: Final[tuple[Event, ...]] = (
    ChildReady("nobody", 1),
    ChildFailed("nobody", 1, "there is no such child"),
    ProcessDied("nowhere", (("nobody", 1),)),
    Timer(1 << 40),
)
"""Events that can change nothing, whatever has happened."""
_PERFORM: Final[dict[type, Callable[[World, Any], None]]] = {
    StartChild: World._start_child,
    StopChild: World._stop_child,
    SetTimer: World._set_timer,
    CancelTimer: World._cancel_timer,
}
_HAPPEN: Final[dict[type, Callable[[World, Any], bool]]] = {
    End: World._agent_ends,
    Kill: World._killed,
    Pause: World._paused,
    Slow: World._slowed,
    Full: World._filled,
    Again: World._comes_again,
    Stop: World._asked_to_stop,
    Spawn: World.spawn,
    Despawn: World._despawned,
}
_ENDINGS: Final[dict[Ending, Callable[[Life], Event]]] = {
    "crash": lambda life: ChildFailed(life.child, life.incarnation, "crashed"),
    "unclean": lambda life: ChildExited(life.child, life.incarnation, normal=False),
    "finish": lambda life: ChildExited(life.child, life.incarnation, stop_action=False),
    "stop": lambda life: ChildExited(life.child, life.incarnation),
}
