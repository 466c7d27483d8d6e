"""What becomes of a message that its agent cannot finish: tried again, let go, or given up to the dead letters.

Guarantees:
- a message that is given up (its handler escalated, it cannot be decoded) is in the dead letters before it is let go;
- an asker whose message failed for good gets the error at once;
- what the agent's own `on_error` raises or returns by mistake ends it as the first error would have.

Rules of this file: off the hot path, called only when something has failed; whether the agent ends over it is returned
as a `Verdict`, and done by the caller.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from .errors import DeserializationError, ErrorAction, StateConflict, TransientError
from .events import AgentEvent, DeadLetter, summary
from .letters import Note
from .messages import FLAG_ASK, FLAGS_AT, Message
from .process import AgentProcess
from .serializer import encode
from .topology.model import AgentSpec
from .tracebacks import error_text, format_exception
from .transport import SENT, Delivery, Port
from .user_code import awaited

__all__ = ["Failures", "Verdict", "uncancelled"]

NOTE_ROOM_S: Final = 5.0
"""How long a message that is given up may wait for room for its traceback; the host makes some every quarter second."""
NOTE_LOOK_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class Verdict:
    """The agent ends over it."""

    crashed: bool
    """False: it stops in good order, as its ErrorAction says."""
    error: BaseException
    text: str
    """With its traceback."""


class Failures:
    """Of one agent."""

    def __init__(
        self,
        agent: AgentProcess,
        mailbox: int,
        spec: AgentSpec,
        port: Port,
        report: Callable[[AgentEvent], None],
        again: Callable[[Message], Awaitable[None]],
        cancelling: Callable[[], bool],
        gives_up: Callable[[], Awaitable[None]],
    ) -> None:
        """`again` lets the handler have a message once more; `cancelling`: whether the agent is being cut short;
        `gives_up` is awaited before a message over which the agent crashes is buried."""
        self._agent = agent
        self._mailbox = mailbox
        self._spec = spec
        self._port = port
        self._report = report
        self._again = again
        self._cancelling = cancelling
        self._gives_up = gives_up

    async def met(self, error: BaseException, message: Message, token: int) -> Verdict | None:
        """`handle` raised. None: go on with the next message."""
        while True:
            if self._cancelling() and isinstance(error, asyncio.CancelledError):
                raise error
            action = await self._action(error, message)
            if action is not ErrorAction.RETRY:
                break
            message.attempt += 1
            if message.attempt > self._agent.max_retries:
                action = ErrorAction.ESCALATE
                break
            self._agent.log.warning(
                "handle raised %s on message %s, retry %d of %d",
                _brief(error), message.id, message.attempt, self._agent.max_retries,
            )  # fmt: skip
            await asyncio.sleep(0)
            try:
                await self._again(message)
                return None
            except GeneratorExit:
                raise
            except BaseException as again:  # noqa: BLE001 - the user's code, see the guarantees
                error = again
        text = format_exception(error)
        self._log(message, text, action)
        if action is ErrorAction.ESCALATE:
            if not self._comes_back(token):
                self._answer_failed(message, error, text)
                await self._gives_up()
                await self._bury(message, token, f"its handler raised {_brief(error)}", text)
            return Verdict(True, error, text)
        self._answer_failed(message, error, text)
        if action is ErrorAction.SKIP:
            return None
        self._port.release(self._mailbox, token)
        return Verdict(False, error, text)

    async def state_not_saved(self, error: Exception, message: Message, token: int) -> Verdict:
        """The handler has ended, and what it made of the state cannot be kept.

        When the store is to blame, and not the state, the message stays in hand: the next incarnation gets it again.
        """
        text = format_exception(error)
        self._log(message, text, ErrorAction.ESCALATE)
        if isinstance(error, (TransientError, StateConflict)) and self._spec.delivery != "at_most_once":
            return Verdict(True, error, text)
        await self._gives_up()
        await self._bury(message, token, f"the state after it could not be saved: {_brief(error)}", text)
        return Verdict(True, error, text)

    async def reject(self, delivery: Delivery, error: DeserializationError) -> None:
        """An undecodable payload: nobody can handle it."""
        token, header, kind, sender, _, count = delivery
        message = Message.received(header, kind, sender, self._agent.name, {}, abs(count))
        self._agent.log.error("message %s of type %r from %r was put aside: %s", message.id, kind, sender, error)
        self._answer_failed(message, error, "")
        await self._bury(message, token, f"its payload cannot be decoded: {error}", "")

    async def expired(self, delivery: Delivery) -> None:
        """It has outlived its ttl: no handler gets it, and nobody is ended over it."""
        token, header, kind, sender, _, _ = delivery
        message = Message.received(header, kind, sender, self._agent.name, {}, 0)
        late_s = (time.monotonic_ns() - message.deadline_ns) / 1e9
        cause = f"its turn came {late_s:.3g} s after the end of its ttl"
        self._agent.log.warning("message %s of type %r from %r was dropped: %s", message.id, kind, sender, cause)
        await self._bury(message, token, cause, "")
        await asyncio.sleep(0)  # many of them delay no neighbour

    async def bury(self, message: Message, token: int, cause: str) -> None:
        """Put it with the dead letters: nobody will have it."""
        self._agent.log.error(
            "message %s of type %r from %r for %r was put aside: %s",
            message.id, message.type, message.sender, message.recipient, cause,
        )  # fmt: skip
        await self._bury(message, token, cause, "")

    async def _bury(self, message: Message, token: int, cause: str, traceback: str) -> None:
        """Instead of a release. Waits for room for the traceback, but not long: the letter is worth more."""
        assert message.header is not None
        note = Note(cause, traceback, message.attempt).encode()
        until_s = time.monotonic() + NOTE_ROOM_S
        while self._port.bury(self._mailbox, token, message.header, note) != SENT:
            if time.monotonic() >= until_s:
                note = b""
            else:
                await asyncio.sleep(NOTE_LOOK_S)
        self._report(DeadLetter(self._agent.name, cause, traceback, summary(message)))

    def _comes_back(self, token: int) -> bool:
        """Whether the next incarnation gets the message that this one failed over: it stays in hand, with a strike."""
        if self._spec.on_crash != "redeliver" or self._spec.delivery == "at_most_once":
            return False
        strikes = self._port.strike(self._mailbox, token)
        return self._spec.max_deliveries == 0 or strikes < self._spec.max_deliveries

    async def _action(self, error: BaseException, message: Message) -> ErrorAction:
        if not isinstance(error, Exception):
            if isinstance(error, asyncio.CancelledError):
                uncancelled(error)
            return ErrorAction.ESCALATE
        try:
            action = await awaited(self._agent.on_error(error, message))
        except Exception as second:  # noqa: BLE001 - the user's code: told below, and the first error decides
            self._agent.log.error("on_error raised:\n%s", format_exception(second))
            return ErrorAction.ESCALATE
        if not isinstance(action, ErrorAction):
            self._agent.log.error("on_error returned %r, which is no ErrorAction: taken as ESCALATE", action)
            return ErrorAction.ESCALATE
        return action

    def _log(self, message: Message, text: str, action: ErrorAction) -> None:
        self._agent.log.error(
            "%r failed in handle on message %s of type %r from %r (delivery %d, attempt %d), %s:\n%s",
            self._agent.name, message.id, message.type, message.sender, message.delivery, message.attempt,
            action.value, text,
            extra={"agent": self._agent.name, "message_id": message.id, "delivery": message.delivery},
        )  # fmt: skip

    def _answer_failed(self, message: Message, error: BaseException, text: str) -> None:
        """Tell the asker, if somebody asks, what happened."""
        header = message.header
        if header is None or not header[FLAGS_AT] & FLAG_ASK:
            return
        fields = {"type": type(error).__qualname__, "text": _clean(error_text(error)), "traceback": _clean(text)}
        self._port.post_reply(header, encode(fields), "error", self._mailbox, True)


def uncancelled(error: asyncio.CancelledError) -> asyncio.CancelledError:
    """The handler cancelled its own task; the agent still has to end in good order."""
    if (task := asyncio.current_task()) is not None:
        task.uncancel()
    return error


def _brief(error: BaseException) -> str:
    return f"{type(error).__qualname__}: {error_text(error)}"


def _clean(text: str) -> str:
    """Text that can be encoded: an exception may quote a file name with lone surrogates."""
    return text.encode(errors="backslashreplace").decode()
