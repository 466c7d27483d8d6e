"""Whether an agent may be spawned below a dynamic supervisor, and which supervisor is meant.

Rules of this file: pure questions to a tree; a refusal is a sentence with what, limit, value and the way out. `tree`
ignores what is refused here, so a driver asks first and tells whoever wanted it.

| a dynamic supervisor's child …                           | what happens                                           |
|----------------------------------------------------------|--------------------------------------------------------|
| is spawned (AddChild)                                    | StartChild at once; before Start: with the tree        |
| falls, is restarted (its own window has room)            | it starts, now or after the backoff; the others and    |
|                                                          | the supervisor are not concerned, nothing escalates    |
| falls, is not restarted (policy: **Restart**)            | ChildRemoved: clean_exit or crashed                    |
| falls, its own window is full                            | ChildRemoved: restarts_exhausted                       |
| is removed (RemoveChild)                                 | StopChild, at its end ChildRemoved: despawned          |
| is taken down with its supervisor, which is restarted    | it starts again with it (OTP forgets it)               |
| its supervisor is given up                               | ChildRemoved: given_up                                 |
"""

from __future__ import annotations

from dataclasses import replace

from ..topology.model import AgentSpec, DynamicSpec, SupervisorSpec
from .events import AddChild
from .state import Phase, SupervisorState, Tree

__all__ = ["child_of", "nearest_dynamic", "refusal"]


def nearest_dynamic(tree: Tree, agent: str) -> str | None:
    """The dynamic supervisor that an agent's own `spawn` means: its own, else a sibling, else an ancestor's sibling."""
    own = next((child.supervisor for child in tree.children.values() if child.agent == agent), None)
    name = tree.root if own is None else own
    while True:
        supervisor = tree.supervisors[name]
        if supervisor.spec.dynamic is not None:
            return name
        for spec in supervisor.spec.children:
            if isinstance(spec, SupervisorSpec) and spec.dynamic is not None:
                return spec.name
        if supervisor.parent is None:
            return None
        name = supervisor.parent


def child_of(supervisor: DynamicSpec, agent: AgentSpec, *, restart_given: bool) -> AgentSpec:
    """An agent that is spawned below it, with what the supervisor says where its spawner and its class say nothing."""
    process = agent.process or supervisor.process
    return replace(agent, process=process, restart=agent.restart if restart_given else supervisor.restart)


def refusal(tree: Tree, wanted: AddChild) -> str | None:
    """Why this cannot be spawned just now, or None when it can."""
    name, supervisor = wanted.agent.name, tree.supervisors.get(wanted.supervisor)
    if supervisor is None or supervisor.spec.dynamic is None:
        known = [each for each, state in tree.supervisors.items() if state.spec.dynamic is not None]
        there = (
            f"there are {', '.join(map(repr, known))}" if known else "this run has none; declare one in the topology"
        )
        return f"{name!r} cannot be spawned: {wanted.supervisor!r} is no dynamic supervisor; {there}."
    began = tree.supervisors[tree.root].phase is not Phase.DOWN
    if tree.outcome is not None or (began and supervisor.phase is not Phase.UP):
        state = "over" if tree.outcome is not None else supervisor.phase.value
        return f"{name!r} cannot be spawned: its supervisor {wanted.supervisor!r} is {state} just now."
    if wanted.agent.replicas != 1:
        return f"{name!r} cannot be spawned with {wanted.agent.replicas} replicas: a spawned agent has one."
    if name in tree.supervisors or any(name in (child.key, child.agent) for child in tree.children.values()):
        return f"{name!r} cannot be spawned: the name is taken. Names are unique in a run; choose another one."
    return _over_quota(tree, supervisor, wanted)


def _over_quota(tree: Tree, supervisor: SupervisorState, wanted: AddChild) -> str | None:
    quota = supervisor.spec.dynamic
    assert quota is not None
    spawner, kind = wanted.spawner, wanted.agent.type
    who = repr(spawner) if spawner else "the program"
    if spawner and quota.spawner_allowlist is not None and spawner not in quota.spawner_allowlist:
        return (
            f"{wanted.agent.name!r} cannot be spawned: {spawner!r} is not in the spawner_allowlist of "
            f"{wanted.supervisor!r} ({', '.join(quota.spawner_allowlist) or 'empty'})."
        )
    alive = [child.dynamic for key in supervisor.groups[0] if (child := tree.children[key]).dynamic is not None]
    spawned = supervisor.spawned
    limits = [
        ("max_children", quota.max_children, len(alive), "children live"),
        ("max_total_spawns", quota.max_total_spawns, sum(spawned.values()), "have been spawned"),
        (
            f"max_children_per_class[{kind}]",
            quota.max_children_per_class.get(kind),
            sum(child.type == kind for child in alive),
            f"children of class {kind} live",
        ),
        (
            "max_children_per_spawner",
            quota.max_children_per_spawner,
            sum(child.spawner == spawner for child in alive),
            f"children of {who} live",
        ),
        (
            "max_total_spawns_per_spawner",
            quota.max_total_spawns_per_spawner,
            spawned.get(spawner, 0),
            f"have been spawned by {who}",
        ),
    ]
    for limit, most, value, what in limits:
        if most is not None and value >= most:
            return (
                f"{wanted.agent.name!r} cannot be spawned: {limit} of {wanted.supervisor!r} is {most}, and {value} "
                f"{what}. Despawn some, or raise {limit.split('[')[0]}."
            )
    return None
