"""Runtime: the one object that a program starts, from a Supervisor or from a topology.

    async with Runtime(Supervisor("root", [Greeter("greeter")]), transport="shm") as runtime:
        reply = await runtime.ask("greeter", {"name": "Ada"})

Rules of this file: it wires and translates, nothing else. With a transport that lives in one process the run is a
`LocalRun`; with one that reaches other processes a host process is started, and the run is its client here.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from .config import with_environment, workers_of
from .directing import Directing
from .errors import ConfigurationError
from .loading import apply_settings, build_agent, class_path, construct, end_main_import
from .local_run import LocalRun
from .looking import Looking
from .messaging import Messaging
from .notify import ServiceSettings
from .plugins.installed import Plugins
from .plugins.state import portable_store
from .plugins.tools import ToolRegistry
from .process import AgentProcess
from .program import Program
from .secrets import SecretsFirst, SecretsProvider
from .state import StateStore
from .steering import Steering
from .supervisor import Supervisor, spec_of
from .topology.bridged import bridge_of, with_bridge
from .topology.model import (
    AgentSpec,
    BridgeSpec,
    LoggingSpec,
    PluginSpec,
    PluginsSpec,
    PoolSpec,
    ProcessSpec,
    StopSpec,
    SupervisorSpec,
    TopologySpec,
    TransportSpec,
)
from .topology.parts import only_process
from .transport import load_transport

if TYPE_CHECKING:
    from .components import ComponentSet
    from .formats import Serializer
    from .host.protocol import Chaos

__all__ = ["Runtime"]

_unnamed: Final = itertools.count(1)
_NOT_IN_A_NAME: Final = re.compile(r"[^a-z0-9]+")


class Runtime(Messaging, Directing, Steering, Looking):
    """A run of agents, from `start` to `stop`."""

    def __init__(
        self,
        supervisor: Supervisor | None = None,
        transport: str | TransportSpec = "in_process",
        *,
        name: str = "",
        processes: Sequence[ProcessSpec] = (),
        pool: PoolSpec | None = None,
        stop: StopSpec | None = None,
        workers: int | None = None,
        resume: bool = False,
        fresh: bool = False,
        chaos: Chaos | None = None,
        events: str | os.PathLike[str] | None = None,
        log_format: Literal["text", "json"] | None = None,
        plugins: PluginsSpec | None = None,
        model_provider: Any = None,
        tool_registry: ToolRegistry | None = None,
        state_store: StateStore | PluginSpec | str | None = None,
        serializer: Serializer | None = None,
        components: ComponentSet | None = None,
        bridge: BridgeSpec | None = None,
        **addresses: Any,
    ) -> None:
        """`name` of the run (default: the script's name and the pid); `processes`, `pool`, `stop` as in a topology.

        `workers`: processes of the pool; `resume`, `fresh`: what to do with the messages of a dead run of that name;
        `chaos`: kill or stop random workers at intervals; `events`: file for lifecycle events; `log_format`: print the
        log lines of agents on stderr in this form. `plugins` as in a topology; `model_provider` and `tool_registry` are
        objects, which agents in other processes cannot have, so they need a transport of one process. `state_store`:
        an object, too (those that come with this package are built anew in each process), or a name: sqlite, redis,
        an entry point's, an import path; it goes before that of `plugins`. `components`: a transport of your own and
        what goes with it, `serializer`: how messages become bytes; both of one process (docs/transports.md).
        `bridge`: how agents of other hosts are reached; `transport="nats"` is "shm" with such a bridge, whose
        `addresses` may be given as Civitas has them (`nats_servers`, `nats_jetstream`).
        What Civitas has for telemetry is refused by name (ConfigurationError).
        """
        transport, bridge = bridge_of(transport, bridge, _addresses(addresses))
        self._supervisor = Supervisor("root") if supervisor is None else supervisor
        self._classes: Mapping[str, type[AgentProcess]] = {}
        self._from_objects = True
        self._given = TopologySpec(
            supervision=spec_of(self._supervisor, portable=False),
            processes=list(processes),
            pool=pool or PoolSpec(),
            transport=transport,
            bridge=bridge,
            stop=stop or StopSpec(),
            logging=LoggingSpec().overridden(os.environ),
            plugins=plugins or PluginsSpec(),
        )
        self._objects: dict[str, Any] = {"model_provider": model_provider, "tool_registry": tool_registry}
        if isinstance(state_store, str):
            state_store = PluginSpec(state_store)
        if isinstance(state_store, PluginSpec):
            self._given = replace(self._given, plugins=replace(self._given.plugins, state=state_store))
            state_store = None
        self._objects["state_store"] = state_store
        if components is not None or serializer is not None:
            from .components import given_to_runtime  # most programs have none

            components = given_to_runtime(components, serializer, self._given.transport.type, self._objects)
        self._components = components
        self._name = name or _default_name()
        self._workers = workers
        self._resume = resume
        self._fresh = fresh
        self._chaos = chaos
        self._events = None if events is None else os.fspath(events)
        self._log_format = log_format
        self._log_path: Path | None = None
        self._service: ServiceSettings | None = None
        self._run: Any = None
        self._program = Program(self._supervisor.all_supervisors(), self.get_agent)
        for one in self._supervisor.all_supervisors():
            one._belongs_to(self)

    @classmethod
    def from_spec(
        cls,
        spec: TopologySpec,
        *,
        name: str = "",
        workers: int | None = None,
        resume: bool = False,
        fresh: bool = False,
        chaos: Chaos | None = None,
        events: str | os.PathLike[str] | None = None,
        log_format: Literal["text", "json"] | None = None,
        log_path: Path | None = None,
        service: ServiceSettings | None = None,
    ) -> Self:
        """A run of a topology that is loaded already.

        `log_path`: a file that takes what this program prints; the host moves it into the run directory (`log_file`).
        `service`: the service manager that the host reports to (`notify`). Both only with a host.
        """
        runtime = cls(
            name=name or spec.name,
            workers=workers,
            resume=resume,
            fresh=fresh,
            chaos=chaos,
            events=events,
            log_format=log_format,
        )
        runtime._from_objects = False
        runtime._log_path = log_path
        runtime._service = service
        runtime._given = spec
        return runtime

    @classmethod
    def from_config(
        cls,
        path: str | os.PathLike[str],
        agent_classes: Mapping[str, type[AgentProcess]] | None = None,
        *,
        process_filter: str | None = "*",
        transport: str | None = None,
        secrets: SecretsProvider | None = None,
        **options: Any,
    ) -> Self:
        """A run of the topology in a file. `agent_classes` maps words that stand as `type:` to classes.

        `process_filter`: only agents of that process, or with None those that name none. `options` are those of
        `from_spec`. `transport` and `workers` go before the environment (`config.VARIABLES`), that before the file.
        `secrets`: where `${NAME}` is looked up before the environment (`civitas_shm.secrets`); what it gives is kept
        out of logs, events, dumps and other agents' processes.
        """
        from .topology.load import load_topology  # brings yaml and pydantic, which other programs do not need

        classes = dict(agent_classes or {})
        spec = load_topology(path, agent_types=classes.keys(), environment=_looked_up(secrets))
        return cls._from_loaded(spec, classes, process_filter, transport, options)

    @classmethod
    def from_config_dict(
        cls,
        config: Mapping[str, Any],
        agent_classes: Mapping[str, type[AgentProcess]] | None = None,
        *,
        process_filter: str | None = "*",
        transport: str | None = None,
        secrets: SecretsProvider | None = None,
        **options: Any,
    ) -> Self:
        """As `from_config`, of a topology as data. Classes are looked for on `sys.path`; problems name no lines."""
        from .topology.load import load_topology_data

        classes = dict(agent_classes or {})
        spec = load_topology_data(config, agent_types=classes.keys(), environment=_looked_up(secrets))
        paths = [os.path.abspath(path or os.curdir) for path in sys.path]
        return cls._from_loaded(replace(spec, import_paths=paths), classes, process_filter, transport, options)

    @classmethod
    def _from_loaded(
        cls,
        spec: TopologySpec,
        classes: Mapping[str, type[AgentProcess]],
        process_filter: str | None,
        transport: str | None,
        options: dict[str, Any],
    ) -> Self:
        spec = with_environment(only_process(spec, process_filter), os.environ, transport)
        if options.get("workers") is None:
            options["workers"] = workers_of(os.environ)
        runtime = cls.from_spec(spec, **options)
        runtime._classes = classes
        return runtime

    # --- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything; returns when every agent takes messages. Idempotent; nothing is left when it fails."""
        end_main_import()
        if self._run is not None:
            return
        module = load_transport(self._given.transport.type)
        run = self._hosted_run() if module.multi_process else self._local_run(module.create)
        self._run = run
        await run.start()

    async def stop(self) -> None:
        """Stop in good order: the topology's `stop:`. Idempotent; nothing happens if it was never started."""
        if self._run is not None:
            await self._run.stop()

    async def wait(self) -> int:
        """Wait for the end of the run; its exit code. RunFailed, with the report, when supervision gave up."""
        return int(await self._started().wait())

    @property
    def alive(self) -> bool:
        """Whether it has been started and has not ended yet, by itself or by a stop."""
        return self._run is not None and bool(self._run.alive)

    def request_stop(self, exit_code: int = 0) -> None:
        """Begin to stop in good order, and return at once: for signal handlers."""
        if self._run is not None:
            self._run.request_stop(exit_code)

    def kill(self) -> None:
        """End at once. What was committed to shared memory stays there for `resume`."""
        if self._run is not None:
            self._run.kill()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop. RunFailed when supervision gave up meanwhile, unless another error is on its way already."""
        await self.stop()
        if error is None:
            await self.wait()

    def _started(self) -> Any:
        if self._run is None:
            raise RuntimeError(
                "the runtime is not started: `await runtime.start()` or `async with runtime:` comes first"
            )
        return self._run

    # --- wiring ---------------------------------------------------------------------------------------------------

    def _local_run(self, create: Callable[[], Any]) -> LocalRun:
        for option, given in (("chaos", self._chaos is not None), ("resume", self._resume)):
            if given:
                raise ConfigurationError(
                    f"{option} needs worker processes; transport {self._given.transport.type!r} has none."
                )
        spec = self._with_bridge(self._with_log_format(self._given), own_process=False)
        build = self._builder(at_once=spec.supervision.agents())
        bus = None if self._components is None else self._components.bus
        return LocalRun(
            spec,
            self._name,
            create() if bus is None else bus.port,
            build,
            events_path=self._events,
            log_lines=self._log_format is not None,
            plugins=Plugins(spec.plugins, **self._objects),
            program=self._program,
            bus=bus,
        )

    def _with_bridge(self, spec: TopologySpec, *, own_process: bool) -> TopologySpec:
        """Who this host is, is made up here: of the run's name and a number that no other run has."""
        if spec.bridge is None:
            return spec
        host = f"{_NOT_IN_A_NAME.sub('-', self._name.lower())[:40]}-{os.urandom(6).hex()}"
        return with_bridge(spec, host, time.time_ns(), os.urandom(16).hex(), own_process=own_process)

    def _with_log_format(self, spec: TopologySpec) -> TopologySpec:
        if self._log_format is None:
            return spec
        return replace(spec, logging=replace(spec.logging, format=self._log_format))

    def _builder(self, at_once: Sequence[AgentSpec] = ()) -> Callable[[AgentSpec], AgentProcess]:
        """Where agents come from: the program's own object first, then new ones.

        Those `at_once` are built now, so that a class that cannot be imported is found before anything starts.
        """
        originals: dict[str, AgentProcess] = {}
        if self._from_objects:
            originals = {agent.name: agent for agent in self._supervisor.all_agents()}
            first = dict(originals)
        else:
            first = {spec.name: self._construct(spec) for spec in at_once}

        def build(spec: AgentSpec) -> AgentProcess:
            agent = first.pop(spec.name, None)
            if agent is not None:
                return agent
            if spec.name in originals:
                agent = originals[spec.name].reborn()
                apply_settings(agent, spec)
                return agent
            return self._construct(spec)

        return build

    def _construct(self, spec: AgentSpec) -> AgentProcess:
        cls = self._classes.get(spec.type)
        return build_agent(spec, self._given.import_paths) if cls is None else construct(cls, spec)

    def _hosted_run(self) -> Any:
        from .host.client import HostOptions  # Linux only
        from .hosted_run import HostedRun

        spec = self._with_bridge(self._portable(), own_process=True)
        store = self._objects["state_store"]
        if store is not None and (state := portable_store(store)) is not None:
            spec = replace(spec, plugins=replace(spec.plugins, state=state))
            store = None
        for name, given in {**self._objects, "state_store": store}.items():
            if given is not None:
                raise ConfigurationError(
                    f"{name} is an object of this process, which agents in others cannot have. Name its class in "
                    f"plugins=, or use a transport of one process instead of {self._given.transport.type!r}."
                )
        options = HostOptions(
            self._name,
            workers=self._workers,
            resume=self._resume,
            fresh=self._fresh,
            chaos=self._chaos,
            events_path=self._events,
            log_path=None if self._log_path is None else str(self._log_path),
            service=self._service,
        )
        return HostedRun(spec, options, self._builder(), log_lines=self._log_format is not None, program=self._program)

    def _portable(self) -> TopologySpec:
        """The topology in words that other processes understand."""
        given = self._with_log_format(self._given)
        if not self._from_objects:
            return replace(given, supervision=_with_types(given.supervision, self._classes))
        paths = [os.path.abspath(path or os.curdir) for path in sys.path]
        return replace(given, supervision=spec_of(self._supervisor, portable=True), import_paths=paths)


def _addresses(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is left for the bridge; what Civitas has for counts and spans is refused by name."""
    for name in ("metrics", "exporters"):
        if given.get(name) is not None:
            raise ConfigurationError(
                f"Runtime({name}=...): counts, times and exporters of spans are not supported yet. Spans go to the "
                "OpenTelemetry SDK of your program, where it has one; Runtime.snapshot() counts messages and restarts."
            )
    return {name: value for name, value in given.items() if name not in ("metrics", "exporters")}


def _looked_up(secrets: SecretsProvider | None) -> Mapping[str, str]:
    """What `${NAME}` means."""
    return os.environ if secrets is None else SecretsFirst(secrets, os.environ)


def _with_types(spec: SupervisorSpec, classes: Mapping[str, type[AgentProcess]]) -> SupervisorSpec:
    """Classes by import path in place of the words of `agent_classes`."""
    children = [
        _with_types(child, classes)
        if isinstance(child, SupervisorSpec)
        else replace(child, type=class_path(classes[child.type]) if child.type in classes else child.type)
        for child in spec.children
    ]
    return replace(spec, children=children)


def _default_name() -> str:
    """The script's name, the pid, and a number from the second one on: no two runs ever meet in shared memory."""
    stem = os.path.splitext(os.path.basename(sys.argv[0] if sys.argv else ""))[0]
    number = next(_unnamed)
    base = f"{_NOT_IN_A_NAME.sub('-', stem.lower()).strip('-')[:40] or 'program'}-{os.getpid()}"
    return base if number == 1 else f"{base}-{number}"
