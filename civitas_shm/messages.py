"""The envelope: what travels with a payload, and how its 128 fixed bytes are laid out.

Rules of this file:
- HEADER is the one definition in Python of the binary header that `native/layout.h` draws; a test compares the two;
- ids are bytes until somebody reads them: `Message.id`, `trace_id` … render on access, because most are never read;
- a Message that arrived is a view of a private copy; changing it changes nothing in shared memory.
"""

from __future__ import annotations

import os
import re
import struct
import time
import uuid
from typing import TYPE_CHECKING, Any, Final, Generic, Self

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    P = TypeVar("P", default=dict[str, Any])
else:
    from typing import TypeVar

    P = TypeVar("P")

__all__ = [
    "CORRECTION",
    "FLAGS_AT",
    "FLAG_ASK",
    "FLAG_FAILED",
    "FLAG_FOREIGN",
    "FLAG_MORTAL",
    "FLAG_REPEATED",
    "FLAG_REPLY",
    "HALT",
    "HEADER",
    "ID_AT",
    "LANE_CONTROL",
    "LANE_NORMAL",
    "LANE_PRIORITY",
    "SEQ_AT",
    "STREAM_BIT",
    "SYSTEM_MESSAGE_TYPES",
    "Cause",
    "Message",
    "cause_of",
    "foreign_header",
    "is_system_type",
    "new_header",
    "cause_from",
]

HEADER: Final = struct.Struct("<QIIHBBIIBBH16sIiQQQ16s8s8sIIQ")
"""The fixed header; see `native/layout.h`. Field order:

check u64 · granules u32 · payload_len u32 · type_len u16 · codec u8 · flags u8 · mailbox u32 · position u32 · lane u8 ·
attempt u8 · hops u16 · id 16 bytes (uuid7, big endian) · sender u32 · priority i32 ·
correlation u64 · deadline_ns u64 (CLOCK_MONOTONIC, 0 = none) · time_ns u64 (CLOCK_REALTIME) · trace_id 16 bytes ·
span_id 8 bytes · parent_span_id 8 bytes · seq u32 · asker u32 · number u64
"""

LANE_CONTROL: Final = 0
LANE_PRIORITY: Final = 1
LANE_NORMAL: Final = 2

FLAG_ASK: Final = 1
"""Somebody waits for a reply; `correlation` says who."""
FLAG_REPLY: Final = 2
FLAG_FAILED: Final = 4
"""A reply that carries an error (`AgentError` fields) instead of a payload."""
FLAG_REPEATED: Final = 8
"""The handler that sent it had run before, so this may have come before."""
FLAG_MORTAL: Final = 16
"""`deadline_ns` is the end of its own life (its ttl), not of an asker's patience."""
FLAG_FOREIGN: Final = 32
"""It came from an agent of another host, which has no mailbox here: its name stands beside the type."""

# Byte offsets of what is read alone, without unpacking all of the header.
FLAGS_AT: Final = 19
"""Offset of the flags in the header."""
ID_AT: Final = slice(32, 48)
SEQ_AT: Final = 112
"""Offset of `seq`: of a chunk of a stream its number, from 1 on; of its question STREAM_BIT | first credits; else 0."""
STREAM_BIT: Final = 1 << 31
_TRACE = slice(80, 96)
_SPAN = slice(96, 104)
_PARENT = slice(104, 112)
_CORRELATION: Final = re.compile(r"[0-9a-f]{16}")
_TRACE_ID: Final = re.compile(r"[0-9a-f]{32}")
_U64 = struct.Struct("<Q")
_I32 = struct.Struct("<i")
_U32 = struct.Struct("<I")

Cause = bytes
"""The 128 header bytes of the message that is being handled: where a send gets its trace and parent span."""


CORRECTION: Final = "civitas.eval.correction"
"""{severity, reason, …} from an EvalAgent. Calls `on_correction`."""
HALT: Final = "civitas.eval.halt"
"""From an EvalAgent: the agent ends in good order and is not restarted."""
_RESERVED: Final = frozenset([CORRECTION, HALT, "civitas.dynamic.terminated"])

_new: Final = object.__new__

_RESERVED_PREFIXES: Final = ("_agency.", "civitas.stream.")


SYSTEM_MESSAGE_TYPES: Final = frozenset(
    f"_agency.{name}"
    for name in (
        "heartbeat", "heartbeat_ack", "shutdown", "restart", "register", "deregister", "health_probe", "health_ack",
        "suspend", "resume", "force_restart", "child_crashed",
    )
)  # fmt: skip
"""The types of Civitas's runtime, by name. Reserved are all that begin so, these and those to come."""


def is_system_type(message_type: str) -> bool:
    """Whether a type is reserved for the runtime: agents may not send it (a peer could be stopped by it)."""
    return message_type.startswith(_RESERVED_PREFIXES) or message_type in _RESERVED


_newest_ms = 0


def _uuid7() -> str:
    """A new message id as text, 36 characters."""
    return str(uuid.UUID(bytes=_uuid7_bytes()))


def _new_span_id() -> str:
    """16 hex digits."""
    return os.urandom(8).hex()


def _uuid7_bytes() -> bytes:
    """16 bytes: 48 bits of wall-clock milliseconds, then random (RFC 9562, version 7).

    The milliseconds of one process never go back, whatever its clock does.
    """
    global _newest_ms
    _newest_ms = max(_newest_ms, int(time.time() * 1000))
    raw = bytearray(_newest_ms.to_bytes(6, "big") + os.urandom(10))
    raw[6] = raw[6] & 0x0F | 0x70
    raw[8] = raw[8] & 0x3F | 0x80
    return bytes(raw)


def new_header(
    *,
    mailbox: int = 0,
    flags: int = 0,
    lane: int = LANE_NORMAL,
    sender: int = 0,
    priority: int = 0,
    correlation: int = 0,
    deadline_ns: int = 0,
    cause: Cause | None = None,
    payload_len: int = 0,
    seq: int = 0,
    hops: int = 0,
    id: bytes | None = None,
) -> bytes:
    """A header made in Python: what transports without native code use. `check`, `granules`, `position` stay 0."""
    span = os.urandom(8)
    trace, parent = (cause[_TRACE], cause[_SPAN]) if cause else (os.urandom(16), bytes(8))
    return HEADER.pack(
        0, 0, payload_len, 0, 1, flags, mailbox, 0, lane, 0, hops, id or _uuid7_bytes(), sender, priority,
        correlation, deadline_ns, time.time_ns(), trace, span, parent, seq, 0, 0,
    )  # fmt: skip


def foreign_header(id: bytes, trace: bytes, span: bytes, *, repeated: bool) -> Cause:
    """A header for `cause` of a message from another host: its id, its trace, its span."""
    header = bytearray(HEADER.size)
    header[ID_AT], header[_TRACE], header[_SPAN] = id, trace, span
    header[FLAGS_AT] = FLAG_FOREIGN | (FLAG_REPEATED if repeated else 0)
    return bytes(header)


def cause_from(trace_id: str, span_id: str) -> Cause | None:
    """A header for `cause` that has the trace and the span of a message which has none, because it came as text."""
    try:
        trace, span = bytes.fromhex(trace_id), bytes.fromhex(span_id)
    except ValueError:
        return None
    if (len(trace), len(span)) != (16, 8):
        return None
    header = bytearray(HEADER.size)
    header[_TRACE], header[_SPAN] = trace, span
    return bytes(header)


class Message(Generic[P]):
    """One message, as `handle` gets it and as `ask` returns it.

    Fields (all may be given by keyword to make a message by hand):
    `type`, `sender`, `recipient`, `payload` (dict, or an object: `Message[Order]`, see `typed`), `id` (uuid7),
    `correlation_id` (None: nobody waits for a reply),
    `reply_to`, `timestamp` (seconds since 1970), `trace_id` (32 hex), `span_id` (16 hex), `parent_span_id`,
    `attempt` (counts RETRY), `delivery` (1, 2, …: counts hand-overs, kept in shared memory, so a message that is
    seen again after a crash has 2), `priority` (> 0 overtakes), `ttl` (seconds or None), `seq` (of a stream, or None).

    One that is made by hand with a payload that cannot be sent is refused: MessageValidationError, a ValueError.
    """

    __slots__ = ("_cause", "_header", "_over", "_recipient", "attempt", "delivery", "payload", "sender", "type")

    type: str
    sender: str
    payload: P
    attempt: int
    delivery: int
    _header: bytes | None
    _cause: Message[Any] | None
    _over: dict[str, Any] | None
    _recipient: str | None

    def __init__(
        self,
        id: str | None = None,
        type: str = "message",
        sender: str = "",
        recipient: str = "",
        correlation_id: str | None = None,
        reply_to: str | None = None,
        payload: P | None = None,
        timestamp: float | None = None,
        trace_id: str = "",
        span_id: str = "",
        parent_span_id: str | None = None,
        attempt: int = 0,
        priority: int = 0,
        ttl: float | None = None,
        seq: int | None = None,
        delivery: int = 1,
    ) -> None:
        from .serializer import encode  # what checks every send

        if payload is not None:
            encode(payload)  # type: ignore[arg-type]  # what else it may be is what this refuses
        self.type = type
        self.sender = sender
        self._recipient = recipient
        self.payload = {} if payload is None else payload  # type: ignore[assignment]
        self.attempt = attempt
        self.delivery = delivery
        self._header = None
        self._cause = None
        self._over = {
            "id": _uuid7() if id is None else id,
            "correlation_id": correlation_id,
            "reply_to": reply_to,
            "timestamp": time.time() if timestamp is None else timestamp,
            "trace_id": trace_id,
            "span_id": span_id,
            "parent_span_id": parent_span_id,
            "priority": priority,
            "ttl": ttl,
            "seq": seq,
        }

    @classmethod
    def received(cls, header: bytes, type: str, sender: str, recipient: str, payload: Any, delivery: int) -> Self:
        """A message that arrived. Hot path: stores only; nothing is rendered."""
        message: Self = _new(cls)
        message.type = type
        message.sender = sender
        message._recipient = recipient
        message.payload = payload
        message.attempt = 0
        message.delivery = delivery
        message._header = header
        message._cause = None
        message._over = None
        return message

    @classmethod
    def answering(cls, original: Message[Any], sender: str, payload: Any, type: str) -> Self:
        """A reply to `original`: same correlation and trace, back to whoever waits."""
        message: Self = _new(cls)
        message.type = type
        message.sender = sender
        message._recipient = None
        message.payload = payload
        message.attempt = 0
        message.delivery = 1
        message._header = None
        message._cause = original
        message._over = None
        return message

    # --- rendered on access ---------------------------------------------------------------------------------------

    @property
    def recipient(self) -> str:
        """The agent it is for; of an answer, the reply address of whoever waits, or the sender of the question."""
        if self._recipient is None:
            assert self._cause is not None
            self._recipient = self._cause.reply_to or self._cause.sender
        return self._recipient

    @recipient.setter
    def recipient(self, name: str) -> None:
        self._recipient = name

    @property
    def header(self) -> Cause | None:
        """The raw header of a received message: what a transport wants as `cause`. None when made by hand."""
        return self._header

    def _read(self, name: str, default: Any = None) -> Any:
        return default if self._over is None else self._over.get(name, default)

    @property
    def id(self) -> str:
        """uuid7, as text: ids of one process grow with time."""
        if self._header is not None:
            return str(uuid.UUID(bytes=self._header[ID_AT]))
        over = self._over
        if over is None:
            self._over = over = {}
        if "id" not in over:
            over["id"] = _uuid7()
        return str(over["id"])

    @property
    def correlation(self) -> int:
        """The correlation as the transports count it; 0 when nobody waits."""
        return 0 if self._header is None else int(_U64.unpack_from(self._header, 56)[0])

    @property
    def correlation_id(self) -> str | None:
        """16 hex digits, the same in question and answer; None: nobody waits for a reply."""
        if self._header is not None:
            number = self.correlation
            return f"{number:016x}" if number else None
        if self._cause is not None:
            return self._cause.correlation_id
        value: str | None = self._read("correlation_id")
        return value

    @property
    def reply_to(self) -> str | None:
        """The address of whoever waits for the reply, or None."""
        if self._header is not None:
            number = self.correlation
            return f"_reply.{number:016x}" if number else None
        value: str | None = self._read("reply_to")
        return value

    @reply_to.setter
    def reply_to(self, address: str | None) -> None:
        """For transports of addresses: of a message that was made by hand or deserialized."""
        if self._header is not None:
            raise AttributeError("a message that was received keeps its reply address")
        if self._over is None:
            self._over = {}
        self._over["reply_to"] = address

    @property
    def timestamp(self) -> float:
        """When it was sent: seconds since 1970, by the sender's clock."""
        if self._header is not None:
            return float(_U64.unpack_from(self._header, 72)[0]) / 1e9
        return float(self._read("timestamp", 0.0))

    @property
    def deadline_ns(self) -> int:
        """CLOCK_MONOTONIC nanoseconds after which nobody waits any more; 0 = none."""
        return 0 if self._header is None else int(_U64.unpack_from(self._header, 64)[0])

    @property
    def trace_id(self) -> str:
        """32 hex digits: those of the message that caused it, so all of one trace have the same."""
        if self._header is not None:
            return self._header[_TRACE].hex()
        if self._cause is not None:
            return self._cause.trace_id
        return str(self._read("trace_id", ""))

    @property
    def span_id(self) -> str:
        """16 hex digits, its own."""
        return self._header[_SPAN].hex() if self._header is not None else str(self._read("span_id", ""))

    @property
    def parent_span_id(self) -> str | None:
        """`span_id` of the message that caused it; None: nothing did."""
        if self._header is not None:
            raw = self._header[_PARENT]
            return raw.hex() if any(raw) else None
        if self._cause is not None:
            return self._cause.span_id
        value: str | None = self._read("parent_span_id")
        return value

    @property
    def repeated(self) -> bool:
        """Whether it may have come before, from a handler that was run again after the death of its process.

        Only asks (their answer died with the asker) and sends beyond what is remembered of a handler say so; the id of
        an ask is that of the first time, if the handler makes the same asks in the same order.
        """
        return self._header is not None and bool(self._header[FLAGS_AT] & FLAG_REPEATED)

    @property
    def wants_stream(self) -> bool:
        """Whether whoever asked reads a stream: `emit` works, and an answer is taken as its last chunk."""
        return self._header is not None and bool(_U32.unpack_from(self._header, SEQ_AT)[0] & STREAM_BIT)

    @property
    def priority(self) -> int:
        """Above 0 it overtakes what is not."""
        if self._header is not None:
            return int(_I32.unpack_from(self._header, 52)[0])
        return int(self._read("priority", 0))

    @property
    def ttl(self) -> float | None:
        """Seconds after `timestamp` for which it is worth handing over; None: for ever. Of two clocks, so about."""
        if self._header is not None:
            if not self._header[FLAGS_AT] & FLAG_MORTAL:
                return None
            ends_ns = self.deadline_ns - time.monotonic_ns() + time.time_ns()
            return round(ends_ns / 1e9 - self.timestamp, 3)
        value: float | None = self._read("ttl")
        return value

    @property
    def seq(self) -> int | None:
        """Which chunk of a stream it is, from 0 on; None: of no stream."""
        if self._header is not None:
            number = int(_U32.unpack_from(self._header, SEQ_AT)[0])
            return number - 1 if 0 < number < STREAM_BIT else None
        value: int | None = self._read("seq")
        return value

    # --- as a dictionary ------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """All fields, and `schema_version`: what tools print and other transports carry. A typed payload as a dict."""
        fields = {"schema_version": 1} | {name: getattr(self, name) for name in _FIELDS}
        if type(self.payload) is not dict:
            from .typed import plain

            fields["payload"] = plain(self.payload)
        return fields

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_dict`; unknown keys are dropped, so newer peers may add some."""
        return cls(**{name: data[name] for name in _FIELDS if name in data})

    def __repr__(self) -> str:
        return f"<Message {self.type!r} {self.sender!r} -> {self.recipient!r} {self.id} delivery={self.delivery}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]


def cause_of(message: Message, asker: int) -> Cause | None:
    """A header to answer by, of a message that has none because it was made by hand or from its dictionary.

    `asker`: the mailbox of its sender. None: nobody waits for an answer, or its correlation is not one of ours.
    """
    number = message.correlation_id
    if number is None or not _CORRELATION.fullmatch(number):
        return None
    header = bytearray(new_header(flags=FLAG_ASK, sender=asker, correlation=int(number, 16)))
    if _TRACE_ID.fullmatch(message.trace_id):
        header[_TRACE] = bytes.fromhex(message.trace_id)
    return bytes(header)


_FIELDS: Final = (
    "id", "type", "sender", "recipient", "correlation_id", "reply_to", "payload", "timestamp", "trace_id", "span_id",
    "parent_span_id", "attempt", "priority", "ttl", "seq", "delivery",
)  # fmt: skip
