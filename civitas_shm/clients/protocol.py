"""What goes over the connection of a client, once the run's host has handed it to the program that started the run.

Rules of this file:
- data only; a frame is that of `host.wire` (length and one msgpack message); payloads are bytes in it, as
  `serializer.encode` made them, so nothing is decoded twice on the way;
- the client numbers its requests; each is answered once, in whatever order, by Done, Replied or Failed. A Forget is not
  answered: it says that nobody waits any more, and what can still be called off is;
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
    "Done",
    "Failed",
    "Forget",
    "FromClient",
    "Replied",
    "Send",
    "ToClient",
    "error_from",
    "failed",
]


class _Request(msgspec.Struct, array_like=True, tag_field="op"):
    id: int


class Send(_Request, tag="send"):
    """Commit a message. Answered by Done once it is committed."""

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


class Forget(_Request, tag="forget"):
    """Nobody waits for the answer to the request of that number any more."""


FromClient = Send | Ask | Broadcast | Forget


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


class Failed(_Answer, tag="failed"):
    """It was not done, or there is no reply."""

    error: str
    text: str
    attributes: dict[str, Any]
    notes: list[str]
    parts: list[Failed] = []
    """Of an ExceptionGroup."""


class Bye(msgspec.Struct, array_like=True, tag_field="op", tag="bye"):
    """The run has ended; nothing more comes."""

    text: str


ToClient = Done | Replied | Failed | Bye


# --- errors -------------------------------------------------------------------------------------------------------

_BUILTIN: Final = ("TimeoutError", "ValueError", "TypeError")
"""Of those that are raised on purpose (`errors`)."""


def failed(number: int, error: BaseException) -> Failed:
    """An error, in words that travel."""
    parts = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    text = error.message if isinstance(error, BaseExceptionGroup) else str(error)
    attributes = {name: value for name, value in vars(error).items() if name[0] != "_" and _travels(value)}
    notes = [str(note) for note in getattr(error, "__notes__", ())]
    return Failed(number, type(error).__name__, text, attributes, notes, [failed(0, part) for part in parts])


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
    return error


def _travels(value: Any) -> bool:
    try:
        msgspec.msgpack.encode(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True
