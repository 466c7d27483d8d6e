"""`civitas_shm.connect`: a client of a run, for a program that has an event loop of its own.

    async with civitas_shm.connect("shop") as shop:
        reply = await shop.ask("pricing", {"item": 17})

Guarantees: a `send` that returned has committed its message, which survives the death of any process, the client's too.
One that raised has committed nothing; only TransportClosed says that it is not known. A client that has lost its run
says so once to each who waits, and looks for the run again at the next call: it may have been resumed.

Rules of this file: everything happens on one loop, that of the first call; a forked child shares nothing with its
parent and connects anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self, cast

from ..errors import PayloadTooLarge, RunNotAnswering, TransportClosed
from ..host.wire import FRAME_BYTES_MAX, FrameDecoder, WireError, encode_frame
from ..many import ASKS_AT_ONCE, ask_many
from ..messages import Message, is_system_type
from ..port_bus import ASK_TIMEOUT_S, SEND_TIMEOUT_S
from ..retrying import Retry, tried
from ..serializer import decode, encode
from ..streaming import IDLE_TIMEOUT_S, MAX_DURATION_S, MAXSIZE, TIMEOUT_S
from ..typed import Payload, wanted
from .dial import CONNECT_TIMEOUT_S, Line, dial
from .protocol import (
    IN_FLIGHT_MAX,
    STREAMS_OPEN_MAX,
    Ask,
    Broadcast,
    Bye,
    Cancel,
    Chunks,
    Done,
    Failed,
    Forget,
    FromClient,
    OpenStream,
    Replied,
    Send,
    ToClient,
    error_from,
)
from .stream import GRACE_S, ClientStream, Inbox

__all__ = [
    "CLIENT_NAME", "PAYLOAD_BYTES_MAX", "Client", "Connection", "connect", "lost", "message_of", "options_of", "ready",
    "silent",
]  # fmt: skip

CLIENT_NAME: Final = "_client"
"""Recipient of the replies that a client gets."""

PAYLOAD_BYTES_MAX: Final = FRAME_BYTES_MAX // 2
"""Of a message from or to a client; larger things belong into a file, or to an agent of the run."""


def connect(name: str | None = None, *, timeout_s: float = CONNECT_TIMEOUT_S, wait_s: float = 0.0) -> Client:
    """A client of the run of that name; None: of the only run there is. It connects at `async with`, or when used.

    `timeout_s`: how long a run that is there may take to let it in. `wait_s`: how long to wait for one that is not
    there (yet, or again). Use one client for the whole program, from one event loop; without one: `connect_blocking`.
    """
    return Client(name, timeout_s=timeout_s, wait_s=wait_s)


class Client:
    """Talks with the agents of one run. See `connect`."""

    def __init__(self, name: str | None, *, timeout_s: float, wait_s: float) -> None:
        self._name = name
        self._timeout_s = timeout_s
        self._wait_s = wait_s
        self._connection: Connection | None = None
        self._dialling: asyncio.Future[Connection] | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        await self._connected()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go. Who waits for an answer gets TransportClosed. Idempotent."""
        self._closed = True
        if self._connection is not None and self._connection.pid == os.getpid():
            self._connection.end("This client was closed.")
        self._connection = None

    @property
    def connected(self) -> bool:
        """Whether there is a connection just now; the next call makes one where there is none."""
        return self._connection is not None and self._connection.usable

    # --- messages -----------------------------------------------------------------------------------------------------

    async def send(
        self,
        name: str,
        payload: Payload,
        message_type: str = "message",
        *,
        timeout: float | None = SEND_TIMEOUT_S,
        priority: int = 0,
        ttl: float | None = None,
        delay: float | None = None,
        at: datetime | float | None = None,
        every: float | None = None,
        key: str | None = None,
        retry: Retry | None = None,
    ) -> None:
        """Commit a message to the agent's mailbox, as `Runtime.send`; its sender reads `_runtime`.

        What comes later (`delay`, `at`, `every`) is kept by the run and needs no client. Keys are those of the program
        that started the run and of all its clients together. `retry`: tried again from here.
        """
        data = ready(payload, message_type)
        options = options_of(priority, ttl=ttl, delay=delay, at=at, every=every, key=key)

        async def attempt() -> None:
            connection = await self._connected()
            request = Send(connection.number(), name, data, message_type, timeout, options)
            await connection.request(request, timeout)

        await (attempt() if retry is None else tried(retry, attempt))

    async def cancel(self, key: str, timeout: float | None = SEND_TIMEOUT_S) -> None:
        """Take back what the program or one of its clients has ordered under `key`, as `Runtime.cancel`."""
        connection = await self._connected()
        await connection.request(Cancel(connection.number(), key, timeout), timeout)

    async def ask(
        self,
        name: str,
        payload: Payload,
        timeout: float | None = ASK_TIMEOUT_S,
        message_type: str = "message",
        *,
        priority: int = 0,
        retry: Retry | None = None,
        reply_type: Any = None,
    ) -> Message:
        """Send a question and give back the reply, as `Runtime.ask`, with the same errors.

        `reply_type`: the type of its payload, or a union of types: what comes is built as that, and what does not fit
        is a DeserializationError. Needed for a typed reply whose type this program has not declared (`payload_type`).
        """
        data, built = ready(payload, message_type), decode if reply_type is None else wanted(reply_type)

        async def attempt() -> Message:
            connection = await self._connected()
            request = Ask(connection.number(), name, data, message_type, timeout, options_of(priority))
            answer = await connection.request(request, timeout)
            assert isinstance(answer, Replied)
            return message_of(answer, built)

        return await (attempt() if retry is None else tried(retry, attempt))

    async def ask_many(
        self,
        to: str | Sequence[str],
        payloads: Iterable[Payload],
        limit: int = ASKS_AT_ONCE,
        message_type: str = "message",
        timeout: float | None = ASK_TIMEOUT_S,
        priority: int = 0,
        retry: Retry | None = None,
        *,
        return_exceptions: bool = False,
        reply_type: Any = None,
    ) -> list[Any]:
        """Ask once for each payload, as `Runtime.ask_many`: the replies, in the order of `payloads`."""

        async def one(name: str, payload: Payload) -> Message:
            return await self.ask(
                name, payload, timeout, message_type, priority=priority, retry=retry, reply_type=reply_type
            )

        return await ask_many(one, to, payloads, limit, return_exceptions)

    def stream(
        self,
        name: str,
        payload: Payload,
        message_type: str = "message",
        *,
        timeout: float | None = TIMEOUT_S,
        idle_timeout: float | None = IDLE_TIMEOUT_S,
        max_duration: float | None = MAX_DURATION_S,
        maxsize: int = MAXSIZE,
        reply_type: Any = None,
    ) -> ClientStream:
        """Ask for an answer in chunks, as `Runtime.stream`: an async iterator over their payloads.

        It begins with its first step. A slow reader slows the writer; leaving the loop ends the stream.
        TransportClosed: the run has ended, or the connection is lost; what had come until then is handed out before.
        `reply_type` as in `ask`. Of `maxsize` chunks at most 32 are on their way to a client.
        """
        data, built = ready(payload, message_type), decode if reply_type is None else wanted(reply_type)
        request = OpenStream(0, name, data, message_type, timeout, idle_timeout, max_duration, maxsize)
        return ClientStream(request, self._connected, built)

    async def broadcast(
        self,
        pattern: str,
        payload: Payload,
        message_type: str = "message",
        *,
        timeout: float | None = SEND_TIMEOUT_S,
    ) -> None:
        """Send to every agent whose name matches, as `Runtime.broadcast`."""
        data = ready(payload, message_type)
        connection = await self._connected()
        await connection.request(Broadcast(connection.number(), pattern, data, message_type, timeout), timeout)

    # --- the connection -----------------------------------------------------------------------------------------------

    async def _connected(self) -> Connection:
        loop = asyncio.get_running_loop()
        connection = self._connection
        if connection is not None and (connection.pid != os.getpid() or connection.loop.is_closed()):
            self._connection = connection = self._dialling = None  # the parent's, or that of an earlier asyncio.run
        if connection is not None and connection.usable:
            if connection.loop is not loop:
                raise RuntimeError(
                    "this client belongs to another event loop. Make one for each loop, or use "
                    "civitas_shm.connect_blocking, which any thread may use"
                )
            return connection
        if self._closed:
            raise TransportClosed("This client was closed.")
        if self._dialling is None or self._dialling.get_loop() is not loop:
            self._dialling = asyncio.ensure_future(self._dial(loop))
        dialling = self._dialling
        try:
            return await asyncio.shield(dialling)
        finally:
            if self._dialling is dialling and dialling.done():
                self._dialling = None

    async def _dial(self, loop: asyncio.AbstractEventLoop) -> Connection:
        line = await asyncio.to_thread(dial, self._name, self._timeout_s, self._wait_s)
        connection = Connection(loop, line)
        try:
            await loop.create_unix_connection(lambda: connection, sock=line.sock)
        except BaseException:
            line.sock.close()
            raise
        if self._closed:
            connection.end("This client was closed.")
        self._connection = connection
        return connection


class Connection(asyncio.Protocol):
    """One connection, from its making to its end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, line: Line) -> None:
        self.loop = loop
        self.pid = os.getpid()
        self._line = line
        self._decoder: FrameDecoder[ToClient] = FrameDecoder(ToClient)
        self._transport: asyncio.Transport | None = None
        self._waiting: dict[int, asyncio.Future[Done | Replied | Failed]] = {}
        self._streams: dict[int, Inbox] = {}
        # Beyond these the run would not read what we say, of our streams neither.
        self._places = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._stream_places = asyncio.Semaphore(STREAMS_OPEN_MAX)
        self._last = 0
        self._end = ""
        self._room: asyncio.Future[None] | None = None
        """While the run does not read what is sent: done when it does."""

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def number(self) -> int:
        """Of the next request."""
        self._last += 1
        return self._last

    async def request(self, request: FromClient, timeout_s: float | None) -> Done | Replied:
        """The answer; raises what it says. RunNotAnswering when the run does not even say that the time is over."""
        async with self._places:
            await self._writable()
            future: asyncio.Future[Done | Replied | Failed] = self.loop.create_future()
            self._waiting[request.id] = future
            self.say(request)
            limit = asyncio.timeout(None if timeout_s is None or timeout_s <= 0 else timeout_s + GRACE_S)
            try:
                async with limit:
                    answer = await future
            except BaseException as error:
                if self._waiting.pop(request.id, None) is not None:
                    self.say(Forget(request.id))
                if limit.expired() and isinstance(error, TimeoutError):
                    raise RunNotAnswering(self.silent(timeout_s or 0.0)) from None
                raise
        if isinstance(answer, Failed):
            raise error_from(answer)
        return answer

    async def open(self, inbox: Inbox, request: OpenStream) -> None:
        """Begin a stream; its number is set. What comes of it goes into `inbox`, until its end or `leave`."""
        await self._stream_places.acquire()
        try:
            await self._writable()
        except BaseException:
            self._stream_places.release()
            raise
        request.id = self.number()
        self._streams[request.id] = inbox
        self.say(request)

    def leave(self, number: int) -> None:
        """Nobody reads that stream any more."""
        if self._streams.pop(number, None) is not None:
            self._stream_places.release()
            self.say(Forget(number))

    def let_go(self, number: int) -> None:
        """`leave`, from whatever thread and at whatever moment an object is let go of."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the connection with it
            self.loop.call_soon_threadsafe(self.leave, number)

    def say(self, message: FromClient) -> None:
        """Without waiting; nothing where the connection has ended."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode_frame(message))

    async def _writable(self) -> None:
        while self._room is not None:
            await asyncio.shield(self._room)
        if not self.usable:
            raise TransportClosed(self._end or lost(self._line, committed=False))

    def silent(self, timeout_s: float) -> str:
        """What to say of a run that does not answer in that time."""
        return silent(self._line, timeout_s)

    def end(self, why: str) -> None:
        """Idempotent."""
        self._end = self._end or why
        if self._transport is not None:
            self._transport.close()
        self._fail()

    # --- what the transport tells -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by what it can, not by its class

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail()

    def pause_writing(self) -> None:
        self._room = self.loop.create_future()

    def resume_writing(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._decoder.feed(data):
                if isinstance(message, Bye):
                    self.end(message.text or lost(self._line, committed=None))
                elif message.id in self._streams:
                    self._streams[message.id].put(cast(Any, message))
                    if not isinstance(message, Chunks):
                        del self._streams[message.id]
                        self._stream_places.release()
                elif not isinstance(message, Chunks):  # else of a stream that was left
                    waiting = self._waiting.pop(message.id, None)
                    if waiting is not None and not waiting.done():
                        waiting.set_result(cast(Any, message))
        except WireError as error:
            self.end(f"What the run {self._line.run!r} answered is no answer: {error}.")

    def _fail(self) -> None:
        self.resume_writing()
        why = self._end or lost(self._line, committed=None)
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(TransportClosed(why))
        streams, self._streams = self._streams, {}
        for inbox in streams.values():
            inbox.finish(TransportClosed(why))
            self._stream_places.release()


# --- shared with the blocking twin --------------------------------------------------------------------------------


def ready(payload: Payload, message_type: str) -> bytes:
    """The bytes of a payload, checked here: what is wrong with it is told without a way to the run."""
    if type(message_type) is str and is_system_type(message_type):
        from ..errors import MessageValidationError

        raise MessageValidationError(f"message type {message_type!r} is kept for the runtime.")
    data = encode(payload)
    if len(data) > PAYLOAD_BYTES_MAX:
        raise PayloadTooLarge(
            len(data),
            PAYLOAD_BYTES_MAX,
            f"The payload takes {len(data):,} bytes; a message of a client may take at most {PAYLOAD_BYTES_MAX:,}. "
            "Send it in parts, or give the agent a file to read.",
        )
    return data


def message_of(answer: Replied, built: Callable[[bytes], Any] = decode) -> Message:
    """The reply, as it came to the run."""
    payload = built(answer.payload)
    if not answer.header:
        return Message(type=answer.type, sender=answer.sender, recipient=CLIENT_NAME, payload=payload)
    return Message.received(answer.header, answer.type, answer.sender, CLIENT_NAME, payload, 1)


def lost(line: Line, *, committed: bool | None) -> str:
    """What to say of a connection that has ended without a word. `committed`: None: it is not known."""
    text = f"The connection to run {line.run!r} is lost: the program that started it (pid {line.pid}) is gone."
    if committed is None:
        text += (
            " Whether what was under way was committed is not known; what was is kept, and goes on with "
            f"`civitas-shm run --name {line.run} --resume`."
        )
    return text


def silent(line: Line, timeout_s: float) -> str:
    """What to say of a run that does not answer in that time, nor in the grace behind it."""
    return (
        f"The run {line.run!r} has not answered within {timeout_s + GRACE_S:g} s, not even that the time was over: the "
        f"program that started it (pid {line.pid}) is stopped, or blocks its event loop."
    )


def options_of(priority: int, **how: Any) -> dict[str, Any]:
    """Those that were given, in words that travel."""
    options = {name: value for name, value in how.items() if value is not None}
    if isinstance(at := options.get("at"), datetime):
        options["at"] = at.timestamp()  # one without a zone is local time, here
    if priority:
        options["priority"] = priority
    return options
