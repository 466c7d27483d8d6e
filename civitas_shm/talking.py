"""What an agent says beside plain `send`, `ask` and `reply`: answers that come later.

Rules of this file: methods of AgentProcess that are built on its bus and own nothing; what an agent runs on comes from
its runner (`Attachment`).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from .errors import MessageValidationError
from .messages import Message, cause_of, is_system_type
from .serializer import encode
from .transport import SENDER_PROGRAM
from .typed import Payload

if TYPE_CHECKING:
    from .process import Attachment

__all__ = ["Talking", "reply_type"]


class Talking:
    """Base of AgentProcess."""

    name: str
    _attached: Attachment | None
    _hand_over: Callable[[Coroutine[Any, Any, Any]], Any] | None

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
        to = self._attached
        if to is None:
            raise RuntimeError(f"agent {self.name!r} is not running: reply_to works from on_start on")
        kind = reply_type(payload)

        async def answer() -> bool:
            port = to.bus.port
            header = original.header
            if header is None:
                asker = port.resolve(original.sender) if original.sender else -1
                header = cause_of(original, asker if asker >= 0 else SENDER_PROGRAM)
            return header is not None and port.post_reply(header, encode(payload), kind, to.mailbox)

        return answer() if self._hand_over is None else self._hand_over(answer())


def reply_type(payload: Any) -> str:
    """The type of an answer: `payload["type"]` where that is a text, else `reply`. Not one of the runtime's."""
    named = payload.get("type") if isinstance(payload, dict) else None
    if not isinstance(named, str):
        return "reply"
    if is_system_type(named):
        raise MessageValidationError(f"payload.type: message type {named!r} is kept for the runtime.")
    return named
