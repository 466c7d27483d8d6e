"""One seed: a random system, a random fault schedule, and whether every invariant held.

Rules of this file: the same seed, faults and topology give the same Result in every process and under every Python.
What is drawn goes into the schedule, so that the schedule alone (`replay`) gives the same world again.

    result = simulate(17)
    if result.failure: print(result.failure.violation, *result.failure.schedule, sep="\\n")

A seed is one topology and as many runs of it, one after the other, as EVENTS_MIN events take: a run ends early when its
root gives up. In each run faults come until the run has had its share of events; then there is peace, everything that
is under way is paid, and all must be at rest; then it is asked to stop, and all must be down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from ..placement import MAIN, Placement, place
from ..supervision.events import StopRequested
from ..supervision.tree import step as real_step
from ..topology.model import TopologySpec
from .asked import Violation
from .chance import Chance
from .clauses import CLAUSES
from .schedule import (
    FAULTS,
    Again,
    Despawn,
    End,
    Entry,
    Fate,
    FaultKind,
    Full,
    Kill,
    Pause,
    Schedule,
    Slow,
    Spawn,
    Stop,
)  # fmt: skip
from .trees import random_spawn, random_topology
from .world import Step, World

__all__ = ["EVENTS_MIN", "FAULTS_MIN", "Failure", "Result", "replay", "simulate"]

EVENTS_MIN: Final = 200
FAULTS_MIN: Final = 5
EVENTS_SHARE: Final = 40
"""Of a run that begins when the seed has enough events, but not enough faults."""
RUNS_MAX: Final = 100
"""A user's topology may have nothing that the wanted faults could hit."""
EVENTS_MAX: Final = 20_000
"""Far above what any of these trees needs to come to rest: one that is still busy then is going round in circles."""
CORES: Final = (0, 1, 2)
"""Of the simulated machine: as many processes in its pool."""

SPANS_S: Final = (0.0, 0.0, 0.0, 0.015625, 0.0625, 0.25, 1.0, 4.0)
GAPS_S: Final = (0.0, 0.0, 0.015625, 0.25, 1.0, 1.0, 4.0, 16.0, 64.0)
"""Between two faults of a system that is at rest: whole windows pass, and often exactly one."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong, and how to see it again: `replay(placement, failure)`."""

    violation: str
    invariant: str
    tree_seed: int
    begin_s: float
    schedule: Schedule
    """All that was drawn for the run that failed."""


@dataclass(frozen=True, slots=True)
class Result:
    """Of one seed."""

    seed: int
    children: int
    events: int
    faults: dict[str, int]
    """How many of each kind changed something: those of FAULTS, `end` (an agent ended by itself), `again` (an event
    came twice), `deadline` (a start or stop was ended by force), `stop`.
    """
    fired: dict[str, int]
    """How often each of CLAUSES has fired."""
    simulated_s: float
    failure: Failure | None
    placement: Placement


def simulate(
    seed: int,
    *,
    topology: TopologySpec | None = None,
    faults: Sequence[FaultKind] = FAULTS,
    step: Step = real_step,
) -> Result:
    """Play one seed. `topology`: the user's, else a random one; `step`: another one, to see whether it is found out.

    ConfigurationError when the topology cannot be placed.
    """
    chance = Chance(seed)
    placement = place(random_topology(chance) if topology is None else _anywhere(topology), CORES)
    fired = dict.fromkeys(CLAUSES, 0)
    counted = dict.fromkeys((*FAULTS, "end", "again", "deadline", "stop", "spawn", "despawn"), 0)
    now_s = begun_s = float(chance.between(0, 1000))
    events = 0
    children = sum(agent.replicas for agent in placement.spec.supervision.agents())
    failure: Failure | None = None
    faults_min = FAULTS_MIN if faults else 0
    for _ in range(RUNS_MAX):
        if failure is not None or (events >= EVENTS_MIN and sum(counted[kind] for kind in faults) >= faults_min):
            break
        director = _Director(chance, placement, faults, step, now_s, fired, max(EVENTS_MIN - events, EVENTS_SHARE))
        failure = director.run()
        world = director.world
        events += world.events
        now_s = world.now_s
        for kind, number in world.faults.items():
            counted[_KEYS[kind]] += number
        counted["deadline"] += world.forced
    return Result(seed, children, events, counted, fired, now_s - begun_s, failure, placement)


def _anywhere(topology: TopologySpec) -> TopologySpec:
    """Without the cores that it asks for: the simulated machine is the same wherever the simulation runs."""
    return replace(topology, processes=[replace(p, cpus=[], numa=None) for p in topology.processes])


def replay(placement: Placement, failure: Failure, schedule: Schedule, step: Step = real_step) -> Violation | None:
    """A run by its schedule alone; what is violated, if anything."""
    fates = {(entry.child, entry.life): entry for entry in schedule if isinstance(entry, Fate)}
    fired = dict.fromkeys(CLAUSES, 0)

    def fate_of(child: str, life: int) -> Fate:
        return fates.get((child, life)) or Fate(child, life)

    world = World(placement, step, failure.tree_seed, failure.begin_s, fired, fate_of)
    try:
        for entry in schedule:
            if isinstance(entry, Stop) and entry.before_start:
                world.feed(StopRequested())
            elif isinstance(entry, Spawn) and entry.before_start:
                world.spawn(entry)
            elif not isinstance(entry, Fate):
                world.put(entry)
        world.start()
        _to_rest(world)
        world.check_rest()
    except Violation as violation:
        return violation
    except Exception as error:  # noqa: BLE001  # whatever comes out of `step` is what we are looking for
        return _crash(error)
    return None


class _Director:
    """Draws what happens in one run, while it runs, and writes it down."""

    def __init__(
        self,
        chance: Chance,
        placement: Placement,
        faults: Sequence[FaultKind],
        step: Step,
        now_s: float,
        fired: dict[str, int],
        events: int,
    ) -> None:
        self._chance = chance
        self._faults = faults
        self._events = events
        self._begin_s = now_s
        self._tree_seed = int(chance.random() * 2**53)
        self._peace = False
        self._stopping = False
        self._temper = chance.pick((0.05, 0.1, 0.2, 0.4))
        """How much goes wrong in this run: a share of what is started, and faults for each event."""
        self._processes = [planned.name for planned in placement.processes if planned.name != MAIN]
        self._dynamic = [spec.name for spec in placement.spec.supervision.dynamic_supervisors()]
        self._declared = [key for planned in placement.processes for key in planned.agents]
        self._spawned: list[str] = []
        self._written: list[Entry] = []
        self.world = World(placement, step, self._tree_seed, now_s, fired, self._fate)

    def run(self) -> Failure | None:
        """From start to end; what went wrong, if anything."""
        try:
            self._play()
        except Violation as violation:
            return self._failure(violation)
        except Exception as error:  # noqa: BLE001  # whatever comes out of `step` is what we are looking for
            return self._failure(_crash(error))
        return None

    def _failure(self, violation: Violation) -> Failure:
        return Failure(str(violation), violation.invariant, self._tree_seed, self._begin_s, tuple(self._written))

    def _play(self) -> None:
        world, chance = self.world, self._chance
        if chance.random() < 0.02:  # asked to stop before it has begun
            self._written.append(Stop(world.now_s, before_start=True))
            world.feed(StopRequested())
        if self._dynamic and chance.random() < 0.3:
            spawn = self._spawn(world.now_s, before_start=True)
            self._written.append(spawn)
            world.spawn(spawn)
        world.start()
        while world.events < self._events and world.tree.outcome is None:
            if world.at_rest:
                world.check_rest()
                self._fault(chance.pick(GAPS_S))
            elif chance.random() < self._temper:
                self._fault(0.0)
            world.go_on()
        self._peace = True
        _to_rest(world)
        world.check_rest()
        for event in (StopRequested(), StopRequested()):
            self._happens(Stop(world.now_s))
            _to_rest(world)
            world.check_rest()
            assert world.tree.outcome is not None, event
        if chance.random() < 0.5 and world.past:
            self._happens(Again(world.now_s, chance.pick([*world.past])))
            _to_rest(world)

    def _happens(self, entry: Entry) -> None:
        self._written.append(entry)
        self.world.put(entry)

    def _fate(self, child: str, life: int) -> Fate:
        chance = self._chance
        if self._peace or chance.random() < 0.3:
            return Fate(child, life)
        bad = chance.random() < self._temper
        fate = Fate(
            child,
            life,
            start_s=chance.pick(SPANS_S),
            start=chance.pick(("fails", "fails", "ends", "hangs")) if bad else "ready",
            stop_s=chance.pick(SPANS_S),
            stop=chance.pick(("fails", "fails", "ignores")) if chance.random() < self._temper else "stops",
            report_s=chance.pick(SPANS_S) if chance.random() < 0.2 else 0.0,
        )
        self._written.append(fate)
        return fate

    def _fault(self, gap_s: float) -> None:
        """One thing goes wrong, at random."""
        world, chance = self.world, self._chance
        at_s = world.now_s + gap_s
        roll = chance.random()
        living = [life for life in world.lives.values() if not life.over]
        if self._dynamic and chance.random() < 0.35:
            if self._spawned and chance.random() < 0.25:
                timeout_s = chance.pick((None, None, 0.0, 1.0))
                self._happens(Despawn(at_s, chance.pick(self._spawned), timeout_s))
            else:
                self._happens(self._spawn(at_s))
        elif roll < 0.35 and living:
            life = chance.pick(living)
            self._happens(End(at_s, life.child, chance.pick(("crash", "crash", "unclean", "finish", "stop"))))
            if chance.random() < 0.2:  # two at the very same time
                self._happens(End(at_s, chance.pick(living).child, "crash"))
        elif roll < 0.36 and not self._stopping:
            self._stopping = True
            self._happens(Stop(at_s))
        elif roll < 0.50 and world.past:
            self._happens(Again(at_s, chance.pick([*world.past])))
        elif self._faults:
            self._happens(self._draw(chance.pick(self._faults), at_s, living))
        elif living:
            self._happens(End(at_s, chance.pick(living).child, "crash"))

    def _spawn(self, at_s: float, before_start: bool = False) -> Spawn:
        """Under a new name, or under one that a spawned agent has left (whose events may still come late, or again).
        Now and then below a supervisor that is not dynamic, or under a name that is taken: to be refused.
        """
        chance = self._chance
        supervisor = chance.pick(self._dynamic) if chance.random() < 0.95 else "root"
        free = [name for name in self._spawned if name not in self.world.tree.children]
        roll = chance.random()
        if roll < 0.05 and self._declared:
            name = chance.pick(self._declared)
        elif roll < 0.5 and free:
            name = chance.pick(free)
        else:
            name = f"d{len(self._spawned) + 1}"
            self._spawned.append(name)
        agent = random_spawn(chance, name, chance.pick((MAIN, *self._processes)))
        return Spawn(at_s, supervisor, agent, chance.pick(("", "", "spawner", "other")), before_start)

    def _draw(self, kind: FaultKind, at_s: float, living: Sequence[object]) -> Entry:
        chance = self._chance
        process = chance.pick(self._processes or [MAIN])
        for_s = chance.pick(SPANS_S[3:])
        if kind == "kill":
            late_s = chance.pick(SPANS_S) if chance.random() < 0.3 else 0.0
            return Kill(at_s, process, counts=chance.random() < 0.7, report_s=late_s)
        if kind == "pause":
            return Pause(at_s, process, for_s)
        if kind == "slow":
            return Slow(at_s, process, chance.pick((1.0, 8.0)), for_s)
        children = [*self.world.agents]
        return Full(at_s, chance.pick(children), for_s)


def _to_rest(world: World) -> None:
    """All that is under way is paid."""
    most = world.events + EVENTS_MAX
    while not world.at_rest:
        if world.events > most:
            raise Violation("at rest", f"the tree does not come to rest in {EVENTS_MAX} events")
        world.go_on()


def _crash(error: Exception) -> Violation:
    return Violation("only what must", f"{type(error).__name__}: {error}")


_KEYS: Final[dict[type, str]] = {
    kind: kind.__name__.lower() for kind in (End, Kill, Pause, Slow, Full, Again, Stop, Spawn, Despawn)
}
"""As Result.faults names them; the first four are FAULTS."""
