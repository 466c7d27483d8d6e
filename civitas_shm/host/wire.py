"""Control messages between two processes: framing (sans-IO), and a face for asyncio that never blocks.

Rules of this file:
- a frame is its length (u32, little endian) and one msgpack message of `protocol`; what is longer than
  FRAME_BYTES_MAX or does not decode is a WireError, and the connection is over: there is no resynchronising;
- descriptors travel by SCM_RIGHTS with the first bytes of a frame that says how many belong to it (`fds`): as many as
  the kernel takes with the first byte, the next ones with the second (a run of 128 processes has 260);
- nothing here blocks or grows without bound: what the peer does not read is queued up to QUEUE_BYTES_MAX, then
  droppable messages (output of agents) are dropped and counted, and anything else ends the connection;
- only our own processes talk here, over a socketpair made before the fork; there is no address to connect to.
"""

from __future__ import annotations

import array
import asyncio
import functools
import itertools
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Generic, TypeVar

import msgspec

__all__ = ["FRAME_BYTES_MAX", "Channel", "FrameDecoder", "WireError", "encode_frame", "receive", "send", "socket_pair"]

FRAME_BYTES_MAX: Final = 16 << 20
"""A topology of 10,000 agents takes about 4 MB."""

QUEUE_BYTES_MAX: Final = 4 << 20
"""What waits for a peer that does not read; a log burst of some 40,000 lines."""

FDS_MAX: Final = 253
"""SCM_MAX_FD of the kernel: descriptors in one message."""

_BUFFERS_MAX: Final = 16
"""Messages in one write."""

_LENGTH: Final = struct.Struct("<I")
_READ_BYTES: Final = 1 << 16

T = TypeVar("T")


class WireError(Exception):
    """The peer sent what is no control message, or does not read what it is sent; the connection is over."""


# --- sans-IO ------------------------------------------------------------------------------------------------------


def encode_frame(message: msgspec.Struct) -> bytes:
    """One frame. ValueError when it is too long for the peer to accept."""
    body = msgspec.msgpack.encode(message)
    if len(body) > FRAME_BYTES_MAX:
        raise ValueError(f"a control message of {len(body):,} bytes is over the limit of {FRAME_BYTES_MAX:,}")
    return _LENGTH.pack(len(body)) + body


@functools.cache
def _decoder_of(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    """Made once: half a millisecond of a start. What the fork server has made, its workers have."""
    return msgspec.msgpack.Decoder(kind)


class FrameDecoder(Generic[T]):
    """Bytes in, messages out. `kind` is the union of message classes that this side accepts."""

    def __init__(self, kind: Any, limit_bytes: int = FRAME_BYTES_MAX) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = _decoder_of(kind)
        self._limit_bytes = limit_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[T]:
        """All messages that are complete now. WireError ends it for good."""
        buffer = self._buffer
        buffer += data
        messages: list[T] = []
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if length > self._limit_bytes:
                raise WireError(f"a frame claims {length:,} bytes; the limit is {self._limit_bytes:,}")
            end = start + _LENGTH.size + length
            if end > len(buffer):
                break
            try:
                messages.append(self._decoder.decode(buffer[start + _LENGTH.size : end]))
            except msgspec.MsgspecError as error:
                raise WireError(f"a frame of {length:,} bytes is no control message: {error}") from error
            start = end
        del buffer[:start]
        return messages


# --- sockets ------------------------------------------------------------------------------------------------------


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected stream sockets; not inherited by exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def send(sock: socket.socket, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
    """Blocking: for processes without a loop. `message.fds` must say how many descriptors there are."""
    data = memoryview(encode_frame(message))
    sent = sock.sendmsg([data], _ancillary(fds))
    sock.sendall(data[sent:])


def receive(sock: socket.socket, decoder: FrameDecoder[T]) -> tuple[list[T], list[int]]:
    """Blocking: wait for bytes. Returns the messages and descriptors that came with them; EOFError at the end."""
    data, ancillary, _, _ = sock.recvmsg(_READ_BYTES, socket.CMSG_SPACE(FDS_MAX * 4), socket.MSG_CMSG_CLOEXEC)
    fds = _descriptors(ancillary)
    if not data:
        raise EOFError
    return decoder.feed(data), fds


def _ancillary(fds: Sequence[int]) -> list[tuple[int, int, Any]]:
    if len(fds) > FDS_MAX:
        raise ValueError(f"{len(fds)} descriptors in one message; the kernel takes {FDS_MAX}")
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []


def _descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
            fds.extend(numbers)
    return fds


class Channel(Generic[T]):
    """One end of a control connection on a loop.

    `on_message(message, fds)` is called for each message, in order; the callee owns the descriptors. `on_end(error)`
    is called once, on the loop, when the peer has closed (None) or must not be trusted any more; never after `close`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        kind: Any,
        on_message: Callable[[T, list[int]], None],
        on_end: Callable[[Exception | None], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._decoder: FrameDecoder[T] = FrameDecoder(kind)
        self._on_message = on_message
        self._on_end = on_end
        self._queue: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._queued_bytes = 0
        self._fds: deque[int] = deque()
        self._closed = False
        self._held = False
        """The queue is to be written soon; until then nothing waits for the peer."""
        self._emptied: asyncio.Future[None] | None = None
        self.dropped = 0
        """Droppable messages that the peer did not read in time."""
        sock.setblocking(False)
        loop.add_reader(sock.fileno(), self._readable)

    @property
    def closed(self) -> bool:
        return self._closed

    def send(
        self, message: msgspec.Struct, fds: Sequence[int] = (), *, droppable: bool = False, soon: bool = False
    ) -> bool:
        """Queue one message and write what can be written. False when it was dropped or the connection is over.

        The descriptors are duplicated for the queue, so the caller may close its own at once. `soon`: written with the
        next message, or at the end of this turn: the peer, which wakes up at the first byte, then finds both.
        """
        if self._closed:
            return False
        data = memoryview(encode_frame(message))
        if self._queued_bytes + len(data) > QUEUE_BYTES_MAX + (0 if droppable else FRAME_BYTES_MAX):
            if droppable:
                self.dropped += 1
            else:
                self._end_soon(WireError(f"the peer has not read {self._queued_bytes:,} bytes of control messages"))
            return False
        idle = not self._queue
        self._queued_bytes += len(data)
        while len(fds) > FDS_MAX:
            self._queue.append((data[:1], [os.dup(fd) for fd in fds[:FDS_MAX]]))
            data, fds = data[1:], fds[FDS_MAX:]
        self._queue.append((data, [os.dup(fd) for fd in fds]))
        if idle and soon:
            self._held = True
            self._loop.call_soon(self._let_go)
        elif idle or self._held:
            self._let_go(first=idle)
        return not self._closed

    async def drained(self, timeout_s: float) -> bool:
        """Wait until the peer has been sent everything, or is gone. False when it did not read in time."""
        if self._queue and not self._closed:
            self._emptied = self._loop.create_future()
            await asyncio.wait([self._emptied], timeout=timeout_s)
        return not self._queue

    def read_rest(self) -> None:
        """Handle what a dead peer has left in the socket: the last words of a killed process."""
        while not self._closed and self._read_once():
            pass

    def close(self) -> None:
        """Idempotent; what is queued is dropped, `on_end` is not called."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        _close_all(self._fds)
        self._fds.clear()
        self._forget_queue()

    # --- callbacks of the loop -------------------------------------------------------------------------------------

    def _readable(self) -> None:
        self._read_once()

    def _read_once(self) -> bool:
        """Whether there may be more to read."""
        try:
            data, ancillary, _, _ = self._sock.recvmsg(
                _READ_BYTES, socket.CMSG_SPACE(FDS_MAX * 4), socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionError:  # the peer died with unread data: the same as its end
            self._end(None)
            return False
        self._fds.extend(_descriptors(ancillary))
        if not data:
            self._end(None)
            return False
        try:
            messages = self._decoder.feed(data)
        except WireError as error:
            self._end(error)
            return False
        for message in messages:
            if self._closed:  # by the handler of an earlier one
                return False
            wanted = getattr(message, "fds", 0)
            count = wanted if isinstance(wanted, int) else 0
            if count > len(self._fds):
                self._end(WireError(f"{count} descriptors were announced, {len(self._fds)} came"))
                return False
            self._on_message(message, [self._fds.popleft() for _ in range(count)])
        return True

    def _let_go(self, *, first: bool = False) -> None:
        """Write what was held back, or the first message of a queue; the loop goes on with what does not go at once."""
        if (first or self._held) and not self._closed:
            self._held = False
            self._writable()
            if self._queue:
                self._loop.add_writer(self._sock.fileno(), self._write_on)
            else:
                self._tell_drained()

    def _write_on(self) -> None:
        self._writable()
        if not self._queue and not self._closed:
            self._loop.remove_writer(self._sock.fileno())
            self._tell_drained()

    def _writable(self) -> None:
        while self._queue:
            data, fds = self._queue[0]
            behind = itertools.takewhile(lambda other: not other[1], itertools.islice(self._queue, 1, _BUFFERS_MAX))
            try:
                sent = self._sock.sendmsg([data, *(other for other, _ in behind)], _ancillary(fds))
            except (BlockingIOError, InterruptedError):
                return
            except (ConnectionError, BrokenPipeError):
                # The end is reported by the reader, after what the peer has said before: nothing is to be written.
                self._loop.remove_writer(self._sock.fileno())
                self._forget_queue()
                return
            _close_all(fds)
            self._queued_bytes -= sent
            self._queue[0] = (data, ())
            while self._queue and sent >= (length := len(self._queue[0][0])):
                self._queue.popleft()
                sent -= length
            if sent:
                self._queue[0] = (self._queue[0][0][sent:], ())

    def _forget_queue(self) -> None:
        for _, fds in self._queue:
            _close_all(fds)
        self._queue.clear()
        self._queued_bytes = 0
        self._tell_drained()

    def _tell_drained(self) -> None:
        if self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    def _end_soon(self, error: Exception) -> None:
        """Not from inside `send`: its caller is in the middle of something."""
        self._loop.call_soon(self._end, error)

    def _end(self, error: Exception | None) -> None:
        if not self._closed:
            self.close()
            self._on_end(error)


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
