"""What a program may do to the agents of its run, beside sending to them: read streams of theirs.

Rules of this file: a part of Runtime, which wires and translates, nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import TransportClosed
from .streaming import IDLE_TIMEOUT_S, MAX_DURATION_S, MAXSIZE, TIMEOUT_S

if TYPE_CHECKING:
    from .streams.reader import Stream
    from .typed import Payload

__all__ = ["Steering"]


class Steering:
    """A part of Runtime."""

    if TYPE_CHECKING:

        def _started(self) -> Any: ...

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
    ) -> Stream:
        """Ask for an answer in chunks: an async iterator over their payloads, as `AgentProcess.stream`."""
        from .streams.reader import Question, Reader, Stream  # most programs read none

        run = self._started()

        async def translate(closed: TransportClosed) -> BaseException:
            return await run.failure() or closed

        question = Question(name, payload, message_type, timeout, idle_timeout, max_duration, maxsize)
        return Stream(Reader(run.bus.streams, question), translate)
