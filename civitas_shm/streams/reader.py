"""The reading end of a stream.

`Stream` is what the user holds, `Reader` what the Port knows. They are two because the Port keeps a Reader as long as
something may come for it, while a Stream that nobody holds any more (the loop over it was left) has to say so: then the
writer is told, at once.

Rules of this file: everything runs on the loop. What it costs for each chunk stands in `Reader.set_result` and
`Stream.__anext__`; what happens once for a stream, or once for many chunks, stands elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
from array import array
from collections import deque
from collections.abc import Awaitable, Callable
from time import monotonic_ns
from types import TracebackType
from typing import Any, Final, Self

from ..errors import (
    AgentError,
    CivitasError,
    SharedMemoryFull,
    SlowConsumerError,
    StreamError,
    StreamInterrupted,
    StreamTimeout,
    TransportClosed,
)
from ..messages import STREAM_BIT, Cause, new_header
from ..serializer import decode
from ..transport import SENDER_PROGRAM, Reply
from ..typed import Payload
from ..waits import NEVER_NS, Expired
from .frames import CANCEL, CHUNK, CREDIT, CREDITS, END, OPEN, OPENING, seq_of
from .places import EXTRA, Streams

__all__ = ["REMEMBERED", "BlockingStream", "Question", "Reader", "Stream"]

REMEMBERED: Final = 65_536
"""Chunks whose hashes are kept, half a MiB; of a longer stream a successor of the writer cannot go on."""


class Question:
    """What a stream begins with, and its limits in seconds; None, 0 or less: none."""

    __slots__ = (
        "cause", "idle_s", "max_s", "maxsize", "payload", "recipient", "sender", "timeout_s", "type",
    )  # fmt: skip

    def __init__(
        self,
        recipient: str,
        payload: Payload,
        message_type: str,
        timeout: float | None,
        idle_timeout: float | None,
        max_duration: float | None,
        maxsize: int,
        sender: int = SENDER_PROGRAM,
        cause: Cause | None = None,
    ) -> None:
        if maxsize < 1:
            raise ValueError(f"maxsize of a stream is {maxsize}; at least 1 chunk must fit")
        self.recipient = recipient
        self.payload = payload
        self.type = message_type
        self.timeout_s = _limit(timeout)
        self.idle_s = _limit(idle_timeout)
        self.max_s = _limit(max_duration)
        self.maxsize = maxsize
        self.sender = sender
        self.cause = cause


def _limit(seconds: float | None) -> float | None:
    return None if seconds is None or seconds <= 0 else seconds


class Reader:
    """What has come and not been taken. A `transport.Sink`."""

    __slots__ = (
        "_arrived", "_began_ns", "_correlation", "_digests", "_doubles", "_end", "_granted", "_keep", "_left", "_lives",
        "_loop", "_mailbox", "_question", "_received", "_seen_at_look", "_settled", "_streams", "_timer", "_to",
        "_waiter", "_window", "buffer", "step", "taken",
    )  # fmt: skip

    def __init__(self, streams: Streams, question: Question) -> None:
        self._streams = streams
        self._question = question
        self._keep = streams.port.keep
        self.buffer: deque[bytes] = deque()
        self.taken = 0
        """Since the last credit."""
        self.step = 0
        """So many make a credit due: half of the window, so that it arrives before the writer has used up the rest."""
        self._window = 0
        self._granted = 0
        self._arrived = 0
        """From this life of the writer; with `_granted`, numbers of chunks."""
        self._received = 0
        """Of all lives, each chunk once."""
        self._digests = array("q")
        self._doubles = 0
        """Chunks up to this number have come from an earlier life of the writer."""
        self._lives = 0
        self._to: bytes | None = None
        """Header for what goes to the writer, once it has opened."""
        self._end: BaseException | None = None
        self._left = False
        """Nobody reads any more; what still comes is let go."""
        self._settled = False
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._seen_at_look = -1
        self._correlation = 0
        self._mailbox = -1
        self._began_ns = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    # --- the beginning --------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Commit the question. Raises what `ask` raises when it cannot be; StreamTimeout: no place, no room."""
        question, streams = self._question, self._streams
        self._loop = asyncio.get_running_loop()
        self._began_ns = monotonic_ns()
        try:
            self._window = await streams.begin(question.maxsize, question.timeout_s)
        except TimeoutError:
            self._settled = True
            self._end = StreamTimeout(
                f"a stream from {question.recipient!r} found no place within {question.timeout_s:.3g} s: "
                f"{streams.readers} streams of this process are open and hold all of its places."
            )
            raise self._end from None
        self.step = (self._window + 1) // 2
        self._granted = self._window
        try:
            self._correlation, self._mailbox = await streams.bus.question(
                question.recipient, question.payload, question.type, question.timeout_s, question.sender,
                question.cause, self, self._until_ns(question.max_s), STREAM_BIT | self._window,
            )  # fmt: skip
        except BaseException as error:
            self._settled = True
            self._end = error if isinstance(error, CivitasError) else StreamInterrupted("the stream did not begin.")
            streams.end(self._window + EXTRA)
            raise
        self._arm()

    def _until_ns(self, seconds: float | None) -> int:
        return 0 if seconds is None else self._began_ns + int(seconds * 1e9)

    # --- what comes: a Sink ---------------------------------------------------------------------------------------

    def done(self) -> bool:
        return self._settled

    def exception(self) -> BaseException | None:
        return self._end

    def set_exception(self, error: BaseException) -> None:
        self._finish(error)
        self._settle()

    def set_result(self, reply: Reply) -> None:
        """A frame, or the ordinary reply of a handler that does not stream. Called from the middle of a poll."""
        correlation, header, kind, _, data, failed = reply
        seq = seq_of(header)
        if kind == CHUNK and seq and not failed:
            self._keep(correlation, self)
            self._arrived = arrived = self._arrived + 1
            if self._left:
                return
            if seq != arrived:
                self._broken(f"chunk {seq - 1} came where {arrived - 1} was due")
            elif arrived <= self._doubles:
                self._double(data)
            else:
                self._received += 1
                if arrived <= REMEMBERED:
                    self._digests.append(hash(data))
                self.buffer.append(data)
                if self._waiter is not None:
                    self._wake()
            return
        if kind == OPEN and seq and not failed:
            self._keep(correlation, self)
            self._opened(*OPENING.unpack(data))
            return
        # All else is the end. A last answer is followed by an END, which finds nobody any more.
        if failed:
            self._failed(kind, data)
        elif self._arrived < self._doubles:
            self._diverged()
        elif kind == END and seq:
            if seq != self._arrived + 1:
                self._finish(self._interrupted(f"{seq - 1 - self._arrived} chunks were lost"))
            else:
                self._finish(StopAsyncIteration())
        else:
            self._received += 1
            self.buffer.append(data)
            self._finish(StopAsyncIteration())
        self._settle()

    def _opened(self, correlation: int, delivery: int) -> None:
        """A life of the writer begins. The second one and later ones have no credits until they are told."""
        self._to = new_header(correlation=correlation, sender=SENDER_PROGRAM)
        if self._left:
            self._post(CANCEL, b"")
            return
        self._lives += 1
        if self._lives > 1:
            self._doubles = max(self._doubles, self._arrived)
            self._arrived = 0
            if self._doubles > REMEMBERED:
                self._broken(
                    f"its process died after {self._doubles} chunks, more than the {REMEMBERED} that could be compared "
                    "with those of a successor"
                )
                return
        if delivery > 1:
            self._granted = 0
            self._grant()

    def _double(self, data: bytes) -> None:
        """A chunk that an earlier life of the writer has sent."""
        if self._digests[self._arrived - 1] != hash(data):
            self._diverged()
            return
        self.taken += 1
        if self.taken >= self.step:
            self._grant()

    def _diverged(self) -> None:
        self._broken(
            f"its process died after {self._doubles} chunks, and its successor answers otherwise from chunk "
            f"{max(0, self._arrived - 1)} on"
        )

    # --- credits --------------------------------------------------------------------------------------------------

    def grant(self) -> None:
        """Half of the window has been taken: the writer may go on."""
        if self._to is not None and not self._left and not self._settled:
            self._grant()

    def _grant(self) -> None:
        """How many more may come is looked at anew each time: what is not taken yet counts, and so do the others."""
        window = self._streams.share(self._window, self._question.maxsize)
        limit = max(self._granted, self._arrived + window - len(self.buffer))
        held = max(window, limit - self._arrived)
        self._streams.give_back(self._window - held)
        self._window = held
        self.step = (window + 1) // 2
        self.taken = 0
        if limit > self._granted and self._post(CREDIT, CREDITS.pack(limit)):
            self._granted = limit

    def _post(self, kind: str, data: bytes) -> bool:
        """Something to the writer. It may be gone; then its successor, or its end, will come."""
        assert self._to is not None
        try:
            return self._streams.port.post_reply(self._to, data, kind, SENDER_PROGRAM, False, 1)
        except SharedMemoryFull:
            if not self._left:
                self.taken = self.step  # once more with the next chunk
            return False
        except TransportClosed:
            return False

    # --- waiting --------------------------------------------------------------------------------------------------

    async def news(self, wanted: bool = True) -> None:
        """Return when something may have come. Raises the end: StopAsyncIteration, or why there is no more.

        `wanted`: whether somebody waits for it, so that its deadlines run; that of all runs in any case.
        """
        if self._end is not None:
            raise self._end
        if self._left:
            raise StopAsyncIteration
        if self._loop is None:
            await self.begin()
            if self.buffer or self._end is not None:
                return
        assert self._loop is not None
        waits = self._streams.waits
        number = self._streams.port.new_correlation()  # of this wait: the deadlock watch tells waits by it
        self._waiter = waiter = self._loop.create_future()
        now_ns = monotonic_ns()
        due_ns = self._due_ns(now_ns) if wanted else NEVER_NS - 1
        waits.asks[number] = (due_ns, waiter, self._mailbox, self._question.type, now_ns)
        if due_ns < waits.due_ns:
            waits.arm(due_ns)
        try:
            await waiter
        except Expired:
            self.leave()
            self._end = self._timed_out(monotonic_ns())
            raise self._end from None
        except CivitasError as error:  # a deadlock: see `deadlock`
            self.leave()
            self._end = error
            raise
        finally:
            waits.asks.pop(number, None)
            self._waiter = None

    def look_again(self) -> None:
        """Let `news` return, whether or not there are any."""
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _due_ns(self, now_ns: int) -> int:
        """The next deadline: for the first chunk, for the next one, for all."""
        question = self._question
        wait_s = question.idle_s if self._received else question.timeout_s
        base_ns = now_ns if self._received else self._began_ns
        due_ns = NEVER_NS - 1 if wait_s is None else base_ns + int(wait_s * 1e9)
        return min(due_ns, self._until_ns(question.max_s) or due_ns)

    def _timed_out(self, now_ns: int) -> StreamTimeout:
        question = self._question
        who, received = repr(question.recipient), self._received
        if question.max_s is not None and now_ns >= self._until_ns(question.max_s):
            return StreamTimeout(
                f"the stream from {who} was not over within its max_duration of {question.max_s:.3g} s.", received
            )
        if received:
            return StreamTimeout(
                f"{who} has sent nothing for {question.idle_s:.3g} s (idle_timeout), after {received} chunks.", received
            )
        stats = self._streams.port.stats(self._mailbox)
        return StreamTimeout(
            f"{who} did not begin to answer {question.type!r} within {question.timeout_s:.3g} s; {stats.waiting} wait "
            "in its mailbox.",
        )

    def _arm(self) -> None:
        """A timer for those who do not take: nobody waits then, so no other deadline runs."""
        question = self._question
        assert self._loop is not None
        now_ns = monotonic_ns()
        until_ns = self._until_ns(question.max_s)
        delays = [] if question.idle_s is None else [question.idle_s]
        delays += [(until_ns - now_ns) / 1e9] if until_ns else []
        if delays:
            self._timer = self._loop.call_later(max(0.0, min(delays)), self._look)

    def _look(self) -> None:
        self._timer = None
        question, now_ns, until_ns = self._question, monotonic_ns(), self._until_ns(self._question.max_s)
        seen = self._received - len(self.buffer)
        error: StreamError
        if until_ns and now_ns >= until_ns:
            error = self._timed_out(now_ns)
        elif self.buffer and seen == self._seen_at_look:
            error = SlowConsumerError(
                f"nothing was taken for {question.idle_s:.3g} s (idle_timeout) from the stream of "
                f"{question.recipient!r}; {len(self.buffer)} chunks lay ready.", self._received,
            )  # fmt: skip
        else:
            self._seen_at_look = seen if self.buffer else -1
            self._arm()
            return
        if isinstance(error, SlowConsumerError):
            self.buffer.clear()
        self.leave(str(error) if isinstance(error, SlowConsumerError) else "")
        self._end = error
        self._wake()

    # --- the end --------------------------------------------------------------------------------------------------

    def leave(self, reason: str = "") -> None:
        """Nobody reads any more. The writer is told; the places stay taken until nothing can come, see `places`."""
        if self._left or self._settled:
            return
        self._left = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._loop is None:
            self._settled = True
        elif self._to is not None:
            self._post(CANCEL, reason.encode())
            until_ns = self._until_ns(self._question.max_s)
            if until_ns:  # then replies are refused, its end too
                self._timer = self._loop.call_later(max(0.0, (until_ns - monotonic_ns()) / 1e9), self._settle)
        elif self._correlation:
            self._settle()  # should its handler ever begin, `Streams` tells it that nobody reads

    def let_go(self) -> None:
        """`leave`, from whatever thread and at whatever moment an object is let go of."""
        if self._left or self._settled or self._loop is None:
            return
        try:
            if asyncio.get_running_loop() is self._loop:
                self.leave()
                return
        except RuntimeError:
            pass  # no loop runs in this thread
        with contextlib.suppress(RuntimeError):  # it is closed, and all that waited with it
            self._loop.call_soon_threadsafe(self.leave)

    def _finish(self, end: BaseException) -> None:
        """What comes behind all that lies ready."""
        if self._end is None:
            self._end = end
        self._wake()

    def _broken(self, why: str) -> None:
        """Nothing that comes is of use any more."""
        error = self._interrupted(why)
        self.leave()
        self._finish(error)

    def _interrupted(self, why: str) -> StreamInterrupted:
        return StreamInterrupted(
            f"the stream from {self._question.recipient!r} was interrupted after {self._received} chunks: {why}.",
            self._received,
        )

    def _failed(self, kind: str, data: bytes) -> None:
        cause = self._streams.bus.failure_of(self._question.recipient, self._question.type, self._mailbox, kind, data)
        why = f"it raised {cause.type_name}: {cause.text}" if isinstance(cause, AgentError) else str(cause).rstrip(".")
        error = self._interrupted(why)
        error.__cause__ = cause
        self._finish(error)

    def _settle(self) -> None:
        """Nothing can come any more."""
        if self._settled:
            return
        self._settled = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._streams.port.forget(self._correlation)
        self._streams.end(self._window + EXTRA)

    @property
    def received(self) -> int:
        return self._received


class Stream:
    """An async iterator over the payloads of a stream's chunks. Made by `AgentProcess.stream` and `Runtime.stream`.

    Leaving the loop over it ends the stream, and so do `aclose`, the end of `async with`, and letting go of it.
    Cancelling one step of it (`asyncio.wait_for(anext(stream), 1)`) does not: the next step goes on.
    """

    __slots__ = ("_reader", "_translate")

    def __init__(
        self,
        reader: Reader,
        translate: Callable[[TransportClosed], Awaitable[BaseException]] | None = None,
    ) -> None:
        """`translate`: what to raise when the run has ended."""
        self._reader = reader
        self._translate = translate

    @property
    def received(self) -> int:
        """Chunks that have come so far, taken or not."""
        return self._reader.received

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        reader = self._reader
        buffer = reader.buffer
        while not buffer:
            try:
                await reader.news()
            except TransportClosed as closed:
                if self._translate is None:
                    raise
                raise await self._translate(closed) from None
        data = buffer.popleft()
        reader.taken += 1
        if reader.taken >= reader.step:
            reader.grant()
        return decode(data)

    async def aclose(self) -> None:
        """End the stream now; the writer is told. Idempotent; also after the end."""
        self._reader.leave()
        self._reader.buffer.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self._reader.let_go()


class BlockingStream:
    """The same for a plain `def handle`, in its thread: an iterator."""

    def __init__(self, stream: Stream, hand_over: Callable[[Any], Any]) -> None:
        self._stream = stream
        self._hand_over = hand_over

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        async def step() -> Any:  # StopAsyncIteration does not pass through a future
            return await anext(self._stream, None)

        chunk = self._hand_over(step())
        if chunk is None:
            raise StopIteration
        return chunk

    def close(self) -> None:
        """End the stream now."""
        self._hand_over(self._stream.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
