"""Random systems: trees of 3 to 30 children, and where they run.

Rules of this file: everything comes from one Chance; limits are small, so that budgets are used up, deadlines pass and
windows end within a few hundred events.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ..supervision.backoff import Backoff
from ..supervision.policy import AutoShutdown, Restart, Strategy
from ..topology.model import AgentSpec, DynamicSpec, PoolSpec, SupervisorSpec, TopologySpec
from .chance import Chance

__all__ = ["CHILDREN_MAX", "CHILDREN_MIN", "random_spawn", "random_topology"]

CHILDREN_MIN: Final = 3
CHILDREN_MAX: Final = 30
DEPTH_MAX: Final = 3
"""Levels of supervisors below the root."""

RESTARTS: Final[tuple[Restart, ...]] = ("permanent", "permanent", "permanent", "transient", "transient", "temporary")
STRATEGIES: Final[tuple[Strategy, ...]] = ("ONE_FOR_ONE", "ONE_FOR_ALL", "REST_FOR_ONE")
BACKOFFS: Final[tuple[Backoff, ...]] = ("CONSTANT", "LINEAR", "EXPONENTIAL")
AUTO_SHUTDOWNS: Final[tuple[AutoShutdown, ...]] = ("never", "never", "any_significant", "all_significant")
WINDOWS_S: Final = (1.0, 4.0, 16.0, 64.0)
BASES_S: Final = (0.0, 0.0, 0.25, 1.0, 4.0)
RESETS_S: Final = (None, None, None, 0.25, 1.0, 4.0)
CAPS_S: Final = (0.5, 2.0, 16.0)
DEADLINES_S: Final = (0.0, 0.25, 1.0, 4.0)
BUDGETS: Final = (0, 1, 2, 3, 3, 5, 10)
ROOT_BUDGETS: Final = (1, 3, 10, 30, 100)


def random_topology(chance: Chance) -> TopologySpec:
    """A system of CHILDREN_MIN to CHILDREN_MAX children (replicas counted) in one to four processes."""
    left = chance.between(CHILDREN_MIN, CHILDREN_MAX)
    names = [0]
    supervision = _supervisor(chance, left, 0, names)
    return TopologySpec(supervision=supervision, pool=PoolSpec(size="auto", standby=0))


def _supervisor(chance: Chance, children: int, depth: int, names: list[int]) -> SupervisorSpec:
    """One with exactly so many children below it, at any depth."""
    below: list[AgentSpec | SupervisorSpec] = []
    names[0] += 1
    name = "root" if depth == 0 else f"s{names[0]}"
    auto_shutdown = chance.pick(AUTO_SHUTDOWNS)
    left = children
    while left > 0:
        roll = chance.random()
        restart = chance.pick(RESTARTS)
        significant = auto_shutdown != "never" and restart != "permanent" and chance.random() < 0.5
        if depth < DEPTH_MAX and roll > 0.95:
            names[0] += 1
            below.append(replace(_dynamic(chance, f"s{names[0]}"), restart=restart, significant=significant))
            continue
        if depth < DEPTH_MAX and roll < 0.30 and (left > 1 or depth):
            share = chance.between(0 if depth and roll < 0.03 else 1, left)
            supervisor = _supervisor(chance, share, depth + 1, names)
            below.append(replace(supervisor, restart=restart, significant=significant))
        else:
            names[0] += 1
            agent = replace(_agent(chance, f"a{names[0]}", left), restart=restart, significant=significant)
            below.append(agent)
            share = agent.replicas
        left -= share
    return SupervisorSpec(
        name=name,
        strategy=chance.pick(STRATEGIES),
        max_restarts=chance.pick(BUDGETS if depth else ROOT_BUDGETS),
        restart_window_s=chance.pick(WINDOWS_S),
        backoff=chance.pick(BACKOFFS),
        backoff_base_s=chance.pick(BASES_S),
        backoff_max_s=chance.pick(CAPS_S),
        backoff_reset_s=chance.pick(RESETS_S),
        auto_shutdown=auto_shutdown,
        children=below,
    )


def _dynamic(chance: Chance, name: str) -> SupervisorSpec:
    """One whose children are spawned while the run lasts (`simulate` does it)."""
    quota = DynamicSpec(
        max_children=chance.pick((None, 2, 5)),
        max_total_spawns=chance.pick((None, None, 8)),
        max_children_per_class=chance.pick(({}, {"simulated.Other": 1})),
        max_children_per_spawner=chance.pick((None, None, 2)),
        max_total_spawns_per_spawner=chance.pick((None, None, 4)),
        spawner_allowlist=chance.pick((None, None, ["spawner"])),
    )
    return SupervisorSpec(
        name=name,
        max_restarts=chance.pick(BUDGETS),
        restart_window_s=chance.pick(WINDOWS_S),
        backoff=chance.pick(BACKOFFS),
        backoff_base_s=chance.pick(BASES_S),
        backoff_max_s=chance.pick(CAPS_S),
        dynamic=quota,
    )


def random_spawn(chance: Chance, name: str, process: str) -> AgentSpec:
    """An agent to be spawned."""
    return AgentSpec(
        name=name,
        type=chance.pick(("simulated.Agent", "simulated.Other")),
        restart=chance.pick(RESTARTS),
        process=process,
        start_timeout_s=chance.pick(DEADLINES_S[1:]),
        shutdown_timeout_s=chance.pick(DEADLINES_S),
    )


def _agent(chance: Chance, name: str, most: int) -> AgentSpec:
    agent = AgentSpec(
        name=name,
        type="simulated.Agent",
        start_timeout_s=chance.pick(DEADLINES_S[1:]),
        shutdown_timeout_s=chance.pick(DEADLINES_S),
    )
    roll = chance.random()
    if roll < 0.15 and most > 1:
        return replace(agent, replicas=min(most, chance.between(2, 3)))
    if roll < 0.25:
        return replace(agent, process="main")
    if roll < 0.45:
        return replace(agent, process=chance.pick(("p1", "p2")))
    return agent
