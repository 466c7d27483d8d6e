"""One seed: what it holds, that it is always the same, and that its schedule alone says all."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import Any

import pytest

from civitas_shm.placement import place
from civitas_shm.simulation import EVENTS_MIN, FAULTS, FAULTS_MIN, Failure, Violation, replay, simulate
from civitas_shm.simulation.chance import Chance
from civitas_shm.simulation.schedule import End, Fate, Kill, Stop
from civitas_shm.simulation.trees import CHILDREN_MAX, CHILDREN_MIN, random_topology
from civitas_shm.supervision import Event, ProcessDied, StartChild, Tree, step
from civitas_shm.topology.model import AgentSpec, ProcessSpec, SupervisorSpec, TopologySpec

Steps = list[tuple[float, Event, Any]]


def drawn_of(spec: SupervisorSpec) -> list[Any]:
    """What trees.py draws, and nothing that a specification may have besides."""
    own = [spec.name, spec.strategy, spec.max_restarts, spec.restart_window_s, spec.backoff, spec.backoff_base_s]
    own += [spec.backoff_max_s, spec.backoff_reset_s, spec.auto_shutdown, spec.restart, spec.significant]
    for child in spec.children:
        if isinstance(child, SupervisorSpec):
            own.append(drawn_of(child))
        else:
            own.append([child.name, child.restart, child.significant, child.replicas, child.process])
            own.append([child.start_timeout_s, child.shutdown_timeout_s])
    return own


def trace_of(seed: int) -> str:
    """A digest of everything that went into the tree and came out."""
    digest = hashlib.sha256()

    def told(tree: Tree, event: Event, now_s: float) -> Any:
        after, actions = step(tree, event, now_s)
        digest.update(f"{now_s!r} {event} {actions}\n".encode())
        return after, actions

    result = simulate(seed, step=told)
    assert result.failure is None, result.failure.violation
    return digest.hexdigest()


def test_a_seed_is_a_tree_of_3_to_30_children_200_events_and_5_faults() -> None:
    for seed in range(60):
        result = simulate(seed)
        assert result.failure is None, result.failure.violation
        assert CHILDREN_MIN <= result.children <= CHILDREN_MAX
        assert result.events >= EVENTS_MIN
        assert sum(result.faults[kind] for kind in FAULTS) >= FAULTS_MIN


def test_the_same_seed_gives_the_same_trace_in_every_process() -> None:
    # Another hash seed orders sets in another way.
    script = "import sys; sys.path.insert(0, sys.argv[1]); import test_simulate as t; print(*map(t.trace_of, range(8)))"
    command = [sys.executable, "-c", script, os.path.dirname(__file__)]
    said = [
        subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True)
        for seed in ("1", "2")
    ]
    assert said[0].stdout == said[1].stdout
    assert said[0].stdout.split() == [trace_of(seed) for seed in range(8)]
    assert len(set(said[0].stdout.split())) == 8


def test_chance_and_trees_are_the_same_under_every_python() -> None:
    # The digest changes when trees.py does, and must then be changed here. A new Python must not change it.
    assert [Chance(17).random(), Chance(2**40).random()] == [0.5219839097124932, 0.1036394562812375]
    drawn = [drawn_of(random_topology(Chance(seed)).supervision) for seed in range(50)]
    assert hashlib.sha256(repr(drawn).encode()).hexdigest()[:16] == "28403de0b8e3a722"


def test_the_schedule_alone_gives_the_same_world_again() -> None:
    played = 0
    for seed in range(40):
        first: list[Steps] = []
        again: Steps = []

        def recorded(tree: Tree, event: Event, now_s: float, runs: list[Steps] = first) -> Any:
            if (
                not any(supervisor.phase.value != "down" for supervisor in tree.supervisors.values())
                and not tree.outcome
            ):
                runs.append([])
            after, actions = step(tree, event, now_s)
            runs[-1].append((now_s, event, actions))
            if len(runs) == 1 and len(runs[0]) == 60:
                raise Violation("at rest", "far enough")
            return after, actions

        def replayed(tree: Tree, event: Event, now_s: float, steps: Steps = again) -> Any:
            after, actions = step(tree, event, now_s)
            steps.append((now_s, event, actions))
            return after, actions

        failure = simulate(seed, step=recorded).failure
        if failure is None or len(first) != 1:
            continue  # its first run was over before
        played += 1
        placement = place(random_topology(Chance(seed)), (0, 1, 2))
        replay(placement, failure, failure.schedule, replayed)
        assert again[:60] == first[0]
    assert played > 10


def failure_of(seed: int = 0) -> Failure:
    return Failure("", "", seed, 0.0, ())


def test_an_entry_without_a_target_changes_nothing() -> None:
    placement = place(TopologySpec(supervision=SupervisorSpec(children=[AgentSpec(name="a", type="m:A")])), (0,))
    schedule = (Kill(5.0, "nowhere"), End(5.0, "nobody", "crash"), Fate("nobody", 7), Stop(9.0))
    assert replay(placement, failure_of(), schedule) is None


def test_a_death_takes_all_children_of_the_process_and_one_that_ignores_its_stop_takes_them_too() -> None:
    spec = SupervisorSpec(
        strategy="ONE_FOR_ALL",
        children=[AgentSpec(name=name, type="m:A", process="p", shutdown_timeout_s=1.0) for name in "abc"],
    )
    placement = place(TopologySpec(supervision=spec), (0,))
    deaths: list[ProcessDied] = []
    starts: list[StartChild] = []

    def watched(tree: Tree, event: Event, now_s: float) -> Any:
        after, actions = step(tree, event, now_s)
        deaths.extend([event] if isinstance(event, ProcessDied) else [])
        starts.extend(action for action in actions if isinstance(action, StartChild))
        return after, actions

    schedule = (Fate("c", 1, stop="ignores"), End(5.0, "a", "crash"), Kill(50.0, "p"))
    assert replay(placement, failure_of(), schedule, watched) is None
    assert [set(death.children) for death in deaths] == [{("b", 1), ("c", 1)}, {("a", 2), ("b", 2), ("c", 2)}]
    assert [start.incarnation for start in starts] == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_a_users_topology_is_played_whatever_cores_it_asks_for() -> None:
    spec = SupervisorSpec(
        children=[AgentSpec(name="a", type="no.such.Class", process="p"), AgentSpec(name="b", type="m:B")]
    )
    topology = TopologySpec(supervision=spec, processes=[ProcessSpec(name="p", cpus=[77], numa=3)])
    result = simulate(5, topology=topology)
    assert result.failure is None
    assert result.children == 2


@pytest.mark.parametrize("faults", [("kill",), ("pause", "full"), ()])
def test_only_the_faults_that_are_asked_for_come(faults: tuple[Any, ...]) -> None:
    result = simulate(3, faults=faults)
    assert result.events >= EVENTS_MIN
    assert {kind for kind in FAULTS if result.faults[kind]} <= set(faults)
