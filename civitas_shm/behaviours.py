"""What agents say to agents of a known kind: to a GenServer, to an EvalAgent, to whoever has a capability.

    total = (await self.call("counter", {"op": "get"}))["total"]
    await self.emit_eval("answer", {"text": text})
    await self.send_capable("summarize", {"text": text})

Rules of this file: a mixin of AgentProcess without state of its own; everything goes over the agent's bus.
"""

from __future__ import annotations

import random
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from .current import HANDLED
from .errors import AgentStopped, CapabilityNotFoundError, MessageRoutingError
from .messages import Cause, Message
from .port_bus import SEND_TIMEOUT_S, PortBus

if TYPE_CHECKING:
    from .process import Attachment

__all__ = ["CAST", "EVAL_EVENT", "Behaving"]

T = TypeVar("T")

CAST = "__cast__"
"""Key of a payload that tells a GenServer that nobody waits."""
EVAL_EVENT = "civitas.eval.event"
"""Type of what `emit_eval` sends."""


class Behaving:
    """Base of AgentProcess."""

    name: str
    _attached: Attachment | None
    _kind: str = "agent"
    """As the tree shows it."""
    _started_s: float | None = None
    _handled_before: int = 0

    if TYPE_CHECKING:

        def _attachment(self) -> Attachment: ...
        def _awaited(self, work: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]: ...

    # --- GenServer ----------------------------------------------------------------------------------------------------

    def call(
        self, name: str, payload: dict[str, Any], timeout: float | None = 5.0
    ) -> Coroutine[Any, Any, dict[str, Any]]:
        """Ask a GenServer (or any agent) and give back the payload of its answer; to be awaited.

        Errors as of `ask`: builtin TimeoutError, AgentError when the other side raised.
        """
        to = self._attachment()
        return self._awaited(call(to.bus.ask(name, payload, "message", timeout, 0, to.mailbox, _cause(), self.name)))

    def cast(self, name: str, payload: dict[str, Any]) -> Coroutine[Any, Any, None]:
        """Tell a GenServer something that it shall not answer; to be awaited. `__cast__: True` is added."""
        to = self._attachment()
        work = to.bus.send(name, {**payload, CAST: True}, "message", SEND_TIMEOUT_S, 0, to.mailbox, _cause())
        return self._awaited(work)

    # --- capabilities -------------------------------------------------------------------------------------------------

    def send_capable(
        self, capability: str, payload: dict[str, Any], message_type: str = "message"
    ) -> Coroutine[Any, Any, None]:
        """Send to one of the agents that have this capability, by chance, in whatever process; to be awaited.

        CapabilityNotFoundError: there is none. Commits as `send` does, so it waits while that mailbox is full.
        """
        to = self._attachment()
        return self._awaited(send_capable(to.bus, capability, payload, message_type, to.mailbox, _cause()))

    # --- evaluation: see `evalloop` -----------------------------------------------------------------------------------

    async def on_correction(self, message: Message) -> None:
        """An EvalAgent has looked at what this one does. `payload`: `severity` (nudge or redirect), `reason`, and more.

        A turn like `handle`: what it raises goes to `on_error`.
        """

    def emit_eval(
        self, event_type: str, payload: dict[str, Any], eval_agent: str = "eval_agent"
    ) -> Coroutine[Any, Any, None]:
        """Show an EvalAgent what this agent does; to be awaited. Nothing happens while the agent is not running.

        MessageRoutingError: there is no such EvalAgent.
        """
        to = self._attached
        if to is None:
            return _nothing()
        fields = {**payload, "agent_name": self.name, "event_type": event_type}
        work = to.bus.send(eval_agent, fields, EVAL_EVENT, SEND_TIMEOUT_S, 0, to.mailbox, _cause())
        return self._awaited(work)

    # --- how long and how much ----------------------------------------------------------------------------------------

    @property
    def uptime_seconds(self) -> float:
        """Since `on_start` of this life began; 0 before."""
        return 0.0 if self._started_s is None else time.monotonic() - self._started_s

    @property
    def session_duration_seconds(self) -> float:
        """The same: a session is one life of the agent."""
        return self.uptime_seconds

    @property
    def session_turn_count(self) -> int:
        """Messages that were handled to their end in this life; of an agent with replicas, by all of them."""
        to = self._attached
        return 0 if to is None else max(0, to.bus.port.stats(to.mailbox).handled - self._handled_before)

    def _session_begins(self, to: Attachment) -> None:
        """For `attach`."""
        self._started_s = time.monotonic()
        self._handled_before = to.bus.port.stats(to.mailbox).handled


async def send_capable(
    bus: PortBus, capability: str, payload: dict[str, Any], message_type: str, sender: int, cause: Cause | None
) -> None:
    """Try the agents that are known to have it, in an order of chance, then once more those that the host knows."""
    tried: set[str] = set()
    for look in (None, bus.registry.refresh):
        if look is not None:
            await look()
        able = [name for name in bus.roster.capable(capability) if name not in tried]
        random.shuffle(able)
        for name in able:
            tried.add(name)
            try:
                await bus.send(name, payload, message_type, SEND_TIMEOUT_S, 0, sender, cause)
            except (AgentStopped, MessageRoutingError):
                continue  # it has gone since
            return
    raise CapabilityNotFoundError(capability)


async def call(asked: Coroutine[Any, Any, Message]) -> dict[str, Any]:
    """The payload of the answer."""
    return (await asked).payload


async def _nothing() -> None:
    pass


def _cause() -> Cause | None:
    handled = HANDLED.get()
    return None if handled is None else handled.header
