"""What an agent does with streams: `stream` on the reading side; `emit`, `end_stream`, `stream_reply` in a handler.

How a stream works stands in `streams`; here are the user's words for it, as a part of AgentProcess.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, Protocol

from .current import HANDLED

if TYPE_CHECKING:
    from .messages import Message
    from .process import Attachment
    from .streams.writer import StreamReply, Writer
    from .typed import Payload

__all__ = ["IDLE_TIMEOUT_S", "MAXSIZE", "MAX_DURATION_S", "TIMEOUT_S", "Ending", "Streaming"]

TIMEOUT_S: Final = 30.0
IDLE_TIMEOUT_S: Final = 300.0
MAX_DURATION_S: Final = 3600.0
MAXSIZE: Final = 256


class Ending(Protocol):
    """Something that a handler has begun and that ends with it, at the latest."""

    async def finish(self) -> None:
        """The handler has ended well."""
        ...

    def close(self) -> None:
        """The agent ends. After `finish` too."""
        ...

    def excuses(self, error: BaseException) -> bool:
        """Whether the handler ended well although it raised this."""
        ...


class Streaming:
    """A part of AgentProcess."""

    _attached: Attachment | None
    _hand_over: Callable[[Coroutine[Any, Any, Any]], Any] | None
    _writer: Writer | None = None

    if TYPE_CHECKING:

        def _attachment(self) -> Attachment: ...

    def stream(
        self,
        recipient: str,
        payload: Payload,
        message_type: str = "message",
        *,
        timeout: float | None = TIMEOUT_S,
        idle_timeout: float | None = IDLE_TIMEOUT_S,
        max_duration: float | None = MAX_DURATION_S,
        maxsize: int = MAXSIZE,
    ) -> Any:
        """Ask for an answer in chunks: an async iterator over their payloads (in a plain `def handle` an iterator).

        `timeout` seconds until the first chunk, `idle_timeout` between two, `max_duration` for all: StreamTimeout; None
        or <= 0: no limit. At most `maxsize` chunks wait to be taken, then the writer waits; nothing is dropped. An
        agent that just answers gives one chunk. StreamInterrupted: the writer failed or is gone; if its process dies,
        the stream goes on with its successor, as long as that says the same again. Leaving the loop ends the stream.
        """
        from .streams.reader import BlockingStream, Question, Reader, Stream

        to = self._attached or self._attachment()
        handled = HANDLED.get()
        question = Question(
            recipient, payload, message_type, timeout, idle_timeout, max_duration, maxsize, to.mailbox,
            None if handled is None else handled.header,
        )  # fmt: skip
        stream = Stream(Reader(to.bus.streams, question))
        return stream if self._hand_over is None else BlockingStream(stream, self._hand_over)

    def emit(self, payload: Payload) -> Coroutine[Any, Any, None]:
        """Send a chunk to whoever reads the stream that the message in hand asks for; to be awaited.

        Waits while the reader has not taken enough of the earlier ones. StreamInterrupted, SlowConsumerError: nobody
        reads any more; where the handler does not catch it, it ends, and the agent goes on. StreamError: the message
        does not ask for a stream (`message.wants_stream`). The stream ends with the handler, or with `end_stream`.
        """
        from .port_bus import COMMITTED

        handled = HANDLED.get()
        if self._hand_over is not None:
            return self._hand_over(self._emit(handled, payload))  # type: ignore[no-any-return]
        writer = self._writer
        if writer is None or writer.message is not handled or writer.attempt != handled.attempt:
            return self._emit(handled, payload)
        return writer.emit(payload, COMMITTED)

    async def _emit(self, handled: Message | None, payload: Payload) -> None:
        from .port_bus import COMMITTED

        await self._writer_of(handled).emit(payload, COMMITTED)

    def end_stream(self) -> Coroutine[Any, Any, None]:
        """The stream is at its end, before the handler is; to be awaited. An empty one, if nothing was emitted."""
        work = self._end_stream(HANDLED.get())
        return work if self._hand_over is None else self._hand_over(work)

    async def _end_stream(self, handled: Message | None) -> None:
        await self._writer_of(handled).finish()

    def stream_reply(self, max_frames: int | None = None, max_duration: float | None = None) -> StreamReply:
        """`async with self.stream_reply() as out: await out.send({...})`: the answer in chunks, with its end.

        As `emit`; but when nobody reads any more the body is cancelled at once, whatever it waits for, and the block is
        left in silence (`out.cancelled`). More than `max_frames` chunks: StreamError; longer than `max_duration`
        seconds: StreamTimeout. An exception out of the block is the handler's: the reader gets StreamInterrupted with
        its cause.
        """
        from .port_bus import COMMITTED
        from .streams.writer import StreamReply

        handled = HANDLED.get()

        async def open_writer() -> Writer:
            return self._writer_of(handled)

        return StreamReply(open_writer, self._hand_over, COMMITTED, max_frames, max_duration)

    def _writer_of(self, handled: Message | None) -> Writer:
        """The writer of the message in hand; its stream begins with the first call."""
        from .streams.writer import Writer

        if handled is None:
            raise RuntimeError("emit(), end_stream() and stream_reply() work only inside of handle()")
        writer = self._writer
        if writer is not None and writer.message is handled and writer.attempt == handled.attempt:
            return writer
        if writer is not None:
            writer.close()
        to = self._attachment()
        self._writer = writer = Writer(to.bus.streams, to.mailbox, handled)
        to.at_end(writer)
        return writer
