"""The control socket on a host's loop.

Guarantees:
- the socket is made with mode 0600 in the run directory (0700), and each peer's credentials are asked of the kernel:
  another user is turned away even where somebody has widened the modes;
- nothing here waits. A client gets one request answered a turn of the loop; while it does not read its reply, it is not
  read either, so it holds one reply and at most REQUEST_BYTES_MAX of its own;
- at most CLIENTS_MAX are connected: a new one takes the place of the one that has been silent for longest;
- descriptors that a client sends along are closed by the kernel (`recv`, never `recvmsg`);
- whatever goes wrong with a client ends that client. An error in answering is a Refusal, and a line on stderr.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from ..host.wire import FrameDecoder, WireError, encode_frame
from .decide import HandOver, may_ask
from .protocol import REQUEST_BYTES_MAX, SOCKET, Refusal, Reply

__all__ = ["CLIENTS_MAX", "ControlServer", "in_directory", "peer_of"]

CLIENTS_MAX: Final = 32
"""More than people type at once; each may keep a descriptor and a few buffers of the host."""

_BACKLOG: Final = 32
_ACCEPTS_PER_TURN: Final = 8
_READ_BYTES: Final = 16 << 10
_NO_DESCRIPTORS_PAUSE_S: Final = 1.0
"""Until accepting is tried again when the process has no descriptor left; a level-triggered loop would spin."""

_CREDENTIALS: Final = struct.Struct("3i")
"""pid, uid, gid: `struct ucred` of unix(7)."""


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the other end, as the kernel noted them when it connected or listened."""
    pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid


def in_directory(fd: int) -> str:
    """An address for a socket in the directory behind `fd`: a path of a socket has 107 bytes, a run's may be longer."""
    return f"/proc/self/fd/{fd}/{SOCKET}"


class ControlServer:
    """Listens from construction to `close`. `answer` gets the body of each frame and must not block."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        directory: Path,
        answer: Callable[[bytes], Reply | HandOver],
        hand_over: Callable[[int], None] | None = None,
        uid: int | None = None,
    ) -> None:
        """`hand_over` gets the descriptor of a connection for which `answer` has said so, and duplicates it."""
        self._loop = loop
        self._answer = answer
        self._hand_over = hand_over
        self._uid = os.geteuid() if uid is None else uid
        self._path = directory / SOCKET
        self._clients: dict[_Client, None] = {}
        """Ordered: who has been silent for longest comes first."""
        self._retry: asyncio.TimerHandle | None = None
        self._path.unlink(missing_ok=True)  # of a host that was killed; the directory is ours by its lock
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fchmod(self._sock.fileno(), 0o600)  # before bind: the file never has other modes
            self._sock.bind(in_directory(fd))
            self._sock.listen(_BACKLOG)
        except BaseException:
            self._sock.close()
            raise
        finally:
            os.close(fd)
        loop.add_reader(self._sock.fileno(), self._acceptable)

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._clients)

    def stop_listening(self) -> None:
        """Take no new clients, remove the socket. While the run directory is still ours: later it may be another's."""
        if self._sock.fileno() < 0:
            return
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """End all connections, which tells clients that wait for it that the run is gone. Idempotent."""
        self.stop_listening()
        for client in list(self._clients):
            client.end()

    # --- clients ------------------------------------------------------------------------------------------------------

    def _acceptable(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._cannot_accept(error)
                return
            self._welcome(sock)

    def _welcome(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        pid, uid = peer_of(sock)
        if not may_ask(uid, self._uid):
            refusal = Refusal(
                kind="forbidden", text=f"process {pid} of user {uid} may not control a run of {self._uid}"
            )
            try:
                sock.send(encode_frame(refusal))
            except OSError:
                pass  # it has gone already
            sock.close()
            return
        if len(self._clients) >= CLIENTS_MAX:
            next(iter(self._clients)).end()
        self._clients[_Client(self._loop, sock, self._reply_to, self._heard_from, self._gone)] = None

    def _cannot_accept(self, error: OSError) -> None:
        """No descriptor is left in this process or machine: the run needs them more than those who look at it."""
        if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            raise error
        if self._clients:
            next(iter(self._clients)).end()
            return
        fd = self._sock.fileno()
        self._loop.remove_reader(fd)
        self._retry = self._loop.call_later(_NO_DESCRIPTORS_PAUSE_S, self._loop.add_reader, fd, self._acceptable)

    def _heard_from(self, client: _Client) -> None:
        self._clients.pop(client, None)
        self._clients[client] = None

    def _gone(self, client: _Client) -> None:
        self._clients.pop(client, None)

    def _reply_to(self, client: _Client, body: bytes) -> bytes:
        """Empty: the connection is not ours any more, and nothing is said on it."""
        reply: Reply | HandOver
        try:
            reply = self._answer(body)
            if isinstance(reply, HandOver) and self._hand_over is not None:
                self._hand_over(client.fileno())
                return b""
        except Exception:  # noqa: BLE001 - a fault in answering must not end the run: the loop's handler would
            print(f"The control socket has a fault:\n{traceback.format_exc()}", file=sys.stderr)
            reply = Refusal(kind="fault", text="the host has a fault in answering; its stderr says which")
        if isinstance(reply, HandOver):
            reply = Refusal(kind="unknown", text="this run takes no clients")
        try:
            return encode_frame(reply)
        except ValueError as error:
            return encode_frame(Refusal(kind="fault", text=str(error)))


class _Client:
    """One connection."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        reply_to: Callable[[_Client, bytes], bytes],
        on_heard: Callable[[_Client], None],
        on_gone: Callable[[_Client], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._reply_to = reply_to
        self._on_heard = on_heard
        self._on_gone = on_gone
        self._decoder: FrameDecoder[msgspec.Raw] = FrameDecoder(msgspec.Raw, REQUEST_BYTES_MAX)
        self._requests: list[bytes] = []
        """Read and not answered; nothing more is read while there are any."""
        self._reply = memoryview(b"")
        self._writing = False
        """It did not take its reply at once."""
        loop.add_reader(sock.fileno(), self._readable)

    def fileno(self) -> int:
        """-1 after the end."""
        return self._sock.fileno()

    def end(self) -> None:
        """Idempotent."""
        if self._sock.fileno() < 0:
            return
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._requests.clear()
        self._on_gone(self)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(_READ_BYTES)
            frames = self._decoder.feed(data)
        except (BlockingIOError, InterruptedError):
            return
        except WireError as error:
            self._last_word(Refusal(kind="malformed", text=f"{error}; the connection is over"))
            return
        except OSError:
            self.end()
            return
        if not data:
            self.end()
            return
        self._on_heard(self)
        if frames:
            self._requests = [bytes(frame) for frame in frames]
            self._loop.remove_reader(self._sock.fileno())
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        """Answer one; the next in another turn of the loop."""
        if self._sock.fileno() < 0:
            return
        if not self._requests:
            self._loop.add_reader(self._sock.fileno(), self._readable)
            return
        self._reply = memoryview(self._reply_to(self, self._requests.pop(0)))
        if self._reply:
            self._writable()
        else:
            self.end()  # our descriptor of it

    def _writable(self) -> None:
        try:
            sent = self._sock.send(self._reply)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.end()
            return
        self._reply = self._reply[sent:]
        if self._reply and not self._writing:
            self._loop.add_writer(self._sock.fileno(), self._writable)
        elif not self._reply:
            if self._writing:
                self._loop.remove_writer(self._sock.fileno())
            self._loop.call_soon(self._next)
        self._writing = bool(self._reply)

    def _last_word(self, refusal: Refusal) -> None:
        try:
            self._sock.send(encode_frame(refusal))
        except OSError:
            pass
        self.end()
