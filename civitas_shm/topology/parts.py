"""A part of a topology: the agents of one process, with the supervisors above them. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ..errors import ConfigurationError
from .model import AgentSpec, SupervisorSpec, TopologySpec
from .suggest import did_you_mean

__all__ = ["SUPERVISOR", "groups_of", "only_process", "part_of"]

MAIN: Final = "main"
SUPERVISOR: Final = "supervisor"
"""`run --process supervisor`: Civitas's word for what names no process."""


def only_process(spec: TopologySpec, process: str | None) -> TopologySpec:
    """What runs in that process; `*`: everything; None: what names no process. ConfigurationError: nothing does."""
    if process == "*":
        return spec
    root = _only(spec.supervision, process)
    if root is None:
        named = sorted({agent.process for agent in spec.supervision.agents() if agent.process is not None})
        what = "every agent names a process" if process is None else f"no agent has process {process!r}"
        hint = "" if process is None else did_you_mean(process, named)
        raise ConfigurationError(f"process_filter={process!r}: {what}{hint}. '*' takes all agents.")
    return replace(spec, supervision=root)


def part_of(spec: TopologySpec, process: str | None) -> TopologySpec:
    """What one `run` starts of a system whose groups are started apart: those of the group `process`; with None or
    `supervisor` those that name none, or `main`. All others are expected elsewhere.

    ConfigurationError: no such group, or this topology has none.
    """
    if spec.bridge is None or not spec.bridge.groups:
        raise ConfigurationError(
            "one `run` starts and watches every process of this topology, so there are no groups to be started apart; "
            "they are with transport: nats or zmq."
        )
    named = {agent.process for agent in spec.supervision.agents() if agent.process not in (None, MAIN)}
    if process == SUPERVISOR and SUPERVISOR not in named:
        process = None
    if process is not None and process not in named:
        raise ConfigurationError(
            f"no agent has process {process!r}{did_you_mean(process, [SUPERVISOR, *(one for one in named if one)])}."
        )
    root = _part(spec.supervision, {process} if process is not None else {None, MAIN})
    if root is None:
        raise ConfigurationError("every agent names a process, so nothing is left for this part: use --process NAME.")
    here = {agent.name for agent in root.agents()}
    expected = [agent.name for agent in spec.supervision.agents() if agent.name not in here]
    return replace(spec, supervision=root, bridge=replace(spec.bridge, expected=expected))


def groups_of(spec: TopologySpec) -> list[str]:
    """Names of the groups, in the order of the file."""
    named = [agent.process for agent in spec.supervision.agents() if agent.process not in (None, MAIN)]
    return list(dict.fromkeys(str(one) for one in named))


def _part(supervisor: SupervisorSpec, processes: set[str | None]) -> SupervisorSpec | None:
    children: list[AgentSpec | SupervisorSpec] = []
    for child in supervisor.children:
        if isinstance(child, AgentSpec):
            children += [child] if child.process in processes else []
        elif (below := _part(child, processes)) is not None:
            children.append(below)
    here = supervisor.dynamic is not None and supervisor.dynamic.process in processes
    return replace(supervisor, children=children) if children or here else None


def _only(supervisor: SupervisorSpec, process: str | None) -> SupervisorSpec | None:
    children: list[AgentSpec | SupervisorSpec] = []
    for child in supervisor.children:
        kept = (
            _only(child, process) if isinstance(child, SupervisorSpec) else child if child.process == process else None
        )
        if kept is not None:
            children.append(kept)
    here = supervisor.dynamic is not None and supervisor.dynamic.process == process
    return replace(supervisor, children=children) if children or here else None
