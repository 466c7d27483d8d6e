"""Sends with more than a payload: `ttl`, `delay`, `at`, `every`, and another try (`retry`).

A delayed message is an *order*: a message like any other to the mailbox DELAYS, which the run itself reads (`delays`).
So it is committed when `send` returns, waits for room like any other, and survives what any other survives.

Rules of this file: what the sender checks and what an order says; nothing here keeps time. An order holds no time of
this process: a handler that runs again after a crash orders the same, so the double is known as one (LAYOUT.md, "What a
handler has sent").
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from .errors import ConfigurationError, DelayedFull, MailboxFull, MessageValidationError
from .retrying import Retry, tried
from .serializer import encode
from .transport import DELAYS, SENDER_PROGRAM

if TYPE_CHECKING:
    from .messages import Cause
    from .port_bus import PortBus
    from .typed import Payload

__all__ = ["DELAY_MAX_S", "KEY_MAX", "ORDER_CANCEL", "ORDER_SEND", "PLAIN", "How", "Order", "cancel", "send_how"]

ORDER_SEND: Final = "delay"
ORDER_CANCEL: Final = "cancel"
"""Types of messages to DELAYS."""

DELAY_MAX_S: Final = 100 * 365 * 86400.0
"""A century: beyond it, nanoseconds since 1970 would not fit into 64 bits."""
EVERY_MIN_S: Final = 0.01
"""What comes more often than that is better made by a loop in the agent."""
KEY_MAX: Final = 200


class Order(msgspec.Struct, array_like=True):
    """A message to be sent later. Times in nanoseconds."""

    to: str
    type: str
    payload: bytes
    """Encoded."""
    delay_ns: int = 0
    """From the commit of the order on."""
    at_ns: int = 0
    """CLOCK_REALTIME; 0: `delay_ns` says when."""
    every_ns: int = 0
    """0: once."""
    ttl_ns: int = 0
    """From when it is due; 0: for ever."""
    priority: int = 0
    key: str = ""
    """By which its sender replaces or cancels it; empty: it cannot be."""


@dataclass(frozen=True, slots=True)
class How:
    """How to send, beside the usual. Times in seconds, as users give them."""

    ttl: float | None = None
    delay: float | None = None
    at: datetime | float | None = None
    every: float | None = None
    key: str | None = None
    retry: Retry | None = None

    def order(self, to: str, message_type: str, payload: Payload, priority: int) -> Order | None:
        """The order, or None when the message is to be sent now. MessageValidationError: it asks for what cannot be."""
        if self.delay is None and self.at is None and self.every is None:
            if self.key is not None:
                raise MessageValidationError("key names a message that comes later: it goes with delay, at or every.")
            return None
        if self.delay is not None and self.at is not None:
            raise MessageValidationError("delay and at both say when the message is due; give one of them.")
        every_ns = 0 if self.every is None else _ns("every", self.every, EVERY_MIN_S)
        delay_ns = every_ns if self.delay is None else _ns("delay", self.delay, 0.0)
        key = self.key if self.key is not None or self.every is None else f"{to}/{message_type}"
        if key is not None and not (isinstance(key, str) and 0 < len(key) <= KEY_MAX):
            raise MessageValidationError(f"key is {key!r:.80}; it must be a text of 1 to {KEY_MAX} characters.")
        return Order(
            to, message_type, encode(payload), 0 if self.at is not None else delay_ns,
            0 if self.at is None else _wall_ns(self.at), every_ns,
            0 if self.ttl is None else _ns("ttl", self.ttl, 0.0), priority, key or "",
        )  # fmt: skip


PLAIN: Final = How()
"""Nothing beside the usual."""


def _ns(name: str, seconds: float, least_s: float) -> int:
    if not least_s <= seconds <= DELAY_MAX_S:
        raise MessageValidationError(
            f"{name} is {seconds!r} s; it must be between {least_s:g} and {DELAY_MAX_S:,.0f} seconds."
        )
    return int(seconds * 1e9)


def _wall_ns(at: datetime | float) -> int:
    """A datetime without a zone is local time; a number is seconds since 1970."""
    seconds = at.timestamp() if isinstance(at, datetime) else float(at)
    if not 0 < seconds <= 2 * DELAY_MAX_S:
        raise MessageValidationError(f"at is {at!r}, which is no moment between 1970 and 2170.")
    return int(seconds * 1e9)


async def send_how(
    bus: PortBus,
    how: How,
    to: str,
    payload: Payload,
    message_type: str,
    timeout: float | None,
    priority: int,
    sender: int = SENDER_PROGRAM,
    cause: Cause | None = None,
) -> None:
    """Send now with a ttl, or order it for later; tried again as `retry` says. Errors as `send`, and DelayedFull."""

    async def attempt() -> None:
        order = how.order(to, message_type, payload, priority)
        if order is None:
            await bus.send(to, payload, message_type, timeout, priority, sender, cause, how.ttl)
            return
        bus.check(to, message_type)
        await _commit(bus, ORDER_SEND, {"order": msgspec.msgpack.encode(order)}, timeout, sender, cause)

    await (attempt() if how.retry is None else tried(how.retry, attempt))


async def cancel(
    bus: PortBus, key: str, timeout: float | None, sender: int = SENDER_PROGRAM, cause: Cause | None = None
) -> None:
    """Take back what that sender has ordered under that key; committed when it returns, as an order is."""
    await _commit(bus, ORDER_CANCEL, {"key": key}, timeout, sender, cause)


async def _commit(
    bus: PortBus, kind: str, payload: dict[str, Any], timeout: float | None, sender: int, cause: Cause | None
) -> None:
    if bus.port.resolve(DELAYS) < 0:
        raise ConfigurationError("This run has nobody who keeps delayed messages: its transport was not told to.")
    try:
        await bus.send(DELAYS, payload, kind, timeout, 0, sender, cause)
    except MailboxFull as full:
        raise DelayedFull(full.capacity, full.waited_s) from None
