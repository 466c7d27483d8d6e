"""What an agent says beside plain `send`, `ask` and `reply`: many asks at once, answers that come later.

Rules of this file: methods of AgentProcess that are built on its bus and own nothing; what an agent runs on comes from
its runner (`Attachment`).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .current import HANDLED
from .errors import MessageValidationError
from .many import ASKS_AT_ONCE, ask_many
from .messages import Message, cause_of, is_system_type
from .port_bus import ASK_TIMEOUT_S, SEND_TIMEOUT_S
from .retrying import Retry
from .sending import cancel
from .serializer import encode
from .transport import SENDER_PROGRAM
from .typed import Payload

if TYPE_CHECKING:
    from .process import Attachment

__all__ = ["Talking", "reply_type"]

T = TypeVar("T")


class Talking:
    """Base of AgentProcess."""

    name: str
    _attached: Attachment | None
    _hand_over: Callable[[Coroutine[Any, Any, Any]], Any] | None

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
    ) -> Coroutine[Any, Any, list[Any]]:
        """Ask once for each payload, at most `limit` at a time; to be awaited. The replies, in the order of `payloads`.

        `to`: one name (an agent, perhaps with replicas), or several that can stand in for one another: each payload
        goes to the one that has the fewest of these asks before it. `payloads` is read as places become free, so a
        generator never runs far ahead. `timeout` and `retry` are those of each ask, counted from when it begins.

        Errors: all are asked, whoever fails; then what failed is raised together, as an ExceptionGroup whose members
        name their payload by number. With `return_exceptions` an error stands in the place of its reply instead, as in
        `asyncio.gather` (Celery's `join(propagate=False)`). Cancelled, it takes back the asks that are under way.
        """
        to_bus = self._attachment()
        handled = HANDLED.get()
        cause = None if handled is None else handled.header

        async def one(name: str, payload: Payload) -> Message:
            return await to_bus.bus.ask_with(
                retry, name, payload, message_type, timeout, priority, to_bus.mailbox, cause, self.name
            )

        return self._awaited(ask_many(one, to, payloads, limit, return_exceptions))

    def cancel(self, key: str, timeout: float | None = SEND_TIMEOUT_S) -> Coroutine[Any, Any, None]:
        """Take back what this agent has ordered under `key` (`send` with delay, at or every); to be awaited.

        Committed when it returns. A message that was due before is under way and still comes; nothing under that key is
        no error.
        """
        to = self._attachment()
        handled = HANDLED.get()
        return self._awaited(cancel(to.bus, key, timeout, to.mailbox, None if handled is None else handled.header))

    def reply_to(self, original: Message, payload: Payload) -> Coroutine[Any, Any, bool]:
        """Answer an ask later, also after its handler has returned None; to be awaited. Its type is as in `reply`.

        `original` is the message that `handle` got, or the copy of it that `Message.from_dict` makes of its `to_dict`.
        True: the answer is committed; the asker gets the first one, a second is dropped where it waits. False: nobody
        waits for it, because it was no ask, its deadline has passed, or the asker is gone.

        Not promised: that the answer is ever given. A handler that has returned has done its work, so the message is
        not handed over again when this process dies before the answer; the asker then waits until its deadline. Who
        must answer whatever happens keeps `original.to_dict()` in `self.state` (`state: shm` or a store) and answers
        from there in `on_start`: a question can be answered by the next life of the agent, in any process.
        """
        to = self._attachment()
        kind = reply_type(payload)

        async def answer() -> bool:
            port = to.bus.port
            header = original.header
            if header is None:
                asker = port.resolve(original.sender) if original.sender else -1
                header = cause_of(original, asker if asker >= 0 else SENDER_PROGRAM)
            return header is not None and port.post_reply(header, encode(payload), kind, to.mailbox)

        return self._awaited(answer())

    def _attachment(self) -> Attachment:
        if self._attached is None:
            raise RuntimeError(f"agent {self.name!r} is not running: send, ask and broadcast work from on_start on")
        return self._attached

    def _awaited(self, work: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        return work if self._hand_over is None else self._hand_over(work)


def reply_type(payload: Any) -> str:
    """The type of an answer: `payload["type"]` where that is a text, else `reply`. Not one of the runtime's."""
    named = payload.get("type") if isinstance(payload, dict) else None
    if not isinstance(named, str):
        return "reply"
    if is_system_type(named):
        raise MessageValidationError(f"payload.type: message type {named!r} is kept for the runtime.")
    return named
