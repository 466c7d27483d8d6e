"""The run's side of clients, in the program that started the run: their requests become messages of its bus.

Guarantees:
- a client can do nothing but ask, send, broadcast and read streams. It has no memory of the run, no lock and no process
  of it, so its death, at whatever instruction, costs the run a closed socket, and its stop nothing at all;
- an answered send is committed. Of a client that is gone, what waits for room or for a reply is called off;
- bounded: CLIENTS_MAX connections; of one client IN_FLIGHT_MAX requests. Who has so many, or does not read its answers,
  is not read either. Our own clients never have more, so what they say of their streams is always read;
- all together have at most ASKS_MAX questions on their way and STREAMS_MAX streams, so the program's own always find a
  place; a stream of a client that has stopped ends at its `idle_timeout`;
- a client keeps no run alive: once a stop has been asked for, nothing new is taken.

Why here and not in a slot of the run's memory, see docs/clients.md.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Final, cast

from .. import __version__
from ..control.protocol import Connected, Refusal, Reply
from ..control.server import peer_of
from ..errors import (
    CivitasError,
    MessageValidationError,
    PayloadTooLarge,
    StreamError,
    StreamTimeout,
    TransportClosed,
)
from ..host.wire import FRAME_BYTES_MAX, FrameDecoder, WireError, encode_frame
from ..messages import Message
from ..port_bus import PortBus
from ..sending import PLAIN, How, cancel, send_how
from ..serializer import Encoded, decode_dict, encode, typed_body
from ..streams.places import FEW
from ..streams.reader import Question
from ..streams.relay import Relay
from .protocol import (
    IN_FLIGHT_MAX,
    STREAMS_OPEN_MAX,
    Ask,
    Broadcast,
    Bye,
    Cancel,
    Chunks,
    Done,
    Forget,
    FromClient,
    OpenStream,
    Replied,
    Send,
    Took,
    failed,
)

__all__ = ["CLIENTS_MAX", "STREAMS_MAX", "ClientServer"]

CLIENTS_MAX: Final = 256
"""Connections: each is a descriptor of the program, of which it has 1,024 where nobody has raised the limit."""

ASKS_MAX: Final = 2048
"""Half of the places that a process has for replies (PORT_REPLY_PLACES)."""

STREAMS_MAX: Final = 128
"""Of all clients at once; further ones wait for their turn. See `_window`."""

_WINDOW_MAX: Final = 32
_WINDOWS: Final = 384

LATER: Final = frozenset({"ttl", "delay", "at", "every", "key"})
OPTIONS: Final = frozenset({"priority"}) | LATER
"""What may stand in the options of a request: of a question the priority alone."""


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
        self.turns = asyncio.Semaphore(STREAMS_MAX)
        """Of streams."""
        self.streams = 0
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
        self._streams: dict[int, tuple[asyncio.Task[None], Relay]] = {}
        """By number."""
        self._waiting: list[FromClient] = []
        """Read, and not begun: others of its requests come first."""
        self._choked = False
        """It does not read its answers."""
        self._heard = asyncio.Event()
        """Not choked."""
        self._heard.set()

    # --- the connection -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by what it can, not by its class

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for work in [*self._works.values(), *(work for work, _ in self._streams.values())]:
            work.cancel()
        self._waiting.clear()
        self._server.gone(self)

    def pause_writing(self) -> None:
        self._choked = True
        self._heard.clear()
        self._set_reading()

    def resume_writing(self) -> None:
        self._choked = False
        self._heard.set()
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
            elif isinstance(request, Took):
                if request.id in self._streams:  # else it has ended meanwhile
                    self._streams[request.id][1].took(request.chunks)
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
            if request.id in self._works or request.id in self._streams:
                self.say_goodbye(f"This client has used the number {request.id} twice")
                return
            if isinstance(request, OpenStream):
                self._open(request)
            else:
                self._works[request.id] = self._server.loop.create_task(self._serve(request))
        self._set_reading()

    def _forget(self, number: int) -> None:
        self._waiting = [request for request in self._waiting if request.id != number]
        work = self._works.get(number)
        if number in self._streams:
            work = self._streams[number][0]
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
                how = How(**{name: value for name, value in _checked(options, OPTIONS).items() if name in LATER})
                priority = options.get("priority", 0)
                if how == PLAIN:
                    await bus.send(recipient, _passed_on(payload), kind, timeout_s, priority)
                else:
                    await send_how(bus, how, recipient, _passed_on(payload), kind, timeout_s, priority)
                return Done(number)
            case Cancel(number, key, timeout_s):
                await cancel(bus, key, timeout_s)
                return Done(number)
            case Ask(number, recipient, payload, kind, timeout_s, options):
                began_s = self._server.loop.time()
                async with asyncio.timeout(timeout_s or None):
                    await self._server.asks.acquire()
                try:
                    if timeout_s:
                        timeout_s = max(1e-3, timeout_s - (self._server.loop.time() - began_s))
                    reply = await bus.ask(
                        recipient, _passed_on(payload), kind, timeout_s, **_checked(options, {"priority"}),
                        built=Encoded,
                    )  # fmt: skip
                finally:
                    self._server.asks.release()
                return _replied(number, reply)
            case Broadcast(number, pattern, payload, kind, timeout_s):
                await bus.broadcast(pattern, _passed_on(payload), kind, timeout=timeout_s)
                return Done(number)
        raise CivitasError(f"{type(request).__name__} is no request")

    # --- streams ------------------------------------------------------------------------------------------------------

    def _open(self, request: OpenStream) -> None:
        """Begin to read a stream for the client, which gets its chunks as they come."""
        number = request.id
        try:
            if self._server.refusal:
                raise TransportClosed(self._server.refusal)
            if len(self._streams) >= STREAMS_OPEN_MAX:
                raise StreamError(f"This client reads {len(self._streams)} streams, the most that one may at once.")
            question = Question(
                request.recipient, _passed_on(request.payload), request.type, request.timeout_s, request.idle_s,
                request.max_s, request.maxsize,
            )  # fmt: skip
            relay = Relay(self._server.bus.streams, question)
        except Exception as error:  # noqa: BLE001 - as in `_serve`
            self._say(failed(number, error))
            return
        self._streams[number] = self._server.loop.create_task(self._read(number, question, relay)), relay

    async def _read(self, number: int, question: Question, relay: Relay) -> None:
        server = self._server
        turn = False
        try:
            turn = await self._turn(question)
            question.maxsize = min(question.maxsize, _window(server.streams))
            server.streams += 1
            while True:
                chunks = await relay.chunks()
                await self._heard.wait()
                for part in _frames(chunks):
                    self._say(Chunks(number, part))
        except StopAsyncIteration:
            self._say(Done(number))
        except Exception as error:  # noqa: BLE001 - as in `_serve`
            self._say(failed(number, error))
        finally:
            relay.close()
            del self._streams[number]
            if turn:
                server.streams -= 1
                server.turns.release()

    async def _turn(self, question: Question) -> bool:
        """Wait for one of the places of all clients."""
        began_s = self._server.loop.time()
        try:
            async with asyncio.timeout(question.timeout_s):
                await self._server.turns.acquire()
        except TimeoutError:
            raise StreamTimeout(
                f"a stream from {question.recipient!r} found no place within {question.timeout_s:.3g} s: clients of "
                f"this run read {self._server.streams} streams, the most that all of them together may."
            ) from None
        if question.timeout_s is not None:
            question.timeout_s = max(1e-3, question.timeout_s - (self._server.loop.time() - began_s))
        return True


def _window(streams: int) -> int:
    """Chunks of a further stream that may be on their way, when so many are open.

    Each stands for a place in the program (`streams.places`): of 2,048 at most 12 x 32 + 384 x ln(128 / 12) = 1,292 go
    to clients, and 4 more for each stream, whatever they do: the k-th oldest of those that are open has at most
    384 / k.
    """
    return max(FEW, min(_WINDOW_MAX, _WINDOWS // (streams + 1)))


def _frames(chunks: list[bytes]) -> Iterator[list[bytes]]:
    """Those that go together into one frame. PayloadTooLarge behind what came before one that no frame takes."""
    part: list[bytes] = []
    size_bytes = 0
    for chunk in chunks:
        size_bytes += len(chunk)
        if size_bytes > FRAME_BYTES_MAX // 2:
            if part:
                yield part
            if len(chunk) > FRAME_BYTES_MAX // 2:
                raise PayloadTooLarge(len(chunk), FRAME_BYTES_MAX // 2)
            part, size_bytes = [], len(chunk)
        part.append(chunk)
    yield part


def _passed_on(payload: bytes) -> Any:
    """The payload, checked. One of a type goes on as it came: the type is the business of who handles it."""
    return decode_dict(payload) if typed_body(payload) is None else Encoded(payload)


def _replied(number: int, reply: Message) -> Replied:
    """A reply of supervision has no header: it has not travelled."""
    payload: bytes = encode(reply.payload)
    if len(payload) > FRAME_BYTES_MAX // 2:
        raise PayloadTooLarge(len(payload), FRAME_BYTES_MAX // 2)
    return Replied(number, reply.header or b"", reply.type, reply.sender, payload)


def _checked(options: Mapping[str, Any], known: AbstractSet[str]) -> dict[str, Any]:
    unknown = options.keys() - known
    if unknown:
        raise MessageValidationError(
            f"civitas_shm {__version__} of the run knows no option {', '.join(sorted(unknown))} of such a request."
        )
    return dict(options)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "a process that has ended"
