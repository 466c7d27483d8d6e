"""Every control message between the processes of a run, one class each.

Rules of this file: data only; a class says who sends it to whom and what the receiver does. The unions at the end are
what each side accepts; anything else on its socket ends the connection (`wire`). These go over socketpairs between our
own processes; agents' messages never do.

Conversations:
- caller <-> host: `Boot`, then `Welcome` (or `Refused`), then orders to the caller's own agents as to a worker's,
  output, events and snapshots, `Stop`, at last `Ended`;
- host -> fork server: `Fork`, nothing else;
- host <-> worker: `Hello`, `Assign` and `Ready`, then orders and reports.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ..notify import ServiceSettings
from ..roster import Traits
from ..snapshot import RuntimeSnapshot
from ..topology.model import Drain

__all__ = [
    "AgentReport",
    "Answer",
    "Assign",
    "Boot",
    "CrashAgent",
    "Chaos",
    "EndWait",
    "Ended",
    "Fork",
    "FromCaller",
    "FromHost",
    "FromWorker",
    "Happened",
    "Hello",
    "Judge",
    "Judgement",
    "Known",
    "Leave",
    "Life",
    "Line",
    "Memory",
    "Output",
    "Ready",
    "Refused",
    "Request",
    "Running",
    "Snapshot",
    "StartAgent",
    "SteerAgent",
    "Stop",
    "StopAgent",
    "ToForkServer",
    "ToWorker",
    "WantSnapshots",
    "Welcome",
]


class _Message(msgspec.Struct, tag_field="op"):
    pass


# --- host -> fork server ------------------------------------------------------------------------------------------


class Fork(_Message, tag="fork"):
    """Make one process. Descriptors: its control socket, output socket, stdout, stderr, death pipe."""

    fds: int = 5


class Memory(_Message, tag="memory"):
    """Descriptors of the run's memory, for all processes that are made from now on. Said before the first Fork."""

    fds: int


# --- worker -> host -----------------------------------------------------------------------------------------------


class Hello(_Message, tag="hello"):
    """The process is there and tied to the host; it waits for a slot."""

    pid: int


class Ready(_Message, tag="ready"):
    """The slot's memory is attached, the loop runs: agents may be started."""

    slot: int


class AgentReport(_Message, tag="agent"):
    """An event of the agent runner."""

    event: dict[str, Any]
    """`AgentEvent.to_plain()`."""
    incarnation: int
    """Of the agent, as StartAgent said; 0: the event is about no life."""


class Request(_Message, tag="request"):
    """An agent of this process, or the program, asks supervision for something. Answered by an Answer of this id."""

    id: int
    asker: str
    """Empty: the program."""
    what: str
    """See `requests.Requests.take`."""
    fields: dict[str, Any]


# --- host -> worker (and to the caller, for the agents of `main`) ---------------------------------------------------


class Assign(_Message, tag="assign"):
    """Become this process of the run."""

    process: str
    slot: int
    transport: str
    attach: dict[str, Any]
    memory_fds: list[int]
    """Numbers of the run's descriptors in a fresh interpreter; a forked process was born with its own."""
    env: dict[str, str]
    cpus: list[int]
    nice: int
    import_paths: list[str]
    log_level: str
    log_levels: dict[str, str]
    """By agent."""
    plugins: dict[str, Any] = {}
    """`PluginsSpec` as plain data; built here when an agent asks."""
    agents: int | None = None
    """How many it will be told to start, those that wait for their turn included."""


class StartAgent(_Message, tag="start_agent"):
    """Build an agent and read its mailbox. Answered by an AgentReport."""

    spec: dict[str, Any]
    """`AgentSpec` as plain data."""
    mailbox: int
    incarnation: int
    """Named in every report about this life."""


class StopAgent(_Message, tag="stop_agent"):
    """End one agent, `drain` as in `StopSpec`. Answered by an AgentReport; later the host kills the process."""

    name: str
    drain: Drain
    timeout_s: float


class EndWait(_Message, tag="end_wait"):
    """A handler here is the last link of a deadlock: what it waits for fails with a DeadlockError."""

    kind: Literal["ask", "room"]
    id: int
    """As in `transport.Wait`."""
    cycle: list[tuple[str, str, str, str, float]]


class CrashAgent(_Message, tag="crash_agent"):
    """End one agent as if it had crashed. Answered by an AgentReport."""

    name: str
    reason: str
    wanted: bool
    """Somebody wants it to be restarted, else an agent that it is linked with has crashed."""


class SteerAgent(_Message, tag="steer_agent"):
    """Suspend or resume one agent. Answered by an AgentReport of an AgentSteered."""

    name: str
    number: int
    what: str
    fields: dict[str, Any]


class Answer(_Message, tag="answer"):
    """To a Request: done, with what it was asked for, or a class of `errors` by name and its text."""

    id: int
    error: str = ""
    text: str = ""
    value: Any = None


class Life(_Message, tag="life"):
    """To the program: an agent fell, or runs again."""

    agent: str
    supervisor: str
    what: Literal["crashed", "died", "hung", "replaced"]
    """`died`, `hung`: with its process."""
    type: str = ""
    text: str = ""
    traceback: str = ""


class Judge(_Message, tag="judge"):
    """To the program: may this agent be spawned? Answered by a Judgement of this id."""

    id: int
    supervisor: str
    agent: dict[str, Any]
    """`AgentSpec` as plain data."""
    spawner: str


class Judgement(_Message, tag="judgement"):
    """The program's answer."""

    id: int
    refused: str = ""
    """Why not; empty: it may."""


class Known(_Message, tag="known"):
    """What the host knows of agents; only to processes that have asked (`heralds`)."""

    traits: dict[str, Traits | None]
    """By name; None: it is gone for good."""
    all: list[str] | None = None
    """If not None: there are no others."""


class Leave(_Message, tag="leave"):
    """All agents are stopped: detach and exit with status 0."""


# --- caller -> host -----------------------------------------------------------------------------------------------


class Chaos(msgspec.Struct, frozen=True):
    """What is done on purpose to random workers (`chaos`), as part of `Boot`."""

    kill_s: float | None = None
    """SIGKILL one at this interval."""
    stop_s: float | None = None
    """SIGSTOP one at this interval …"""
    stop_for_s: float = 0.0
    """… and SIGCONT it after this time."""


class Boot(_Message, tag="boot"):
    """The first message. The host's environment and working directory are the caller's, inherited."""

    topology: dict[str, Any]
    """`TopologySpec` as plain data."""
    name: str
    workers: int | None = None
    resume: bool = False
    fresh: bool = False
    chaos: Chaos | None = None
    events_path: str | None = None
    log_path: str | None = None
    """A file that takes what the caller and the host print: becomes the run's log."""
    service: ServiceSettings | None = None
    """The service manager that is to be told."""
    spin_ns: int | None = None


class Stop(_Message, tag="stop"):
    """Stop the run: drain as the topology says, or (`now`) kill at once. A second one is always at once."""

    now: bool = False
    exit_code: int = 0


class WantSnapshots(_Message, tag="want_snapshots"):
    """Send a snapshot at this interval; 0 ends it."""

    interval_s: float


# --- host -> caller -----------------------------------------------------------------------------------------------


class Welcome(_Message, tag="welcome"):
    """The memory is there. Descriptors: those that `attach` wants, in its order."""

    run_id: str
    name: str
    transport: str
    attach: dict[str, Any]
    fds: int
    notes: list[str]
    """What was decided differently from what one might expect."""


class Refused(_Message, tag="refused"):
    """The run cannot start: a class of `errors` by name, its text, and its exit code."""

    error: str
    text: str
    exit_code: int


class ClientComes(_Message, tag="client_comes"):
    """A client of the run, for the caller to serve. Descriptors: its connection."""

    fds: int = 1


class Line(msgspec.Struct):
    """One line that a process wrote, or one log record."""

    time_s: float
    """Since 1970."""
    process: str
    pid: int
    stream: str
    """`stdout`, `stderr`, or `log`."""
    text: str
    """Without the newline; a log record with a traceback has several lines."""
    agent: str = ""
    level: str = ""
    logger: str = ""


class Output(_Message, tag="output"):
    """Lines, in the order in which the host read them; `dropped` ones were lost since the last Output."""

    lines: list[Line]
    dropped: int = 0


class Happened(_Message, tag="happened"):
    """A lifecycle event, as in the `--events` file."""

    event: dict[str, Any]


class Snapshot(_Message, tag="snapshot"):
    """What the screen shows."""

    snapshot: RuntimeSnapshot


class Running(_Message, tag="running"):
    """Every agent has been started and is ready, for the first time."""


class Ended(_Message, tag="ended"):
    """The last message: the run is over, all its processes but host and caller are gone."""

    exit_code: int
    error: str
    """The class of `errors` that says why it ended, by name; empty when it ended well."""
    report: str
    """The text of that error."""
    waiting: dict[str, int]
    """Messages that stay in the segments for `--resume`, by agent."""
    counts: dict[str, int]
    """Of the whole run: deaths, restarts, redelivered, safety_rings, dropped_lines."""


ToForkServer = Fork | Memory
ToWorker = Assign | StartAgent | StopAgent | CrashAgent | SteerAgent | EndWait | Answer | Known | Leave
FromWorker = Hello | Ready | AgentReport | Request
FromCaller = Boot | Ready | AgentReport | Request | Judgement | Stop | WantSnapshots
FromHost = (
    Welcome
    | Refused
    | ClientComes
    | StartAgent
    | StopAgent
    | CrashAgent
    | SteerAgent
    | EndWait
    | Answer
    | Known
    | Life
    | Judge
    | Leave
    | Output
    | Happened
    | Snapshot
    | Running
    | Ended
)
