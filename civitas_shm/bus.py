"""Send, ask and broadcast over a Port: names, encoding, waiting for room, deadlines, the errors that senders see.

Guarantees:
- `send` that returned has committed its message; `send` that raised has committed nothing;
- waiters for one full mailbox are served in the order in which they came, and newcomers queue behind them, so the
  messages of one sender keep their order even if it sends from several tasks;
- the deadline of an ask covers everything: the wait for room, the queue, the handler and the way back;
- a sender that is never made to wait still lets its loop turn every YIELD_POSTS messages.

Nothing here knows about processes. A timeout of None, 0 or less waits for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from .errors import (
    AgentError,
    AgentStopped,
    CivitasError,
    DeserializationError,
    MailboxFull,
    MessageValidationError,
    PayloadTooLarge,
)
from .messages import LANE_NORMAL, LANE_PRIORITY, Cause, Message, is_system_type
from .registry import Registry
from .serializer import decode, encode
from .transport import CLOSED, FULL, NO_MEMORY, SENDER_PROGRAM, SENT, TOO_LARGE, MailboxStats, Port, Reply

__all__ = ["ASK_TIMEOUT_S", "SEND_TIMEOUT_S", "MessageBus"]

SEND_TIMEOUT_S: Final = 30.0
"""How long `send` waits for room in a full mailbox unless told otherwise."""
ASK_TIMEOUT_S: Final = 30.0

YIELD_POSTS: Final = 64
"""As many as one batch of an agent: sending delays the neighbours no more than handling does."""


class MessageBus:
    """The sending side of one process. Every method runs on the thread of the loop that the Port was started on."""

    def __init__(self, port: Port) -> None:
        self.port = port
        self.registry = Registry(port)
        self._posts = 0
        self._lines: dict[int, deque[asyncio.Future[None]]] = {}
        self._deadlines = _Deadlines()

    # --- one way --------------------------------------------------------------------------------------------------

    async def send(
        self,
        recipient: str,
        payload: dict[str, Any],
        message_type: str = "message",
        *,
        sender: int = SENDER_PROGRAM,
        cause: Cause | None = None,
        timeout: float | None = SEND_TIMEOUT_S,
        priority: int = 0,
    ) -> None:
        """Commit one message; waits only while the mailbox is full."""
        _check_type(message_type)
        mailbox = self.registry.lookup(recipient)
        data = encode(payload)
        lane = LANE_PRIORITY if priority > 0 else LANE_NORMAL
        if not self._lines or mailbox not in self._lines:
            outcome = self.port.post(mailbox, data, message_type, sender, cause, lane, priority)
            if outcome == SENT:
                self._posts += 1
                if self._posts >= YIELD_POSTS:
                    self._posts = 0
                    await asyncio.sleep(0)
                return

        def attempt() -> int:
            return self.port.post(mailbox, data, message_type, sender, cause, lane, priority)

        await self._when_room(mailbox, recipient, attempt, _deadline_ns(timeout), len(data))

    async def broadcast(
        self,
        pattern: str,
        payload: dict[str, Any],
        message_type: str = "message",
        *,
        sender: int = SENDER_PROGRAM,
        cause: Cause | None = None,
        timeout: float | None = SEND_TIMEOUT_S,
    ) -> None:
        """Send to every agent whose name matches. A full mailbox delays nobody else.

        What failed is raised together, as an ExceptionGroup, after all were tried. No match is no error.
        """
        _check_type(message_type)
        encode(payload)  # a payload that nobody can get is one error, not one for each recipient

        async def one(name: str) -> None:
            await self.send(name, payload, message_type, sender=sender, cause=cause, timeout=timeout)

        names = self.registry.lookup_all(pattern)
        results = await asyncio.gather(*map(one, names), return_exceptions=True)
        failed: list[Exception] = []
        for name, result in zip(names, results, strict=True):
            if isinstance(result, AgentStopped):
                continue  # it stopped after the names were read: no longer meant
            if isinstance(result, CivitasError):
                result.add_note(f"while broadcasting to {name!r}")
                failed.append(result)
            elif isinstance(result, BaseException):
                raise result
        if failed:
            raise ExceptionGroup(f"broadcast to {pattern!r}: {len(failed)} of {len(names)} failed", failed)

    # --- question and answer --------------------------------------------------------------------------------------

    async def ask(
        self,
        recipient: str,
        payload: dict[str, Any],
        message_type: str = "message",
        *,
        sender: int = SENDER_PROGRAM,
        cause: Cause | None = None,
        timeout: float | None = ASK_TIMEOUT_S,
        priority: int = 0,
        asker: str = "_runtime",
    ) -> Message:
        """The reply. TimeoutError at the deadline, AgentError if the other side raised, AgentStopped if it ended."""
        _check_type(message_type)
        mailbox = self.registry.lookup(recipient)
        data = encode(payload)
        lane = LANE_PRIORITY if priority > 0 else LANE_NORMAL
        deadline_ns = _deadline_ns(timeout)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        correlation = FULL
        if not self._lines or mailbox not in self._lines:
            correlation = self.port.post_ask(
                mailbox, data, message_type, sender, future, deadline_ns, cause, lane, priority
            )
        if correlation <= 0:

            def attempt() -> int:
                return self.port.post_ask(
                    mailbox, data, message_type, sender, future, deadline_ns, cause, lane, priority
                )

            correlation = await self._when_room(mailbox, recipient, attempt, deadline_ns, len(data))
        if deadline_ns:
            self._deadlines.add(correlation, deadline_ns, future)
        try:
            header, reply_type, replier, reply_data, failed = await future
        except _Expired:
            self.port.forget(correlation)
            raise TimeoutError(
                f"{recipient!r} did not answer {message_type!r} within {timeout:.3g} s; "
                f"{_holder(self.port.stats(mailbox))}."
            ) from None
        except BaseException:
            self.port.forget(correlation)  # cancelled: nobody waits any more
            raise
        finally:
            self._deadlines.discard(correlation)
        if failed:
            raise _remote_error(recipient, reply_data)
        return Message.received(header, reply_type, replier, asker, decode(reply_data), 1)

    # --- waiting for room -----------------------------------------------------------------------------------------

    async def _when_room(
        self, mailbox: int, recipient: str, attempt: Callable[[], int], deadline_ns: int, size_bytes: int
    ) -> int:
        """Stand in line for `mailbox` and try again until something is committed; the outcome of that post."""
        began_ns = time.monotonic_ns()
        line = self._lines.setdefault(mailbox, deque())
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.append(turn)
        if line[0] is turn:
            turn.set_result(None)
        outcome = FULL
        refused = False
        try:
            async with asyncio.timeout((deadline_ns - began_ns) / 1e9 if deadline_ns else None):
                await turn
                while (outcome := attempt()) in (FULL, NO_MEMORY):
                    if outcome == FULL and self.port.stats(mailbox).overflow != "block":
                        refused = True
                        break
                    room = self.port.room(mailbox)
                    if room.done():
                        await asyncio.sleep(0)  # room came and may be gone again: the loop turns between two tries
                    await room
        except TimeoutError:
            refused = True
        finally:
            line.remove(turn)
            if not line:
                del self._lines[mailbox]
            elif not line[0].done():
                line[0].set_result(None)
        if refused:
            stats = self.port.stats(mailbox)
            waited_s = (time.monotonic_ns() - began_ns) / 1e9
            raise MailboxFull(recipient, stats.capacity, waited_s, _holder(stats))
        if outcome == CLOSED:
            raise AgentStopped(f"Agent {recipient!r} has stopped; nothing reads its mailbox any more.")
        if outcome == TOO_LARGE:
            raise PayloadTooLarge(size_bytes, self.port.payload_max_bytes)
        return outcome


def _check_type(message_type: str) -> None:
    if type(message_type) is not str:
        raise MessageValidationError(f"a message type must be str, not {type(message_type).__name__}.")
    if is_system_type(message_type):
        raise MessageValidationError(f"message type {message_type!r} is kept for the runtime.")


def _deadline_ns(timeout: float | None) -> int:
    """CLOCK_MONOTONIC nanoseconds; 0 = none."""
    return 0 if timeout is None or timeout <= 0 else time.monotonic_ns() + int(timeout * 1e9)


def _holder(stats: MailboxStats) -> str:
    """Who keeps the mailbox from moving: the end of an error text."""
    if stats.busy_since_ns:
        busy_s = max(0, time.monotonic_ns() - stats.busy_since_ns) / 1e9
        what = f"a message of type {stats.handling!r}" if stats.handling else "one message"
        return f"{stats.name!r} has been handling {what} for {busy_s:.3g} s, {stats.waiting} wait"
    if not stats.readers:
        return f"no process reads it just now, {stats.waiting} wait"
    return f"{stats.name!r} is not handling a message just now, {stats.waiting} wait"


def _remote_error(agent: str, data: bytes) -> CivitasError:
    """What a failed reply says."""
    if not data:
        return AgentStopped(f"Agent {agent!r} stopped before it answered.")
    try:
        fields = decode(data)
    except DeserializationError as error:
        return error
    return AgentError(agent, str(fields.get("type")), str(fields.get("text")), str(fields.get("traceback", "")))


# --- deadlines of asks --------------------------------------------------------------------------------------------


class _Expired(Exception):
    """The deadline of an ask passed: set on its future, never seen outside."""


class _Deadlines:
    """One timer for all asks that wait: a timer each would cost more than the message.

    Guarantees: an ask never expires early; the earliest one expires on time, others at most GRAIN_S late.
    """

    GRAIN_S: Final = 0.005
    """A bound on how often the table is scanned; no deadline of an ask is meant to the millisecond."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[int, asyncio.Future[Reply]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0

    def add(self, correlation: int, deadline_ns: int, future: asyncio.Future[Reply]) -> None:
        self._waiting[correlation] = (deadline_ns, future)
        if self._timer is None or deadline_ns < self._timer_ns:
            self._arm(deadline_ns, time.monotonic_ns())

    def discard(self, correlation: int) -> None:
        self._waiting.pop(correlation, None)

    def _arm(self, due_ns: int, now_ns: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_ns = due_ns
        self._timer = asyncio.get_running_loop().call_later(max(0, due_ns - now_ns) / 1e9, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now_ns = time.monotonic_ns()
        for deadline_ns, future in self._waiting.values():
            if deadline_ns <= now_ns and not future.done():
                future.set_exception(_Expired())
        # What has expired removes itself when its task runs; until then it must not arm the timer again.
        left = [deadline_ns for deadline_ns, future in self._waiting.values() if not future.done()]
        if left:
            self._arm(max(min(left), now_ns + int(self.GRAIN_S * 1e9)), now_ns)
