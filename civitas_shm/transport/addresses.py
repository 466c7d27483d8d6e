"""The seed's small protocol, for a user's own transport: addresses and bytes, no mailboxes.

Rules of this file: no implementation; it stays as the seed has it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, runtime_checkable

__all__ = ["Transport"]


@runtime_checkable
class Transport(Protocol):
    """The seed's transport: addresses and bytes. For a user's own; slower than a Port, nothing survives a process."""

    async def start(self) -> None:
        """Open connections, bind sockets."""
        ...

    async def stop(self) -> None:
        """Flush and close."""
        ...

    async def subscribe(self, address: str, handler: Callable[[bytes], Awaitable[None]]) -> None:
        """Call `handler` for every message to `address`."""
        ...

    async def publish(self, address: str, data: bytes) -> None:
        """Send, fire and forget."""
        ...

    async def request(self, address: str, data: bytes, timeout: float) -> bytes:
        """Send and wait for the reply; TimeoutError after `timeout` seconds."""
        ...

    async def wait_ready(self) -> None:
        """Return once connections and subscriptions are in effect."""
        ...

    def has_reply_address(self, address: str) -> bool:
        """Whether `address` is a live reply address of this process."""
        ...
