"""The parts of a run, put together by hand: for a transport of one's own.

    components = build_component_set(transport=RedisTransport(url), serializer=MsgpackSerializer())
    runtime = Runtime(Supervisor("root", [Greeter("greeter")]), components=components)

Rules of this file: it holds and hands over; a set is for one run, because its bus has the mailboxes of one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .bus import MessageBus
from .config import Settings
from .errors import ConfigurationError
from .formats import JsonSerializer, MsgpackSerializer, Serializer
from .observability.tracer import Tracer
from .plugins.installed import Plugins
from .plugins.state import StateStore
from .plugins.tools import ToolRegistry
from .process import AgentProcess
from .registry import LocalRegistry
from .topology.model import AgentSpec, PluginsSpec
from .transport import Transport, load_transport, new_addresses

__all__ = ["ComponentSet", "build_component_set", "given_to_runtime"]

_METHODS = ("start", "stop", "subscribe", "publish", "request", "wait_ready", "has_reply_address")


def default_serializer() -> Serializer:
    """What the environment says: `Settings.serializer`."""
    return JsonSerializer() if Settings().serializer == "json" else MsgpackSerializer()


@dataclass
class ComponentSet:
    """Transport, registry, serializer and what agents are given. `transport`: of any class with the methods of
    `Transport`; ConfigurationError names those that it has not."""

    transport: Transport
    registry: LocalRegistry = field(default_factory=LocalRegistry)
    serializer: Serializer = field(default_factory=default_serializer)
    tracer: Any = field(default_factory=Tracer)
    store: StateStore | None = None
    model_provider: Any = None
    tool_registry: ToolRegistry | None = None
    audit_sink: Any = None

    def __post_init__(self) -> None:
        missing = [name for name in _METHODS if not callable(getattr(self.transport, name, None))]
        if missing:
            raise ConfigurationError(
                f"{type(self.transport).__qualname__} is no transport: it has no {', '.join(missing)}. "
                "civitas_shm.transport.Transport says what each does."
            )

    @cached_property
    def bus(self) -> MessageBus:
        """The bus over the transport."""
        return MessageBus(self.transport, self.registry, self.serializer, self.tracer, self.audit_sink)

    def inject(self, agent: AgentProcess) -> None:
        """Give an agent its store, model provider and tools."""
        plugins = Plugins(PluginsSpec(), model_provider=self.model_provider, tool_registry=self.tool_registry)
        agent.equip(plugins.of(AgentSpec(agent.name, "")))
        agent.store = self.store


def build_component_set(
    transport_type: str = "in_process",
    serializer: Serializer | None = None,
    *,
    transport: Transport | None = None,
    **components: Any,
) -> ComponentSet:
    """A set with defaults for what is not given. `transport`: your own; else `transport_type`, of which `in_process`
    alone is for a set: other processes build their parts themselves, from the topology. `serializer`: else what
    `AGENCY_SERIALIZER` says, msgpack without it. `components`: as of ComponentSet."""
    if transport is None and transport_type != "in_process":
        raise ConfigurationError(
            f"transport_type={transport_type!r}: a set of components is of one process. Give the word to "
            f"Runtime(transport={transport_type!r}), or an object: build_component_set(transport=...)."
        )
    serializer = default_serializer() if serializer is None else serializer
    chosen = new_addresses(serializer) if transport is None else transport
    return ComponentSet(chosen, serializer=serializer, **components)


def given_to_runtime(
    components: ComponentSet | None, serializer: Serializer | None, scheme: str, objects: dict[str, Any]
) -> ComponentSet:
    """What `Runtime` uses of `components=` and `serializer=`. What is given to it by name goes before what is in the
    set: `objects`, which is completed here. ConfigurationError where agents live in other processes."""
    if load_transport(scheme).multi_process:
        raise ConfigurationError(
            f"components and serializer are objects of this process; with transport {scheme!r} messages have a format "
            "of their own, and agents live in other processes. Leave transport= away."
        )
    if components is None:
        components = build_component_set(serializer=serializer)
    elif serializer is not None and serializer is not components.serializer:
        raise ConfigurationError("serializer= and components= name two serializers; give it to the components.")
    parts = {
        "model_provider": components.model_provider,
        "tool_registry": components.tool_registry,
        "state_store": components.store,
    }
    for name, part in parts.items():
        if objects[name] is None:
            objects[name] = part
    return components
