"""`civitas_shm.connect_blocking`: a client of a run for programs without an event loop: Celery, Flask, a shell.

    shop = civitas_shm.connect_blocking("shop")      # once, at the top of the module
    reply = shop.ask("pricing", {"item": 17})        # from any thread, in any forked child

Guarantees: as those of `connect`. Any thread may use it at any time: each call takes a connection that nobody else
uses, makes one when there is none, and gives it back. There is no thread, lock or loop that a fork could leave in a
strange state: a forked child finds the pool empty and connects anew.

Rules of this file: one request at a time on a connection; one whose answer was not awaited to its end is closed, which
calls the request off.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from ..errors import RunNotAnswering, TransportClosed
from ..host.wire import FrameDecoder, WireError, encode_frame
from ..messages import Message
from ..port_bus import ASK_TIMEOUT_S, SEND_TIMEOUT_S
from ..typed import Payload
from .client import lost, message_of, ready
from .dial import CONNECT_TIMEOUT_S, Line, dial
from .protocol import Ask, Broadcast, Bye, Done, Failed, FromClient, Replied, Send, ToClient, error_from

__all__ = ["BlockingClient", "connect_blocking"]

IDLE_KEPT: Final = 4
"""Connections that wait for the next call. More threads than that may call at once; theirs are closed afterwards."""

_GRACE_S: Final = 5.0
"""From the deadline of a request, which the run keeps, to when its answer must be here."""

_READ_BYTES: Final = 64 << 10


def connect_blocking(
    name: str | None = None, *, timeout_s: float = CONNECT_TIMEOUT_S, wait_s: float = 0.0
) -> BlockingClient:
    """A client of the run of that name; None: of the only run there is. It connects when it is used.

    `timeout_s`: how long a run that is there may take to let it in. `wait_s`: how long to wait for one that is not
    there (yet, or again).
    """
    return BlockingClient(name, timeout_s=timeout_s, wait_s=wait_s)


class BlockingClient:
    """Talks with the agents of one run. See `connect_blocking`."""

    def __init__(self, name: str | None, *, timeout_s: float, wait_s: float) -> None:
        self._name = name
        self._timeout_s = timeout_s
        self._wait_s = wait_s
        self._idle: list[_Connection] = []
        """Of the process `_pid`. A list, whose `append` and `pop` are one step each, so it needs no lock."""
        self._pid = os.getpid()
        self._closed = False

    def __enter__(self) -> Self:
        self._give_back(self._take())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of idle connections; those of calls that are under way end with these. Idempotent."""
        self._closed = True
        self._drop_idle()

    # --- messages -----------------------------------------------------------------------------------------------------

    def send(
        self,
        name: str,
        payload: Payload,
        message_type: str = "message",
        *,
        timeout: float | None = SEND_TIMEOUT_S,
        priority: int = 0,
    ) -> None:
        """Commit a message to the agent's mailbox, as `Runtime.send`; its sender reads `_runtime`."""
        data, options = ready(payload, message_type), _options(priority)
        self._do(lambda number: Send(number, name, data, message_type, timeout, options), timeout)

    def ask(
        self,
        name: str,
        payload: Payload,
        timeout: float | None = ASK_TIMEOUT_S,
        message_type: str = "message",
        *,
        priority: int = 0,
    ) -> Message:
        """Send a question and give back the reply, as `Runtime.ask`, with the same errors."""
        data, options = ready(payload, message_type), _options(priority)
        answer = self._do(lambda number: Ask(number, name, data, message_type, timeout, options), timeout)
        assert isinstance(answer, Replied)
        return message_of(answer)

    def broadcast(
        self,
        pattern: str,
        payload: Payload,
        message_type: str = "message",
        *,
        timeout: float | None = SEND_TIMEOUT_S,
    ) -> None:
        """Send to every agent whose name matches, as `Runtime.broadcast`."""
        data = ready(payload, message_type)
        self._do(lambda number: Broadcast(number, pattern, data, message_type, timeout), timeout)

    def _do(self, make: Callable[[int], FromClient], timeout_s: float | None) -> Done | Replied:
        connection = self._take()
        try:
            answer = connection.request(make, timeout_s)
        except BaseException:  # KeyboardInterrupt too: the answer would be taken for that of the next request
            connection.close()
            raise
        self._give_back(connection)
        if isinstance(answer, Failed):
            raise error_from(answer)
        return answer

    # --- connections --------------------------------------------------------------------------------------------------

    def _take(self) -> _Connection:
        if self._pid != os.getpid():
            # What is inherited is the parent's: closing these copies does not end its connections.
            self._pid = os.getpid()
            self._drop_idle()
        if self._closed:
            raise TransportClosed("This client was closed.")
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return _Connection(dial(self._name, self._timeout_s, self._wait_s))
            if connection.fresh():
                return connection
            connection.close()

    def _give_back(self, connection: _Connection) -> None:
        if self._closed or self._pid != connection.pid or len(self._idle) >= IDLE_KEPT:
            connection.close()
        else:
            self._idle.append(connection)

    def _drop_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()


class _Connection:
    """One connection, used by one thread at a time."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._sock = line.sock
        self._decoder: FrameDecoder[ToClient] = FrameDecoder(ToClient)
        self._last = 0
        self.pid = os.getpid()

    def fresh(self) -> bool:
        """Whether it still stands: an idle one has nothing to read but the end, or the run's last word."""
        self._sock.setblocking(False)
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        return False

    def request(self, make: Callable[[int], FromClient], timeout_s: float | None) -> Done | Replied | Failed:
        """The answer. TransportClosed when the run ends meanwhile, RunNotAnswering when it is silent."""
        self._last += 1
        request = make(self._last)
        until_s = None if timeout_s is None or timeout_s <= 0 else time.monotonic() + timeout_s + _GRACE_S
        try:
            self._wait(until_s)
            self._sock.sendall(encode_frame(request))
            while True:
                self._wait(until_s)
                data = self._sock.recv(_READ_BYTES)
                if not data:
                    raise TransportClosed(lost(self._line, committed=None))
                for answer in self._decoder.feed(data):
                    if isinstance(answer, Bye):
                        raise TransportClosed(answer.text or lost(self._line, committed=None))
                    if answer.id == request.id:
                        return answer
        except TimeoutError:
            assert timeout_s is not None
            raise RunNotAnswering(
                f"The run {self._line.run!r} has not answered within {timeout_s + _GRACE_S:g} s, not even that the "
                f"time was over: the program that started it (pid {self._line.pid}) is stopped, or blocks its event "
                "loop."
            ) from None
        except WireError as error:
            raise TransportClosed(f"What the run {self._line.run!r} answered is no answer: {error}.") from None
        except OSError:
            raise TransportClosed(self._last_word() or lost(self._line, committed=None)) from None

    def _last_word(self) -> str:
        """What the run said before it closed, while the request was on its way."""
        self._sock.setblocking(False)
        for _ in range(2):  # the first look may say only that the other side has closed
            with contextlib.suppress(OSError, WireError):
                for answer in self._decoder.feed(self._sock.recv(_READ_BYTES)):
                    if isinstance(answer, Bye):
                        return answer.text
        return ""

    def close(self) -> None:
        """Idempotent."""
        self._sock.close()

    def _wait(self, until_s: float | None) -> None:
        self._sock.settimeout(None if until_s is None else max(0.001, until_s - time.monotonic()))


def _options(priority: int) -> dict[str, Any]:
    return {"priority": priority} if priority else {}
