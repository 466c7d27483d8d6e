"""What travels between bridges: one version byte, then msgpack. docs/bridge.md draws it.

Rules of this file:
- whatever arrives is either a `Frame` whose every field has been checked, or a FrameError that says why; nothing else
  is raised, and nothing of a broken frame is used;
- payloads stay bytes here: only the process of the agent that gets one decodes it;
- no moment travels, only what is left of it: clocks of two hosts have nothing in common. The one exception is
  `time_ns`, which is for people;
- a host that knows a field more than another one appends it: unknown trailing fields are ignored, missing ones have a
  default. What cannot be had that way gets a new version byte.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from ..errors import DeserializationError

__all__ = [
    "ENTRIES_MAX",
    "NAME_BYTES_MAX",
    "VERSION",
    "Answer",
    "Frame",
    "FrameError",
    "Parcel",
    "Refusal",
    "decode_frame",
    "encode_frame",
]

VERSION: Final = 1
"""The first byte of each frame."""
ENTRIES_MAX: Final = 256
"""Of one kind in one frame."""
NAME_BYTES_MAX: Final = 255
"""As long as an agent's name may be."""
TYPE_MAX: Final = 1000
BACK_MAX: Final = 64

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_BYTES_MAX)]
_Host = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"\A[A-Za-z0-9_-]+\Z")]
_Type = Annotated[str, msgspec.Meta(max_length=TYPE_MAX)]
_Bytes16 = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
_Bytes8 = Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
_Back = Annotated[bytes, msgspec.Meta(max_length=BACK_MAX)]
_U63 = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_I32 = Annotated[int, msgspec.Meta(ge=-(1 << 31), le=(1 << 31) - 1)]


class FrameError(DeserializationError):
    """These bytes are no frame of a version that is known here."""


class Parcel(msgspec.Struct, array_like=True, frozen=True):
    """One message on its way to an agent."""

    to: _Name
    type: _Type
    sender: _Name
    """Name of the agent that sent it, or `_runtime`."""
    payload: bytes
    """Encoded (`serializer`); decoded by nobody before the agent's own process."""
    id: _Bytes16
    """Of the message, as its sender's host made it: a repetition has the same, which is how a double is known."""
    trace: _Bytes16
    span: _Bytes8
    """Of the message; the parent of the span that it gets at the other host."""
    seq: _U63
    """The sending bridge's own number for it: what receipts name. Grows within an epoch."""
    back: _Back = b""
    """Not empty: somebody waits for an answer, which has to bring this back. Opaque, and of use at the asker's only."""
    left_ns: _U63 = 0
    """Until the asker's deadline or the end of its life (`mortal`), from when it was sent; 0: it has none."""
    mortal: bool = False
    """`left_ns` is what is left of its ttl."""
    priority: _I32 = 0
    attempt: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)] = 1
    """How often it has been handed to this way: above 1 it may have come before."""
    repeated: bool = False
    """Its handler had run before, see `Message.repeated`."""
    time_ns: _U63 = 0
    """When it was sent, CLOCK_REALTIME of its sender's host."""


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """The reply to one question, on its way back."""

    back: Annotated[bytes, msgspec.Meta(min_length=1, max_length=BACK_MAX)]
    sender: _Name
    type: _Type
    payload: bytes
    failed: bool = False
    """The payload is an error (`AgentError` fields); empty: the agent stopped before it answered."""


class Refusal(msgspec.Struct, array_like=True, frozen=True):
    """A message that the other side will not take, now or ever."""

    seq: _U63
    kind: Annotated[str, msgspec.Meta(max_length=40)]
    """`unknown` (no agent of that name is there), `closed` (it has stopped), `full` (its mailbox refuses when full),
    `type` (a type of the runtime), `large`; others: a newer version's."""
    text: Annotated[str, msgspec.Meta(max_length=1000)]
    """A sentence for people."""


class Frame(msgspec.Struct, array_like=True, frozen=True):
    """All that one host has to say to another one, or to an agent's name, at one time."""

    host: _Host
    """Who says it, and where answers and receipts go."""
    epoch: _U63
    """Of that host: grows with each start of its run. `seq` and `back` of another epoch mean nothing any more."""
    parcels: Annotated[list[Parcel], msgspec.Meta(max_length=ENTRIES_MAX)] = msgspec.field(default_factory=list)
    answers: Annotated[list[Answer], msgspec.Meta(max_length=ENTRIES_MAX)] = msgspec.field(default_factory=list)
    to_epoch: _U63 = 0
    """The epoch of the host that the rest is for."""
    taken: Annotated[list[_U63], msgspec.Meta(max_length=ENTRIES_MAX)] = msgspec.field(default_factory=list)
    """Numbers of parcels that are committed to the mailboxes of their agents: they may be forgotten."""
    refused: Annotated[list[Refusal], msgspec.Meta(max_length=ENTRIES_MAX)] = msgspec.field(default_factory=list)
    held: Annotated[list[_U63], msgspec.Meta(max_length=ENTRIES_MAX)] = msgspec.field(default_factory=list)
    """Numbers of parcels that are here and wait for room in a full mailbox: not to be sent elsewhere meanwhile."""


_encode: Final = msgspec.msgpack.Encoder().encode_into
_decode: Final = msgspec.msgpack.Decoder(Frame).decode


def encode_frame(frame: Frame) -> bytes:
    """The bytes of a frame."""
    buffer = bytearray((VERSION,))
    _encode(frame, buffer, 1)
    return bytes(buffer)


def decode_frame(data: bytes) -> Frame:
    """The frame; FrameError for anything else. Bytes from anybody are safe to give."""
    if data[:1] != b"\x01":
        found = f"version {data[0]}" if data else "nothing"
        raise FrameError(f"a frame of {len(data)} bytes is of {found}; this host knows version {VERSION}")
    try:
        return _decode(memoryview(data)[1:])
    except Exception as error:  # several kinds of it, RecursionError and UnicodeError among them
        raise FrameError(f"a frame of {len(data)} bytes cannot be read: {type(error).__name__}: {error}") from error
