"""What an AgentRunner reports about its agents: plain values that a supervisor, a log or another process can use.

Rules of this file: frozen values, plain fields only, and `to_plain()` for the way to the host. Nothing here acts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec

from .messages import Message
from .roster import NO_TRAITS, Traits

__all__ = [
    "AgentEvent",
    "AgentExited",
    "AgentFailed",
    "AgentResumed",
    "AgentStarted",
    "AgentSteered",
    "AgentStuck",
    "AgentSuspended",
    "DeadLetter",
    "DeadlockFound",
    "EventHandler",
    "MessageSummary",
    "StopRuntime",
    "summary",
]


@dataclass(frozen=True, slots=True)
class MessageSummary:
    """What a report says about a message; not its payload, which may be large or secret."""

    id: str
    type: str
    sender: str
    delivery: int
    attempt: int


def summary(message: Message) -> MessageSummary:
    """The summary of a message that an agent has or had in hand."""
    return MessageSummary(message.id, message.type, message.sender, message.delivery, message.attempt)


@dataclass(frozen=True, slots=True)
class AgentEvent:
    """Base of all: which agent it is about."""

    agent: str

    def to_plain(self) -> dict[str, Any]:
        """`{"event": class name, ...}` with dictionaries, lists and scalars only."""
        return {"event": type(self).__name__, **asdict(self)}


@dataclass(frozen=True, slots=True)
class AgentStarted(AgentEvent):
    """`on_start` returned; the agent takes messages."""

    traits: Traits = NO_TRAITS

    def to_plain(self) -> dict[str, Any]:
        return {"event": "AgentStarted", "agent": self.agent, "traits": msgspec.to_builtins(self.traits)}


@dataclass(frozen=True, slots=True)
class AgentFailed(AgentEvent):
    """The agent crashed and is down; its waiting messages stay. Its supervisor decides what follows."""

    type: str
    text: str
    traceback: str
    during: str = "handle"
    """`handle`, `on_start`, or `state` (it could not be committed)."""
    message: MessageSummary | None = None
    error: BaseException | None = field(default=None, compare=False)
    """The exception itself, which does not leave its process."""

    def to_plain(self) -> dict[str, Any]:
        message = None if self.message is None else asdict(self.message)
        plain = {name: getattr(self, name) for name in ("agent", "type", "text", "traceback", "during")}
        return {"event": "AgentFailed", **plain, "message": message}


@dataclass(frozen=True, slots=True)
class AgentExited(AgentEvent):
    """The agent ended without a crash."""

    reason: str
    """`stopped` (was told to) or `finished` (ErrorAction.STOP)."""


@dataclass(frozen=True, slots=True)
class DeadLetter(AgentEvent):
    """A message was released that no handler finished."""

    reason: str
    traceback: str = ""
    message: MessageSummary | None = field(default=None)


@dataclass(frozen=True, slots=True)
class AgentStuck(AgentEvent):
    """Its handler ran longer than `handle_timeout` and could not be ended by its process: it goes on all the same."""

    for_s: float
    text: str


@dataclass(frozen=True, slots=True)
class AgentSuspended(AgentEvent):
    """It takes no message until it is resumed."""

    reason: str
    category: str


@dataclass(frozen=True, slots=True)
class AgentResumed(AgentEvent):
    """It takes messages again."""

    approver: str


@dataclass(frozen=True, slots=True)
class AgentSteered(AgentEvent):
    """What was ordered of it is done, or why not."""

    number: int
    """Of the order."""
    error: str = ""
    """Class in `errors`."""
    text: str = ""


@dataclass(frozen=True, slots=True)
class DeadlockFound(AgentEvent):
    """Agents waited for one another in a circle; what this one waited for, the youngest, has failed for that."""

    text: str
    """The circle in words."""


@dataclass(frozen=True, slots=True)
class StopRuntime(AgentEvent):
    """The agent asks for the end of the whole run."""

    exit_code: int = 0


EventHandler = Callable[[AgentEvent], None]
