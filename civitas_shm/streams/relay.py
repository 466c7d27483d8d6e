"""A stream whose reader is not in this process: a client's (`clients`).

Chunks go on as they come, and count as taken when the client says that it has taken them. So the credits of the writer
are those of the client's own loop, wherever a chunk lies just then: a slow client slows the writer, and no more chunks
than `maxsize` are ever between the two.

Rules of this file: runs on the loop; knows nothing of connections.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from .places import Streams
from .reader import Question, Reader

__all__ = ["AT_ONCE", "Relay"]

AT_ONCE: Final = 64
"""Chunks that are handed on together."""


class Relay:
    """Of one stream. It begins with the first `chunks`."""

    def __init__(self, streams: Streams, question: Question) -> None:
        self._reader = Reader(streams, question)
        self._sent = 0
        """Of the reader's buffer, at its beginning: handed on, and not taken as far as is known."""

    async def chunks(self) -> list[bytes]:
        """The next ones, encoded; at least one. Raises the end: StopAsyncIteration, or why there is no more."""
        reader = self._reader
        buffer = reader.buffer
        while len(buffer) <= self._sent:
            # While the client has chunks that it has not taken, it waits for none: no pause of the writer counts.
            await reader.news(wanted=self._sent == 0)
            self._sent = min(self._sent, len(buffer))  # one that has stopped taking loses them: SlowConsumerError
        fresh = list(islice(buffer, self._sent, self._sent + AT_ONCE))
        self._sent += len(fresh)
        return fresh

    def took(self, chunks: int) -> None:
        """The client has taken so many more. More than it has been given are not counted."""
        reader = self._reader
        chunks = min(chunks, self._sent, len(reader.buffer))
        for _ in range(chunks):
            reader.buffer.popleft()
        self._sent -= chunks
        reader.taken += chunks
        if reader.taken >= reader.step:
            reader.grant()
        if not self._sent:
            reader.look_again()  # it waits now

    def close(self) -> None:
        """Nobody reads any more; the writer is told. Idempotent, also after the end."""
        self._reader.leave()
        self._reader.buffer.clear()
