"""What goes between the two ends of a stream: replies of reserved types, with a `seq` that no other reply has.

Rules of this file: data only. A frame is told from an ordinary reply by its `seq`, which only the runtime sets, so no
payload and no type that a user chooses is ever taken for one.
"""

from __future__ import annotations

import struct
from typing import Final

from ..messages import SEQ_AT

__all__ = ["CANCEL", "CHUNK", "CREDIT", "CREDITS", "END", "OPEN", "OPENING", "seq_of"]

OPEN: Final = "civitas.stream.open"
"""Writer to reader, first of all: OPENING."""
CHUNK: Final = "civitas.stream.chunk"
"""`seq` counts from 1."""
END: Final = "civitas.stream.end"
"""`seq` is one more than that of the last chunk."""
CREDIT: Final = "civitas.stream.credit"
"""Reader to writer: CREDITS. Absolute, so it may come twice or late."""
CANCEL: Final = "civitas.stream.cancel"
"""Reader to writer; the payload is the reason as text, empty when the reader has just left its loop."""

OPENING: Final = struct.Struct("<QI")
"""Correlation of the writer, and how often the question has been handed over."""
CREDITS: Final = struct.Struct("<Q")
"""Number of the last chunk that may come."""

_SEQ: Final = struct.Struct("<I")


def seq_of(header: bytes) -> int:
    """0: an ordinary reply."""
    number: int = _SEQ.unpack_from(header, SEQ_AT)[0]
    return number
