"""What a transport promises: the contract of mailboxes, operation by operation, and where implementations are found.

Three contracts, from the inside out:
- `Port`: one process's door to the mailboxes of a run. Agents, asks and replies go through it. The hot path.
- `RunMemory`: the host's hold on a run: creates mailboxes, says who reads them, repairs after proof of death.
- `Transport`: the seed's small protocol for a user's own transport (addresses and bytes, no mailboxes).

Rules of this file: no implementation, no I/O but the import in `load_transport`. Implementations live in
`civitas_shm_transports` and import from here; the core never imports them by name.

Words: a *mailbox* is a number (its index in the directory of the run); a *slot* is a process's number, 0 the host,
1 the caller, 2 and up the workers; a *lane* is one of three rings of a mailbox, served control, priority, normal;
a *token* names a message in hand between `take` and `release`.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol, runtime_checkable

from .errors import ConfigurationError, TransportUnavailable
from .messages import Cause
from .runs import RunFound

__all__ = [
    "BUILTIN_TRANSPORTS",
    "CLOSED",
    "FULL",
    "NO_MEMORY",
    "SENDER_PROGRAM",
    "SENT",
    "SLOT_HOST",
    "STRIKES_MAX",
    "SLOT_MAIN",
    "SLOT_FIRST_WORKER",
    "TOO_LARGE",
    "Buried",
    "Burials",
    "Delivery",
    "InHand",
    "MailboxSpec",
    "MailboxStats",
    "MemoryPlan",
    "Overflow",
    "Port",
    "Reply",
    "RunMemory",
    "Transport",
    "TransportModule",
    "Wait",
    "load_transport",
]

# --- outcomes of a post: expected on the hot path, so numbers and not exceptions --------------------------------

SENT: Final = 0
FULL: Final = -1
"""No room by count or by ring; nothing was committed. Wait with `room`, or give up at the deadline."""
CLOSED: Final = -2
"""The mailbox was closed: its agent stopped or was given up. Final."""
NO_MEMORY: Final = -3
"""The sender's arena has no room now; nothing was committed. As FULL: receivers free it by finishing."""
TOO_LARGE: Final = -4
"""The payload can never fit. Final."""

SLOT_HOST: Final = 0
SLOT_MAIN: Final = 1
SLOT_FIRST_WORKER: Final = 2

STRIKES_MAX: Final = 15
"""As far as strikes are counted: four bits beside each message in hand. The most that `max_deliveries` may be."""

SENDER_PROGRAM: Final = 0xFFFF_FFFF
"""Sender of what the program itself sends (`Runtime.send`, `Runtime.ask`): no mailbox; its name reads `_runtime`."""

Overflow = Literal["block", "error", "drop_oldest", "latest"]
"""What a full mailbox does with one more: let the sender wait until its deadline, refuse at once, drop the oldest
waiting message, or keep only the newest one. Messages in hand are never dropped."""

Delivery = tuple[int, bytes, str, str, bytes, int]
"""(token, header, type, sender name, payload, delivery count): what `take` hands over. Private copies, all of it.

A negative count: the message is suspected of a death, has been handed over -count times, and its handler has not begun:
the reader lets it run alone in its process and says so with `begin`, which returns the count.
"""

Reply = tuple[int, bytes, str, str, bytes, bool]
"""(correlation, header, type, sender name, payload, failed): what the future of an ask resolves to.

Failed with an empty payload means that the mailbox was closed before anybody answered.
"""


@dataclass(frozen=True, slots=True)
class MailboxSpec:
    """How a mailbox is made."""

    name: str
    capacity: int = 1000
    """Messages that may wait in the normal lane; the one in hand is apart from it."""
    priority_capacity: int = 100
    overflow: Overflow = "block"
    replicas: int = 1
    """How many processes pull from it."""


@dataclass(frozen=True, slots=True)
class MailboxStats:
    """One reading of a mailbox and its cell; every number may be out of date at once, none blocks anybody."""

    name: str
    capacity: int
    waiting: int
    """Messages in all lanes, not counting those in hand."""
    in_hand: int
    handled: int
    """Handlers finished since the memory was made."""
    sent: int
    redelivered: int
    dropped: int
    """By drop_oldest and latest."""
    garbage: int
    """Slots or headers that did not check out; moved aside, never handed over."""
    busy_since_ns: int
    """CLOCK_MONOTONIC when the running handler began; 0 = idle."""
    handler_ns: tuple[int, ...] = ()
    """Histogram of handler time: entry i counts handlers that took less than 2**i microseconds."""
    readers: tuple[int, ...] = ()
    closed: bool = False
    asking: int = -1
    """Mailbox whose reply its agent waits for, or -1."""
    wants_room_in: int = -1
    overflow: Overflow = "block"
    """Read by a sender whose post returned FULL: only `block` makes it wait."""
    handling: str = ""
    """Type of the message in hand, or the empty text when idle or not known."""
    replay_dropped: int = 0
    """Sends of a handler that ran again, dropped because its earlier life had committed the same."""
    replay_diverged: int = 0
    """Sends of a handler that ran again which differ from all that its earlier life had sent; they are committed."""
    not_remembered: int = 0
    """Sends beyond what is remembered of one handler: they come twice when it runs again."""

    @property
    def handler_p50_us(self) -> float | None:
        """Median handler time, linear within the histogram's entry; None when no handler has finished."""
        total = sum(self.handler_ns)
        seen = 0
        for exponent, count in enumerate(self.handler_ns):
            below, seen = seen, seen + count
            if count and seen * 2 >= total:
                low, high = (0.0 if exponent == 0 else 2.0 ** (exponent - 1)), 2.0**exponent
                return low + (high - low) * (total / 2 - below) / count
        return None


@dataclass(frozen=True, slots=True)
class InHand:
    """A message whose handler had not finished when its reader died (or was looked at)."""

    mailbox: int
    token: int
    reader: int
    delivery: int
    header: bytes
    type: str
    sender: str
    payload_len: int
    running: bool = True
    """False: its handler had not begun (or it waited in hand), so the death was not its doing."""
    strikes: int = 0
    """Deaths and failures that count against it; saturates at STRIKES_MAX."""
    kills: int = 0
    """Unexplained SIGKILLs while it ran alone; saturates too."""
    once: bool = False
    """Its agent is at-most-once and its handler had begun: it may not be handed over again."""


@dataclass(frozen=True, slots=True)
class Buried:
    """A message that no handler will get again. It stays where it is until `discard`."""

    mailbox: int
    token: int
    delivery: int
    strikes: int
    header: bytes
    type: str
    sender: str
    payload: bytes
    note: bytes = b""
    """What its reader said about it, `letters.Note` encoded; empty when nothing is known."""
    sound: bool = True
    """False: header and payload did not check out; the bytes are what was found."""
    once: bool = False
    """As in `InHand`."""
    recipient: str = ""
    """Name of the mailbox."""


@dataclass(frozen=True, slots=True)
class Wait:
    """What the handler of one agent itself waits for: the answer to an ask, or room in a full mailbox.

    Promise: from `since_ns` to `seen_ns` it has waited for this and for nothing else. An answer or room that had come
    by `seen_ns` would have ended the wait.
    """

    agent: int
    """Mailbox of who waits."""
    target: int
    """Mailbox of who could end it."""
    kind: Literal["ask", "room"]
    id: int
    """Tells it from every other wait of the same agent and kind; of an ask its correlation."""
    since_ns: int
    """CLOCK_MONOTONIC."""
    seen_ns: int
    """When its process looked last, CLOCK_MONOTONIC."""
    type: str = ""
    """Of the message that is asked or to be sent; long ones are cut."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How much address space a run reserves; memory is taken only as it is used."""

    slots: int = 16
    """Processes at once, host and caller included; at most 64."""
    mailboxes: int = 4096
    arena_bytes: int = 256 << 20
    """Most that one process's messages may take."""
    mailbox_bytes: int = 1 << 30
    kind: Literal["named", "memfd"] = "named"


class Port(Protocol):
    """One process's door. All operations run on the thread of the loop given to `start`; none blocks.

    The hot operations take their arguments by position, so that they may be native functions.

    Guarantees: a post that returned SENT is committed: it survives the death of this and any other process.
    Messages of one sender to one mailbox and lane with one reader are handed over in the order of their posts.
    """

    slot: int
    payload_max_bytes: int
    """Largest payload that a post can ever commit; above it, TOO_LARGE."""
    state_max_bytes: int
    """The same of `commit_state`."""

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to receive on `loop`. Called once."""
        ...

    def stop(self) -> None:
        """Leave: pending asks and waits for room fail with TransportClosed. Idempotent.

        Messages in hand stay in hand for the successor.
        """
        ...

    def resolve(self, name: str) -> int:
        """The mailbox of an agent, or -1 when no record of that name exists. Cheap after the first time."""
        ...

    def names(self) -> list[str]:
        """All names in the directory whose mailboxes are open."""
        ...

    def post(
        self,
        mailbox: int,
        payload: bytes,
        type: str,
        sender: int,
        cause: Cause | None = None,
        lane: int = 2,
        priority: int = 0,
        /,
    ) -> int:
        """Commit one message. Returns SENT, FULL, CLOSED, NO_MEMORY or TOO_LARGE; the bytes are copied.

        `sender` is the sender's own mailbox. `cause` is the header of the message being handled: trace id and parent
        span are taken from it.
        """
        ...

    def post_ask(
        self,
        mailbox: int,
        payload: bytes,
        type: str,
        sender: int,
        future: asyncio.Future[Reply],
        deadline_ns: int,
        cause: Cause | None = None,
        lane: int = 2,
        priority: int = 0,
    ) -> int:
        """Commit a question. Returns a correlation (> 0), or an outcome as `post` does (then the future is untouched).

        The future gets the Reply, or TransportClosed. The caller owns the deadline: at its end it calls `forget`.
        """
        ...

    def forget(self, correlation: int) -> None:
        """Nobody waits any more: a late reply is counted and dropped. Unknown correlations are ignored."""
        ...

    def post_reply(self, cause: Cause, payload: bytes, type: str, sender: int, failed: bool = False, /) -> bool:
        """Answer the message whose header is `cause`. Never waits: the asker keeps a place for it.

        False when the asker is gone, its deadline has passed, or the message was no ask: the reply was dropped.
        PayloadTooLarge, SharedMemoryFull: somebody still waits and this reply cannot be stored; a smaller one may be.
        """
        ...

    def take(self, mailbox: int, done: int = -1, /) -> Delivery | None:
        """Release `done` (a token of this mailbox, or -1), then take the next message: redelivered first, then by lane.

        The message is in hand from here on: if this process dies before `release`, its successor gets it again with
        the delivery count raised. None = nothing waits; `on_ready` will be called when something does.
        """
        ...

    def release(self, mailbox: int, token: int, /) -> None:
        """The handler has finished with the message; it is gone for good."""
        ...

    def begin(self, mailbox: int, token: int, /) -> int:
        """The handler of a suspected message (negative count) begins now; its delivery count, raised by this.

        A death from here on may be its doing; before, it waited and cannot be blamed.
        """
        ...

    def forgo(self, mailbox: int, token: int, /) -> bool:
        """At-most-once, before the handler: the message is never handed over again, whatever dies.

        It stays in hand until `release` or `bury`; found there after a death it goes to the dead letters.
        """
        ...

    def strike(self, mailbox: int, token: int, /) -> int:
        """The handler failed, and the message stays in hand for the successor. How many strikes it has now."""
        ...

    def bury(self, mailbox: int, token: int, header: bytes, note: bytes, /) -> int:
        """Instead of `release`: the message goes to the dead letters with `note`. SENT, FULL or NO_MEMORY.

        After SENT neither message nor note is lost by any death, and no handler gets the message again. FULL and
        NO_MEMORY: nothing was done, because there is no room for the note; later there may be, and an empty note
        always finds room.
        """
        ...

    def commit_state(self, mailbox: int, token: int, state: bytes, /) -> int:
        """Store the agent's state together with the identity of the message in hand, by one word.

        After it, a redelivery of that message is recognised (`stored_state` carries its id); with a token of -1 of
        none. SENT, NO_MEMORY or TOO_LARGE. Only for mailboxes with one reader.
        """
        ...

    def stored_state(self, mailbox: int, /) -> tuple[bytes, bytes] | None:
        """(state, id of the message it was committed with), or None when none was ever committed."""
        ...

    def listen(self, mailbox: int, on_ready: Callable[[], None]) -> None:
        """Become a reader: `on_ready` is called on the loop when messages may wait, and once soon after this call.

        It is a hint: it may come when nothing waits. The reader calls `take` until None, or again later.
        """
        ...

    def unlisten(self, mailbox: int) -> None:
        """Stop calling `on_ready`. Waiting messages stay where they are."""
        ...

    def room(self, mailbox: int) -> asyncio.Future[None]:
        """A future that resolves when a post that returned FULL or NO_MEMORY may be worth another try. A hint too."""
        ...

    def collect(self) -> None:
        """Whatever has come by now for those who wait here, replies and news of room, resolves its future at once."""
        ...

    def note_waits(self, waits: Sequence[Wait]) -> None:
        """What the handlers of this process wait for, for others to read; it replaces what was noted before."""
        ...

    def held(self) -> tuple[int, list[tuple[str, int]]]:
        """(bytes that all messages of this process may take, [(receiver, bytes that it has not given back)]).

        The largest first, five at most; for the text of an error.
        """
        ...

    def stats(self, mailbox: int) -> MailboxStats:
        """One reading, from anywhere, at no cost to the agent."""
        ...


class Burials(Protocol):
    """Where messages lie that were given up, until their letters are stored: the RunMemory, or the Port in process."""

    def resolve(self, name: str) -> int:
        """The mailbox of an agent, or -1 when no record of that name exists."""
        ...

    def buried(self) -> list[Buried]:
        """The next ones, at most a few hundred; the same again until they are discarded. Empty: there are none."""
        ...

    def discard(self, mailbox: int, token: int) -> None:
        """Its letter is stored: a buried message, or one that a dead reader had in hand, is gone for good."""
        ...

    def answer_failed(self, header: bytes, payload: bytes, mailbox: int) -> None:
        """Tell who asks, if somebody does, that the message of this header failed; `payload` as `AgentError` fields."""
        ...

    def repost(self, mailbox: int, letter: Buried, sender: int) -> int:
        """Commit a copy of a letter: new id, one hop more, never an ask. An outcome as `Port.post` gives it."""
        ...


class RunMemory(Burials, Protocol):
    """The host's hold on the memory of one run. Not on a hot path; may take milliseconds, never waits for a process."""

    run_id: str
    name: str
    plan: MemoryPlan
    run_dir: Path
    """The run's own directory, which this host holds: for its control socket, its log, and its dead letters, which stay
    in it when all else goes (`letters.DIRECTORY`)."""
    told: list[str]
    """Sentences for the user about what was found at the beginning and what became of it."""

    def fds(self) -> list[int]:
        """Every file descriptor that a process of the run needs, in the order that `attach` expects."""
        ...

    def attach_spec(self, slot: int, incarnation: int, spin_ns: int) -> dict[str, Any]:
        """What `attach` needs beside the descriptors; plain values."""
        ...

    def incarnation(self, slot: int) -> int:
        """The last incarnation of a slot, 0 when it was never used: an adopted run goes on counting from it."""
        ...

    def add_mailbox(self, spec: MailboxSpec) -> int:
        """Make a mailbox and publish its name. An open one of the same name (an adopted run) is returned as it is."""
        ...

    def set_readers(self, mailbox: int, slots: list[int]) -> None:
        """Who reads from now on. What dead earlier readers had in hand is handed to the first of `slots`."""
        ...

    def close_mailbox(self, mailbox: int, keep: Callable[[Buried], object] | None = None) -> list[InHand]:
        """Nothing can be committed after this. What waited is removed and returned; askers get AgentStopped at once.

        `keep` gets each before it is removed; a death in between and the successor's `finish_closing` gives it again.
        """
        ...

    def finish_closing(self, keep: Callable[[Buried], object]) -> list[InHand]:
        """Close for good what an earlier host died over while it closed it."""
        ...

    def post_notice(self, mailbox: int, type: str, data: bytes) -> int:
        """Commit news of the runtime (`notices`) to a mailbox's control lane. Returns as `Port.post`; never waits."""
        ...

    def slot_died(self, slot: int) -> list[InHand]:
        """Repair after proof of death (pidfd, lock): finish or undo half-taken messages, wake everybody.

        Returns what the dead process had in hand; it stays in hand and is redelivered to the successor.
        """
        ...

    def judge(self, entry: InHand, strikes: int, kills: int, alone: bool) -> None:
        """What the death of its reader means for one message: more strikes and kills, and whether it must run alone.

        Called for each that `slot_died` returned, before anything may be redelivered.
        """
        ...

    def read(self, entry: InHand) -> Buried:
        """The message of an entry whose reader is dead, complete."""
        ...

    def in_hand(self, slot: int) -> list[InHand]:
        """What a process holds just now."""
        ...

    def waiting(self) -> dict[str, int]:
        """Messages that wait or are in hand, by agent; only agents that have some."""
        ...

    def stats(self) -> list[MailboxStats]:
        """All open mailboxes."""
        ...

    def waits(self) -> list[Wait]:
        """What all processes noted by `Port.note_waits`; a wait that is being written just now is left out."""
        ...

    def probe(self, slot: int) -> None:
        """Ask whether the loop of a process turns; if it does, `answered` is true soon. Wakes it if it sleeps."""
        ...

    def answered(self, slot: int) -> bool:
        """Whether the last probe was answered."""
        ...

    def safety_poll(self) -> int:
        """Ring processes that sleep beside work; how many there were. Above 0 only if one was stopped mid-send
        or before it told those who wait for room that there is some."""
        ...

    def used_bytes(self) -> int:
        """Shared memory that is really taken."""
        ...

    def close(self, *, keep: bool) -> None:
        """Let go; `keep` leaves the segments for `--resume`, else nothing of the run remains. Idempotent."""
        ...


@runtime_checkable
class Transport(Protocol):
    """The seed's transport: addresses and bytes. For a user's own; slower than a Port, nothing survives a process."""

    async def start(self) -> None:
        """Open connections, bind sockets."""
        ...

    async def stop(self) -> None:
        """Flush and close."""
        ...

    async def subscribe(self, address: str, handler: Callable[[bytes], Awaitable[None]]) -> None:
        """Call `handler` for every message to `address`."""
        ...

    async def publish(self, address: str, data: bytes) -> None:
        """Send, fire and forget."""
        ...

    async def request(self, address: str, data: bytes, timeout: float) -> bytes:
        """Send and wait for the reply; TimeoutError after `timeout` seconds."""
        ...

    async def wait_ready(self) -> None:
        """Return once connections and subscriptions are in effect."""
        ...

    def has_reply_address(self, address: str) -> bool:
        """Whether `address` is a live reply address of this process."""
        ...


BUILTIN_TRANSPORTS: Final = {
    "in_process": "civitas_shm_transports.in_process",
    "shm": "civitas_shm_transports.shm",
}
"""Scheme -> module. A transport module has `transport() -> TransportModule`-like functions, see `load_transport`."""


@dataclass(frozen=True, slots=True)
class TransportModule:
    """What a transport module offers to the runtime."""

    scheme: str
    multi_process: bool
    """True: agents run in worker processes under a host, which holds a RunMemory."""
    create: Callable[..., Any]
    """`create(name, plan, *, run_dir, fresh, resume) -> RunMemory` when multi_process, else `create() -> Port`."""
    attach: Callable[[dict[str, Any], list[int]], Port] | None = None
    """`attach(spec, fds) -> Port` in a worker; None unless multi_process."""
    limits: dict[str, int] = field(default_factory=dict)
    layout_version: int | None = None
    """Of the shared memory; processes of different ones cannot share a run. None: it has none."""
    find_runs: Callable[[], list[RunFound]] | None = None
    """Every run of this user and what is left of runs, live ones too; None unless runs outlive processes."""
    stale_runs: Callable[[], list[RunFound]] | None = None
    """Those of them that are dead: nobody holds them, so they may be resumed or removed."""
    remove_stale: Callable[[RunFound], None] | None = None
    """Remove one that is not live, with all that is in it; RunAlive when it has come to life again."""
    is_held: Callable[[Path], bool] | None = None
    """Whether the run with that directory lives: by its lock, changing nothing."""
    hold: Callable[[Path], AbstractContextManager[None]] | None = None
    """Keep a dead run from being started or removed by others meanwhile; RunAlive when it is not dead."""
    run_directory: Callable[[str], Path] | None = None
    """Where the run of a name has its directory: control socket, log. It need not be there."""


def load_transport(scheme: str) -> TransportModule:
    """Import the transport of that name: a built-in one, or a dotted `package.module`.

    TransportUnavailable (exit code 5) when this system cannot have it; ConfigurationError when no such name exists.
    Entry points (group `civitas_shm.transports`) are scanned only for a name that is not built in, because the scan
    costs 30 ms at every worker start.
    """
    path = BUILTIN_TRANSPORTS.get(scheme)
    if path is None:
        path = scheme if "." in scheme else _entry_point(scheme)
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        if scheme in BUILTIN_TRANSPORTS:
            raise TransportUnavailable(
                f"transport {scheme!r} cannot be had here: {error}. Shared memory needs Linux and the compiled part of "
                "civitas-shm (pip install civitas-shm on Linux x86-64 or aarch64, or gcc for a source install). "
                "The same topology runs with --transport in_process."
            ) from error
        raise ConfigurationError(f"transport {scheme!r}: cannot import {path!r}: {error}") from error
    loaded = module.transport()
    if not isinstance(loaded, TransportModule):
        raise ConfigurationError(f"transport {scheme!r}: {path}.transport() returned {type(loaded).__name__}")
    return loaded


def _entry_point(scheme: str) -> str:
    from importlib.metadata import entry_points

    for point in entry_points(group="civitas_shm.transports"):
        if point.name == scheme:
            return point.value
    known = ", ".join(sorted(BUILTIN_TRANSPORTS))
    raise ConfigurationError(f"transport {scheme!r} is unknown; known here: {known}.")
