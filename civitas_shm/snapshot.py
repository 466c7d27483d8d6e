"""One reading of a run: what the screen of `run`, its `--json` summary, and later `top` are drawn from.

Rules of this file: plain frozen values and nothing else (stdlib only), so that the runtime can make them without
knowing who looks, and a view can be tested without a runtime. None means "not known", never 0. Units are in the names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["AgentSnapshot", "ProcessSnapshot", "RuntimeSnapshot", "SupervisorSnapshot"]


def state_word(state: str, suspended_since_s: float) -> str:
    """What an agent is in, as people read it: `ready`, as supervision has it, is `running`, or `suspended`."""
    if state not in ("ready", "running", "suspended"):
        return state
    return "suspended" if suspended_since_s else "running"


@dataclass(frozen=True, slots=True)
class ProcessSnapshot:
    """One OS process of the run: host, caller (`main`), worker or standby."""

    name: str
    pid: int | None = None
    """None while no process stands behind the name (a restart waits for its backoff)."""
    cpus: tuple[int, ...] = ()
    """Cores that it may run on; empty: wherever the kernel likes."""
    cpu_percent: float | None = None
    """Of one core, over the last sampling interval."""
    rss_bytes: int | None = None
    state: str = "running"
    """`starting`, `running`, `stopped` (SIGSTOP), `waiting` (for its backoff), `dead`, or what the watch says of it."""
    restarts: int = 0
    slot: int | None = None
    threads: int | None = None
    core: int | None = None
    """Where it ran last."""
    lag_s: float | None = None
    """For how long, at least, its event loop has not turned."""
    arena_bytes: int | None = None
    """Memory taken for the messages that it has sent."""
    arena_most_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class AgentSnapshot:
    """One agent; with replicas, their sum."""

    name: str
    process: str = ""
    """Name of the process, or of the processes, comma-separated."""
    queue: int = 0
    """Messages that wait, those in hand not counted."""
    handled: int = 0
    """Handlers finished since the run began."""
    rate_per_s: float | None = None
    """Handlers finished per second, over the last sampling interval."""
    handler_p50_us: float | None = None
    """Median handler time in microseconds."""
    restarts: int = 0
    state: str = "running"
    """`starting`, `running`, `suspended`, `stopping`, `waiting` (for its backoff), `down`, `gone`."""
    supervisor: str = ""
    dropped: int = 0
    """Messages that its full mailbox dropped for newer ones, as `overflow` says."""
    capacity: int | None = None
    in_hand: int | None = None
    handler_p99_us: float | None = None
    in_handler_s: float | None = None
    """For how long the running handler has; None: none runs."""
    message: str = ""
    """Type of the message in hand."""
    sender: str = ""
    """Who sent it."""
    sent_per_s: float | None = None
    in_bytes_per_s: float | None = None
    redelivered: int = 0
    garbage: int = 0
    overflow: str = ""
    lag_s: float | None = None
    """As that of its process."""
    kind: str = ""
    """What it is doing, a word of `inspection.why`; empty: nobody has found out."""
    doing: str = ""
    """The same in two or three words, for a column."""
    why: str = ""
    """The same as a paragraph."""


@dataclass(frozen=True, slots=True)
class SupervisorSnapshot:
    """One supervisor of the tree."""

    name: str
    parent: str = ""
    strategy: str = ""
    state: str = ""
    restarts_in_window: int = 0
    max_restarts: int = 0
    window_s: float = 0.0
    dynamic: bool = False


@dataclass(frozen=True, slots=True)
class RuntimeSnapshot:
    """The whole run."""

    name: str
    transport: str = ""
    uptime_s: float = 0.0
    shared_bytes: int | None = None
    """Shared memory that is really taken; None where there is none."""
    processes: tuple[ProcessSnapshot, ...] = field(default_factory=tuple)
    agents: tuple[AgentSnapshot, ...] = field(default_factory=tuple)
    supervisors: tuple[SupervisorSnapshot, ...] = field(default_factory=tuple)
    state: str = ""
    """`starting`, `running`, `stopping`, `dead`, `removed`; empty: not looked at from outside."""
    time_s: float | None = None
    """Of the reading, since 1970."""
    dead_letters: int | None = None
    letters: tuple[dict[str, Any], ...] = field(default_factory=tuple)
    """The newest, without payloads."""
    events: tuple[dict[str, Any], ...] = field(default_factory=tuple)
    """The last ones, the newest last."""
