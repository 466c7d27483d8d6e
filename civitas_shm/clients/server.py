"""The run's side of clients, in the program that started the run: their requests become messages of its bus.

Guarantees:
- a client can do nothing but ask, send and broadcast. It has no memory of the run, no lock and no process of it, so its
  death, at whatever instruction, costs the run a closed socket, and its stop nothing at all;
- an answered send is committed. Of a client that is gone, what waits for room or for a reply is called off;
- bounded: CLIENTS_MAX connections; of one client IN_FLIGHT_MAX requests. Who has so many, or does not read its answers,
  is not read either;
- all together have at most ASKS_MAX questions on their way, so the program's own always find a place;
- a client keeps no run alive: once a stop has been asked for, nothing new is taken.

Why here and not in a slot of the run's memory, see docs/clients.md.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from .. import __version__
from ..control.protocol import Connected, Refusal, Reply
from ..control.server import peer_of
from ..errors import CivitasError, MessageValidationError, PayloadTooLarge, TransportClosed
from ..host.wire import FRAME_BYTES_MAX, FrameDecoder, WireError, encode_frame
from ..messages import Message
from ..port_bus import PortBus
from ..serializer import Encoded, decode_dict, encode, typed_body
from .protocol import Ask, Broadcast, Bye, Done, Forget, FromClient, Replied, Send, failed

__all__ = ["CLIENTS_MAX", "IN_FLIGHT_MAX", "ClientServer"]

CLIENTS_MAX: Final = 256
"""Connections: each is a descriptor of the program, of which it has 1,024 where nobody has raised the limit."""

IN_FLIGHT_MAX: Final = 64
"""Requests of one client that are under way at once."""

ASKS_MAX: Final = 2048
"""Half of the places that a process has for replies (PORT_REPLY_PLACES)."""

OPTIONS: Final = frozenset({"priority"})
"""What may stand in the options of a request: keywords of the bus."""


class ClientServer:
    """Serves the clients of one run. All methods belong to the loop of the bus."""

    def __init__(self, loop: asyncio.AbstractEventLoop, bus: PortBus, name: str, run_id: str) -> None:
        self.loop = loop
        self.bus = bus
        self._name = name
        self._run_id = run_id
        self._clients: set[_Client] = set()
        self._coming: set[asyncio.Task[None]] = set()
        self.asks = asyncio.Semaphore(ASKS_MAX)
        self.refusal = ""
        """Why nothing new is taken any more; empty while it is."""

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._clients)

    def take(self, fd: int) -> None:
        """A connection that the host hands over, after it has looked who it is. Answered by Connected or a Refusal."""
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        answer: Reply
        if self.refusal:
            answer = Refusal(kind="busy", text=self.refusal)
        elif len(self._clients) >= CLIENTS_MAX:
            answer = Refusal(kind="clients", text=self._full())
        else:
            answer = Connected(run=self._name, run_id=self._run_id, version=__version__, pid=os.getpid())
        try:
            sock.send(encode_frame(answer))
        except OSError:  # it has gone already
            sock.close()
            return
        if not isinstance(answer, Connected):
            sock.close()
            return
        client = _Client(self, peer_of(sock)[0])
        self._clients.add(client)
        task = self.loop.create_task(self._connect(client, sock))
        self._coming.add(task)
        task.add_done_callback(self._coming.discard)

    async def _connect(self, client: _Client, sock: socket.socket) -> None:
        try:
            await self.loop.connect_accepted_socket(lambda: client, sock)
        except OSError:
            sock.close()
            self.gone(client)

    def refuse(self, why: str) -> None:
        """Take nothing new from now on; what is under way goes on."""
        self.refusal = self.refusal or why

    def close(self, why: str) -> None:
        """The run has ended: tell all, and let go of them. Idempotent."""
        self.refuse(why or "the run has ended")
        for task in self._coming:
            task.cancel()
        for client in list(self._clients):
            client.say_goodbye(why)

    def gone(self, client: _Client) -> None:
        """Its connection has ended."""
        self._clients.discard(client)

    def _full(self) -> str:
        holders = Counter(client.pid for client in self._clients).most_common(5)
        who = ", ".join(f"{_command(pid)} (pid {pid}) {count}" for pid, count in holders)
        return (
            f"Run {self._name!r} has {len(self._clients)} connections of clients, the most that there may be. "
            f"Who has most: {who}. Let a process keep one client, and close those that are not used"
        )


class _Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: ClientServer, pid: int) -> None:
        self._server = server
        self.pid = pid
        self._transport: asyncio.Transport | None = None
        self._decoder: FrameDecoder[FromClient] = FrameDecoder(FromClient)
        self._works: dict[int, asyncio.Task[None]] = {}
        """By number: what is under way."""
        self._waiting: list[FromClient] = []
        """Read, and not begun: others of its requests come first."""
        self._choked = False
        """It does not read its answers."""

    # --- the connection -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by what it can, not by its class

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for work in self._works.values():
            work.cancel()
        self._waiting.clear()
        self._server.gone(self)

    def pause_writing(self) -> None:
        self._choked = True
        self._set_reading()

    def resume_writing(self) -> None:
        self._choked = False
        self._begin()

    def data_received(self, data: bytes) -> None:
        try:
            requests = self._decoder.feed(data)
        except WireError as error:
            self.say_goodbye(f"What this client has sent is no request: {error}")
            return
        for request in requests:
            if isinstance(request, Forget):
                self._forget(request.id)
            else:
                self._waiting.append(request)
        self._begin()

    def say_goodbye(self, why: str) -> None:
        """The last word; then the connection ends."""
        self._say(Bye(why))
        if self._transport is not None:
            self._transport.close()

    def _say(self, message: Any) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode_frame(message))

    def _set_reading(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._choked or self._waiting:
            transport.pause_reading()
        else:
            transport.resume_reading()

    # --- requests -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """As many as may be under way at once, in their order."""
        waiting = self._waiting
        while waiting and len(self._works) < IN_FLIGHT_MAX and not self._choked:
            request = waiting.pop(0)
            if request.id in self._works:
                self.say_goodbye(f"This client has used the number {request.id} twice")
                return
            self._works[request.id] = self._server.loop.create_task(self._serve(request))
        self._set_reading()

    def _forget(self, number: int) -> None:
        self._waiting = [request for request in self._waiting if request.id != number]
        work = self._works.get(number)
        if work is not None:
            work.cancel()

    async def _serve(self, request: FromClient) -> None:
        try:
            answer = await self._answer(request)
            self._say(answer)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets it, and nobody else
            self._say(failed(request.id, error))
        finally:
            del self._works[request.id]
            if self._waiting:
                self._begin()

    async def _answer(self, request: FromClient) -> Done | Replied:
        if self._server.refusal:
            raise TransportClosed(self._server.refusal)
        bus = self._server.bus
        match request:
            case Send(number, recipient, payload, kind, timeout_s, options):
                await bus.send(recipient, _passed_on(payload), kind, timeout_s, **_checked(options))
                return Done(number)
            case Ask(number, recipient, payload, kind, timeout_s, options):
                began_s = self._server.loop.time()
                async with asyncio.timeout(timeout_s or None):
                    await self._server.asks.acquire()
                try:
                    if timeout_s:
                        timeout_s = max(1e-3, timeout_s - (self._server.loop.time() - began_s))
                    reply = await bus.ask(recipient, _passed_on(payload), kind, timeout_s, **_checked(options))
                finally:
                    self._server.asks.release()
                return _replied(number, reply)
            case Broadcast(number, pattern, payload, kind, timeout_s):
                await bus.broadcast(pattern, _passed_on(payload), kind, timeout=timeout_s)
                return Done(number)
        raise CivitasError(f"{type(request).__name__} is no request")


def _passed_on(payload: bytes) -> Any:
    """The payload, checked. One of a type goes on as it came: the type is the business of who handles it."""
    return decode_dict(payload) if typed_body(payload) is None else Encoded(payload)


def _replied(number: int, reply: Message) -> Replied:
    """A reply of supervision has no header: it has not travelled."""
    payload = encode(reply.payload)
    if len(payload) > FRAME_BYTES_MAX // 2:
        raise PayloadTooLarge(len(payload), FRAME_BYTES_MAX // 2)
    return Replied(number, reply.header or b"", reply.type, reply.sender, payload)


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    unknown = options.keys() - OPTIONS
    if unknown:
        raise MessageValidationError(
            f"civitas_shm {__version__} of the run knows no option {', '.join(sorted(unknown))} of a client's message."
        )
    return dict(options)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "a process that has ended"
