"""The keys of a topology, block by block: pydantic models that check one mapping each, and nothing across mappings.

Rules of this file:
- strict: text is not a number, a number is not text, and a key that is not declared is a problem (`keytypes`);
- the line below a key says what it means: docs/topology.md and the JSON Schema (`json_schema`) are made from it;
- keys of the original Civitas schema keep their names; where ours adds the unit (`restart_window_s`) both are accepted;
- what a later version brings is in `NOT_YET`, so that it is refused by name and never ignored;
- children, processes and other nested mappings are checked by `build`, one model at a time, with their positions.

Imported by `load` and `json_schema` only, because of pydantic.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from ..transport import STRIKES_MAX
from .keytypes import (
    REPLICAS_MAX,
    AsText,
    BackoffWord,
    Devices,
    EmptyMapping,
    Flag,
    FreeList,
    FreeMapping,
    Level,
    Name,
    Number,
    PoolSize,
    RedisUrl,
    RestartMode,
    RunName,
    Seconds,
    StateWord,
    StrategyWord,
    Text,
    TextList,
    TextMapping,
    Time,
    Url,
    Whole,
    seconds,
)

__all__ = [
    "Agent",
    "Block",
    "DynamicSupervisor",
    "EncryptedConfig",
    "EvalAgent",
    "InMemoryConfig",
    "KeyFile",
    "Logging",
    "ModelConfig",
    "Plugin",
    "Plugins",
    "NatsBridge",
    "NatsTls",
    "Pool",
    "Price",
    "Process",
    "Quotas",
    "RedisConfig",
    "SQLiteConfig",
    "Stop",
    "Store",
    "Supervisor",
    "Top",
    "Transport",
    "Watch",
    "ZmqBridge",
    "ZmqCurve",
]


class Block(BaseModel):
    """One mapping."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    NOT_YET: ClassVar[frozenset[str]] = frozenset()
    NEVER: ClassVar[dict[str, str]] = {}
    """Keys of Civitas that say nothing here, and why."""

    @classmethod
    def allowed(cls) -> list[str]:
        """The keys, as they are written."""
        return [key for name in cls.model_fields for key in cls.keys_of(name)]

    @classmethod
    def keys_of(cls, field: str) -> list[str]:
        """How one field is written: mostly as it is called, durations with and without their unit."""
        alias = cls.model_fields[field].validation_alias
        return [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else [str(alias or field)]


class Top(Block):
    """The top level. Blocks are checked one by one."""

    NOT_YET = frozenset(
        {"audit", "deploy", "gateway", "hosts", "mcp", "nats", "presidium", "security", "state"} | {"telemetry"}
    )

    name: RunName = ""
    """Name of the run. Default: the file's stem, or its directory's name for `topology.yaml`."""
    transport: Any = None
    """How messages travel: a word (`shm`, `in_process`, an import path), or a mapping, see `transport`."""
    supervision: Any = None
    """The supervision tree, see `supervision`. The one key that must be there."""
    supervisor: Any = None
    """Another word for `supervision`."""
    bridge: Any = None
    """How agents of other hosts are reached, see `bridge`."""
    processes: Any = None
    """Processes by name, see `processes`: only those that need more than a name."""
    pool: Any = None
    """The processes that agents without `process:` are placed on, see `pool`."""
    stop: Any = None
    """What SIGTERM and Ctrl-C do, see `stop`."""
    watch: Any = None
    """What is done about processes that do not go on, see `watch`."""
    logging: Any = None
    """How much is logged, see `logging`."""
    plugins: Any = None
    """Models and tools of agents, see `plugins`."""


class Supervisor(Block):
    """`supervision:` at the top, `supervisor:` below."""

    name: Name = "root"
    """Unique among agents and supervisors. Below the top it must be given."""
    strategy: StrategyWord = "ONE_FOR_ONE"
    """Who is restarted with a child that fell: nobody else, all, or those behind it. Upper or lower case."""
    max_restarts: Annotated[Whole, Field(ge=0, le=1_000_000)] = 3
    """Restarts within the window before this supervisor gives up itself."""
    restart_window_s: Seconds = seconds("restart_window", 60.0)
    """Seconds for which a restart counts."""
    backoff: BackoffWord = "CONSTANT"
    """How the wait before a restart grows: not, by the base each time, or by doubling (with jitter)."""
    backoff_base_s: Time = seconds("backoff_base", 1.0)
    """Seconds before the second restart within the window; the first is immediate."""
    backoff_max_s: Time = seconds("backoff_max", 60.0)
    """Seconds that a wait never exceeds."""
    backoff_reset_s: Seconds | None = seconds("backoff_reset", None)
    """All children up together for so many seconds: the backoff begins anew. Default: only with the window."""
    auto_shutdown: Annotated[Literal["never", "any_significant", "all_significant"], AsText] = "never"
    """Whether the end of any, or of all, significant children ends this supervisor; the root's end is the run's."""
    restart: RestartMode = "permanent"
    """What the supervisor above does at this one's end. Not at the root. `never` is Civitas's word for `temporary`."""
    significant: Flag = False
    """Its end may shut the supervisor above down. Not at the root."""
    children: Any = None
    """Agents and supervisors, in start order: `- agent: {...}`, `- supervisor: {...}` or `- {type: ..., name: ...}`."""


class Quotas(Block):
    """`config:` of a dynamic supervisor, as Civitas's documents have it; the same keys may stand beside `name`."""

    max_children: Annotated[Whole, Field(ge=0, le=1_000_000)] | None = None
    """Alive at once. Like all quotas, left out it is no limit."""
    max_total_spawns: Annotated[Whole, Field(ge=0, le=1_000_000_000)] | None = None
    """Since the run began."""
    max_children_per_class: Annotated[dict[str, Annotated[Whole, Field(ge=0, le=1_000_000)]], EmptyMapping] = {}
    """Alive at once, by import path of the class."""
    max_children_per_spawner: Annotated[Whole, Field(ge=0, le=1_000_000)] | None = None
    """Alive at once, of each agent that spawns."""
    max_total_spawns_per_spawner: Annotated[Whole, Field(ge=0, le=1_000_000_000)] | None = None
    """Since the run began, of each agent that spawns."""
    spawner_allowlist: TextList | None = None
    """Names of the agents that may spawn here; the program itself always may. Default: all."""
    restart: RestartMode = "transient"
    """Of the children, unless `spawn` says otherwise."""
    max_restarts: Annotated[Whole, Field(ge=0, le=1_000_000)] = 3
    """Restarts of one child within the window before it is given up. They never escalate."""
    restart_window_s: Seconds = seconds("restart_window", 60.0)
    """Seconds for which a restart counts."""
    backoff: BackoffWord = "CONSTANT"
    """As of a supervisor, for each child alone."""
    backoff_base_s: Time = seconds("backoff_base", 1.0)
    """As of a supervisor, for each child alone."""
    backoff_max_s: Time = seconds("backoff_max", 60.0)
    """As of a supervisor, for each child alone."""


class DynamicSupervisor(Quotas):
    """`{type: dynamic_supervisor, ...}`: below it agents are spawned while the run lasts."""

    type: Literal["dynamic_supervisor"]
    """Says what this is."""
    name: Name
    """Unique among agents and supervisors."""
    process: Name | None = None
    """Name of the process that its children run in, unless `spawn` names one. Default: the pool places each."""
    config: Any = None
    """The quotas may stand in here as well."""


class Agent(Block):
    """`agent:`, and what the flat forms come down to."""

    NOT_YET = frozenset({"canary", "host", "hosts", "mcp", "model", "plugins", "public_key", "sandbox", "tools"})
    NEVER: ClassVar[dict[str, str]] = dict.fromkeys(
        ("heartbeat_interval", "heartbeat_timeout", "missed_heartbeats_threshold"),
        "there are no heartbeats: the death of a process is an event; see handle_timeout for handlers that hang",
    )

    name: Name
    """Unique among agents and supervisors; not beginning with `_`."""
    type: Text
    """The class: `module.Class`, in a module beside this file or anywhere on `sys.path`."""
    process: Name | None = None
    """Name of the process that it runs in; `main` is the caller's own. Default: the pool places it."""
    replicas: Annotated[Whole, Field(ge=1, le=REPLICAS_MAX)] = 1
    """So many of it pull from one mailbox, each in a process of the pool, without an order between them."""
    config: FreeMapping = {}
    """Arrives as `self.config`."""
    args: FreeList = []
    """Arguments of the constructor, after the name."""
    kwargs: FreeMapping = {}
    """Keyword arguments of the constructor."""
    mailbox_size: Annotated[Whole, Field(ge=1, le=1_000_000)] = 1000
    """Messages that may wait."""
    overflow: Annotated[Literal["block", "error", "drop_oldest", "latest"], AsText] = "block"
    """What a full mailbox does: lets senders wait, refuses, drops the oldest, or keeps only the newest."""
    max_retries: Annotated[Whole, Field(ge=0, le=1_000)] = 3
    """`ErrorAction.RETRY`s of one message in place, before it escalates."""
    delivery: Annotated[Literal["at_least_once", "at_most_once"], AsText] = "at_least_once"
    """`at_most_once`: nothing is handed over twice; what a death cuts off goes to the dead letters."""
    max_deliveries: Annotated[Whole, Field(ge=0, le=STRIKES_MAX)] = 3
    """Deaths that are its doing, before a message goes to the dead letters; 0: any number."""
    on_crash: Annotated[Literal["dead_letter", "redeliver"], AsText] = "dead_letter"
    """What becomes of a message whose handler raised: put aside, or handed to the next incarnation."""
    restart: RestartMode = "permanent"
    """When it is started again: always, only after a failure, never. `never` is Civitas's word for `temporary`."""
    significant: Flag = False
    """Its end may shut its supervisor down (`auto_shutdown`)."""
    start_timeout_s: Seconds = seconds("start_timeout", 30.0)
    """Seconds for constructor and `on_start`."""
    shutdown_timeout_s: Seconds = seconds("shutdown_timeout", 30.0)
    """Seconds to finish the message in hand and `on_stop`."""
    handle_timeout_s: Seconds | None = seconds("handle_timeout", None)
    """Seconds; a handler that runs longer is cancelled, which is a crash; if its loop hangs, the process is killed."""
    state: StateWord = "store"
    """Where `checkpoint()` saves: `store` is `plugins.state`, or memory; `shm` also by itself, over any death."""
    capabilities: TextList = []
    """What it can do, for `send_capable`."""
    capability_metadata: FreeMapping = {}
    """Whatever belongs to that."""
    credentials: TextMapping = {}
    """Keys of this agent alone, by provider: `{anthropic: "${WALKER_KEY}"}`. Sent to its own process only."""


class EvalAgent(Agent):
    """`{type: eval_agent, ...}`: what Civitas's EvalAgent is told; a class of one's own is named like any agent's."""

    type: Literal["eval_agent"]
    """Says what this is. A subclass of EvalAgent is an agent with its import path for a type."""
    max_corrections_per_window: Annotated[Whole, Field(ge=0, le=1_000_000)] = 10
    """Nudges and redirects that one agent gets within the window; what is more is logged and dropped."""
    window_seconds: Seconds = 60.0
    """Length of that window."""
    exporters: Any = None
    """List of `{type: module.Class, config: {...}}`: each event goes to their `export(event)`."""


class Process(Block):
    """One entry of `processes:`."""

    NOT_YET = frozenset(["memory_high_mb", "cgroup", "user", "host", "sandbox", "umask"])

    cpus: Devices = []
    """Cores that it may run on. Default: placed by the pool."""
    nice: Annotated[Whole, Field(ge=-20, le=19)] = 0
    """Priority: 19 is the lowest; below 0 needs rights."""
    env: TextMapping = {}
    """Environment variables of this process."""
    gpu: Devices = []
    """Numbers of GPUs; made visible before its interpreter starts."""
    numa: Annotated[Whole, Field(ge=0, lt=1024)] | None = None
    """Memory node whose cores it gets."""
    memory_limit_mb: Annotated[Whole, Field(ge=1)] | None = None
    """MiB, its own children included; above it the process is killed and restarted."""


class Pool(Block):
    """`pool:`."""

    size: PoolSize = "auto"
    """Number of processes; `auto`: as many as there are cores that may be used."""
    standby: Annotated[Whole, Field(ge=0, le=16)] = 1
    """Processes that wait to take a dead one's place."""
    pin: Flag = True
    """Whether each process keeps to its core."""
    preload: TextList = Field(default_factory=list)
    """Modules imported before workers are forked. They must not start threads or touch a GPU."""


class Transport(Block):
    """`transport:`; `transport: shm` is short for `transport: {type: shm}`."""

    type: Text = "in_process"
    """`in_process`; `shm`: many processes; `nats`, `zmq`: `shm` and a `bridge`, its keys beside; or one of your own."""
    segments: Annotated[Literal["named", "memfd"], AsText] = "named"
    """`named`: messages outlive all processes (`run --resume`); `memfd`: they end with the run."""
    arena_mb: Annotated[Whole, Field(ge=1, le=1 << 20)] = 256
    """MiB of messages that one process may have sent and others not yet handled."""
    mailboxes: Annotated[Whole, Field(ge=1, le=1 << 20)] = 4096
    """Agents that the run has room for, spawned ones included."""
    options: FreeMapping = {}
    """For a transport of your own."""


class NatsTls(Block):
    """`tls:` of `bridge: {type: nats}`."""

    ca: Text | None = None
    """File with the certificate of who has signed the server's. Default: those that this system trusts."""
    cert: Text | None = None
    """File with this host's own certificate, where the server wants one."""
    key: Text | None = None
    """File with its key."""


class NatsBridge(Block):
    """`bridge: {type: nats, ...}`; `transport: {type: nats, ...}` is shared memory and this bridge."""

    NOT_YET = frozenset(["embedded"])

    type: Literal["nats"]
    """Says what this is."""
    servers: Any = "nats://localhost:4222"
    """One address, several with commas between, or a list; `tls://` for TLS. `--nats-url` and `NATS_URL` go before."""
    user: Text | None = None
    """Where the server wants user and password."""
    password: Text | None = None
    """Of that user."""
    token: Text | None = None
    """Where it wants a token."""
    nkey: Text | None = None
    """File with the seed of an nkey."""
    credentials: Text | None = None
    """File with JWT and seed (`.creds`)."""
    tls: Any = None
    """`true`, or a mapping, see `tls`."""
    outbox: Annotated[Whole, Field(ge=1, le=1_000_000)] = 10_000
    """Messages for other hosts that may wait; then senders wait for room."""
    jetstream: Flag = False
    """Not yet `true`."""
    stream_name: Text = "AGENCY"
    """Of `jetstream`."""


class ZmqCurve(Block):
    """`curve:` of a bridge over ZeroMQ: who may take part, and nobody else reads it."""

    directory: Text | None = None
    """Where the four keys are; made there, where the proxy is started. The others get all but `server_secret_key`."""
    server_public_key: Text | None = None
    """In place of a directory, where no proxy is started: the proxy's key."""
    client_public_key: Text | None = None
    """The one key of all hosts."""
    client_secret_key: Text | None = None
    """Its secret: say `${NAME}`."""


class ZmqBridge(Block):
    """`bridge: {type: zmq, ...}`; `transport: {type: zmq, ...}` is shared memory and this bridge."""

    type: Literal["zmq"]
    """Says what this is."""
    pub_addr: Text = "tcp://127.0.0.1:5559"
    """Of the proxy: where hosts send to. `ipc://PATH` on one machine; beyond it `curve` is needed."""
    sub_addr: Text = "tcp://127.0.0.1:5560"
    """... where they are sent from."""
    start_proxy: Flag = True
    """Start the proxy when there is none; of several hosts on one machine the first one does."""
    curve: Any = None
    """Encryption and who may take part, see `curve`."""
    outbox: Annotated[Whole, Field(ge=1, le=1_000_000)] = 10_000
    """Messages for other hosts that may wait; then senders wait for room."""


class Stop(Block):
    """`stop:`."""

    drain: Annotated[Literal["current", "all"], AsText] = "current"
    """`current`: messages in hand are finished, waiting ones stay; `all`: mailboxes are emptied first."""
    timeout_s: Seconds = seconds("timeout", 25.0)
    """Seconds, then processes are killed. Kubernetes gives 30."""


class Watch(Block):
    """`watch:`."""

    stopped_timeout_s: Time = seconds("stopped_timeout", 30.0)
    """Seconds after which a process that is stopped (SIGSTOP) is killed and restarted; 0: never."""


class Logging(Block):
    """`logging:`; levels of single agents are checked one by one."""

    level: Level = "INFO"
    """`DEBUG`, `INFO`, `WARNING`, `ERROR` or `CRITICAL`, in upper or lower case."""
    agents: Annotated[dict[str, Level], EmptyMapping] = {}
    """Levels of single agents, by name."""
    format: Annotated[Literal["text", "json"], AsText] = "text"
    """Of log lines on stderr."""


class Plugins(Block):
    """`plugins:`; its entries are checked one by one."""

    NOT_YET = frozenset(["exporters"])

    models: Any = None
    """List of plug-ins; the first is `self.llm`, any is `self.model_for(name)`."""
    tools: Any = None
    """List of plug-ins: `self.tools`."""
    state: Any = None
    """Where agents with `state: store` keep it: a word (`sqlite`), or a mapping, see the store. Default: in memory."""


class Plugin(Block):
    """One entry of `plugins.models` or `plugins.tools`. The config of a class of one's own is its own business."""

    type: Text
    """`anthropic` or `openai` (models), an entry point's name, or an import path."""
    name: Name | None = None
    """What agents call it by. Default: its type."""
    config: FreeMapping = {}
    """Keyword arguments of its constructor; of the built-in models: see `config` of a model."""


class Price(Block):
    """US dollars for a million tokens."""

    input: Annotated[Number, Field(ge=0)]
    """Of what is sent."""
    output: Annotated[Number, Field(ge=0)]
    """Of what comes back."""


class ModelConfig(Block):
    """`config:` of a built-in model provider: the keyword arguments of its constructor."""

    default_model: Text = ""
    """Used where `chat` is given an empty model."""
    max_tokens: Annotated[Whole, Field(ge=1)] | None = None
    """Of one answer. Default: the provider's."""
    max_retries: Annotated[Whole, Field(ge=0, le=100)] = 3
    """Of what may pass: no connection, 429, 5xx."""
    timeout_s: Seconds = seconds("timeout", 600.0)
    """Seconds for one call over all its tries."""
    api_key: Annotated[Text, Field(min_length=1)] | None = None
    """Default: `ANTHROPIC_API_KEY` or `OPENAI_API_KEY` of the environment."""
    base_url: Url | None = None
    """Of another service that speaks the same."""
    prices: Any = None
    """By model: `{input: ..., output: ...}`, US dollars for a million tokens."""


class Store(Block):
    """`plugins.state`, and `inner` of an encrypted one. The config of a class of one's own is its own business."""

    type: Text
    """`sqlite`, `redis`, `encrypted`, `in_memory`, an entry point's name, or an import path."""
    config: FreeMapping = {}
    """Keyword arguments of its constructor; of the built-in ones: see below."""


class InMemoryConfig(Block):
    """`config:` of `type: in_memory`."""


class SQLiteConfig(Block):
    """`config:` of `type: sqlite`."""

    db_path: Annotated[Text, Field(min_length=1)] = "civitas_state.db"
    """The file, on a disk of this machine; a relative path is that of where the run is started."""
    patience_s: Seconds = seconds("patience", 20.0)
    """Seconds that a checkpoint may wait for a file that others have locked."""
    synchronous: Annotated[Literal["normal", "full"], AsText] = "normal"
    """`full`: each checkpoint waits for the disk, and survives power loss."""


class RedisConfig(Block):
    """`config:` of `type: redis`."""

    url: RedisUrl = "redis://localhost:6379/0"
    """`redis://`, `rediss://` (TLS) or `unix://`, with user and password where the server wants them."""
    prefix: Text = "civitas_shm:state:"
    """Of keys: runs that share a server have one each."""
    patience_s: Seconds = seconds("patience", 20.0)
    """Seconds that a checkpoint may take over all its tries."""
    timeout_s: Seconds = seconds("timeout", 5.0)
    """Seconds that the server may take to connect or to answer."""


class EncryptedConfig(Block):
    """`config:` of `type: encrypted`."""

    inner: Any
    """The store that keeps what was encrypted: a word or a mapping, like `plugins.state`."""
    keys: Annotated[dict[str, Any], EmptyMapping] | None = None
    """By id, the first encrypts: base64 or hex of 32 bytes, or `{file: path}`. Default: CIVITAS_STATE_KEY."""
    current_key_id: Text | None = None
    """The key that encrypts, if it is not the first."""
    allow_plaintext_read: Flag = False
    """Records that are not encrypted are read as they are."""


class KeyFile(Block):
    """A key that is no text."""

    file: Annotated[Text, Field(min_length=1)]
    """Holds the 32 bytes, or their base64 or hex."""
