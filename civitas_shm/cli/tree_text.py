"""A supervision tree as text, one line for each node: as declared, or as it runs.

Rule of this file: pure, over the plain data of `topology.shown`; what is left at its default is not said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ..topology.model import AgentSpec

if TYPE_CHECKING:
    from ..control.protocol import AgentState

_DEFAULTS: Final = AgentSpec("", "")

__all__ = ["declared_tree", "running_tree"]


def declared_tree(topology: Mapping[str, Any]) -> list[str]:
    """As the file says."""
    return _lines(topology["supervision"], _declared, {})


def running_tree(topology: Mapping[str, Any], agents: Sequence[AgentState]) -> list[str]:
    """As it is just now, spawned agents included."""
    states: dict[str, list[AgentState]] = {}
    spawned: dict[str, list[AgentState]] = {}
    for agent in agents:
        if agent.spawned:
            spawned.setdefault(agent.supervisor, []).append(agent)
        else:
            states.setdefault(agent.name.split("#")[0], []).append(agent)

    def describe(agent: Mapping[str, Any]) -> str:
        return _state(states.get(agent["name"], []))

    return _lines(topology["supervision"], describe, spawned)


def _lines(supervisor: Mapping[str, Any], describe: Any, spawned: Mapping[str, Sequence[AgentState]]) -> list[str]:
    kind = "sup" if supervisor["dynamic"] is None else "dyn"
    lines = [f"[{kind}] {supervisor['name']} ({_supervision(supervisor)})"]
    below: list[list[str]] = [
        _lines(child, describe, spawned) if "children" in child else [f"[agent] {child['name']} ({describe(child)})"]
        for child in supervisor["children"]
    ]
    below += [[f"[agent] {agent.name} ({_state([agent])})"] for agent in spawned.get(supervisor["name"], ())]
    for number, (head, *rest) in enumerate(below, 1):
        branch, indent = ("└── ", "    ") if number == len(below) else ("├── ", "│   ")
        lines += [branch + head, *(indent + line for line in rest)]
    return lines


def _supervision(supervisor: Mapping[str, Any]) -> str:
    quotas = supervisor["dynamic"]
    if quotas is not None:
        most = quotas["max_children"]
        return "any number of children" if most is None else f"at most {most:,} children"
    budget = f"{supervisor['max_restarts']} restarts in {supervisor['restart_window_s']:g} s"
    return f"{supervisor['strategy']}, {budget}"


def _declared(agent: Mapping[str, Any]) -> str:
    words = [agent["type"]]
    words += [f"{agent['replicas']} replicas"] if agent["replicas"] > 1 else []
    words += [f"process {agent['process']}"] if agent["process"] is not None else []
    for key in ("restart", "state", "delivery"):
        words += [f"{key} {agent[key]}"] if agent[key] != getattr(_DEFAULTS, key) else []
    words += [f"credentials for {', '.join(agent['credentials'])}"] if agent["credentials"] else []
    return " · ".join(words)


def _state(replicas: Sequence[AgentState]) -> str:
    if not replicas:
        return "NOT STARTED"
    words = [", ".join(dict.fromkeys(one.state.upper() for one in replicas))]
    words.append(",".join(dict.fromkeys(one.process for one in replicas)))
    restarts, waiting = sum(one.restarts for one in replicas), replicas[0].waiting
    words += [f"{restarts:,} restart{'s' if restarts > 1 else ''}"] if restarts else []
    words += [f"{waiting:,} waiting"] if waiting else []
    return " · ".join(words)
