"""What goes over the control socket: one reply to each request, in order.

Rules of this file:
- data only; a frame is that of `host.wire` (length and one msgpack map with `op`);
- a request says which `protocol` it speaks. A host answers those of its own version and refuses others in words, so an
  old command meets a new host, and a new one an old host, with a sentence and not with silence;
- what is added to a class is optional and has a default; what changes its meaning raises PROTOCOL.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from ..topology.model import Drain

__all__ = [
    "DELAYS_PAGE_MAX",
    "IDS_MAX",
    "LETTERS_PAGE_MAX",
    "PAYLOAD_SHOWN_MAX",
    "PROTOCOL",
    "REQUEST_BYTES_MAX",
    "SOCKET",
    "Connect",
    "Connected",
    "DeadDrop",
    "DeadList",
    "DeadReplay",
    "DeadShow",
    "Delays",
    "DelaysCancel",
    "DelaysList",
    "Letters",
    "Outcomes",
    "Refusal",
    "AgentState",
    "Reply",
    "Request",
    "RunStates",
    "ResumeAgent",
    "RunStatus",
    "RunTopology",
    "Shown",
    "States",
    "Status",
    "Steered",
    "StopRun",
    "Stopping",
    "SuspendAgent",
    "Topology",
    "read_request",
]

PROTOCOL: Final = 1

SOCKET: Final = "control"
"""Name of the socket in the run directory."""

REQUEST_BYTES_MAX: Final = 64 << 10
IDS_MAX: Final = 100
"""Dead letters that one request may replay or drop: a few milliseconds of the host's time."""

LETTERS_PAGE_MAX: Final = 100
"""Each with a traceback of up to 32 KiB: a page stays below what one frame takes, and a millisecond."""

DELAYS_PAGE_MAX: Final = 500
"""Each below 2 KiB: a page takes a millisecond of the host's time."""

PAYLOAD_SHOWN_MAX: Final = 1 << 20
"""Bytes of a dead letter's payload that are sent to be looked at; replaying takes all of it."""


# --- to the host --------------------------------------------------------------------------------------------------


class _Request(msgspec.Struct, tag_field="op", kw_only=True):
    protocol: int = PROTOCOL


class Status(_Request, tag="status"):
    """What `ps` shows. Answered by RunStatus."""


class Topology(_Request, tag="topology"):
    """What runs, as declared, and in which state. Answered by RunTopology."""

    salt: Annotated[str, msgspec.Meta(max_length=64)] = ""
    """Of what stands in the place of secrets: who asks two runs with the same one can compare them."""


class States(_Request, tag="states"):
    """States that lie in the run's memory (`state: shm`). Answered by RunStates."""

    agent: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    """Whose state is to be shown; empty: nobody's."""


class StopRun(_Request, tag="stop"):
    """Stop the run. Answered by Stopping at once; the connection ends when the run is gone and its lock is free."""

    now: bool = False
    """Kill at once; what is in hand stays for `--resume`."""
    drain: Drain | None = None
    """Instead of the topology's."""


class DeadList(_Request, tag="dead_list"):
    """Dead letters, the newest first, without payloads. Answered by Letters."""

    skip: Annotated[int, msgspec.Meta(ge=0)] = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=LETTERS_PAGE_MAX)] = LETTERS_PAGE_MAX


class DeadShow(_Request, tag="dead_show"):
    """All of those whose id begins so, at most 10, the payload of a single one. Answered by Shown."""

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=36)]


class DeadReplay(_Request, tag="dead_replay"):
    """Put copies into their recipients' mailboxes, and forget the letters. Answered by Outcomes."""

    ids: Annotated[list[str], msgspec.Meta(max_length=IDS_MAX)]


class DeadDrop(_Request, tag="dead_drop"):
    """Forget letters. Answered by Outcomes."""

    ids: Annotated[list[str], msgspec.Meta(max_length=IDS_MAX)]


class Connect(_Request, tag="connect"):
    """Be a client of the run. The host hands the connection to the program that started the run, which answers
    Connected and then speaks `clients.protocol`; or a Refusal: `busy` while it starts or stops, `clients` when full."""


class DelaysList(_Request, tag="delays_list"):
    """Messages that wait for their time, in the order of their coming. Answered by Delays."""

    after: Annotated[int, msgspec.Meta(ge=0)] = 0
    """The `last` of the page before."""


class DelaysCancel(_Request, tag="delays_cancel"):
    """Take some of them back. Answered by Outcomes."""

    ids: Annotated[list[str], msgspec.Meta(max_length=IDS_MAX)]


class SuspendAgent(_Request, tag="suspend"):
    """Let an agent take no more messages after the one in hand. Answered by Steered at once."""

    name: str
    reason: str = ""


class ResumeAgent(_Request, tag="resume"):
    """Let it take messages again. Answered by Steered at once."""

    name: str
    approver: Annotated[str, msgspec.Meta(min_length=1)]


Request = (
    Status
    | Topology
    | States
    | StopRun
    | DeadList
    | DeadShow
    | DeadReplay
    | DeadDrop
    | Connect
    | DelaysList
    | DelaysCancel
    | SuspendAgent
    | ResumeAgent
)


# --- from the host ------------------------------------------------------------------------------------------------


class _Reply(msgspec.Struct, tag_field="op", kw_only=True):
    protocol: int = PROTOCOL


class RunStatus(_Reply, tag="run"):
    """A run as its host sees it."""

    name: str
    run_id: str
    state: Literal["starting", "running", "stopping"]
    version: str
    """Of civitas_shm."""
    host_pid: int
    pid: int
    """The program that started it: signals to stop it go there."""
    since_s: float
    """When the host began; seconds since 1970."""
    processes: int
    """That run agents just now."""
    agents: int
    waiting: int
    """Messages that wait or are in hand."""
    dead_letters: int | None
    restarts: int
    deaths: int
    suspended: list[str] = []
    """Agents that take no messages until somebody resumes them."""


class AgentState(msgspec.Struct):
    """One agent, a spawned one too; replicas are each one."""

    name: str
    supervisor: str
    process: str
    state: str
    restarts: int
    waiting: int
    """Messages that wait for the agent or are in hand; of replicas, for all of them."""
    spawned: bool = False


class RunTopology(_Reply, tag="run_topology"):
    """The topology of a run, without its secrets, and its agents as they are."""

    topology: dict[str, Any]
    """`topology.shown.show` of it."""
    agents: list[AgentState]


class RunStates(_Reply, tag="run_states"):
    """Who has a state in the run's memory, and one of them."""

    size_bytes: dict[str, int]
    """By agent."""
    state: bytes | None = None
    """Of the one that was asked for; None where it has none, or has one of more than PAYLOAD_SHOWN_MAX bytes."""
    message: bytes = b""
    """The id that it was saved with."""


class Stopping(_Reply, tag="stopping"):
    """It stops."""

    already: bool = False
    """Somebody had asked before, and their word holds."""


class Letters(_Reply, tag="letters"):
    """A page of dead letters, each as `Letter.to_plain`."""

    letters: list[dict[str, Any]]
    total: int
    evicted: int
    """Pushed out by newer ones since the store was made."""


class Shown(_Reply, tag="shown"):
    """What was found; `payload` is the beginning of that of the only one, as it was sent."""

    letters: list[dict[str, Any]]
    payload: bytes | None = None


class Outcomes(_Reply, tag="outcomes"):
    """By id: null where it was done, else why not."""

    outcomes: dict[str, str | None]


class Delays(_Reply, tag="delays"):
    """A page of delayed messages, each as `Delayed.to_plain`."""

    delayed: list[dict[str, Any]]
    total: int
    last: int
    """Where the next page goes on; a page of fewer than DELAYS_PAGE_MAX is the last one."""


class Connected(_Reply, tag="connected"):
    """From here on this is the connection of a client."""

    run: str
    run_id: str
    version: str
    pid: int
    """Of the program that started the run and serves its clients."""


class Refusal(_Reply, tag="refusal"):
    """The request was not carried out; nothing was changed."""

    kind: Literal["protocol", "unknown", "malformed", "busy", "forbidden", "fault", "clients"]
    text: str


class Steered(_Reply, tag="steered"):
    """It is begun; the status says when it is so."""


Reply = (
    RunStatus | RunTopology | RunStates | Stopping | Letters | Shown | Outcomes | Delays | Connected | Refusal | Steered
)


# --- reading ------------------------------------------------------------------------------------------------------


class _Head(msgspec.Struct):
    op: str
    protocol: int = 0


_head: Final = msgspec.msgpack.Decoder(_Head)
_request: Final[msgspec.msgpack.Decoder[Request]] = msgspec.msgpack.Decoder(Request)
_OPS: Final = (
    "status",
    "topology",
    "states",
    "stop",
    "dead_list",
    "dead_show",
    "dead_replay",
    "dead_drop",
    "connect",
    "delays_list",
    "delays_cancel",
    "suspend",
    "resume",
)


def read_request(body: bytes, version: str) -> Request | Refusal:
    """The request in a frame, or the refusal that it deserves; `version` of this civitas_shm, for the text."""
    try:
        head = _head.decode(body)
    except msgspec.MsgspecError as error:
        return Refusal(kind="malformed", text=f"that is no request: {error}")
    if head.protocol != PROTOCOL:
        return Refusal(
            kind="protocol",
            text=f"the host is of civitas_shm {version} and speaks version {PROTOCOL} of the control protocol; the "
            f"request is of version {head.protocol}. Use the civitas_shm that started the run",
        )
    if head.op not in _OPS:
        return Refusal(kind="unknown", text=f"the host of civitas_shm {version} knows no request {head.op[:40]!r}")
    try:
        return _request.decode(body)
    except msgspec.MsgspecError as error:
        return Refusal(kind="malformed", text=f"the request {head.op!r} is not well formed: {error}")
