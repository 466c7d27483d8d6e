"""`--set AGENT.KEY=VALUE`: one agent's `config` changed without touching the file.

Rules of this file: the value means what it would mean in the file (YAML 1.2): a plain word or number, or, when it
begins with a bracket, a brace or a quote, YAML of its own. Anything else is taken whole, so that a path with `: ` or
` #` in it needs no quotes. `${VAR}` is the shell's business here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from .model import AgentSpec, SupervisorSpec, TopologySpec
from .suggest import did_you_mean
from .yaml12 import read, resolve

__all__ = ["Override", "apply", "parse"]


class Override(NamedTuple):
    """One `--set`; `target` is still agent and keys together, because agents' names may have dots in them."""

    target: str
    value: Any


def parse(text: str) -> Override:
    """`walker.path=/usr/lib` as an Override. ValueError with a sentence when it has not that form."""
    target, equals, value = text.partition("=")
    if not equals or "." not in target.strip(".") or target.startswith(".") or target.endswith("."):
        raise ValueError(f"{text!r} has not the form AGENT.KEY=VALUE, for example walker.path=/usr/lib")
    return Override(target, _value(value))


def _value(text: str) -> Any:
    if text[:1] in ("[", "{", '"', "'"):
        document = read(text)
        if document.problems:
            problem = document.problems[0]
            raise ValueError(f"the value {text!r} cannot be read: {problem.text}; put plain text into '\"...\"'")
        return document.data
    return resolve(text)


def apply(spec: TopologySpec, overrides: Sequence[Override]) -> tuple[TopologySpec, list[str]]:
    """The topology with the overrides in it, and a sentence for each one that fits nowhere."""
    agents = {agent.name: copy.deepcopy(agent.config) for agent in spec.supervision.agents()}
    problems: list[str] = []
    for override in overrides:
        problem = _set(agents, override)
        if problem is not None:
            problems.append(f"--set {override.target}: {problem}")
    if not overrides or problems:
        return spec, problems
    return replace(spec, supervision=_with_configs(spec.supervision, agents)), []


def _set(agents: dict[str, dict[str, Any]], override: Override) -> str | None:
    name = _agent_of(override.target, agents)
    if name is None:
        word = override.target.split(".")[0]
        return f"there is no agent {word!r}{did_you_mean(word, agents)}"
    place: dict[str, Any] = agents[name]
    *above, last = override.target[len(name) + 1 :].split(".")
    for key in above:
        below = place.setdefault(key, {})
        if not isinstance(below, dict):
            return f"{key!r} in the config of {name!r} is no mapping, so nothing can be set below it"
        place = below
    place[last] = override.value
    return None


def _agent_of(target: str, agents: Iterable[str]) -> str | None:
    """The longest name that the target begins with: of `a` and `a.b`, `a.b.key` means the second."""
    return max((name for name in agents if target.startswith(f"{name}.")), key=len, default=None)


def _with_configs(supervisor: SupervisorSpec, configs: dict[str, dict[str, Any]]) -> SupervisorSpec:
    children: list[AgentSpec | SupervisorSpec] = [
        replace(child, config=configs[child.name]) if isinstance(child, AgentSpec) else _with_configs(child, configs)
        for child in supervisor.children
    ]
    return replace(supervisor, children=children)
