"""The blocking client's end of a stream: an iterator, with a connection of its own while it lasts.

    with shop.stream("model", {"prompt": "..."}) as chunks:
        for chunk in chunks: ...

Guarantees: those of `stream`. Closing the connection is what tells the run that nobody reads any more, so leaving the
loop, `close`, letting go of the iterator and the death of this process all do.

Rules of this file: one thread at a time, as with any iterator.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import Any, Self

from .exchange import Exchange
from .protocol import Chunks, Done, Failed, OpenStream, Took, error_from
from .stream import Pile, inherited

__all__ = ["BlockingClientStream"]


class BlockingClientStream:
    """An iterator over the payloads of a stream's chunks. Made by `BlockingClient.stream`."""

    def __init__(
        self,
        request: OpenStream,
        take: Callable[[], Exchange],
        give_back: Callable[[Exchange], None],
        built: Callable[[bytes], Any],
    ) -> None:
        """`take` makes or finds a connection; one that is heard to the end is given back. `built` makes a payload."""
        self._request = request
        self._take = take
        self._give_back = give_back
        self._built = built
        self._pile = Pile(request.idle_s)
        self._exchange: Exchange | None = None
        self._end: BaseException | None = None
        self._pid = os.getpid()

    @property
    def received(self) -> int:
        """Chunks that have come so far, taken or not."""
        return self._pile.received

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._pid != os.getpid():
            raise inherited()
        pile = self._pile
        while not pile.buffer:
            if self._end is not None:
                raise self._end
            try:
                self._hear()
            except BaseException as error:  # KeyboardInterrupt too: what came would be taken for something else
                self.close()
                self._end = error if isinstance(error, Exception) else StopIteration()
                raise
        chunk, taken = pile.take(monotonic())
        if taken and self._exchange is not None:
            try:
                self._exchange.say(Took(self._request.id, taken), self._request.idle_s)
            except Exception as error:  # noqa: BLE001 - told behind what has come
                self._over(error)
        return self._built(chunk)

    def close(self) -> None:
        """End the stream now; the writer is told. Idempotent; also after the end."""
        self._pile.buffer.clear()
        self._over(StopIteration())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        exchange = self._exchange
        if exchange is not None:
            exchange.close()  # of a forked child: its own copy

    def _hear(self) -> None:
        request = self._request
        if self._exchange is None:
            exchange = self._take()
            request.id = exchange.number()
            self._exchange = exchange
            exchange.say(request, request.timeout_s)
        answer = self._exchange.hear(request.idle_s if self._pile.received else request.timeout_s)
        if answer.id != request.id:
            return
        if isinstance(answer, Chunks):
            self._pile.put(answer.payloads)
            return
        exchange, self._exchange = self._exchange, None
        self._give_back(exchange)
        self._end = error_from(answer) if isinstance(answer, Failed) else StopIteration()
        assert isinstance(answer, Failed | Done)

    def _over(self, end: BaseException) -> None:
        if self._end is None:
            self._end = end
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.close()
