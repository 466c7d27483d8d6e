"""What the contracts of mailboxes speak of: outcomes of a post, numbers of processes, and what is read from a run.

Rules of this file: values only, frozen; what an operation promises stands in `port` and `memory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

__all__ = [
    "BRIDGE",
    "CLOSED",
    "DELAYS",
    "FULL",
    "NO_MEMORY",
    "NO_MESSAGE",
    "REPLY_DROPPED",
    "SAME_MESSAGE",
    "SENDER_PROGRAM",
    "SENT",
    "SLOT_FIRST_WORKER",
    "SLOT_HOST",
    "SLOT_MAIN",
    "STRIKES_MAX",
    "TOO_LARGE",
    "Buried",
    "Delivery",
    "InHand",
    "MailboxSpec",
    "MailboxStats",
    "MemoryPlan",
    "Overflow",
    "Reply",
    "Wait",
    "quantile_us",
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

NO_MESSAGE: Final = -1
"""In place of a token, where a state is saved: it is the effect of no message."""
SAME_MESSAGE: Final = -2
"""It is the effect of the message that the last state was the effect of."""

SLOT_HOST: Final = 0
SLOT_MAIN: Final = 1
SLOT_FIRST_WORKER: Final = 2

STRIKES_MAX: Final = 15
"""As far as strikes are counted: four bits beside each message in hand. The most that `max_deliveries` may be."""

BRIDGE: Final = "_bridge"
"""The mailbox of what goes to other hosts, of the agent that is the bridge (`bridging`)."""

DELAYS: Final = "_delays"
"""The mailbox of orders of delayed messages, which the run itself reads."""

SENDER_PROGRAM: Final = 0xFFFF_FFFF
"""Sender of what the program itself sends (`Runtime.send`, `Runtime.ask`): no mailbox; its name reads `_runtime`."""

Overflow = Literal["block", "error", "drop_oldest", "latest"]
"""What a full mailbox does with one more: let the sender wait until its deadline, refuse at once, drop the oldest
waiting message, or keep only the newest one. Messages in hand are never dropped."""

Delivery = tuple[int, bytes, str, str, bytes, int]
"""(token, header, type, sender name, payload, delivery count): what `take` hands over. Private copies, all of it.

A count of 0: it has outlived its ttl, and is not to be handled. A negative count: the message is suspected of a death,
has been handed over -count times, and its handler has not begun: the reader lets it run alone in its process and says
so with `begin`, which returns the count.
"""

Reply = tuple[int, bytes, str, str, bytes, bool]
"""(correlation, header, type, sender name, payload, failed): what the future of an ask resolves to.

Failed with an empty payload means that nobody will answer: of type REPLY_DROPPED, because a full mailbox dropped the
question for newer messages, else because the mailbox was closed.
"""

REPLY_DROPPED: Final = "dropped"


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


def quantile_us(histogram: Sequence[int], share: float) -> float | None:
    """The time below which that share of handlers took, linear within the histogram's entry; None: there were none."""
    total = sum(histogram)
    seen = 0
    for exponent, count in enumerate(histogram):
        below, seen = seen, seen + count
        if count and seen >= total * share:
            low, high = (0.0 if exponent == 0 else 2.0 ** (exponent - 1)), 2.0**exponent
            return low + (high - low) * (total * share - below) / count
    return None


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
    """By drop_oldest and latest, and because they had outlived their ttl."""
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

    news: int = 0
    """How many of those that wait or are in hand are news of the runtime (`notices`), which no run is kept for."""

    suspended_since_s: float = 0.0
    """Since 1970; 0: it is not suspended. Known while its process lives, and as it was when that died."""

    bytes_in: int = 0
    """Payload bytes that its agent was handed."""
    bytes_out: int = 0
    mailbox: int = -1
    """The mailbox itself; -1: not known."""

    @property
    def unfinished(self) -> int:
        """Messages that somebody has sent and no handler has finished."""
        return max(0, self.waiting + self.in_hand - self.news)

    @property
    def handler_p50_us(self) -> float | None:
        """Median handler time, linear within the histogram's entry; None when no handler has finished."""
        return quantile_us(self.handler_ns, 0.5)


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
    """Processes at once, host and caller included; at most 128."""
    mailboxes: int = 4096
    arena_bytes: int = 256 << 20
    """Most that one process's messages may take."""
    mailbox_bytes: int = 1 << 30
    kind: Literal["named", "memfd"] = "named"
