"""The keys of a topology, block by block: pydantic models that check one mapping each, and nothing across mappings.

Rules of this file:
- strict: text is not a number, a number is not text, and a key that is not declared is a problem;
- the one exception: text that `${VAR}` was put into is read like the scalar that stands there then (`Variable`);
- keys of the original Civitas schema keep their names; where ours adds the unit (`restart_window_s`) both are accepted;
- what a later version brings is in `NOT_YET`, so that it is refused by name and never ignored;
- children, processes and other nested mappings are checked by `build`, one model at a time, with their positions.

Imported by `load` only, because of pydantic.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

from ..transport import STRIKES_MAX
from .model import LOG_LEVELS
from .names import NAME_MAX, name_problem
from .yaml12 import resolve

__all__ = [
    "NAME_MAX",
    "Agent",
    "Block",
    "DynamicSupervisor",
    "Logging",
    "ModelConfig",
    "Plugin",
    "Plugins",
    "Pool",
    "Price",
    "Process",
    "Stop",
    "Supervisor",
    "Top",
    "Transport",
    "Variable",
    "Watch",
    "class_path_problem",
    "name_problem",
    "run_name_problem",
]

PROCESSES_MAX = 126
"""The memory of a run has 128 process slots; host and caller take two, each standby another one (`placement`)."""
REPLICAS_MAX = 64
"""A mailbox has places for 64 messages in hand, one for each of its readers."""
_RUN_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?\Z")
_CLASS_PATH = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+\Z")


class Variable(str):
    """Text that `${VAR}` was put into: it may still turn out to be a number where one is wanted."""


def _typed(value: Any) -> Any:
    return resolve(value) if isinstance(value, Variable) else value


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, Variable) else value


def _free(value: Any) -> Any:
    """User's own data: `Variable` becomes plain text everywhere inside."""
    if isinstance(value, dict):
        return {key: _free(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_free(item) for item in value]
    return _text(value)


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def _empty_mapping(value: Any) -> Any:
    """`config:` with nothing behind it is an empty mapping, as everybody means it."""
    return {} if value is None else _free(value)


def class_path_problem(value: str) -> str | None:
    """Why a text cannot be the import path of a class, or None when it can."""
    if _CLASS_PATH.match(value):
        return None
    return f"{value!r} is no import path; it needs the form module.Class or package.module.Class"


def run_name_problem(value: str) -> str | None:
    """Why a text cannot name a run, or None when it can: it becomes part of file names."""
    if _RUN_NAME.match(value):
        return None
    return f"{value!r} cannot name a run; it needs a-z, 0-9 and '-' only, at most 64, no '-' at the ends"


def _refuse(problem_of: Callable[[str], str | None]) -> AfterValidator:
    """A `..._problem` function as a validator."""

    def validate(value: str) -> str:
        problem = problem_of(value)
        if problem is not None:
            raise ValueError(problem)
        return value

    return AfterValidator(validate)


def _level(value: str) -> str:
    if value.upper() not in LOG_LEVELS:
        raise ValueError(f"{value!r} is no level; allowed: {', '.join(LOG_LEVELS)}")
    return value.upper()


def _restart(value: Any) -> Any:
    return "temporary" if value == "never" else value  # `never` is Civitas's word for OTP's `temporary`


def _pool_size(value: Any) -> int | str:
    if value == "auto" or (type(value) is int and 1 <= value <= PROCESSES_MAX):
        return value  # type: ignore[no-any-return]
    raise ValueError(f"should be auto or a whole number from 1 to {PROCESSES_MAX}, not {value!r}")


def _url(value: str) -> str:
    if not re.match(r"https?://[^/\s]+", value):
        raise ValueError(f"{value!r} is no address of a service; it begins with https:// or http://")
    return value


def _distinct(value: list[int]) -> list[int]:
    if len(set(value)) != len(value):
        raise ValueError(f"{value!r} names a number twice")
    return value


Whole = Annotated[int, BeforeValidator(_typed)]
Number = Annotated[float, BeforeValidator(_typed)]
Flag = Annotated[bool, BeforeValidator(_typed)]
Text = Annotated[str, BeforeValidator(_text)]
Name = Annotated[Text, _refuse(name_problem)]
Level = Annotated[Text, AfterValidator(_level)]
FreeMapping = Annotated[dict[str, Any], BeforeValidator(_empty_mapping)]
FreeList = Annotated[list[Any], BeforeValidator(_free)]
TextList = Annotated[list[str], BeforeValidator(_free)]
TextMapping = Annotated[dict[str, str], BeforeValidator(_empty_mapping)]
Seconds = Annotated[Number, Field(gt=0, le=1_000_000)]
"""Up to eleven days; what is longer is a unit mistaken for another."""
RestartMode = Annotated[
    Literal["permanent", "transient", "temporary"], BeforeValidator(_restart), BeforeValidator(_text)
]
Devices = Annotated[list[Annotated[Whole, Field(ge=0, lt=4096)]], AfterValidator(_distinct)]


def _seconds(name: str, default: float | None) -> Any:
    """A duration under our name (`x_s`) and under Civitas's (`x`)."""
    return Field(default, validation_alias=AliasChoices(f"{name}_s", name))


class Block(BaseModel):
    """One mapping."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    NOT_YET: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def allowed(cls) -> list[str]:
        """The keys, as they are written."""
        names: list[str] = []
        for name, info in cls.model_fields.items():
            alias = info.validation_alias
            names += [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else [alias or name]  # type: ignore[list-item]
        return names


class Top(Block):
    """The top level. Blocks are checked one by one."""

    NOT_YET = frozenset(
        {"audit", "bridge", "deploy", "gateway", "hosts", "mcp", "nats", "presidium", "security", "state"}
        | {"telemetry"}
    )

    name: Annotated[Text, _refuse(run_name_problem)] = ""
    transport: Any = None
    supervision: Any = None
    supervisor: Any = None
    processes: Any = None
    pool: Any = None
    stop: Any = None
    watch: Any = None
    logging: Any = None
    plugins: Any = None


class Supervisor(Block):
    """`supervision:` at the top, `supervisor:` below."""

    name: Name = "root"
    strategy: Annotated[
        Literal["ONE_FOR_ONE", "ONE_FOR_ALL", "REST_FOR_ONE"], BeforeValidator(_upper), BeforeValidator(_text)
    ] = "ONE_FOR_ONE"
    max_restarts: Annotated[Whole, Field(ge=0, le=1_000_000)] = 3
    restart_window_s: Seconds = _seconds("restart_window", 60.0)
    backoff: Annotated[
        Literal["CONSTANT", "LINEAR", "EXPONENTIAL"], BeforeValidator(_upper), BeforeValidator(_text)
    ] = "CONSTANT"
    backoff_base_s: Annotated[Number, Field(ge=0, le=1_000_000)] = _seconds("backoff_base", 1.0)
    backoff_max_s: Annotated[Number, Field(ge=0, le=1_000_000)] = _seconds("backoff_max", 60.0)
    backoff_reset_s: Seconds | None = _seconds("backoff_reset", None)
    auto_shutdown: Annotated[Literal["never", "any_significant", "all_significant"], BeforeValidator(_text)] = "never"
    restart: RestartMode = "permanent"
    significant: Flag = False
    children: Any = None


class DynamicSupervisor(Block):
    """`{type: dynamic_supervisor, ...}`: below it agents are spawned while the run lasts."""

    NOT_YET = frozenset(["process"])

    type: Literal["dynamic_supervisor"]
    name: Name
    max_children: Annotated[Whole, Field(ge=0, le=1_000_000)] | None = None
    max_total_spawns: Annotated[Whole, Field(ge=0, le=1_000_000_000)] | None = None
    max_children_per_class: Annotated[
        dict[str, Annotated[Whole, Field(ge=0, le=1_000_000)]], BeforeValidator(_empty_mapping)
    ] = {}
    max_children_per_spawner: Annotated[Whole, Field(ge=0, le=1_000_000)] | None = None
    max_total_spawns_per_spawner: Annotated[Whole, Field(ge=0, le=1_000_000_000)] | None = None
    spawner_allowlist: TextList | None = None
    restart: RestartMode = "transient"
    max_restarts: Annotated[Whole, Field(ge=0, le=1_000_000)] = 3
    restart_window_s: Seconds = _seconds("restart_window", 60.0)
    backoff: Annotated[
        Literal["CONSTANT", "LINEAR", "EXPONENTIAL"], BeforeValidator(_upper), BeforeValidator(_text)
    ] = "CONSTANT"
    backoff_base_s: Annotated[Number, Field(ge=0, le=1_000_000)] = _seconds("backoff_base", 1.0)
    backoff_max_s: Annotated[Number, Field(ge=0, le=1_000_000)] = _seconds("backoff_max", 60.0)


class Agent(Block):
    """`agent:`, and what the flat forms come down to."""

    NOT_YET = frozenset(
        {"canary", "heartbeat_interval", "heartbeat_timeout", "host"}
        | {"hosts", "mcp", "missed_heartbeats_threshold", "model", "plugins", "public_key"}
        | {"sandbox", "tools"}
    )

    name: Name
    type: Text
    process: Name | None = None
    replicas: Annotated[Whole, Field(ge=1, le=REPLICAS_MAX)] = 1
    config: FreeMapping = {}
    args: FreeList = []
    kwargs: FreeMapping = {}
    mailbox_size: Annotated[Whole, Field(ge=1, le=1_000_000)] = 1000
    overflow: Annotated[Literal["block", "error", "drop_oldest", "latest"], BeforeValidator(_text)] = "block"
    max_retries: Annotated[Whole, Field(ge=0, le=1_000)] = 3
    delivery: Annotated[Literal["at_least_once", "at_most_once"], BeforeValidator(_text)] = "at_least_once"
    max_deliveries: Annotated[Whole, Field(ge=0, le=STRIKES_MAX)] = 3
    on_crash: Annotated[Literal["dead_letter", "redeliver"], BeforeValidator(_text)] = "dead_letter"
    restart: RestartMode = "permanent"
    significant: Flag = False
    start_timeout_s: Seconds = _seconds("start_timeout", 30.0)
    shutdown_timeout_s: Seconds = _seconds("shutdown_timeout", 30.0)
    handle_timeout_s: Seconds | None = _seconds("handle_timeout", None)
    state: Annotated[Literal["none", "in_memory", "shm"], BeforeValidator(_text)] = "in_memory"
    capabilities: TextList = []
    capability_metadata: FreeMapping = {}
    credentials: TextMapping = {}


class Process(Block):
    """One entry of `processes:`."""

    NOT_YET = frozenset(["memory_high_mb", "cgroup", "user", "host", "sandbox", "umask"])

    cpus: Devices = []
    nice: Annotated[Whole, Field(ge=-20, le=19)] = 0
    env: TextMapping = {}
    gpu: Devices = []
    numa: Annotated[Whole, Field(ge=0, lt=1024)] | None = None
    memory_limit_mb: Annotated[Whole, Field(ge=1)] | None = None


class Pool(Block):
    """`pool:`."""

    size: Annotated[Any, AfterValidator(_pool_size), BeforeValidator(_typed)] = "auto"
    standby: Annotated[Whole, Field(ge=0, le=16)] = 1
    pin: Flag = True
    preload: TextList = Field(default_factory=list)


class Transport(Block):
    """`transport:`; `transport: shm` is short for `transport: {type: shm}`."""

    NOT_YET = frozenset(["pub_addr", "sub_addr", "start_proxy", "servers", "jetstream", "stream_name"])

    type: Text = "in_process"
    segments: Annotated[Literal["named", "memfd"], BeforeValidator(_text)] = "named"
    arena_mb: Annotated[Whole, Field(ge=1, le=1 << 20)] = 256
    mailboxes: Annotated[Whole, Field(ge=1, le=1 << 20)] = 4096
    options: FreeMapping = {}


class Stop(Block):
    """`stop:`."""

    drain: Annotated[Literal["current", "all"], BeforeValidator(_text)] = "current"
    timeout_s: Seconds = _seconds("timeout", 25.0)


class Watch(Block):
    """`watch:`."""

    stopped_timeout_s: Annotated[Number, Field(ge=0, le=1_000_000)] = _seconds("stopped_timeout", 30.0)


class Logging(Block):
    """`logging:`; levels of single agents are checked one by one."""

    level: Level = "INFO"
    agents: Annotated[dict[str, Level], BeforeValidator(_empty_mapping)] = {}
    format: Annotated[Literal["text", "json"], BeforeValidator(_text)] = "text"


class Plugins(Block):
    """`plugins:`; its entries are checked one by one."""

    NOT_YET = frozenset(["exporters", "state"])

    models: Any = None
    tools: Any = None


class Plugin(Block):
    """One entry of `plugins.models` or `plugins.tools`. The config of a class of one's own is its own business."""

    type: Text
    name: Name | None = None
    config: FreeMapping = {}


class Price(Block):
    """US dollars for a million tokens."""

    input: Annotated[Number, Field(ge=0)]
    output: Annotated[Number, Field(ge=0)]


class ModelConfig(Block):
    """`config:` of a built-in model provider: the keyword arguments of its constructor."""

    default_model: Text = ""
    max_tokens: Annotated[Whole, Field(ge=1)] | None = None
    max_retries: Annotated[Whole, Field(ge=0, le=100)] = 3
    timeout_s: Seconds = _seconds("timeout", 600.0)
    api_key: Annotated[Text, Field(min_length=1)] | None = None
    base_url: Annotated[Text, AfterValidator(_url)] | None = None
    prices: Any = None
