"""The plug-ins of one process: what the topology declares or the program gave, built when first asked for.

Guarantees:
- nothing is imported or built before an agent touches it; then once, for all agents of the process;
- a provider made for one agent's credentials is used by that agent and those with the same ones, by nobody else;
- `close` closes whatever was built; what raises there is logged.

All methods belong to the process's loop or to a handler's thread; building takes a lock, because of the latter.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Mapping
from typing import Any, Final

from ..errors import PluginError
from ..observability.tracer import Tracer
from ..redaction import keep_secret
from ..state import StateStore
from ..topology.model import AgentSpec, PluginSpec, PluginsSpec
from ..topology.secrecy import secrets_of_agent, secrets_of_plugins
from ..topology.suggest import did_you_mean
from .loader import load_plugin
from .tools import ToolRegistry

__all__ = ["Equipment", "Plugins"]

NO_CREDENTIALS: Final[Mapping[str, str]] = {}


class Plugins:
    """Of one process."""

    def __init__(
        self,
        spec: PluginsSpec | None = None,
        *,
        model_provider: Any = None,
        tool_registry: ToolRegistry | None = None,
        state_store: StateStore | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """`model_provider`, `tool_registry` and `state_store` are objects of the program; they go before what is
        declared."""
        self.tracer: Final = tracer or Tracer()
        self._spec = spec or PluginsSpec()
        keep_secret(secrets_of_plugins(self._spec))
        self._given_model = model_provider
        self._given_tools = tool_registry
        self._store = state_store
        self._models: dict[tuple[str, str], Any] = {}
        """By name and key."""
        self._tools: list[Any] | None = None
        self._lock = threading.Lock()

    def of(self, spec: AgentSpec) -> Equipment:
        """What one agent sees."""
        keep_secret(secrets_of_agent(spec))
        return Equipment(self, spec.name, spec.credentials)

    def default_model(self, credentials: Mapping[str, str]) -> Any:
        """`self.llm`, or None when there is none."""
        if self._given_model is not None:
            return self._given_model
        return self._model(self._spec.models[0], credentials) if self._spec.models else None

    def model(self, name: str, credentials: Mapping[str, str]) -> Any:
        """The provider of that name. PluginError when none is declared, or it cannot be built."""
        for spec in self._spec.models:
            if spec.label == name:
                return self._model(spec, credentials)
        known = [spec.label for spec in self._spec.models]
        tail = did_you_mean(name, known) or "; plugins.models in the topology declares none"
        raise PluginError("model", name, f"it is not declared{tail}")

    def tools(self) -> ToolRegistry | None:
        """A registry for one agent, with the process's tools in it; None when there are none."""
        if self._given_tools is not None:
            return self._given_tools
        if not self._spec.tools:
            return None
        with self._lock:
            if self._tools is None:
                self._tools = [load_plugin("tool", spec.type, spec.config) for spec in self._spec.tools]
        return ToolRegistry(self._tools)

    def state_store(self) -> StateStore | None:
        """Where agents with `state: store` save; None when nobody names one. PluginError when it cannot be built."""
        if self._store is None and self._spec.state is not None:
            with self._lock:
                self._store = load_plugin("state", self._spec.state.type, self._spec.state.config)
        return self._store

    async def close(self) -> None:
        """Close everything that was built here, and the store, whoever built it. Idempotent."""
        built = [*self._models.values(), *(self._tools or ()), *([] if self._store is None else [self._store])]
        self._models, self._tools = {}, None
        if self._spec.state is not None:
            self._store = None
        for plugin in built:
            close = getattr(plugin, "close", None)
            if close is None:
                continue
            try:
                result = close()
                if inspect.isawaitable(result):
                    await result
            except Exception:
                logging.getLogger(__name__).exception("closing %r failed", plugin)

    def _model(self, spec: PluginSpec, credentials: Mapping[str, str]) -> Any:
        key = credentials.get(spec.label) or credentials.get(spec.type) or ""
        with self._lock:
            if (spec.label, key) not in self._models:
                config = {**spec.config, "api_key": key} if key else spec.config
                self._models[spec.label, key] = load_plugin("model", spec.type, config)
            return self._models[spec.label, key]


class Equipment:
    """What one incarnation of an agent sees of its process's plug-ins."""

    __slots__ = ("agent", "credentials", "plugins")

    def __init__(self, plugins: Plugins, agent: str, credentials: Mapping[str, str]) -> None:
        self.plugins = plugins
        self.agent = agent
        self.credentials = credentials

    def __repr__(self) -> str:
        return f"<Equipment of {self.agent!r}, credentials for {', '.join(self.credentials) or 'nothing'}>"
