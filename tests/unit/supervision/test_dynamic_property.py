"""Trees with dynamic supervisors under random schedules of spawns, removals and faults.

The simulation (civitas_shm/simulation) plays declared children, against an account of its own; this plays both.

A simulated driver performs the actions and keeps its own books (who is alive, who was told to stop, which timers
run), never looking into the tree. It checks each action against these books; then the faults end, everything that is
owed is paid in random order, and the tree must have come to one of its three ends: all running, stopped, failed.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from civitas_shm.supervision import (
    Action,
    AddChild,
    CancelTimer,
    ChildExited,
    ChildFailed,
    ChildReady,
    ChildRemoved,
    Escalated,
    Event,
    Failed,
    GiveUpChild,
    ProcessDied,
    RemoveChild,
    Running,
    SetTimer,
    ShutDown,
    Start,
    StartChild,
    StopChild,
    Stopped,
    StopRequested,
    Timer,
    Tree,
    child_keys,
    is_settled,
    refusal,
    restarts_in_window,
    running_children,
    step,
)
from civitas_shm.supervision.state import Phase
from civitas_shm.topology.model import AgentSpec, DynamicSpec, Restart, SupervisorSpec

FAIR_STEPS_MAX = 5_000
"""Far above what any of these trees needs to settle: a tree that is still busy then is going round in circles."""


def random_spec(chance: random.Random, depth: int = 0, names: list[int] | None = None) -> SupervisorSpec:
    """Up to three levels, mixed strategies, small budgets so that escalation is common."""
    names = [0] if names is None else names
    auto_shutdown = chance.choice(["never", "never", "any_significant", "all_significant"])

    def significance() -> dict[str, Any]:
        restart = chance.choice(["permanent", "permanent", "transient", "temporary"])
        can_be = auto_shutdown != "never" and restart != "permanent"
        return {"restart": restart, "significant": can_be and chance.random() < 0.5}

    children: list[AgentSpec | SupervisorSpec] = []
    for _ in range(chance.randint(0 if depth else 1, 4)):
        names[0] += 1
        if chance.random() < 0.15:
            dynamic = DynamicSpec(max_children=chance.choice([None, 2]), max_total_spawns=chance.choice([None, 5]))
            quota = {"max_restarts": chance.choice([0, 1, 5]), "backoff_base_s": chance.choice([0.0, 3.0])}
            children.append(SupervisorSpec(f"d{names[0]}", dynamic=dynamic, **quota, **significance()))
        elif depth < 2 and chance.random() < 0.3:
            children.append(replace(random_spec(chance, depth + 1, names), **significance()))
        else:
            children.append(
                AgentSpec(
                    name=f"a{names[0]}",
                    type="m:A",
                    **significance(),
                    replicas=chance.choice([1, 1, 1, 2, 3]),
                    shutdown_timeout_s=chance.choice([0.0, 5.0]),
                )
            )
    names[0] += 1
    return SupervisorSpec(
        name="root" if depth == 0 else f"s{names[0]}",
        strategy=chance.choice(["ONE_FOR_ONE", "ONE_FOR_ALL", "REST_FOR_ONE"]),
        max_restarts=chance.choice([0, 1, 2, 3, 10] if depth else [1, 5, 30]),
        restart_window_s=chance.choice([1.0, 10.0, 60.0]),
        backoff=chance.choice(["CONSTANT", "LINEAR", "EXPONENTIAL"]),
        backoff_base_s=chance.choice([0.0, 0.5, 3.0]),
        backoff_max_s=10.0,
        backoff_reset_s=chance.choice([None, None, 0.5, 5.0]),
        auto_shutdown=auto_shutdown,
        children=children,
    )


@dataclass
class World:
    """The simulated driver and its books."""

    spec: SupervisorSpec
    chance: random.Random
    now_s: float = 0.0
    alive: dict[str, int] = field(default_factory=dict)
    incarnations: Counter[str] = field(default_factory=Counter)
    """Of the last start under each name, whoever bore it."""
    begun: set[str] = field(default_factory=set)
    """Started since it is in the tree."""
    ready: set[str] = field(default_factory=set)
    told_to_stop: set[str] = field(default_factory=set)
    has_been_up: set[str] = field(default_factory=set)
    """Ready or given up at least once: what comes after may have been started."""
    given_up: set[str] = field(default_factory=set)
    timers: dict[int, float] = field(default_factory=dict)
    past: list[Event] = field(default_factory=list)
    """Events that can change nothing when they come again."""
    stop_requested: bool = False
    root_gave_up: bool = False
    root_shut_down: bool = False
    spawned: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    """Of those: whose name nobody bears just now."""
    outcome: Action | None = None
    seen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.tree = Tree.from_spec(self.spec, seed=self.chance.getrandbits(64))
        self.before: dict[str, list[str]] = {}
        self.after: dict[str, list[str]] = {}
        self.significance: dict[str, tuple[bool, str]] = {}
        """Of children and supervisors: (whether, below which supervisor)."""
        self._neighbours(self.spec)

    def _neighbours(self, spec: SupervisorSpec) -> list[str]:
        """For each child: all children in earlier and in later places of the supervisors above it."""
        places = [self._neighbours(c) if isinstance(c, SupervisorSpec) else list(child_keys(c)) for c in spec.children]
        for child in spec.children:
            for key in [child.name] if isinstance(child, SupervisorSpec) else child_keys(child):
                self.significance[key] = (child.significant, spec.name)
        for index, place in enumerate(places):
            for key in place:
                self.before.setdefault(key, []).extend(k for other in places[:index] for k in other)
                self.after.setdefault(key, []).extend(k for other in places[index + 1 :] for k in other)
        return [key for place in places for key in place]

    # --- sending ------------------------------------------------------------------------------------------------------

    def send(self, event: Event) -> None:
        self.tree, actions = step(self.tree, event, self.now_s)
        for action in actions:
            self.perform(action)
        self.seen.update(supervisor.phase.value for supervisor in self.tree.supervisors.values())
        assert self.outcome is None or self.tree.outcome is not None
        assert all(child.status.value == "ready" for key, child in self.tree.children.items() if key in self.ready)

    def perform(self, action: Action) -> None:
        assert self.outcome is None, f"{action} after the end"
        self.seen[type(action).__name__] += 1
        match action:
            case StartChild(child, incarnation):
                assert child not in self.removed, "a start after the removal"
                assert child not in self.alive, "two incarnations at once"
                if child in self.begun or child not in self.spawned:
                    assert incarnation == self.incarnations[child] + 1
                else:
                    assert incarnation > self.incarnations[child], "two lives with one name and one number"
                assert not self.stop_requested, "a restart beat the stop"
                assert not self.root_gave_up, "a start after the root gave up"
                assert not self.root_shut_down, "a start after the root shut down"
                if incarnation == 1:
                    assert set(self.before.get(child, [])) <= self.has_been_up, "started before its turn"
                self.begun.add(child)
                self.incarnations[child] = incarnation
                self.alive[child] = incarnation
                self.given_up.discard(child)
            case StopChild(child, incarnation, deadline_s):
                assert self.alive[child] == incarnation
                assert child not in self.told_to_stop, "told twice"
                assert deadline_s >= self.now_s
                own = self.tree.children[child].supervisor
                later = [k for k in self.after.get(child, []) if k in self.alive and self._is_below(k, own)]
                assert not later, f"{child} is stopped before {later}"
                self.told_to_stop.add(child)
                self.ready.discard(child)
            case SetTimer(id, at_s, children):
                assert id not in self.timers
                assert at_s > self.now_s
                assert not self.stop_requested
                assert not self.root_gave_up
                assert not self.root_shut_down
                assert children
                self.timers[id] = at_s
            case CancelTimer(id):
                del self.timers[id]
                self.past.append(Timer(id))
            case GiveUpChild(child, incarnation):
                assert child not in self.alive
                assert incarnation == self.incarnations[child]
                self.given_up.add(child)
                self.has_been_up.add(child)
            case ChildRemoved(child, incarnation):
                assert child not in self.alive
                assert child in self.spawned
                assert incarnation == self.incarnations[child] or child not in self.begun
                assert child not in self.tree.children
                self.removed.add(child)
                self.begun.discard(child)
                self.has_been_up.discard(child)
                self.past = [event for event in self.past if event != RemoveChild(child)]  # a wish, not news
            case Escalated(supervisor):
                self.root_gave_up = self.root_gave_up or supervisor == self.spec.name
            case ShutDown(supervisor, child):
                assert child not in self.alive
                assert self.significance[child] == (True, supervisor), "an insignificant child ended a supervisor"
                self.root_shut_down = self.root_shut_down or supervisor == self.spec.name
            case Running():
                assert self.seen["Running"] == 1
                assert self.has_been_up >= set(self.before)
            case Stopped() | Failed():
                assert not self.alive
                assert not self.timers
                assert isinstance(action, Failed) == self.root_gave_up
                assert self.root_gave_up or self.root_shut_down or self.stop_requested
                self.outcome = action

    def _is_below(self, child: str, supervisor: str) -> bool:
        name: str | None = self.tree.children[child].supervisor
        while name is not None and name != supervisor:
            name = self.tree.supervisors[name].parent
        return name == supervisor

    def _bury(self, child: str) -> int:
        incarnation = self.alive.pop(child)
        self.ready.discard(child)
        self.told_to_stop.discard(child)
        return incarnation

    # --- what may happen ----------------------------------------------------------------------------------------------

    def become_ready(self, child: str) -> None:
        event = ChildReady(child, self.alive[child])
        if child not in self.told_to_stop:
            self.ready.add(child)
            self.has_been_up.add(child)
        self.past.append(event)
        self.send(event)

    def end(self, child: str) -> None:
        incarnation = self._bury(child)
        endings: list[Event] = [
            ChildFailed(child, incarnation, "boom"),
            ChildExited(child, incarnation),
            ChildExited(child, incarnation, normal=False),
            ChildExited(child, incarnation, stop_action=False),
        ]
        event = self.chance.choice(endings)
        self.past.append(event)
        self.send(event)

    def process_dies(self) -> None:
        victims = self.chance.sample(sorted(self.alive), self.chance.randint(0, len(self.alive)))
        lives = [(victim, self._bury(victim)) for victim in victims]
        lives += [(key, self.incarnations[key] - 1) for key in sorted(self.tree.children)[:1]]  # one that is long gone
        counts = self.chance.random() < 0.7
        before = self.tree
        used = restarts_in_window(before, self.now_s)
        event = ProcessDied("w1", tuple(lives), counts)
        self.past.append(event)
        self.send(event)
        if any(supervisor.escalation or supervisor.shutdown for supervisor in before.supervisors.values()):
            return  # this death may complete an earlier escalation or shutdown, which the parent then counts on its own
        for name, count in restarts_in_window(self.tree, self.now_s).items():
            assert count <= used[name] + (1 if counts else 0), "one death counted more than once"

    def spawn(self) -> None:
        names = [name for name, state in self.tree.supervisors.items() if state.spec.dynamic is not None]
        if not names:
            return
        restart: Restart = self.chance.choice(["permanent", "transient", "temporary"])
        left = sorted(self.removed)
        name = self.chance.choice(left) if left and self.chance.random() < 0.5 else f"spawned{len(self.spawned)}"
        wanted = AddChild(self.chance.choice(names), AgentSpec(name, "m:A", restart=restart), spawner="a1")
        refused = refusal(self.tree, wanted)
        before = self.tree
        if refused is None:
            self.spawned.add(name)
            self.removed.discard(name)
        self.send(wanted)
        assert (self.tree is before) == (refused is not None)
        quota = self.tree.supervisors[wanted.supervisor].spec.dynamic
        assert quota is not None
        below = [key for key, child in self.tree.children.items() if child.supervisor == wanted.supervisor]
        assert quota.max_children is None or len(below) <= quota.max_children

    def despawn(self) -> None:
        there = sorted(self.spawned & set(self.tree.children))
        if there:
            child = self.chance.choice(there)
            self.send(RemoveChild(child))
            self.past.append(RemoveChild(child))

    def timer_fires(self) -> None:
        timer = self.chance.choice(sorted(self.timers))
        self.now_s = max(self.now_s, self.timers.pop(timer))
        self.past.append(Timer(timer))
        self.send(Timer(timer))

    def something_comes_again(self) -> None:
        before = self.tree
        event = self.chance.choice(self.past)
        assert step(before, event, self.now_s) == (before, []), f"{event} came again and changed something"

    def run(self, steps: int) -> None:
        """Faults of all kinds, in any order."""
        self.past.append(Start())
        self.send(Start())
        for _ in range(steps):
            self.now_s += self.chance.choice([0.0, 0.0, 0.01, 0.5, 4.0])
            starting = sorted(set(self.alive) - self.ready)
            roll = self.chance.random()
            if roll < 0.45 and starting:
                self.become_ready(self.chance.choice(starting))
            elif roll < 0.60 and self.alive:
                self.end(self.chance.choice(sorted(self.alive)))
            elif roll < 0.70:
                self.process_dies()
            elif roll < 0.85 and self.timers:
                self.timer_fires()
            elif roll < 0.90:
                self.spawn()
            elif roll < 0.92:
                self.despawn()
            elif roll < 0.985:
                self.something_comes_again()
            elif roll > 0.995:
                self.stop_requested = True
                self.past.append(StopRequested())
                self.send(StopRequested())

    def settle(self) -> None:
        """No more faults: what is owed is paid, in random order."""
        for _ in range(FAIR_STEPS_MAX):
            stopping = sorted(self.told_to_stop)
            starting = sorted(set(self.alive) - self.ready - self.told_to_stop)
            owed: list[str | int] = [*stopping, *starting, *self.timers]
            if not owed:
                break
            item = self.chance.choice(owed)
            if isinstance(item, int):
                self.timer_fires()
            elif item in self.told_to_stop:
                self.send(ChildExited(item, self._bury(item)))
            else:
                self.become_ready(item)
        else:
            raise AssertionError("the tree does not come to rest")

    def check_rest(self) -> None:
        """One of the three ends, and the tree and the books say the same."""
        assert is_settled(self.tree)
        assert set(running_children(self.tree)) == set(self.alive) == self.ready
        if self.outcome is None:
            assert not self.stop_requested
            assert not self.root_gave_up
            assert not self.root_shut_down
            assert set(self.alive) | self.given_up == set(self.tree.children)
            assert self.seen["Running"] == 1
        else:
            assert self.tree.outcome == ("failed" if isinstance(self.outcome, Failed) else "stopped")


@settings(max_examples=300, deadline=None)
@given(chance=st.randoms(use_true_random=False), steps=st.integers(0, 120))
def test_every_tree_comes_to_rest_and_keeps_its_guarantees_on_the_way(chance: random.Random, steps: int) -> None:
    world = World(random_spec(chance), chance)
    world.run(steps)
    world.settle()
    world.check_rest()


def test_the_schedules_reach_every_action_and_every_end() -> None:
    """A property that is never put to the test proves nothing: 300 fixed seeds, and each kind of event was common."""
    seen: Counter[str] = Counter()
    for seed in range(300):
        chance = random.Random(seed)
        world = World(random_spec(chance), chance)
        phases = Counter[str]()
        world.run(100)
        phases.update(supervisor.phase.value for supervisor in world.tree.supervisors.values())
        world.settle()
        world.check_rest()
        seen.update(world.seen)
        seen["all running"] += world.outcome is None
    kinds = [
        StartChild,
        StopChild,
        SetTimer,
        CancelTimer,
        GiveUpChild,
        ChildRemoved,
        Escalated,
        ShutDown,
        Running,
        Failed,
        Stopped,
    ]
    names = [kind.__name__ for kind in kinds] + [phase.value for phase in Phase] + ["all running"]
    rare = {name: seen[name] for name in names if seen[name] < 5}
    assert not rare, rare
