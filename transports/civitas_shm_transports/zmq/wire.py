"""The frames between links, byte by byte; see PROTOCOL.md.

Rules of this file: what comes in is trusted in nothing; BadFrame is the only error.
"""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = [
    "EVERYBODY",
    "ID_BYTES",
    "TOPIC_BYTES",
    "BadFrame",
    "Beat",
    "Body",
    "Bye",
    "Fenced",
    "Hello",
    "Lane",
    "Who",
    "decode",
    "encode",
    "id_of_topic",
    "mark",
    "topic",
]

MAGIC: Final = b"cvz1"
MARK: Final = b"cvzr"
ID_BYTES: Final = 16
TOPIC_BYTES: Final = len(MAGIC) + ID_BYTES
HEAD_BYTES: Final = TOPIC_BYTES + ID_BYTES + 1
EVERYBODY: Final = bytes(ID_BYTES)

NUMBER_MAX: Final = 1 << 62
"""Bodies of one lane: more than ever will be."""


class BadFrame(ValueError):
    """The bytes are no frame of this protocol."""


class Hello(msgspec.Struct, array_like=True, gc=False):
    """Who I am, and which agents are behind me."""

    host: str
    epoch: int
    serial: int
    names: list[str]


class Beat(msgspec.Struct, array_like=True, gc=False):
    """I live; my names are those of that serial."""

    serial: int


class Who(msgspec.Struct, array_like=True, gc=False):
    """Say hello to me."""


class Bye(msgspec.Struct, array_like=True, gc=False):
    """I leave in good order."""


class Fenced(msgspec.Struct, array_like=True, gc=False):
    """You are not your host any more."""

    epoch: int


class Lane(msgspec.Struct, array_like=True, gc=False):
    """Bodies of one direction, and how far the other one is."""

    first: int
    bodies: list[bytes]
    got: int
    gap: bool = False
    want: bool = False


Body = Hello | Beat | Who | Bye | Fenced | Lane

_KINDS: Final[dict[type[Body], int]] = {Hello: 1, Beat: 2, Who: 3, Bye: 4, Fenced: 5, Lane: 6}
_HEADS: Final = {kind: bytes([number]) for kind, number in _KINDS.items()}
_DECODERS: Final = {number: msgspec.msgpack.Decoder(kind) for kind, number in _KINDS.items()}
_encode: Final = msgspec.msgpack.Encoder().encode


def topic(link: bytes) -> bytes:
    """What a link subscribes to get what is sent to that id."""
    return MAGIC + link


def mark(link: bytes, number: int) -> bytes:
    """A subscription that a link makes in order to read it again."""
    return MARK + link[:12] + number.to_bytes(4, "big")


def id_of_topic(subscribed: bytes) -> bytes | None:
    """The link whose topic that is; None: it is none of this protocol, or everybody's."""
    if len(subscribed) != TOPIC_BYTES or not subscribed.startswith(MAGIC):
        return None
    link = subscribed[len(MAGIC) :]
    return None if link == EVERYBODY else link


def encode(to: bytes, sender: bytes, body: Body) -> bytes:
    """One frame."""
    return b"".join((MAGIC, to, sender, _HEADS[type(body)], _encode(body)))


def decode(frame: bytes) -> tuple[bytes, bytes, Body]:
    """(to, from, body); BadFrame."""
    if len(frame) <= HEAD_BYTES or not frame.startswith(MAGIC):
        raise BadFrame(f"{len(frame)} bytes do not begin as a frame of {MAGIC.decode()} does")
    decoder = _DECODERS.get(frame[HEAD_BYTES - 1])
    if decoder is None:
        raise BadFrame(f"kind {frame[HEAD_BYTES - 1]} of a frame is unknown")
    try:
        body: Body = decoder.decode(memoryview(frame)[HEAD_BYTES:])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadFrame(f"a frame of {len(frame)} bytes: {error}") from error
    if isinstance(body, Lane) and not (1 <= body.first <= NUMBER_MAX and 0 <= body.got <= NUMBER_MAX):
        raise BadFrame(f"a lane's numbers {body.first} and {body.got} cannot be")
    return frame[len(MAGIC) : TOPIC_BYTES], frame[TOPIC_BYTES : HEAD_BYTES - 1], body
