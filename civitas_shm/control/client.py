"""The other end of the control socket, for the command line: blocking, with a deadline on every step.

Rules of this file: a run that does not answer is told apart from one that is gone, by the lock in its directory; who
answers must be of this user (or root); errors are sentences with the way out.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from ..errors import RunNotAnswering, RunNotFound
from ..host.wire import FrameDecoder, WireError, encode_frame
from .protocol import SOCKET, Refusal, Reply, Request
from .server import in_directory, peer_of

__all__ = ["ANSWER_S", "ControlClient"]

ANSWER_S: Final = 5.0
"""How long a host may take to answer. It answers within a turn of its loop, mostly below a millisecond."""

_TRY_AGAIN_S: Final = 0.02
_READ_BYTES: Final = 64 << 10

R = TypeVar("R", bound=Reply)


class ControlClient:
    """A connection to the host of the run in `directory`. RunNotFound: nobody holds it; RunNotAnswering: it hangs."""

    def __init__(self, directory: Path, is_held: Callable[[Path], bool], timeout_s: float = ANSWER_S) -> None:
        """`is_held`: whether the run lives, by its lock."""
        self._directory = directory
        self._is_held = is_held
        self._timeout_s = timeout_s
        self._decoder: FrameDecoder[Reply] = FrameDecoder(Reply)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._connect()
            self.host_pid, uid = peer_of(self._sock)
            if uid not in (os.geteuid(), 0):
                raise RunNotAnswering(f"{directory / SOCKET} is answered by user {uid}, who is not the one that asks.")
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent."""
        self._sock.close()

    def detach(self) -> socket.socket:
        """The connection itself, for who goes on with it; this object is closed then."""
        return socket.socket(fileno=self._sock.detach())

    def ask(self, request: Request, kind: type[R]) -> R:
        """The reply, of that kind. RunNotAnswering when it is refused, or none comes."""
        reply = self.reply(request)
        if isinstance(reply, Refusal):
            raise RunNotAnswering(f"The host of {self._name} refused: {reply.text}.")
        if not isinstance(reply, kind):
            raise RunNotAnswering(f"The host of {self._name} answered {type(reply).__name__}, not {kind.__name__}.")
        return reply

    def reply(self, request: Request) -> Reply:
        """The reply, a refusal too. RunNotAnswering when none comes."""
        until = time.monotonic() + self._timeout_s
        try:
            self._sock.settimeout(self._timeout_s)
            self._sock.sendall(encode_frame(request))
            while True:
                data = self._sock.recv(_READ_BYTES)
                if not data:
                    raise RunNotAnswering(f"The host of {self._name} ended the connection before it answered.")
                for reply in self._decoder.feed(data):
                    return reply
                self._sock.settimeout(max(0.001, until - time.monotonic()))
        except TimeoutError:
            raise self._silent() from None
        except WireError as error:
            raise RunNotAnswering(f"What the host of {self._name} answered is no reply: {error}.") from None
        except OSError as error:
            raise RunNotAnswering(f"The host of {self._name} is gone: {error.strerror}.") from None

    def wait_for_end(self, timeout_s: float | None) -> bool:
        """Return True once the run is gone: the host has let go of its lock. False after `timeout_s`."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            self._sock.settimeout(timeout_s)
            while self._sock.recv(_READ_BYTES):
                pass
        except TimeoutError:
            return not self._is_held(self._directory)
        except OSError:
            pass  # it was killed
        while self._is_held(self._directory):  # it ends connections after that, unless it crashed
            if until is not None and time.monotonic() > until:
                return False
            time.sleep(_TRY_AGAIN_S)
        return True

    @property
    def _name(self) -> str:
        return f"run {self._directory.name!r}"

    def _connect(self) -> None:
        """A host that has just begun has no socket yet; one that is busy has a full queue: both for a while."""
        until = time.monotonic() + self._timeout_s
        while True:
            try:
                fd = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    self._sock.settimeout(0)
                    self._sock.connect(in_directory(fd))
                    return
                finally:
                    os.close(fd)
            except OSError as error:
                absent = error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR)
                if absent and not self._is_held(self._directory):
                    raise RunNotFound(f"The {self._name} is not alive.") from None
                if not absent and error.errno != errno.EAGAIN:
                    raise RunNotAnswering(f"The host of {self._name} cannot be reached: {error.strerror}.") from None
                if time.monotonic() > until:
                    raise self._silent() from None
            time.sleep(_TRY_AGAIN_S)

    def _silent(self) -> RunNotAnswering:
        return RunNotAnswering(
            f"The host of {self._name} holds its lock but does not answer within {self._timeout_s:g} s: it was stopped "
            f"(SIGSTOP) or hangs. `civitas-shm stop {self._directory.name} --now` kills it; what waits stays."
        )
