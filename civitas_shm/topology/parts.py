"""A part of a topology: the agents of one process, with the supervisors above them. Pure."""

from __future__ import annotations

from dataclasses import replace

from ..errors import ConfigurationError
from .model import AgentSpec, SupervisorSpec, TopologySpec
from .suggest import did_you_mean

__all__ = ["only_process"]


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
