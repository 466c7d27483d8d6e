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
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

import msgspec

from .directory import Directory
from .errors import (
    AgentError,
    AgentStopped,
    ArenaFull,
    CivitasError,
    DeadlockError,
    DeserializationError,
    MailboxFull,
    MessageDropped,
    MessageRoutingError,
    MessageValidationError,
    PayloadTooLarge,
    SpawnError,
)
from .messages import LANE_NORMAL, LANE_PRIORITY, Cause, Message, is_system_type
from .petitions import PETITIONS, Supervise, answer_of
from .registry import RunRegistry
from .retrying import Retry, tried
from .roster import Roster
from .serializer import Encoded, decode, decode_dict, encode
from .transport import (
    BRIDGE,
    CLOSED,
    FULL,
    NO_MEMORY,
    REPLY_DROPPED,
    SENDER_PROGRAM,
    SENT,
    TOO_LARGE,
    MailboxStats,
    Port,
    Reply,
    Sink,
)
from .typed import Payload
from .waits import NEVER_NS, Expired, Waits

if TYPE_CHECKING:
    from .streams.places import Streams

__all__ = ["ASK_TIMEOUT_S", "SEND_TIMEOUT_S", "UNROUTABLE", "PortBus", "nobody_supervises"]

SEND_TIMEOUT_S: Final = 30.0
"""How long `send` waits for room in a full mailbox unless told otherwise."""
ASK_TIMEOUT_S: Final = 30.0

TTL_MAX_S: Final = 100 * 365 * 86400.0
"""A century: beyond it, what nanoseconds count would no longer fit into the header."""

YIELD_POSTS: Final = 64
"""As many as one batch of an agent: sending delays the neighbours no more than handling does."""

TYPES_REMEMBERED: Final = 1000
UNROUTABLE: Final = "_unroutable"
"""Type of a failed reply: the bridge has found nobody who has the name that was asked."""

NAMES_REMEMBERED: Final = 20_000
"""More than there can be mailboxes."""


class _Committed(Coroutine[Any, Any, None]):
    """What `post` returns when nothing is left to wait for: ends at once, however it is awaited, as often as it is."""

    __slots__ = ()
    # A new empty iterator, without a Python frame. staticmethod: from Python 3.14 on a partial binds like a function,
    # and 3.13 warns of it.
    __await__ = staticmethod(partial(iter, ()))

    def send(self, value: None) -> None:
        raise StopIteration

    def throw(self, *args: Any) -> None:
        raise args[0] if len(args) == 1 else args[0](args[1])

    def close(self) -> None:
        pass


COMMITTED: Final = _Committed()
_pack: Final = msgspec.msgpack.Encoder().encode


class PortBus:
    """The sending side of one process. Every method runs on the thread of the loop that the Port was started on."""

    def __init__(self, port: Port) -> None:
        self.port = port
        self._post = port.post
        self.directory = Directory(port)
        self.roster = Roster()
        self.registry = RunRegistry(self.directory, self.roster)
        self._posts = 0
        self.waits = Waits()
        self._lines = self.waits.lines
        self.own_handler: Callable[[int], bool] = _never
        """Whether the code that runs now is the handler of that mailbox itself; who runs agents sets it."""
        self.supervise: Supervise = nobody_supervises
        """Asked what only supervision can answer (`petitions`); who runs agents sets it."""
        # What has been looked up and checked once. A mailbox that was closed is looked up again (`_settled`).
        self._mailboxes: dict[str, int] = {}
        self.known_types = {"message", "reply"}
        """Message types that users may send, as far as they have been looked at."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: Streams | None = None

    # --- one way --------------------------------------------------------------------------------------------------

    def post(
        self,
        recipient: str,
        payload: Payload,
        message_type: str,
        timeout: float | None,
        priority: int,
        sender: int,
        cause: Cause | None,
    ) -> Coroutine[Any, Any, None]:
        """`send` for agents: commits at once if nothing is in the way; else the coroutine does it, or raises.

        Saves the frame of a coroutine that would never wait: 0.3 of 1.2 µs (2026-11-20, Python 3.11, two processes).
        """
        if (
            message_type in self.known_types
            and not self._lines
            and (mailbox := self._mailboxes.get(recipient, -1)) >= 0
        ):
            try:
                data = encode(payload)
            except MessageValidationError:
                pass  # raised where it is awaited, as everything else
            else:
                lane = LANE_PRIORITY if priority > 0 else LANE_NORMAL
                if self._post(mailbox, data, message_type, sender, cause, lane, priority) == SENT:
                    self._posts += 1
                    if self._posts < YIELD_POSTS:
                        return COMMITTED
                    self._posts = 0
                    return asyncio.sleep(0)
        return self.send(recipient, payload, message_type, timeout, priority, sender, cause)

    async def send(
        self,
        recipient: str,
        payload: Payload,
        message_type: str = "message",
        timeout: float | None = SEND_TIMEOUT_S,
        priority: int = 0,
        sender: int = SENDER_PROGRAM,
        cause: Cause | None = None,
        ttl_s: float | None = None,
    ) -> None:
        """Commit one message; waits only while the mailbox is full."""
        if message_type not in self.known_types:
            if message_type in PETITIONS:
                await self._petition(recipient, payload, message_type, timeout, sender)
                return
            self.check_type(message_type)
        mailbox = self._mailboxes.get(recipient, -1)
        if mailbox < 0:
            mailbox, recipient, payload = self._routed(recipient, payload)
        data = encode(payload)
        lane = LANE_PRIORITY if priority > 0 else LANE_NORMAL
        expires_ns = 0 if ttl_s is None else monotonic_ns() + _ttl_ns(ttl_s)
        if not self._lines or mailbox not in self._lines:
            outcome = self.port.post(mailbox, data, message_type, sender, cause, lane, priority, expires_ns)
            if outcome == SENT:
                self._posts += 1
                if self._posts >= YIELD_POSTS:
                    self._posts = 0
                    await asyncio.sleep(0)
                return

        def attempt(mailbox: int) -> int:
            return self.port.post(mailbox, data, message_type, sender, cause, lane, priority, expires_ns)

        deadline_ns = _deadline_ns(timeout)
        await self._when_room(mailbox, recipient, attempt, deadline_ns, len(data), message_type, sender)

    async def broadcast(
        self,
        pattern: str,
        payload: Payload,
        message_type: str = "message",
        *,
        sender: int = SENDER_PROGRAM,
        cause: Cause | None = None,
        timeout: float | None = SEND_TIMEOUT_S,
    ) -> None:
        """Send to every agent whose name matches. A full mailbox delays nobody else.

        What failed is raised together, as an ExceptionGroup, after all were tried. No match is no error.
        """
        if message_type not in self.known_types:
            self.check_type(message_type)
        encode(payload)  # a payload that nobody can get is one error, not one for each recipient

        async def one(name: str) -> None:
            await self.send(name, payload, message_type, timeout, 0, sender, cause)

        names = self.directory.lookup_all(pattern)
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

    async def notify(
        self,
        recipient: str,
        data: bytes,
        message_type: str,
        sender: int,
        cause: Cause | None,
        timeout: float | None = SEND_TIMEOUT_S,
    ) -> None:
        """Commit one of the runtime's own messages (`notices`), before all others; waits only while that lane is full.

        For the runtime's own code only: no type is refused.
        """
        mailbox = self._mailboxes.get(recipient, -1)
        if mailbox < 0:
            mailbox = self._lookup(recipient)

        def attempt(mailbox: int) -> int:
            return self.port.post(mailbox, data, message_type, sender, cause, LANE_PRIORITY, 1)

        if attempt(mailbox) != SENT:
            await self._when_room(mailbox, recipient, attempt, _deadline_ns(timeout), len(data), message_type, sender)

    # --- question and answer --------------------------------------------------------------------------------------

    async def ask(
        self,
        recipient: str,
        payload: Payload,
        message_type: str = "message",
        timeout: float | None = ASK_TIMEOUT_S,
        priority: int = 0,
        sender: int = SENDER_PROGRAM,
        cause: Cause | None = None,
        asker: str = "_runtime",
        built: Callable[[bytes], Any] = decode,
    ) -> Message:
        """The reply. TimeoutError at the deadline, AgentError if the other side raised, AgentStopped if it ended,
        MessageDropped if a full mailbox dropped the question. `built` makes its payload of the bytes."""
        if message_type not in self.known_types:
            if message_type in PETITIONS:
                answer = await self._petition(recipient, payload, message_type, timeout, sender)
                return Message(type="reply", sender=recipient, recipient=asker, payload=answer)
            self.check_type(message_type)
        mailbox, to = self._mailboxes.get(recipient, -1), recipient
        if mailbox < 0:
            mailbox, to, payload = self._routed(recipient, payload)
        data = encode(payload)
        lane = LANE_PRIORITY if priority > 0 else LANE_NORMAL
        now_ns = monotonic_ns()
        deadline_ns = 0 if timeout is None or timeout <= 0 else now_ns + int(timeout * 1e9)
        if sender == mailbox and self.own_handler(mailbox):
            raise DeadlockError([(recipient, recipient, "ask", message_type, 0.0)])
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        correlation = FULL
        if not self._lines or mailbox not in self._lines:
            correlation = self.port.post_ask(
                mailbox, data, message_type, sender, future, deadline_ns, cause, lane, priority
            )
        if correlation <= 0:

            def attempt(mailbox: int) -> int:
                return self.port.post_ask(
                    mailbox, data, message_type, sender, future, deadline_ns, cause, lane, priority
                )

            correlation = await self._when_room(mailbox, to, attempt, deadline_ns, len(data), message_type, sender)
        waits = self.waits
        due_ns = deadline_ns or NEVER_NS - 1
        waits.asks[correlation] = (due_ns, future, mailbox, message_type, now_ns)
        if due_ns < waits.due_ns:
            waits.arm(due_ns)
        try:
            _, header, reply_type, replier, reply_data, failed = await future
        except Expired:
            self.port.forget(correlation)
            raise TimeoutError(
                f"{recipient!r} did not answer {message_type!r} within {timeout:.3g} s; "
                f"{_holder(self.port.stats(mailbox))}."
            ) from None
        except BaseException:
            self.port.forget(correlation)  # cancelled: nobody waits any more
            raise
        finally:
            waits.asks.pop(correlation, None)
        if failed:
            raise self.failure_of(recipient, message_type, mailbox, reply_type, reply_data)
        return Message.received(header, reply_type, replier, asker, built(reply_data), 1)

    async def ask_with(self, retry: Retry | None, *ask: Any) -> Message:
        """`ask` with these arguments, tried again as `retry` says."""
        return await (self.ask(*ask) if retry is None else tried(retry, lambda: self.ask(*ask)))

    async def _petition(
        self, supervisor: str, payload: Payload, kind: str, timeout: float | None, sender: int
    ) -> dict[str, Any]:
        """What supervision answers in a supervisor's name."""
        asker = "" if sender == SENDER_PROGRAM else self.port.stats(sender).name
        if not isinstance(payload, dict):
            raise MessageValidationError(f"a message of type {kind!r} has a dict as its payload.")
        async with asyncio.timeout(timeout if timeout is not None and timeout > 0 else None):
            return await answer_of(self.supervise, asker, supervisor, kind, payload)

    def failure_of(self, recipient: str, message_type: str, mailbox: int, reply_type: str, data: bytes) -> CivitasError:
        """What a failed reply says."""
        if reply_type == UNROUTABLE:
            return MessageRoutingError(str(decode_dict(data).get("text")))
        if reply_type == REPLY_DROPPED and not data:
            stats = self.port.stats(mailbox)
            return MessageDropped(recipient, message_type, stats.overflow, stats.capacity, stats.dropped)
        return _remote_error(recipient, data)

    # --- streams --------------------------------------------------------------------------------------------------

    @property
    def streams(self) -> Streams:
        """Those of this process."""
        if self._streams is None:
            from .streams.places import Streams  # most processes never have one

            self._streams = Streams(self)
        return self._streams

    async def question(
        self,
        recipient: str,
        payload: Payload,
        message_type: str,
        timeout: float | None,
        sender: int,
        cause: Cause | None,
        sink: Sink,
        until_ns: int,
        seq: int,
    ) -> tuple[int, int]:
        """Commit a question whose replies go to `sink`, until `until_ns` (0: for ever).

        Its correlation, and whose mailbox has it. Waits for room at most `timeout` seconds.
        """
        if message_type not in self.known_types:
            self.check_type(message_type)
        mailbox = self._mailboxes.get(recipient, -1)
        if mailbox < 0:
            mailbox = self._lookup(recipient)
        data = encode(payload)
        if sender == mailbox and self.own_handler(mailbox):
            raise DeadlockError([(recipient, recipient, "ask", message_type, 0.0)])
        posted = mailbox

        def attempt(mailbox: int) -> int:
            nonlocal posted
            posted = mailbox
            return self.port.post_ask(mailbox, data, message_type, sender, sink, until_ns, cause, LANE_NORMAL, 0, seq)

        correlation = FULL if self._lines and mailbox in self._lines else attempt(mailbox)
        if correlation <= 0:
            deadline_ns = _deadline_ns(timeout)
            correlation = await self._when_room(
                mailbox, recipient, attempt, deadline_ns, len(data), message_type, sender
            )
        return correlation, posted

    # --- looking up -----------------------------------------------------------------------------------------------

    def _routed(self, recipient: str, payload: Payload | Encoded) -> tuple[int, str, Any]:
        """(mailbox, whose it is, payload): its own; or the bridge's, for a name that this host has not, with both in
        one payload. MessageRoutingError: nobody has the name, and there is no bridge."""
        known = self.port.resolve(recipient) >= 0 or recipient.startswith("_")
        if known or (bridge := self._bridge()) < 0:
            return self._lookup(recipient), recipient, payload
        return bridge, BRIDGE, Encoded(_pack({"to": recipient, "payload": encode(payload)}))

    def _bridge(self) -> int:
        """The mailbox of what goes to other hosts; -1: there is none."""
        mailbox = self._mailboxes.get(BRIDGE, -1)
        return mailbox if mailbox >= 0 or self.port.resolve(BRIDGE) < 0 else self._lookup(BRIDGE)

    def _lookup(self, recipient: str) -> int:
        """The mailbox of a name; remembered, because it changes only when it is closed."""
        self._mailboxes.pop(recipient, None)
        mailbox = self.directory.lookup(recipient)
        if len(self._mailboxes) >= NAMES_REMEMBERED:  # of agents that come and go without end
            self._mailboxes.clear()
        self._mailboxes[recipient] = mailbox
        return mailbox

    def check(self, recipient: str, message_type: str) -> None:
        """What `send` would say at once about a name and a type."""
        if message_type not in self.known_types:
            self.check_type(message_type)
        if recipient not in self._mailboxes:
            self._lookup(recipient)

    def check_type(self, message_type: str) -> None:
        """MessageValidationError when code of users may not send messages of this type."""
        if type(message_type) is not str:
            raise MessageValidationError(f"a message type must be str, not {type(message_type).__name__}.")
        if is_system_type(message_type):
            raise MessageValidationError(f"message type {message_type!r} is kept for the runtime.")
        if message_type in PETITIONS:
            raise MessageValidationError(f"message type {message_type!r} is for one supervisor: ask it by its name.")
        if len(self.known_types) < TYPES_REMEMBERED:  # types that are made up on the fly must not fill the memory
            self.known_types.add(message_type)

    # --- waiting for room -----------------------------------------------------------------------------------------

    async def _when_room(
        self,
        mailbox: int,
        recipient: str,
        attempt: Callable[[int], int],
        deadline_ns: int,
        size_bytes: int,
        message_type: str,
        sender: int,
    ) -> int:
        """Stand in line for `mailbox` and try again until something is committed; the outcome of that post."""
        wait = self.waits.room_wait(message_type)
        began_ns = wait.since_ns
        line = self._lines.setdefault(mailbox, deque())
        line.append(wait)
        if line[0] is wait:
            wait.turn.set_result(None)
        outcome = FULL
        refused = False
        try:
            async with asyncio.timeout((deadline_ns - began_ns) / 1e9 if deadline_ns else None):
                await wait.turn
                while (outcome := attempt(mailbox)) in (FULL, NO_MEMORY):
                    if outcome == FULL and self.port.stats(mailbox).overflow != "block":
                        refused = True
                        break
                    if outcome == FULL and sender == mailbox and self.own_handler(mailbox):
                        raise DeadlockError([(recipient, recipient, "room", message_type, 0.0)])
                    room = self.port.room(mailbox)
                    if room.done():
                        await asyncio.sleep(0)  # room came and may be gone again: the loop turns between two tries
                    wait.awaited, wait.full = room, outcome == FULL
                    await room
        except TimeoutError:
            refused = True
        finally:
            line.remove(wait)
            if not line:
                del self._lines[mailbox]
            elif not line[0].turn.done():
                line[0].turn.set_result(None)
        if refused:
            stats = self.port.stats(mailbox)
            waited_s = (monotonic_ns() - began_ns) / 1e9
            if outcome == NO_MEMORY:
                raise ArenaFull(recipient, waited_s, *self.port.held())
            raise MailboxFull(recipient, stats.capacity, waited_s, _holder(stats))
        if outcome == CLOSED:
            again = self._lookup(recipient)
            if again != mailbox:  # the agent was started anew, with a mailbox of its own
                return await self._when_room(again, recipient, attempt, deadline_ns, size_bytes, message_type, sender)
            raise AgentStopped(f"Agent {recipient!r} has stopped; nothing reads its mailbox any more.")
        if outcome == TOO_LARGE:
            raise PayloadTooLarge(size_bytes, self.port.payload_max_bytes)
        return outcome


def _ttl_ns(ttl_s: float) -> int:
    if not 0 < ttl_s <= TTL_MAX_S:
        raise MessageValidationError(f"ttl is {ttl_s!r} s; it must be above 0 and at most {TTL_MAX_S:,.0f}.")
    return int(ttl_s * 1e9)


def _never(mailbox: int) -> bool:
    return False


async def nobody_supervises(asker: str, what: str, fields: dict[str, Any]) -> Any:
    """Of agents that run alone, in tests for example."""
    raise SpawnError(f"{asker!r} cannot {what}: it runs without supervision.")


def _deadline_ns(timeout: float | None) -> int:
    """CLOCK_MONOTONIC nanoseconds; 0 = none."""
    return 0 if timeout is None or timeout <= 0 else monotonic_ns() + int(timeout * 1e9)


def _holder(stats: MailboxStats) -> str:
    """Who keeps the mailbox from moving: the end of an error text."""
    if stats.suspended_since_s:
        return f"{stats.name!r} is suspended, {stats.waiting} wait"
    if stats.busy_since_ns:
        busy_s = max(0, monotonic_ns() - stats.busy_since_ns) / 1e9
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
        fields = decode_dict(data)
    except DeserializationError as error:
        return error
    return AgentError(agent, str(fields.get("type")), str(fields.get("text")), str(fields.get("traceback", "")))
