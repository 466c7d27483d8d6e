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

import os
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self

from ..errors import TransportClosed
from ..many import ASKS_AT_ONCE, answers_or_raise, names_of
from ..messages import Message
from ..port_bus import ASK_TIMEOUT_S, SEND_TIMEOUT_S
from ..retrying import Retry, tried_here
from ..serializer import decode
from ..streaming import IDLE_TIMEOUT_S, MAX_DURATION_S, MAXSIZE, TIMEOUT_S
from ..typed import Payload, wanted
from .blocking_stream import BlockingClientStream
from .client import message_of, options_of, ready
from .dial import CONNECT_TIMEOUT_S, dial
from .exchange import Exchange
from .pipeline import Pipeline
from .protocol import (
    Ask,
    Broadcast,
    Cancel,
    Chunks,
    Done,
    Failed,
    FromClient,
    OpenStream,
    Replied,
    Send,
    error_from,
)

__all__ = ["BlockingClient", "connect_blocking"]

IDLE_KEPT: Final = 4
"""Connections that wait for the next call. More threads than that may call at once; theirs are closed afterwards."""


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
        self._idle: list[Exchange] = []
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
        ttl: float | None = None,
        delay: float | None = None,
        at: datetime | float | None = None,
        every: float | None = None,
        key: str | None = None,
        retry: Retry | None = None,
    ) -> None:
        """Commit a message to the agent's mailbox, as `Client.send`."""
        data = ready(payload, message_type)
        options = options_of(priority, ttl=ttl, delay=delay, at=at, every=every, key=key)

        def attempt() -> None:
            self._request(lambda number: Send(number, name, data, message_type, timeout, options), timeout)

        if retry is None:
            attempt()
        else:
            tried_here(retry, attempt)

    def cancel(self, key: str, timeout: float | None = SEND_TIMEOUT_S) -> None:
        """Take back what the program or one of its clients has ordered under `key`, as `Client.cancel`."""
        self._request(lambda number: Cancel(number, key, timeout), timeout)

    def ask(
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
        """Send a question and give back the reply, as `Client.ask`, with the same errors."""
        data, options = ready(payload, message_type), options_of(priority)
        built = decode if reply_type is None else wanted(reply_type)

        def attempt() -> Message:
            answer = self._request(lambda number: Ask(number, name, data, message_type, timeout, options), timeout)
            assert isinstance(answer, Replied)
            return message_of(answer, built)

        return attempt() if retry is None else tried_here(retry, attempt)

    def ask_many(
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
        """Ask once for each payload, as `Client.ask_many`: the replies, in the order of `payloads`.

        Over one connection, at most 64 at a time.
        """
        names = names_of(to, limit)
        options, built = options_of(priority), decode if reply_type is None else wanted(reply_type)
        exchange = self._take()
        pipeline = Pipeline(
            exchange, names, lambda number, name, data: Ask(number, name, data, message_type, timeout, options),
            lambda answer: message_of(answer, built), timeout, retry,
        )  # fmt: skip
        try:
            answers = pipeline.run((ready(payload, message_type) for payload in payloads), limit)
        except BaseException:
            exchange.close()
            raise
        self._give_back(exchange)
        return answers_or_raise(answers, pipeline.failed, return_exceptions)

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
    ) -> BlockingClientStream:
        """Ask for an answer in chunks, as `Client.stream`: an iterator over their payloads.

        It has a connection of its own from its first step to its end. `close` it, or leave its `with`, where you leave
        the loop early.
        """
        data, built = ready(payload, message_type), decode if reply_type is None else wanted(reply_type)
        request = OpenStream(0, name, data, message_type, timeout, idle_timeout, max_duration, maxsize)
        return BlockingClientStream(request, self._take, self._give_back, built)

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
        self._request(lambda number: Broadcast(number, pattern, data, message_type, timeout), timeout)

    def _request(self, make: Callable[[int], FromClient], timeout_s: float | None) -> Done | Replied:
        exchange = self._take()
        try:
            request = make(exchange.number())
            exchange.say(request, timeout_s)
            answer = exchange.hear(timeout_s)
            assert answer.id == request.id
        except BaseException:  # KeyboardInterrupt too: the answer would be taken for that of the next request
            exchange.close()
            raise
        self._give_back(exchange)
        if isinstance(answer, Failed):
            raise error_from(answer)
        assert not isinstance(answer, Chunks)
        return answer

    # --- connections --------------------------------------------------------------------------------------------------

    def _take(self) -> Exchange:
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
                return Exchange(dial(self._name, self._timeout_s, self._wait_s))
            if connection.fresh():
                return connection
            connection.close()

    def _give_back(self, connection: Exchange) -> None:
        if self._closed or self._pid != connection.pid or len(self._idle) >= IDLE_KEPT:
            connection.close()
        else:
            self._idle.append(connection)

    def _drop_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()
