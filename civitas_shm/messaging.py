"""What a program says to agents: the messages of Runtime.

Rules of this file: as what agents say (`process`, `talking`), with `_runtime` as the sender; when the run has ended
meanwhile, the error says how.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from .behaviours import CAST
from .errors import TransportClosed
from .many import ASKS_AT_ONCE, ask_many
from .messages import Message
from .port_bus import ASK_TIMEOUT_S, SEND_TIMEOUT_S
from .retrying import Retry
from .sending import PLAIN, How, cancel, send_how
from .suspension import unless_suspended
from .typed import Payload

__all__ = ["Messaging"]


class Messaging:
    """Base of Runtime."""

    if TYPE_CHECKING:

        def _started(self) -> Any: ...

    async def send(
        self,
        name: str,
        payload: Payload,
        message_type: str = "message",
        timeout: float | None = SEND_TIMEOUT_S,
        priority: int = 0,
        ttl: float | None = None,
        delay: float | None = None,
        at: datetime | float | None = None,
        every: float | None = None,
        key: str | None = None,
        retry: Retry | None = None,
    ) -> None:
        """Commit a message to the agent's mailbox, as `AgentProcess.send`; its sender reads `_runtime`."""
        run = self._started()
        try:
            how = How(ttl, delay, at, every, key, retry)
            if how == PLAIN:
                await run.bus.send(name, payload, message_type, timeout, priority)
            else:
                await send_how(run.bus, how, name, payload, message_type, timeout, priority)
        except TransportClosed as closed:
            raise await run.failure() or closed from None

    async def cancel(self, key: str, timeout: float | None = SEND_TIMEOUT_S) -> None:
        """Take back what this program has ordered under `key`, as `AgentProcess.cancel`."""
        run = self._started()
        try:
            await cancel(run.bus, key, timeout)
        except TransportClosed as closed:
            raise await run.failure() or closed from None

    async def ask(
        self,
        name: str,
        payload: Payload,
        timeout: float | None = ASK_TIMEOUT_S,
        message_type: str = "message",
        *,
        priority: int = 0,
        retry: Retry | None = None,
        fail_if_suspended: bool = False,
    ) -> Message:
        """Send a question and give back the reply, as `AgentProcess.ask`."""
        run = self._started()
        try:
            work = run.bus.ask_with(retry, name, payload, message_type, timeout, priority)
            reply: Message = await (unless_suspended(run.bus, name, work) if fail_if_suspended else work)
        except TransportClosed as closed:
            raise await run.failure() or closed from None
        return reply

    async def ask_many(
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
    ) -> list[Any]:
        """Ask once for each payload, as `AgentProcess.ask_many`: the replies, in the order of `payloads`."""
        run = self._started()

        async def one(name: str, payload: Payload) -> Any:
            return await run.bus.ask_with(retry, name, payload, message_type, timeout, priority)

        try:
            return await ask_many(one, to, payloads, limit, return_exceptions)
        except TransportClosed as closed:
            raise await run.failure() or closed from None

    async def call(self, name: str, payload: Payload, timeout: float | None = 30.0) -> dict[str, Any]:
        """Ask a GenServer (or any agent); the payload of its answer, as `AgentProcess.call`."""
        answer: dict[str, Any] = (await self.ask(name, payload, timeout)).payload
        return answer

    async def cast(self, name: str, payload: dict[str, Any]) -> None:
        """Tell a GenServer something that it shall not answer, as `AgentProcess.cast`."""
        await self.send(name, {**payload, CAST: True})

    async def broadcast(self, pattern: str, payload: Payload, message_type: str = "message") -> None:
        """Send to every agent whose name matches, as `AgentProcess.broadcast`."""
        run = self._started()
        try:
            await run.bus.broadcast(pattern, payload, message_type)
        except TransportClosed as closed:
            raise await run.failure() or closed from None
