"""The writing end of a stream: what `emit`, `end_stream` and `stream_reply` do, for one message in hand.

Rules of this file: everything runs on the loop; what it costs for each chunk stands in `Writer.emit`. A stream is over
when its handler is, whatever that forgets: `Seat` calls `finish` at the end of a handler that has begun one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Final, Self

from ..errors import (
    CivitasError,
    SharedMemoryFull,
    SlowConsumerError,
    StreamError,
    StreamInterrupted,
    StreamTimeout,
    TransportClosed,
)
from ..messages import STREAM_BIT, Message
from ..serializer import encode
from ..transport import Reply
from ..typed import Payload
from .frames import CANCEL, CHUNK, CREDIT, CREDITS, END, OPEN, OPENING, seq_of
from .places import Streams

__all__ = ["StreamReply", "Writer"]

YIELD_CHUNKS: Final = 64
"""As with sends: a writer that is never made to wait lets its loop turn so often."""


class Writer:
    """The answer to one question. A `transport.Sink`, for credits."""

    __slots__ = (
        "_back", "_ended", "_keep", "_limit", "_mailbox", "_port", "_post_reply", "_sent", "_streams", "_waiters",
        "attempt", "cause", "gone", "message", "on_gone",
    )  # fmt: skip

    def __init__(self, streams: Streams, mailbox: int, message: Message) -> None:
        """Opens the stream. StreamError: nobody reads one; this was sent or asked."""
        cause = message.header
        if cause is None or not message.wants_stream:
            raise StreamError(
                f"message {message.type!r} of {message.sender!r} was {'asked' if message.correlation else 'sent'}, and "
                "nobody reads a stream of its answer: `emit` and `stream_reply` answer `stream()`. "
                "`message.wants_stream` tells them apart."
            )
        self._streams = streams
        self._port = port = streams.port
        self._post_reply = port.post_reply
        self._keep = port.keep
        self._mailbox = mailbox
        self.message = message
        self.attempt = message.attempt
        self.cause = cause
        lives = message.delivery + message.attempt
        # A successor does not know how many places are left, so it waits until it is told; see `Reader._opened`.
        self._limit = seq_of(cause) & ~STREAM_BIT if lives == 1 else 0
        self._sent = 0
        self._ended = False
        self._waiters: list[asyncio.Future[None]] = []
        self.gone: StreamError | None = None
        """Nobody reads any more, and why; `emit` raises it."""
        self.on_gone: Callable[[], None] | None = None
        self._back = port.new_correlation()
        self._keep(self._back, self)
        streams.writers.add(self)
        opened = port.lives(cause) and port.post_reply(cause, OPENING.pack(self._back, lives), OPEN, mailbox, False, 1)
        if not opened:
            self._lost("")

    # --- chunks ---------------------------------------------------------------------------------------------------

    def emit(self, payload: Payload, committed: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None]:
        """Send a chunk; to be awaited. `committed` is given back when there is nothing to wait for."""
        sent = self._sent
        if sent < self._limit and self.gone is None:
            try:
                if self._post_reply(self.cause, encode(payload), CHUNK, self._mailbox, False, sent + 1):
                    self._sent = sent = sent + 1
                    return asyncio.sleep(0) if sent % YIELD_CHUNKS == 0 else committed
                self._lost("")
            except CivitasError:
                pass  # raised where it is awaited, as everything else
        return self._emit(payload)

    async def _emit(self, payload: Payload) -> None:
        data = encode(payload)
        while True:
            if self._ended:
                raise StreamError("the stream is at its end already: nothing can be emitted after end_stream().")
            if self.gone is not None:
                raise self.gone
            if self._sent >= self._limit:
                await self._credit()
                continue
            try:
                if self._post_reply(self.cause, data, CHUNK, self._mailbox, False, self._sent + 1):
                    self._sent += 1
                    return
                self._lost("")
            except SharedMemoryFull:
                await self._port.reply_room(self.cause)

    async def _credit(self) -> None:
        """Return when there may be credits again, or nobody reads any more."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # --- what comes back: a Sink ----------------------------------------------------------------------------------

    def done(self) -> bool:
        return self._ended

    def exception(self) -> BaseException | None:
        return self.gone

    def set_exception(self, error: BaseException) -> None:
        self.gone = StreamInterrupted(str(error), self._sent)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error)
        self._waiters.clear()

    def set_result(self, reply: Reply) -> None:
        self._keep(self._back, self)
        _, _, kind, _, data, _ = reply
        if kind == CREDIT:
            self._limit = max(self._limit, CREDITS.unpack(data)[0])
            self._wake()
        elif kind == CANCEL:
            self._lost(data.decode(errors="replace"))

    def somebody_died(self) -> None:
        if self.gone is None and not self._port.lives(self.cause):
            self._lost("")

    def _lost(self, reason: str) -> None:
        """Nobody reads any more."""
        if self.gone is not None:
            return
        who = repr(self.message.sender)
        if reason:
            self.gone = SlowConsumerError(f"{who} reads too slowly: {reason}", self._sent)
        else:
            self.gone = StreamInterrupted(f"{who} does not read any more, after {self._sent} chunks.", self._sent)
        self._wake()
        if self.on_gone is not None:
            self.on_gone()

    # --- the end --------------------------------------------------------------------------------------------------

    def excuses(self, error: BaseException) -> bool:
        """Whether a handler ended over this because its reader is gone: that is nobody's failure."""
        return error is self.gone

    async def finish(self) -> None:
        """The handler has ended, or `end_stream`: the reader gets the end. Idempotent."""
        if self._ended:
            return
        try:
            while True:
                try:
                    self._post_reply(self.cause, b"", END, self._mailbox, False, self._sent + 1)
                    break
                except SharedMemoryFull:
                    await self._port.reply_room(self.cause)
        finally:
            self.close()

    def close(self) -> None:
        """Without a word to the reader: it has been told otherwise, or will be by a successor. Idempotent."""
        if not self._ended:
            self._ended = True
            self._limit = -1  # what `emit` looks at
            self._port.forget(self._back)
            self._streams.writers.discard(self)
            self._wake()


class StreamReply:
    """`async with self.stream_reply() as out: await out.send({...})`; a plain handler says `with`.

    The end is sent when the block is left. When nobody reads any more its body is cancelled where it waits, whatever it
    waits for, and the block is left; `cancelled` says so behind it. More than `max_frames` chunks: StreamError. Longer
    than `max_duration` seconds: the body is cancelled, and the block raises StreamTimeout.
    """

    def __init__(
        self,
        open_writer: Callable[[], Coroutine[Any, Any, Writer]],
        hand_over: Callable[[Coroutine[Any, Any, Any]], Any] | None,
        committed: Coroutine[Any, Any, None],
        max_frames: int | None,
        max_duration: float | None,
    ) -> None:
        if max_frames is not None and max_frames < 1:
            raise ValueError(f"max_frames of stream_reply is {max_frames}; it must be at least 1, or None")
        if max_duration is not None and not max_duration > 0:
            raise ValueError(f"max_duration of stream_reply is {max_duration} s; it must be more than 0, or None")
        self._open_writer = open_writer
        self._hand_over = hand_over
        self._committed = committed
        self._max_frames = max_frames
        self._max_duration = max_duration
        self._writer: Writer | None = None
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._cut = False
        self._over = False
        self._cancelling = 0
        self.frames = 0
        """Chunks sent so far."""

    @property
    def cancelled(self) -> bool:
        """Nobody reads any more."""
        return self._writer is not None and self._writer.gone is not None

    def send(self, payload: Payload) -> Any:
        """Send a chunk; to be awaited, except in a plain handler. Waits while the reader has not taken enough."""
        writer = self._writer
        if writer is None:
            raise RuntimeError("send() of stream_reply() works inside of its block")
        if self._hand_over is not None:
            return self._hand_over(self._send(writer, payload))
        if self._max_frames is not None and self.frames >= self._max_frames:
            return self._send(writer, payload)
        self.frames += 1
        return writer.emit(payload, self._committed)

    async def _send(self, writer: Writer, payload: Payload) -> None:
        if self._max_frames is not None and self.frames >= self._max_frames:
            raise StreamError(
                f"the answer to {writer.message.sender!r} has {self.frames} chunks, as many as max_frames allows.",
                self.frames,
            )
        if self._over:
            raise self._too_long(writer)
        self.frames += 1
        await writer.emit(payload, self._committed)

    async def __aenter__(self) -> Self:
        self._writer = writer = await self._open_writer()
        self._task = asyncio.current_task()
        self._begin(writer)
        if writer.gone is not None:
            self._cut_short()
        return self

    def _begin(self, writer: Writer) -> None:
        if self._task is not None:
            self._cancelling = self._task.cancelling()
            writer.on_gone = self._cut_short
        if self._max_duration is not None:
            self._timer = asyncio.get_running_loop().call_later(self._max_duration, self._too_late)

    def _cut_short(self) -> None:
        if self._task is not None and not self._cut:
            self._cut = True
            self._task.cancel()

    def _too_late(self) -> None:
        self._over = True
        self._cut_short()

    def _too_long(self, writer: Writer) -> StreamTimeout:
        return StreamTimeout(
            f"the answer to {writer.message.sender!r} took longer than its max_duration of {self._max_duration:g} s, "
            f"after {self.frames} chunks.", self.frames,
        )  # fmt: skip

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        writer, task = self._writer, self._task
        assert writer is not None
        self._leave(writer)
        if self._cut and task is not None:
            others = task.uncancel() > self._cancelling  # somebody else cancels the handler too: that goes first
            if not others and (error is None or isinstance(error, asyncio.CancelledError)):
                if self._over:
                    raise self._too_long(writer) from None
                error = None
        return await self._end(writer, error)

    def _leave(self, writer: Writer) -> None:
        writer.on_gone = None
        if self._timer is not None:
            self._timer.cancel()

    async def _end(self, writer: Writer, error: BaseException | None) -> bool:
        """Whether what the block raised is swallowed: the reader has gone, and that is all there is to it."""
        if error is None or writer.excuses(error):
            try:
                await writer.finish()
            except TransportClosed:
                logging.getLogger(__name__).debug("the run has ended before the end of a stream was sent")
            return True
        return False  # the handler fails, and the reader is told why; or it catches this, and ends the stream later

    # --- in the thread of a plain handler -------------------------------------------------------------------------

    def __enter__(self) -> Self:
        async def enter() -> None:
            self._writer = await self._open_writer()
            self._begin(self._writer)

        self._needed()(enter())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        async def leave() -> bool:
            assert self._writer is not None
            self._leave(self._writer)
            return await self._end(self._writer, error)

        swallowed: bool = self._needed()(leave())
        return swallowed

    def _needed(self) -> Callable[[Coroutine[Any, Any, Any]], Any]:
        if self._hand_over is None:
            raise RuntimeError("an `async def handle` says `async with self.stream_reply()`")
        return self._hand_over
