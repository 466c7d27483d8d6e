"""Which texts of a topology are secret, and whose they are. Pure.

Rule of this file: an agent's own are what stands in its `credentials`, behind keys of its data whose names say so, and
what came from the environment as a secret and stands anywhere in its node. Its process is told these, and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from ..redaction import secret_values
from .model import AgentSpec, PluginSpec, PluginsSpec, SupervisorSpec, TopologySpec

__all__ = ["private_variables", "secrets_of", "secrets_of_agent", "secrets_of_plugins", "with_own_secrets"]

_READ_BY_DEFAULT: Final = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}
"""Where a built-in model looks for its key when its config has none."""


def secrets_of_agent(agent: AgentSpec) -> list[str]:
    """What its process must not say."""
    data = {"config": agent.config, "kwargs": agent.kwargs, "args": agent.args}
    return [*agent.secrets, *agent.credentials.values(), *secret_values(data)]


def secrets_of_plugins(plugins: PluginsSpec) -> list[str]:
    """What no process must say: every one can build them."""
    return [text for plugin in _all(plugins) for text in secret_values(plugin.config)]


def _all(plugins: PluginsSpec) -> list[PluginSpec]:
    """Of every kind."""
    return [*plugins.models, *plugins.tools, *([plugins.state] if plugins.state is not None else [])]


def secrets_of(spec: TopologySpec) -> list[str]:
    """All of them: for host and program."""
    found = [*spec.secrets, *secrets_of_plugins(spec.plugins), *secret_values(spec.transport.options)]
    found += [text for process in spec.processes for text in secret_values(process.env)]
    return found + [text for agent in spec.supervision.agents() for text in secrets_of_agent(agent)]


def with_own_secrets(spec: TopologySpec, secrets: Sequence[str]) -> TopologySpec:
    """The topology with the secrets that came from the environment, each agent with those in its node."""

    def own(agent: AgentSpec) -> AgentSpec:
        texts = list(_texts([agent.args, agent.kwargs, agent.config, agent.capability_metadata]))
        here = [secret for secret in secrets if any(secret in text for text in texts)]
        return replace(agent, secrets=here) if here else agent

    supervision = _each_agent(spec.supervision, own) if secrets else spec.supervision
    return replace(spec, supervision=supervision, secrets=list(secrets))


def private_variables(spec: TopologySpec, only_in_credentials: Iterable[str]) -> list[str]:
    """Of those variables the ones that nobody reads by himself: a built-in model without a key of its own does."""
    read = {
        _READ_BY_DEFAULT[model.type]
        for model in spec.plugins.models
        if model.type in _READ_BY_DEFAULT and "api_key" not in model.config
    }
    return [name for name in only_in_credentials if name not in read]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _each_agent(supervisor: SupervisorSpec, change: Callable[[AgentSpec], AgentSpec]) -> SupervisorSpec:
    children = [change(one) if isinstance(one, AgentSpec) else _each_agent(one, change) for one in supervisor.children]
    return replace(supervisor, children=children)
