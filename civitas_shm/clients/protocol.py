"""What goes over the connection of a client, once the run's host has handed it to the program that started the run.

Rules of this file:
- data only; a frame is that of `host.wire` (length and one msgpack message); payloads are bytes in it, as
  `serializer.encode` made them, so nothing is decoded twice on the way;
- the client numbers its requests; each is answered once, in whatever order, by Done, Replied or Failed. A Forget is not
  answered: it says that nobody waits any more, and what can still be called off is;
- a stream is a request that is answered by Chunks, any number of times, before its Done or Failed; Took says how many
  of them have been taken, and is not answered;
- an error goes by the name of its class, its text and its plain attributes, and is the same error on the other side;
- `Bye` is the run's last word, and says what has become of it.
"""

from __future__ import annotations

import builtins
from typing import Any, Final

import msgspec

from .. import errors
from ..errors import CivitasError

__all__ = [
    "Ask",
    "Broadcast",
    "Bye",
    "Cancel",
    "Chunks",
    "Done",
    "Failed",
    "Forget",
    "FromClient",
    "IN_FLIGHT_MAX",
    "OpenStream",
    "Replied",
    "STREAMS_OPEN_MAX",
    "Send",
    "ToClient",
    "Took",
    "error_from",
    "failed",
]


IN_FLIGHT_MAX: Final = 64
"""Requests of one client that are under way at once, streams not counted."""

STREAMS_OPEN_MAX: Final = 64
"""Streams of one client."""


class _Request(msgspec.Struct, array_like=True, tag_field="op"):
    id: int


class Send(_Request, tag="send"):
    """Commit a message, or an order of one that comes later. Answered by Done once it is committed."""

    recipient: str
    payload: bytes
    type: str
    timeout_s: float | None
    options: dict[str, Any]


class Ask(_Request, tag="ask"):
    """Ask. Answered by Replied."""

    recipient: str
    payload: bytes
    type: str
    timeout_s: float | None
    options: dict[str, Any]


class Broadcast(_Request, tag="broadcast"):
    """Send to all whose names match. Answered by Done."""

    pattern: str
    payload: bytes
    type: str
    timeout_s: float | None


class Cancel(_Request, tag="cancel"):
    """Take back what was ordered under that key. Answered by Done once that is committed."""

    key: str
    timeout_s: float | None


class OpenStream(_Request, tag="stream"):
    """Ask for an answer in chunks. Answered by Chunks, and at last by Done or Failed."""

    recipient: str
    payload: bytes
    type: str
    timeout_s: float | None
    idle_s: float | None
    max_s: float | None
    maxsize: int


class Took(_Request, tag="took"):
    """So many more chunks of the stream of that number have been taken; as many may come instead."""

    chunks: int


class Forget(_Request, tag="forget"):
    """Nobody waits for the answer to the request of that number any more."""


FromClient = Send | Ask | Broadcast | Cancel | OpenStream | Took | Forget


class _Answer(msgspec.Struct, array_like=True, tag_field="op"):
    id: int


class Done(_Answer, tag="done"):
    """It is committed."""


class Replied(_Answer, tag="replied"):
    """The reply: its raw header, type, who sent it, payload."""

    header: bytes
    type: str
    sender: str
    payload: bytes


class Chunks(_Answer, tag="chunks"):
    """The next chunks of a stream, in order."""

    payloads: list[bytes]


class Failed(_Answer, tag="failed"):
    """It was not done, or there is no reply."""

    error: str
    text: str
    attributes: dict[str, Any]
    notes: list[str]
    parts: list[Failed] = []
    """Of an ExceptionGroup."""
    cause: Failed | None = None
    """What an agent raised, of a stream that is over for that."""


class Bye(msgspec.Struct, array_like=True, tag_field="op", tag="bye"):
    """The run has ended; nothing more comes."""

    text: str


ToClient = Done | Replied | Chunks | Failed | Bye


# --- errors -------------------------------------------------------------------------------------------------------

_BUILTIN: Final = ("TimeoutError", "ValueError", "TypeError")
"""Of those that are raised on purpose (`errors`)."""


def failed(number: int, error: BaseException) -> Failed:
    """An error, in words that travel."""
    parts = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    text = error.message if isinstance(error, BaseExceptionGroup) else str(error)
    attributes = {name: value for name, value in vars(error).items() if name[0] != "_" and _travels(value)}
    notes = [str(note) for note in getattr(error, "__notes__", ())]
    cause = error.__cause__ if isinstance(error.__cause__, CivitasError) else None
    return Failed(
        number, type(error).__name__, text, attributes, notes, [failed(0, part) for part in parts],
        None if cause is None else failed(0, cause),
    )  # fmt: skip


def error_from(answer: Failed) -> Exception:
    """The same error here. One that this version does not know is a CivitasError with its name and text."""
    error: Exception
    if answer.parts:
        error = ExceptionGroup(answer.text, [error_from(part) for part in answer.parts])
    else:
        kind = getattr(errors, answer.error, None)
        if isinstance(kind, type) and issubclass(kind, CivitasError):
            error = kind.__new__(kind)  # its constructor wants what its text was made of
            Exception.__init__(error, answer.text)
            vars(error).update(answer.attributes)
        elif answer.error in _BUILTIN:
            error = getattr(builtins, answer.error)(answer.text)
        else:
            error = CivitasError(f"{answer.error}: {answer.text}")
    for note in answer.notes:
        error.add_note(note)
    if answer.cause is not None:
        error.__cause__ = error_from(answer.cause)
    return error


def _travels(value: Any) -> bool:
    try:
        msgspec.msgpack.encode(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True
