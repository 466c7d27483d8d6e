"""The declaration of a system: plain frozen values, made by `topology.load` from text or by `Runtime` from objects.

Rules of this file: no I/O, no defaults that depend on the machine (`auto` stays `auto` here; `placement` resolves it),
units in the names, and everything converts to plain data (`to_plain`, `from_plain`) so that it can be handed to another
process without pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from ..errors import ConfigurationError
from ..transport import Overflow

__all__ = [
    "BUILTIN_PLUGINS",
    "LOG_LEVELS",
    "PLUGIN_HINTS",
    "AgentSpec",
    "BridgeSpec",
    "DeliveryMode",
    "DynamicSpec",
    "LoggingSpec",
    "OnCrash",
    "PluginSpec",
    "PluginsSpec",
    "PoolSpec",
    "ProcessSpec",
    "StopSpec",
    "SupervisorSpec",
    "TopologySpec",
    "TransportSpec",
    "WatchSpec",
]

Strategy = Literal["ONE_FOR_ONE", "ONE_FOR_ALL", "REST_FOR_ONE"]
Backoff = Literal["CONSTANT", "LINEAR", "EXPONENTIAL"]
Restart = Literal["permanent", "transient", "temporary"]
AutoShutdown = Literal["never", "any_significant", "all_significant"]
Drain = Literal["current", "all"]
DeliveryMode = Literal["at_least_once", "at_most_once"]
OnCrash = Literal["dead_letter", "redeliver"]

LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


BUILTIN_PLUGINS: Final[dict[str, dict[str, str]]] = {
    "model": {
        "anthropic": "civitas_shm.plugins.anthropic.AnthropicProvider",
        "openai": "civitas_shm.plugins.openai.OpenAIProvider",
    },
    "tool": {},
    "exporter": {},
    "eval_exporter": {},
    "state": {
        "in_memory": "civitas_shm.plugins.state.InMemoryStateStore",
        "sqlite": "civitas_shm.plugins.sqlite_store.SQLiteStateStore",
        "redis": "civitas_shm.plugins.redis_store.RedisStateStore",
        "encrypted": "civitas_shm.plugins.encrypted_store.EncryptingStateStore",
    },
}
"""Plug-ins that have a word for a name, by kind: word -> import path of the class."""

PLUGIN_HINTS: Final[dict[tuple[str, str], str]] = {
    ("model", "litellm"): "name it by its path, civitas_shm.plugins.litellm.LiteLLMProvider, after "
    'pip install "litellm>=1.100,<2" mcp (it is no extra, see docs/plugins.md)',
    ("model", "gemini"): "use type: openai with base_url: "
    "https://generativelanguage.googleapis.com/v1beta/openai/ and api_key: ${GEMINI_API_KEY}",
    (
        "exporter",
        "console",
    ): "exporters come with a later version; until then spans go to your OpenTelemetry SDK",
    ("state", "postgres"): "write a StateStore of your own, five methods (docs/state.md), and name it by its path",
    ("state", "mysql"): "write a StateStore of your own, five methods (docs/state.md), and name it by its path",
    ("model", "mistral"): "use type: openai with base_url: https://api.mistral.ai/v1 and api_key: ${MISTRAL_API_KEY}",
    **{
        ("eval_exporter", word): "it is of Civitas's contrib package; write a class with export(event) around the "
        "service's own package, and its import path here"
        for word in ("arize", "langfuse", "braintrust", "langsmith", "fiddler")
    },
}
"""What to write instead of a word that Civitas has and this version has not."""


@dataclass(frozen=True, slots=True)
class PluginSpec:
    """One plug-in: which class, and the keyword arguments of its constructor."""

    type: str
    """A word of `BUILTIN_PLUGINS`, an entry point's name, or an import path."""
    config: dict[str, Any] = field(default_factory=dict, repr=False)
    """Not shown: keys stand in it."""
    name: str = ""
    """What agents call it by; empty: its type."""

    @property
    def label(self) -> str:
        return self.name or self.type


@dataclass(frozen=True, slots=True)
class PluginsSpec:
    """What each process can build when an agent in it asks."""

    models: list[PluginSpec] = field(default_factory=list)
    """The first is `self.llm`; each can be had by name, `self.model_for(name)`."""
    tools: list[PluginSpec] = field(default_factory=list)
    state: PluginSpec | None = None
    """Where agents with `state: store` save; None: in memory."""

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> PluginsSpec:
        """From what `msgspec.to_builtins` made of one."""
        models, tools = ([PluginSpec(**one) for one in plain[kind]] for kind in ("models", "tools"))
        state = plain.get("state")
        return cls(models, tools, None if state is None else PluginSpec(**state))


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """One agent: what to build, where, and how its mailbox and restarts behave."""

    name: str
    type: str
    """Import path `package.module.Class`, or `__main__:/path/script.py:Class` for a class of the running script."""
    args: list[Any] = field(default_factory=list)
    """Positional constructor arguments after the name."""
    takes_name: bool = True
    """False: the constructor is called without the name, because the class names itself or `kwargs` holds it."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    """Arrives as `self.config`."""
    process: str | None = None
    """Name of a process; `main` is the caller's own; None lets the pool place it."""
    replicas: int = 1
    mailbox_size: int = 1000
    overflow: Overflow = "block"
    max_retries: int = 3
    delivery: DeliveryMode = "at_least_once"
    """`at_most_once`: no message is handed over twice; one whose handler was cut off goes to the dead letters."""
    max_deliveries: int = 3
    """Strikes (deaths that are its doing, failures with `redeliver`) that a message may have; 0: any number."""
    on_crash: OnCrash = "dead_letter"
    """What becomes of a message whose handler raised and escalated; `redeliver`: the next incarnation gets it."""
    restart: Restart = "permanent"
    significant: bool = False
    """Its end, if it is not restarted, may shut its supervisor down: `SupervisorSpec.auto_shutdown`."""
    start_timeout_s: float = 30.0
    shutdown_timeout_s: float = 30.0
    handle_timeout_s: float | None = None
    """A handler that runs longer is cancelled and counts as a crash; a process whose loop does not answer is killed."""
    state: Literal["none", "in_memory", "store", "shm"] = "store"
    """Where `self.state` is saved: `store` by `checkpoint()`, in what `PluginsSpec.state` names; `in_memory` so too,
    in the process; `shm` at the end of every handler too. Replicas have no common state: `store` is `in_memory`."""
    capabilities: list[str] = field(default_factory=list)
    capability_metadata: dict[str, Any] = field(default_factory=dict)
    credentials: dict[str, str] = field(default_factory=dict, repr=False)
    """By provider: this agent's own keys. Sent only to the process that it runs in, and not shown."""
    secrets: list[str] = field(default_factory=list, repr=False)
    """Texts in its arguments and config that came from the environment and must not be shown."""


@dataclass(frozen=True, slots=True)
class DynamicSpec:
    """What makes a supervisor a dynamic one: it has no children but those that are spawned while the run lasts."""

    max_children: int | None = None
    """Alive at once; None: no limit of its own."""
    max_total_spawns: int | None = None
    """Since the run began."""
    max_children_per_class: dict[str, int] = field(default_factory=dict)
    """Alive at once, by import path of the class."""
    max_children_per_spawner: int | None = None
    max_total_spawns_per_spawner: int | None = None
    spawner_allowlist: list[str] | None = None
    """Names of the agents that may spawn here; the program itself always may. None: all."""
    restart: Restart = "transient"
    """Of the children."""
    process: str | None = None
    """Where children run that name none; None: the pool places them."""
    asks: bool = False
    """The program is asked before each spawn: its object has `on_spawn_requested`."""


@dataclass(frozen=True, slots=True)
class SupervisorSpec:
    """One supervisor and its children, in start order."""

    name: str = "root"
    strategy: Strategy = "ONE_FOR_ONE"
    max_restarts: int = 3
    restart_window_s: float = 60.0
    backoff: Backoff = "CONSTANT"
    backoff_base_s: float = 1.0
    backoff_max_s: float = 60.0
    backoff_reset_s: float | None = None
    """All children up together for so long: the backoff begins anew. None: only with the window."""
    auto_shutdown: AutoShutdown = "never"
    """When the end of significant children ends this supervisor: well, and at the root the run with exit code 0."""
    restart: Restart = "permanent"
    """What its own supervisor does when it has given up (a failure) or shut down (a clean end)."""
    significant: bool = False
    children: list[AgentSpec | SupervisorSpec] = field(default_factory=list)
    dynamic: DynamicSpec | None = None

    def dynamic_supervisors(self) -> list[SupervisorSpec]:
        """All dynamic supervisors, this one and below."""
        found = [self] if self.dynamic is not None else []
        for child in self.children:
            if isinstance(child, SupervisorSpec):
                found.extend(child.dynamic_supervisors())
        return found

    def all_supervisors(self) -> list[SupervisorSpec]:
        """This one and all below, parents first."""
        return [
            self,
            *(one for child in self.children if isinstance(child, SupervisorSpec) for one in child.all_supervisors()),
        ]

    def agents(self) -> list[AgentSpec]:
        """All agents below, in start order."""
        found: list[AgentSpec] = []
        for child in self.children:
            if isinstance(child, AgentSpec):
                found.append(child)
            else:
                found.extend(child.agents())
        return found


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One named OS process of the pool."""

    name: str
    cpus: list[int] = field(default_factory=list)
    """Cores that it may run on; empty: placed by the pool."""
    nice: int = 0
    env: dict[str, str] = field(default_factory=dict)
    gpu: list[int] = field(default_factory=list)
    """Device numbers; made visible (CUDA_VISIBLE_DEVICES) before the interpreter starts. Not empty: a fresh exec."""
    numa: int | None = None
    memory_limit_mb: int | None = None


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """The processes that agents without `process:` are placed on."""

    size: int | Literal["auto"] = "auto"
    """`auto`: as many as there are cores this process may use."""
    standby: int = 1
    """Forked processes that wait to be handed a slot, so that a restart needs no fork."""
    pin: bool = True
    preload: list[str] = field(default_factory=list)
    """Modules that are imported before workers are forked. They must not start threads or touch a GPU."""


@dataclass(frozen=True, slots=True)
class TransportSpec:
    """How messages travel."""

    type: str = "in_process"
    segments: Literal["named", "memfd"] = "named"
    arena_mb: int = 256
    mailboxes: int = 4096
    options: dict[str, Any] = field(default_factory=dict)
    """For a user's own transport."""


@dataclass(frozen=True, slots=True)
class BridgeSpec:
    """How agents of other hosts are reached."""

    type: str
    """A word of `bridged.LINKS`, or the import path of a module with `link(settings)`."""
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    """Those of its link, and `outbox`. Not shown: passwords stand in it."""
    groups: bool = False
    """`process:` names a group that is started apart, perhaps elsewhere and several times: `run --process NAME`."""
    expected: list[str] = field(default_factory=list)
    """Agents of this system that run elsewhere: a message to one that is not there waits in the outbox."""


@dataclass(frozen=True, slots=True)
class WatchSpec:
    """What the host does about processes that do not go on."""

    stopped_timeout_s: float = 30.0
    """One that is stopped (SIGSTOP) for longer is killed and restarted; 0: never. Never while a debugger traces it."""


@dataclass(frozen=True, slots=True)
class StopSpec:
    """What SIGTERM does."""

    drain: Drain = "current"
    """`current`: messages in hand are finished, waiting ones stay; `all`: mailboxes are emptied first."""
    timeout_s: float = 25.0
    """Then processes are killed. Below the 30 s that Kubernetes gives."""


@dataclass(frozen=True, slots=True)
class LoggingSpec:
    """How much is logged."""

    level: str = "INFO"
    agents: dict[str, str] = field(default_factory=dict)
    format: Literal["text", "json"] = "text"

    def overridden(self, environ: Mapping[str, str]) -> LoggingSpec:
        """This, with what the environment asks for; ConfigurationError when that is none."""
        level = self.level
        for variable in ("LOG_LEVEL", "CIVITAS_SHM_LOG_LEVEL"):  # the last one counts
            word = environ.get(variable, "").upper()
            if word and word not in LOG_LEVELS:
                raise ConfigurationError(f"{variable} is {environ[variable]!r}; allowed: {', '.join(LOG_LEVELS)}")
            level = word or level
        form = environ.get("CIVITAS_SHM_LOG_FORMAT", "").lower()
        if form not in ("", "text", "json"):
            raise ConfigurationError(f"CIVITAS_SHM_LOG_FORMAT is {form!r}; allowed: text, json")
        return LoggingSpec(level, self.agents, "json" if form == "json" else "text" if form else self.format)


@dataclass(frozen=True, slots=True)
class TopologySpec:
    """A whole system."""

    supervision: SupervisorSpec = field(default_factory=SupervisorSpec)
    processes: list[ProcessSpec] = field(default_factory=list)
    pool: PoolSpec = field(default_factory=PoolSpec)
    transport: TransportSpec = field(default_factory=TransportSpec)
    bridge: BridgeSpec | None = None
    stop: StopSpec = field(default_factory=StopSpec)
    watch: WatchSpec = field(default_factory=WatchSpec)
    logging: LoggingSpec = field(default_factory=LoggingSpec)
    plugins: PluginsSpec = field(default_factory=PluginsSpec)
    name: str = ""
    """Of the run; empty: derived by the caller."""
    import_paths: list[str] = field(default_factory=list)
    """Directories put first on `sys.path` of every process that runs agents: the one that the topology file lies in."""
    secrets: list[str] = field(default_factory=list, repr=False)
    """Texts that came from the environment and must not be shown. Known to host and program, never sent to a worker."""
    private_variables: list[str] = field(default_factory=list)
    """Environment variables that single agents' credentials were made of: no process of the run gets them."""

    def to_plain(self) -> dict[str, Any]:
        """Dictionaries, lists and scalars: for JSON, msgpack, and the host's boot message."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> TopologySpec:
        """The inverse of `to_plain`. For our own data only: users' files go through `topology.load`."""
        return cls(
            supervision=_supervisor(plain["supervision"]),
            processes=[ProcessSpec(**item) for item in plain["processes"]],
            pool=PoolSpec(**plain["pool"]),
            transport=TransportSpec(**plain["transport"]),
            bridge=None if plain.get("bridge") is None else BridgeSpec(**plain["bridge"]),
            stop=StopSpec(**plain["stop"]),
            watch=WatchSpec(**plain["watch"]),
            logging=LoggingSpec(**plain["logging"]),
            plugins=PluginsSpec.from_plain(plain["plugins"]),
            name=plain["name"],
            import_paths=list(plain["import_paths"]),
            secrets=list(plain["secrets"]),
            private_variables=list(plain["private_variables"]),
        )


def _supervisor(plain: dict[str, Any]) -> SupervisorSpec:
    children = [_supervisor(c) if "children" in c else AgentSpec(**c) for c in plain["children"]]
    dynamic = None if plain["dynamic"] is None else DynamicSpec(**plain["dynamic"])
    return SupervisorSpec(**{**plain, "children": children, "dynamic": dynamic})
