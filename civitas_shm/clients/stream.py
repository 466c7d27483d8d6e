"""The client's end of a stream: what has come, what was taken of it, and when that is said to the run.

    async for chunk in shop.stream("model", {"prompt": "..."}): ...

Guarantees, as inside of the run (`streams`), and:
- what has come is handed out before an error is raised: the loss of the connection, `TransportClosed`, too;
- leaving the loop, `aclose`, letting go of the iterator and the death of this process tell the writer at once;
- a forked child has no part in a stream of its parent, and says so.

Rules of this file: `Pile` decides and is shared with the blocking twin; ClientStream runs on the client's loop.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from ..errors import RunNotAnswering, StreamTimeout, TransportClosed
from ..serializer import decode
from .protocol import STREAMS_OPEN_MAX, Chunks, Done, Failed, OpenStream, Took, error_from

if TYPE_CHECKING:
    from .client import Connection

__all__ = ["GRACE_S", "ClientStream", "Inbox", "Pile", "inherited"]

TAKEN_SAID: Final = 8
"""Chunks that are said to be taken together, while others lie ready: a quarter of the most that are on their way."""

GRACE_S: Final = 5.0
"""From a deadline, which the run keeps, to when its word about it must be here."""


class Pile:
    """Chunks that have come and not been taken. Pure."""

    __slots__ = ("_said_s", "_say_s", "_untold", "buffer", "received")

    def __init__(self, idle_s: float | None) -> None:
        self.buffer: deque[bytes] = deque()
        self.received = 0
        self._untold = 0
        self._said_s = 0.0
        # The run gives up who takes nothing in `idle_s`, so each quarter of it hears that something was.
        self._say_s = float("inf") if not idle_s or idle_s <= 0 else idle_s / 4

    def put(self, chunks: list[bytes]) -> None:
        self.buffer += chunks
        self.received += len(chunks)

    def take(self, now_s: float) -> tuple[bytes, int]:
        """The next chunk, and how many are to be said to be taken now; 0: nothing yet."""
        chunk = self.buffer.popleft()
        self._untold += 1
        if self.buffer and self._untold < TAKEN_SAID and now_s - self._said_s < self._say_s:
            return chunk, 0
        taken, self._untold = self._untold, 0
        self._said_s = now_s
        return chunk, taken


class Inbox:
    """What the connection knows of a stream. A thing apart, so that a stream that nobody holds any more can say so."""

    __slots__ = ("end", "pile", "waiter")

    def __init__(self, idle_s: float | None) -> None:
        self.pile = Pile(idle_s)
        self.end: BaseException | None = None
        """Why nothing more comes."""
        self.waiter: asyncio.Future[None] | None = None

    def put(self, answer: Chunks | Done | Failed) -> None:
        """Chunks, or the end."""
        if isinstance(answer, Chunks):
            self.pile.put(answer.payloads)
            self.wake()
        else:
            self.finish(StopAsyncIteration() if isinstance(answer, Done) else error_from(answer))

    def finish(self, end: BaseException) -> None:
        """What comes behind all that lies ready."""
        self.end = self.end or end
        self.wake()

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class ClientStream:
    """An async iterator over the payloads of a stream's chunks. Made by `Client.stream`; as `streams.Stream`."""

    def __init__(
        self,
        request: OpenStream,
        connected: Callable[[], Awaitable[Connection]],
        built: Callable[[bytes], Any] = decode,
    ) -> None:
        """`connected` gives the client's connection. `built` makes a payload of bytes."""
        self._request = request
        self._connected = connected
        self._built = built
        self._inbox = Inbox(request.idle_s)
        self._connection: Connection | None = None
        self._pid = os.getpid()

    @property
    def received(self) -> int:
        """Chunks that have come so far, taken or not."""
        return self._inbox.pile.received

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._pid != os.getpid():
            raise inherited()
        inbox = self._inbox
        pile = inbox.pile
        while not pile.buffer:
            if inbox.end is not None:
                raise inbox.end
            if self._connection is None:
                await self._begin()
            await self._news()
        chunk, taken = pile.take(monotonic())
        if taken and self._connection is not None and inbox.end is None:
            self._connection.say(Took(self._request.id, taken))
        return self._built(chunk)

    async def aclose(self) -> None:
        """End the stream now; the writer is told. Idempotent; also after the end."""
        self._leave(StopAsyncIteration())
        self._inbox.pile.buffer.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        connection = self._connection
        if connection is not None and self._inbox.end is None and self._pid == os.getpid():
            connection.let_go(self._request.id)

    async def _begin(self) -> None:
        request = self._request
        connection = await self._connected()
        limit_s = request.timeout_s if request.timeout_s and request.timeout_s > 0 else None
        try:
            async with asyncio.timeout(limit_s):
                await connection.open(self._inbox, request)
        except TimeoutError as late:
            raise StreamTimeout(
                f"a stream from {request.recipient!r} found no place within {limit_s:.3g} s: this client reads "
                f"{STREAMS_OPEN_MAX} streams, the most that it may. Leave some of them, or make a further client."
            ) from late
        self._connection = connection

    async def _news(self) -> None:
        """Return when something has come. A run that is silent beyond its own deadlines is an error."""
        inbox, connection, request = self._inbox, self._connection, self._request
        if inbox.pile.buffer or inbox.end is not None:
            return
        if inbox.waiter is not None:
            raise RuntimeError("two tasks wait for the next chunk of one stream; let one of them read it")
        assert connection is not None
        inbox.waiter = waiter = connection.loop.create_future()
        wait_s = request.idle_s if inbox.pile.received else request.timeout_s
        limit = asyncio.timeout(None if not wait_s or wait_s <= 0 else wait_s + GRACE_S)
        try:
            async with limit:
                await waiter
        except TimeoutError:
            silent = RunNotAnswering(connection.silent(wait_s or 0.0))
            self._leave(silent)
            raise silent from None
        finally:
            inbox.waiter = None

    def _leave(self, end: BaseException) -> None:
        inbox = self._inbox
        if inbox.end is None:
            inbox.finish(end)
            if self._connection is not None and self._pid == os.getpid():
                self._connection.leave(self._request.id)


def inherited() -> TransportClosed:
    """What a child hears that reads on in a stream of its parent."""
    return TransportClosed(
        "This stream was begun by the process that has forked this one, and belongs to it. Begin one here: the client "
        "connects anew."
    )
