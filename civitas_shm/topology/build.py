"""A read document to a `TopologySpec`: which node is what, and all that only shows across nodes.

Rules of this file: it goes on after a problem, so that the user sees all of them at once; nothing here depends on the
machine (whether a core exists is `placement`'s question) or imports the user's code.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, Final

from ..supervision.policy import significance_problem
from . import schema
from .bridged import LINKS, nats_url_problem
from .check import Checker, value_text
from .keytypes import class_path_problem
from .model import (
    AgentSpec,
    BridgeSpec,
    DynamicSpec,
    LoggingSpec,
    PoolSpec,
    ProcessSpec,
    StopSpec,
    SupervisorSpec,
    TopologySpec,
    TransportSpec,
    WatchSpec,
)
from .names import name_problem
from .plugins import PluginReader
from .proxied import PUB_ADDR, SUB_ADDR, address_problem
from .suggest import did_you_mean
from .yaml12 import Path

__all__ = ["NODES_NOT_YET", "Builder"]

MAIN: Final = "main"
"""The process of the caller."""
HOST: Final = "host"
"""The supervising process; no agents run in it."""

BRIDGES: Final[dict[str, type[schema.Block]]] = {"nats": schema.NatsBridge, "zmq": schema.ZmqBridge}
"""Blocks of `bridge:` by its type."""
NODES_NOT_YET: Final = frozenset(["http_gateway", "topology_server", "topology_agent", "mcp_server"])
"""Node types of the original that a later version brings."""

EVAL_AGENT: Final = "civitas_shm.evalloop.EvalAgent"
_EVAL_KEYS: Final = ("max_corrections_per_window", "window_seconds")

_WRAPPERS: Final = ("agent", "supervisor")
_MODULE_CLASS_TYPES: Final = ("agent", "gen_server")
"""`{type: agent, name, module, class}`: the form that generators of the original write."""


class Builder:
    """Builds one topology; `checker.problems` tells whether the result may be used."""

    def __init__(
        self,
        checker: Checker,
        known_types: Collection[str] = (),
        transports: Callable[[], Collection[str]] = list,
        plugin_names: Callable[[str], Collection[str]] = lambda kind: (),
    ) -> None:
        self.checker = checker
        self.known_types = known_types
        self.transports = transports
        """Transports that this installation has; asked only when the name is not one with a dot."""
        self.plugin_names = plugin_names
        """By kind: plug-ins that other distributions bring; asked only for a name without a dot that is not ours."""
        self._names: dict[str, tuple[str, Path]] = {}
        """Name -> (kind, where it was given first)."""
        self._agents: list[tuple[schema.Agent | schema.DynamicSupervisor, Path]] = []
        """What runs in a process that it may name."""

    def topology(self, data: Any) -> TopologySpec:
        """The whole; with problems in the checker it is a fragment."""
        if data is None and not self.checker.problems:
            self.checker.at_value((), "the file is empty; it needs at least supervision: {children: [...]}")
        if data is not None and not isinstance(data, dict):
            self.checker.at_value((), f"should be a mapping with the key 'supervision', not {value_text(data)}")
        if not isinstance(data, dict):
            return TopologySpec()
        top = self.checker.block(schema.Top, data, ())
        processes = self._processes(data.get("processes"))
        supervision = self._root(data)
        self._processes_of_agents(processes)
        transport, bridge = self._transport(data.get("transport"))
        if data.get("bridge") is not None:
            if bridge is not None:
                self.checker.at_key(("bridge",), "transport names a bridge already; keep one of them")
            bridge = self._bridge(data["bridge"], ("bridge",))
        return TopologySpec(
            supervision=supervision,
            processes=processes,
            pool=self._pool(data.get("pool")),
            transport=transport,
            bridge=bridge,
            stop=self._stop(data.get("stop")),
            watch=self._watch(data.get("watch")),
            logging=self._logging(data.get("logging")),
            plugins=PluginReader(self.checker, self.plugin_names).read(data.get("plugins")),
            name=top.name if top is not None else "",
        )

    # --- supervision ------------------------------------------------------------------------------------------------

    def _root(self, data: dict[Any, Any]) -> SupervisorSpec:
        given = [key for key in ("supervision", "supervisor") if key in data]
        if len(given) == 2:
            self.checker.at_key(("supervisor",), "'supervision' and 'supervisor' are the same block; keep one of them")
        if not given:
            self.checker.at_value((), "the key 'supervision' is missing")
            return SupervisorSpec()
        return self._supervisor(data[given[0]], (given[0],))

    def _supervisor(self, data: Any, path: Path) -> SupervisorSpec:
        mapping = self.checker.mapping(data, path)
        if mapping is None:
            return SupervisorSpec()
        block = self.checker.block(schema.Supervisor, mapping, path)
        if len(path) > 1 and "name" not in mapping:
            self.checker.at_value(path, "the key 'name' is missing")
        else:
            self._claim("supervisor", mapping.get("name", "root"), path)
        if block is not None and len(path) == 1:
            self._root_alone(block, path)
        children = self._children(mapping, path)
        if block is None:
            return SupervisorSpec(children=children)
        self._significant(block, children, path)
        return SupervisorSpec(
            name=block.name,
            strategy=block.strategy,
            max_restarts=block.max_restarts,
            restart_window_s=block.restart_window_s,
            backoff=block.backoff,
            backoff_base_s=block.backoff_base_s,
            backoff_max_s=block.backoff_max_s,
            backoff_reset_s=block.backoff_reset_s,
            auto_shutdown=block.auto_shutdown,
            restart=block.restart,
            significant=block.significant,
            children=children,
        )

    def _root_alone(self, block: schema.Supervisor, path: Path) -> None:
        """What the root's own supervisor would do, has no meaning: there is none."""
        for key in ("restart", "significant"):
            if key in block.model_fields_set:
                self.checker.at_key((*path, key), f"the root has no supervisor above it; remove {key!r}")

    def _significant(self, block: schema.Supervisor, children: list[AgentSpec | SupervisorSpec], path: Path) -> None:
        """OTP's combinations; a place is known by the name that stands there."""
        for child in children:
            problem = significance_problem(child.significant, child.restart, block.auto_shutdown)
            if problem is not None and child.name in self._names:  # else the missing name is the problem
                _, named = self._names[child.name]
                self.checker.at_value((*named[:-1], "significant"), problem)

    def _children(self, mapping: dict[Any, Any], path: Path) -> list[AgentSpec | SupervisorSpec]:
        data = mapping.get("children")
        below = (*path, "children")
        if data is not None and not isinstance(data, list):
            self.checker.at_value(below, f"should be a list of agents and supervisors, not {value_text(data)}")
            return []
        if not data:
            self.checker.at_value(path, "the supervisor has no children; give it at least one agent")
            return []
        children: list[AgentSpec | SupervisorSpec] = []
        for index, node in enumerate(data):
            child = self._child(node, (*below, index))
            if child is not None:
                children.append(child)
        return children

    def _child(self, node: Any, path: Path) -> AgentSpec | SupervisorSpec | None:
        if not isinstance(node, dict):
            self.checker.at_value(path, f"should be a mapping with the key agent or supervisor, not {value_text(node)}")
            return None
        wrappers = [key for key in _WRAPPERS if key in node]
        if wrappers:
            wrapper = wrappers[0]
            for key in node:
                if key != wrapper:
                    text = f"{key!r} stands beside {wrapper!r}; indent it below, or begin a new item with '- '"
                    self.checker.at_key((*path, key), text)
            below = (*path, wrapper)
            if wrapper == "supervisor":
                return self._supervisor(node[wrapper], below)
            return self._agent(node[wrapper], below)
        if "type" not in node:
            self._neither(node, path)
            return None
        kind = node["type"]
        if isinstance(kind, str) and kind in NODES_NOT_YET:
            self.checker.at_value((*path, "type"), f"{kind!r} is not supported yet; remove the node")
            return None
        if kind == "dynamic_supervisor":
            return self._dynamic(node, path)
        if kind == "eval_agent":
            return self._agent(node, path, schema.EvalAgent)
        if kind in _MODULE_CLASS_TYPES:
            return self._module_class(node, path)
        return self._agent(node, path)

    def _dynamic(self, node: dict[Any, Any], path: Path) -> SupervisorSpec | None:
        if "name" in node:
            self._claim("supervisor", node["name"], path)
        block = self.checker.block(schema.DynamicSupervisor, node, path)
        nested = self.checker.block(schema.Quotas, node.get("config"), (*path, "config"))
        if block is None or nested is None:
            return None
        for key in sorted(nested.model_fields_set & block.model_fields_set):
            text = f"{key!r} is set beside 'config' too; keep one of them"
            self.checker.at_value((*path, "config"), text)
        block = block.model_copy(update={key: getattr(nested, key) for key in nested.model_fields_set})
        self._agents.append((block, path))
        self._no_agents_in_host(block.process, path)
        return SupervisorSpec(
            name=block.name,
            max_restarts=block.max_restarts,
            restart_window_s=block.restart_window_s,
            backoff=block.backoff,
            backoff_base_s=block.backoff_base_s,
            backoff_max_s=block.backoff_max_s,
            dynamic=DynamicSpec(
                max_children=block.max_children,
                max_total_spawns=block.max_total_spawns,
                max_children_per_class=block.max_children_per_class,
                max_children_per_spawner=block.max_children_per_spawner,
                max_total_spawns_per_spawner=block.max_total_spawns_per_spawner,
                spawner_allowlist=block.spawner_allowlist,
                restart=block.restart,
                process=block.process,
            ),
        )

    def _neither(self, node: dict[Any, Any], path: Path) -> None:
        if len(node) == 1 and "name" not in node:
            self.checker.unknown_key((*path, next(iter(node))), _WRAPPERS, NODES_NOT_YET)
        else:
            self.checker.at_value(path, "a child needs the key 'agent', 'supervisor' or 'type'")

    def _module_class(self, node: dict[Any, Any], path: Path) -> AgentSpec | None:
        parts: list[str] = []
        for key in ("module", "class"):
            value = node.get(key)
            if not isinstance(value, str) or not value:
                where = (*path, key) if key in node else path
                self.checker.at_value(where, f"a node of type {node['type']} needs the key {key!r} as text")
            parts.append(str(value))
        rest = {key: value for key, value in node.items() if key not in ("module", "class")}
        return self._agent({**rest, "type": ".".join(parts)}, path)

    def _agent(self, data: Any, path: Path, model: type[schema.Agent] = schema.Agent) -> AgentSpec | None:
        mapping = self.checker.mapping(data, path)
        if mapping is None:
            return None
        if "name" in mapping:
            self._claim("agent", mapping["name"], path)
        block = self.checker.block(model, mapping, path)
        if block is None:
            return None
        if isinstance(block, schema.EvalAgent):
            block = self._eval_agent(block, path)
        self._agents.append((block, path))
        self._agent_alone(block, path)
        return AgentSpec(
            name=block.name,
            type=block.type,
            args=block.args,
            kwargs=block.kwargs,
            config=block.config,
            process=block.process,
            replicas=block.replicas,
            mailbox_size=block.mailbox_size,
            overflow=block.overflow,
            max_retries=block.max_retries,
            delivery=block.delivery,
            max_deliveries=block.max_deliveries,
            on_crash=block.on_crash,
            restart=block.restart,
            significant=block.significant,
            start_timeout_s=block.start_timeout_s,
            shutdown_timeout_s=block.shutdown_timeout_s,
            handle_timeout_s=block.handle_timeout_s,
            state=block.state,
            capabilities=block.capabilities,
            capability_metadata=block.capability_metadata,
            credentials=block.credentials,
        )

    def _eval_agent(self, block: schema.EvalAgent, path: Path) -> schema.Agent:
        """Civitas's own EvalAgent as an agent like any other: what its node says are arguments of its constructor."""
        given: dict[str, Any] = {key: getattr(block, key) for key in _EVAL_KEYS if key in block.model_fields_set}
        if block.exporters is not None:
            given["exporters"] = PluginReader(self.checker, self.plugin_names).exporters(
                block.exporters, (*path, "exporters")
            )
        return block.model_copy(update={"type": EVAL_AGENT, "kwargs": {**block.kwargs, **given}})

    def _agent_alone(self, block: schema.Agent, path: Path) -> None:
        if block.type not in self.known_types:
            problem = class_path_problem(block.type)
            if problem is not None:
                self.checker.at_value((*path, "type"), problem)
        if block.replicas > 1 and (
            block.state == "shm" or (block.state == "store" and "state" in block.model_fields_set)
        ):
            text = f"state: {block.state} belongs to one reader; an agent with replicas cannot have it"
            self.checker.at_value((*path, "state"), text)
        if block.delivery == "at_most_once" and block.on_crash == "redeliver":
            text = "on_crash: redeliver hands a message over again, which delivery: at_most_once forbids"
            self.checker.at_value((*path, "on_crash"), text)
        self._no_agents_in_host(block.process, path)
        if block.replicas > 1 and block.process is not None:
            text = f"{block.replicas} replicas run in {block.replicas} processes of the pool; leave out process"
            self.checker.at_value((*path, "process"), text)

    def _no_agents_in_host(self, process: str | None, path: Path) -> None:
        if process == HOST:
            text = f"the process {HOST!r} runs no agents; use {MAIN!r} for the caller's own process"
            self.checker.at_value((*path, "process"), text)

    def _claim(self, kind: str, name: Any, path: Path) -> None:
        """Agents and supervisors share one space of names."""
        if not isinstance(name, str):
            return  # the schema has said so
        where = (*path, "name")
        if name not in self._names:
            self._names[name] = (kind, where)
            return
        first_kind, first = self._names[name]
        line = self.checker.document.mark(first).line
        who = f"{first_kind} in line {line}"
        self.checker.at_value(where, f"the name {name!r} is already taken by the {who}; names are unique")

    # --- the other blocks -------------------------------------------------------------------------------------------

    def _processes(self, data: Any) -> list[ProcessSpec]:
        processes: list[ProcessSpec] = []
        for key, value in (self.checker.mapping(data, ("processes",)) or {}).items():
            path: Path = ("processes", key)
            problem = name_problem(str(key))
            if problem is not None:
                self.checker.at_key(path, problem)
            if key in (MAIN, HOST):
                text = (
                    f"{key} is not started by the pool: pin and limit it from outside (taskset, nice), and remove this"
                )
                self.checker.at_key(path, text)
            block = self.checker.block(schema.Process, value, path)
            if block is None:
                continue
            processes.append(ProcessSpec(name=str(key), **block.model_dump()))
        return processes

    def _processes_of_agents(self, processes: list[ProcessSpec]) -> None:
        """With a `processes:` block, a name that is not in it is a mistake; without one, every name makes a process."""
        declared = {process.name for process in processes}
        if not declared:
            return
        for block, path in self._agents:
            if block.process is not None and block.process != MAIN and block.process not in declared:
                hint = did_you_mean(block.process, {*declared, MAIN})
                text = f"the process {block.process!r} is not declared under processes{hint}"
                self.checker.at_value((*path, "process"), text)

    def _transport(self, data: Any) -> tuple[TransportSpec, BridgeSpec | None]:
        """A transport that is a bridge's type is shared memory, and that bridge: keys of both stand in it."""
        path: Path = ("transport",)
        if isinstance(data, str):
            data, at = {"type": data}, path
        else:
            at = ("transport", "type")
        kind = data.get("type") if isinstance(data, dict) else None
        if isinstance(kind, str) and kind in LINKS and isinstance(data, dict):
            ours = {key for key in data if key in schema.Transport.model_fields and key != "type"}
            theirs = {key: value for key, value in data.items() if key not in ours}
            bridge = self._bridge(theirs, path, at)
            block = self.checker.block(schema.Transport, {key: data[key] for key in ours}, path)
            return TransportSpec() if block is None else TransportSpec(
                **block.model_dump() | {"type": "shm"}
            ), bridge and replace(bridge, groups=True)
        block = self.checker.block(schema.Transport, data, path)
        if block is None:
            return TransportSpec(), None
        if "." not in block.type:
            known = [*self.transports(), *LINKS]
            if block.type not in known:
                self.checker.at_value(at, f"the transport {block.type!r} is unknown{did_you_mean(block.type, known)}")
        return TransportSpec(**block.model_dump()), None

    def _bridge(self, data: Any, path: Path, at: Path | None = None) -> BridgeSpec | None:
        """The block of a bridge. `at`: where its type stands."""
        if isinstance(data, str):
            data, at = {"type": data}, path
        mapping = self.checker.mapping(data, path)
        if mapping is None:
            return None
        kind = mapping.get("type")
        at = (*path, "type") if at is None else at
        if kind is None:
            self.checker.at_value(path, "the key 'type' is missing")
            return None
        if not isinstance(kind, str):
            self.checker.at_value(at, "should be a word")
            return None
        if "." in kind:  # a link of one's own
            return BridgeSpec(kind, {key: value for key, value in mapping.items() if key != "type"})
        if kind not in BRIDGES:
            self.checker.at_value(at, f"the bridge {kind!r} is unknown{did_you_mean(kind, LINKS)}")
            return None
        block = self.checker.block(BRIDGES[kind], mapping, path)
        if block is None:
            return None
        options = {key: value for key, value in block.model_dump(exclude_unset=True).items() if key != "type"}
        if kind == "nats":
            self._nats(options, path)
        else:
            self._zmq(options, path)
        return BridgeSpec(kind, options)

    def _zmq(self, options: dict[str, Any], path: Path) -> None:
        """What only shows across its keys."""
        curve = options.pop("curve", None)
        if curve is not None:
            block = self.checker.block(schema.ZmqCurve, curve, (*path, "curve"))
            keys = {} if block is None else block.model_dump(exclude_none=True)
            if block is not None and "directory" in keys and len(keys) > 1:
                self.checker.at_value((*path, "curve"), "a directory and keys are two ways; keep one")
            elif block is not None and "directory" not in keys and len(keys) < 3:
                wanted = "give a directory, or server_public_key, client_public_key and client_secret_key"
                self.checker.at_value((*path, "curve"), wanted)
            options["curve"] = keys
        for key, address in (("pub_addr", PUB_ADDR), ("sub_addr", SUB_ADDR)):
            if problem := address_problem(options.get(key, address), curve is not None):
                self.checker.at_value((*path, key), problem)
        if options.get("pub_addr", PUB_ADDR) == options.get("sub_addr", SUB_ADDR):
            self.checker.at_value(path, "pub_addr and sub_addr are one address; the proxy needs two")

    def _nats(self, options: dict[str, Any], path: Path) -> None:
        """What only shows across its keys."""
        if options.pop("jetstream", False):
            self.checker.at_key((*path, "jetstream"), "'jetstream: true' is not supported yet; remove it")
        options.pop("stream_name", None)
        servers = options.get("servers", "")
        given = servers if isinstance(servers, list) else [servers]
        if not all(isinstance(one, str) for one in given):
            self.checker.at_value(
                (*path, "servers"), f"should be an address or a list of them, not {value_text(servers)}"
            )
        elif problem := next((text for one in given if (text := nats_url_problem(one))), None):
            self.checker.at_value((*path, "servers"), problem)
        tls = options.get("tls")
        if tls is not None and not isinstance(tls, bool):
            block = self.checker.block(schema.NatsTls, tls, (*path, "tls"))
            if block is not None:
                options["tls"] = block.model_dump(exclude_none=True) or True
                if (block.cert is None) != (block.key is None):
                    self.checker.at_value((*path, "tls"), "cert and key belong together")
        if (options.get("user") is None) != (options.get("password") is None):
            self.checker.at_value(path, "user and password belong together")
        ways = [key for key in ("user", "token", "nkey", "credentials") if options.get(key)]
        if len(ways) > 1:
            self.checker.at_value(path, f"{' and '.join(ways)} are different ways to log in; keep one")

    def _pool(self, data: Any) -> PoolSpec:
        block = self.checker.block(schema.Pool, data, ("pool",))
        return PoolSpec() if block is None else PoolSpec(**block.model_dump())

    def _stop(self, data: Any) -> StopSpec:
        block = self.checker.block(schema.Stop, data, ("stop",))
        return StopSpec() if block is None else StopSpec(**block.model_dump())

    def _watch(self, data: Any) -> WatchSpec:
        block = self.checker.block(schema.Watch, data, ("watch",))
        return WatchSpec() if block is None else WatchSpec(**block.model_dump())

    def _logging(self, data: Any) -> LoggingSpec:
        block = self.checker.block(schema.Logging, data, ("logging",))
        if block is None:
            return LoggingSpec()
        agents = [name for name, (kind, _) in self._names.items() if kind == "agent"]
        for name in block.agents:
            if name not in agents:
                text = f"there is no agent {name!r}{did_you_mean(name, agents)}"
                self.checker.at_key(("logging", "agents", name), text)
        return LoggingSpec(**block.model_dump())
