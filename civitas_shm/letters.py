"""A dead letter: the copy of a message that no handler will finish, with all that is known about why.

Rules of this file: frozen values and their encoding, and where their file lies; nothing here writes. `Note` is what the
reader of a message says about its end before it gives it up; `Letter` is what is kept, listed, shown and replayed. The
stores are in `dead_letters`.
"""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path
from typing import Any, Final

import msgspec

from .messages import HEADER

__all__ = [
    "DIRECTORY",
    "FILE",
    "NOTE_BYTES_MAX",
    "PAYLOAD_KEPT_MAX",
    "Letter",
    "Note",
    "count_letters",
    "describe",
    "letter_of",
]

DIRECTORY: Final = "letters"
"""In the run directory: what stays when all else of a run goes, for as long as something is in it."""
FILE: Final = "dead.sqlite"

PAYLOAD_KEPT_MAX: Final = 16 << 20
"""Bytes. Of a larger message the letter keeps everything but the payload: a quarter of what all letters may take."""

NOTE_BYTES_MAX: Final = 32 << 10
"""Bytes of a traceback that travel with a message that is given up; the end of a longer one is kept, it says most."""


class Note(msgspec.Struct, frozen=True, array_like=True):
    """Why a message was given up, in the words of the process that had it in hand."""

    cause: str
    """One sentence."""
    traceback: str = ""
    attempts: int = 0
    """RETRYs."""

    def encode(self) -> bytes:
        """At most NOTE_BYTES_MAX and a few bytes."""
        traceback = self.traceback
        if len(traceback) > NOTE_BYTES_MAX // 4:  # a character takes up to four bytes
            traceback = "…" + traceback[-NOTE_BYTES_MAX // 4 :]
        return msgspec.msgpack.encode(Note(self.cause[: NOTE_BYTES_MAX // 16], traceback, self.attempts))

    @classmethod
    def decode(cls, data: bytes) -> Note:
        """Of empty or foreign bytes: a note that says that nothing is known."""
        if not data:
            return cls("its reader gave it up and could not say why")
        try:
            return msgspec.msgpack.decode(data, type=cls)
        except msgspec.MsgspecError:
            return cls("its reader gave it up; what it said about it does not check out")


class Letter(msgspec.Struct, frozen=True):
    """One dead letter. `id` is the message's own, so a message has at most one letter however often it is put aside."""

    id: str
    """As `Message.id`: uuid7, so letters sort by the time at which they were sent."""
    recipient: str
    sender: str
    type: str
    cause: str
    """One sentence."""
    traceback: str
    """Of the handler that raised, or the last lines that its process wrote; may be empty."""
    buried_s: float
    """When it was put aside; seconds since 1970."""
    sent_s: float
    deliveries: int
    """How often a handler got it."""
    attempts: int
    """RETRYs of the last of these."""
    strikes: int
    """Deaths and failures that count against it."""
    hops: int
    """How often it was replayed."""
    payload_bytes: int
    header: bytes
    payload: bytes | None
    """None: it was larger than PAYLOAD_KEPT_MAX, or could not be read."""

    @property
    def size_bytes(self) -> int:
        """What it counts for where letters are bounded."""
        return 512 + len(self.cause) + len(self.traceback) + len(self.header) + len(self.payload or b"")

    def to_plain(self) -> dict[str, Any]:
        """Everything but header and payload: for `--json`, and for the way to other processes."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        del plain["header"], plain["payload"]
        plain["payload_kept"] = self.payload is not None
        return plain


def letter_of(
    header: bytes,
    *,
    recipient: str,
    sender: str,
    type: str,
    payload: bytes | None,
    note: Note,
    buried_s: float,
    deliveries: int,
    strikes: int,
) -> Letter:
    """The letter of a message; its own header says the rest."""
    fields = HEADER.unpack(header)
    kept = payload if payload is None or len(payload) <= PAYLOAD_KEPT_MAX else None
    return Letter(
        id=str(uuid.UUID(bytes=fields[11])),
        recipient=recipient,
        sender=sender,
        type=type,
        cause=note.cause,
        traceback=note.traceback,
        buried_s=buried_s,
        sent_s=fields[16] / 1e9,
        deliveries=deliveries,
        attempts=note.attempts,
        strikes=strikes,
        hops=fields[10],
        payload_bytes=fields[2] if payload is None else len(payload),
        header=header,
        payload=kept,
    )


def describe(letter: Letter) -> str:
    """One line for people."""
    return (
        f"{letter.id}  {letter.sender} -> {letter.recipient}  type {letter.type!r}  "
        f"{letter.payload_bytes:,} bytes  delivered {letter.deliveries}x  {letter.cause}"
    )


def count_letters(run_directory: Path) -> int | None:
    """How many letters a run has; None when their file cannot be read. Changes nothing and waits for nobody long."""
    path = run_directory / DIRECTORY / FILE
    if not path.exists():
        return 0
    import sqlite3  # 4 ms, and most runs have no dead letter

    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=1.0, uri=True)) as db:
            return int(db.execute("SELECT COUNT(*) FROM letters").fetchone()[0])
    except sqlite3.Error:
        return None
