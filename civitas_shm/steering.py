"""What a program may do with the agents of its run, beside sending to them: read their streams, suspend, resume.

Rules of this file: a part of Runtime, which wires and translates, nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import TransportClosed
from .streaming import IDLE_TIMEOUT_S, MAX_DURATION_S, MAXSIZE, TIMEOUT_S
from .suspension import MANUAL

if TYPE_CHECKING:
    from .streams.reader import Stream
    from .typed import Payload

__all__ = ["Steering"]


class Steering:
    """A part of Runtime."""

    if TYPE_CHECKING:

        def _started(self) -> Any: ...
        async def _supervise(self, what: str, fields: dict[str, Any]) -> Any: ...

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

    async def suspend(self, name: str, reason: str = "", category: str = MANUAL) -> None:
        """Let an agent take no more messages after the one in hand; returns when that has ended. As `self.suspend`.

        AgentStopped: it does not run now, or ended before. ConfigurationError: it is a supervisor, or has replicas.
        """
        await self._supervise("suspend", {"name": name, "reason": reason, "category": category})

    async def resume(self, name: str, approver: str) -> None:
        """Let it take messages again; returns when `on_resume(approver)` has, and raises what that raised.

        ValueError without an approver. Nothing happens when it is not suspended.
        """
        if not isinstance(approver, str) or not approver.strip():
            raise ValueError(f"resume of {name!r} needs the name of who approves it; it is {approver!r}")
        await self._supervise("resume", {"name": name, "approver": approver})
