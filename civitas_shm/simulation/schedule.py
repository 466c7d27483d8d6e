"""What happens in a simulated world apart from what the tree asks for: the words of a fault schedule.

Rules of this file: frozen values, no behaviour. A schedule is complete: a world without an entry is a world in which
every agent starts and stops at once and nothing ever fails, so an entry can be taken out and the rest still has a
meaning. That is what makes a schedule shrinkable. An entry whose target is not there at its time changes nothing.

Times are seconds of the world's clock. All that the simulator draws are multiples of 1/64 s, which binary floating
point holds exactly: so two things happen at the very same time, and a restart is exactly as old as the window, often.
"""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

from ..supervision.events import Event
from ..topology.model import AgentSpec

__all__ = [
    "FAULTS",
    "Again",
    "Despawn",
    "End",
    "Ending",
    "Entry",
    "Fate",
    "FaultKind",
    "Full",
    "Kill",
    "Pause",
    "Schedule",
    "Slow",
    "Spawn",
    "Stop",
]

FaultKind = Literal["kill", "pause", "slow", "full"]
FAULTS: Final[tuple[FaultKind, ...]] = ("kill", "pause", "slow", "full")
"""Kinds of faults of the world around the agents; what agents do of themselves (Fate, End) is always on."""

Ending = Literal["crash", "unclean", "finish", "stop"]
"""ChildFailed; ChildExited not normal, clean, by ErrorAction.STOP."""


class Fate(Struct, frozen=True):
    """How one life starts and stops. Without one it does both at once, and well."""

    child: str
    life: int
    """1, 2, …: the first start under that name, the second."""
    start_s: float = 0.0
    start: Literal["ready", "fails", "ends", "hangs"] = "ready"
    """`hangs`: its start-up deadline has to end it."""
    stop_s: float = 0.0
    stop: Literal["stops", "fails", "ignores"] = "stops"
    """`fails`: its end looks like a crash. `ignores`: its shutdown deadline has to end it, and its process with it."""
    report_s: float = 0.0
    """How late its reports come (ready, ended)."""


class End(Struct, frozen=True):
    """An agent ends by itself."""

    at_s: float
    child: str
    how: Ending


class Kill(Struct, frozen=True):
    """SIGKILL of a process."""

    at_s: float
    process: str
    counts: bool = True
    """False: by chaos, a deploy, the host."""
    report_s: float = 0.0
    """How late the death is noticed."""


class Pause(Struct, frozen=True):
    """SIGSTOP, and SIGCONT later: meanwhile nothing in the process goes on, and deadlines pass."""

    at_s: float
    process: str
    for_s: float


class Slow(Struct, frozen=True):
    """Starts and stops in the process take so many times longer, and two seconds more."""

    at_s: float
    process: str
    factor: float
    for_s: float


class Full(Struct, frozen=True):
    """The agent's mailbox is full: neither a start's first message nor a stop gets through until it is over."""

    at_s: float
    child: str
    for_s: float


class Again(Struct, frozen=True):
    """An event comes a second time, or long after: the tree must not care. A wish (RemoveChild) means whoever bears the
    name by then."""

    at_s: float
    event: Event


class Stop(Struct, frozen=True):
    """The whole run is asked to stop."""

    at_s: float
    before_start: bool = False
    """Before the tree is brought up."""


class Spawn(Struct, frozen=True):
    """An agent is spawned below a dynamic supervisor, into a process; often under a name that another has left."""

    at_s: float
    supervisor: str
    agent: AgentSpec
    spawner: str = ""
    before_start: bool = False


class Despawn(Struct, frozen=True):
    """A spawned agent is removed."""

    at_s: float
    child: str
    timeout_s: float | None = None


Entry = Fate | End | Kill | Pause | Slow | Full | Again | Stop | Spawn | Despawn
Schedule = tuple[Entry, ...]
