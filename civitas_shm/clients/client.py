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
import os
from types import TracebackType
from typing import Any, Final, Self, cast

from ..errors import PayloadTooLarge, TransportClosed
from ..host.wire import FRAME_BYTES_MAX, FrameDecoder, WireError, encode_frame
from ..messages import Message, is_system_type
from ..port_bus import ASK_TIMEOUT_S, SEND_TIMEOUT_S
from ..serializer import decode, encode
from ..typed import Payload
from .dial import CONNECT_TIMEOUT_S, Line, dial
from .protocol import Ask, Broadcast, Bye, Done, Failed, Forget, FromClient, Replied, Send, ToClient, error_from

__all__ = ["CLIENT_NAME", "PAYLOAD_BYTES_MAX", "Client", "connect", "lost", "message_of", "ready"]

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
        self._connection: _Connection | None = None
        self._dialling: asyncio.Future[_Connection] | None = None
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
        if self._connection is not None:
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
    ) -> None:
        """Commit a message to the agent's mailbox, as `Runtime.send`; its sender reads `_runtime`."""
        data = ready(payload, message_type)
        connection = await self._connected()
        await connection.request(Send(connection.number(), name, data, message_type, timeout, _options(priority)))

    async def ask(
        self,
        name: str,
        payload: Payload,
        timeout: float | None = ASK_TIMEOUT_S,
        message_type: str = "message",
        *,
        priority: int = 0,
    ) -> Message:
        """Send a question and give back the reply, as `Runtime.ask`, with the same errors."""
        data = ready(payload, message_type)
        connection = await self._connected()
        request = Ask(connection.number(), name, data, message_type, timeout, _options(priority))
        answer = await connection.request(request)
        assert isinstance(answer, Replied)
        return message_of(answer)

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
        await connection.request(Broadcast(connection.number(), pattern, data, message_type, timeout))

    # --- the connection -----------------------------------------------------------------------------------------------

    async def _connected(self) -> _Connection:
        loop = asyncio.get_running_loop()
        connection = self._connection
        if connection is not None and connection.pid != os.getpid():
            self._connection = connection = self._dialling = None  # the parent's; its loop is not here either
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

    async def _dial(self, loop: asyncio.AbstractEventLoop) -> _Connection:
        line = await asyncio.to_thread(dial, self._name, self._timeout_s, self._wait_s)
        connection = _Connection(loop, line)
        try:
            await loop.create_unix_connection(lambda: connection, sock=line.sock)
        except BaseException:
            line.sock.close()
            raise
        if self._closed:
            connection.end("This client was closed.")
        self._connection = connection
        return connection


class _Connection(asyncio.Protocol):
    """One connection, from its making to its end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, line: Line) -> None:
        self.loop = loop
        self.pid = os.getpid()
        self._line = line
        self._decoder: FrameDecoder[ToClient] = FrameDecoder(ToClient)
        self._transport: asyncio.Transport | None = None
        self._waiting: dict[int, asyncio.Future[Done | Replied | Failed]] = {}
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

    async def request(self, request: FromClient) -> Done | Replied:
        """The answer; raises what it says."""
        while self._room is not None:
            await asyncio.shield(self._room)
        if self._transport is None or self._transport.is_closing():
            raise TransportClosed(self._end or lost(self._line, committed=False))
        future: asyncio.Future[Done | Replied | Failed] = self.loop.create_future()
        self._waiting[request.id] = future
        self._transport.write(encode_frame(request))
        try:
            answer = await future
        except BaseException:
            if self.usable and self._waiting.pop(request.id, None) is not None:
                self._transport.write(encode_frame(Forget(request.id)))
            raise
        if isinstance(answer, Failed):
            raise error_from(answer)
        return answer

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
                else:
                    waiting = self._waiting.pop(message.id, None)
                    if waiting is not None and not waiting.done():
                        waiting.set_result(message)
        except WireError as error:
            self.end(f"What the run {self._line.run!r} answered is no answer: {error}.")

    def _fail(self) -> None:
        self.resume_writing()
        why = self._end or lost(self._line, committed=None)
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(TransportClosed(why))


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


def message_of(answer: Replied) -> Message:
    """The reply, as it came to the run."""
    payload = decode(answer.payload)
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


def _options(priority: int) -> dict[str, Any]:
    return {"priority": priority} if priority else {}
