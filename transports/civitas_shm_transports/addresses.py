"""The seed's small `Transport` in one process: addresses, bytes, one queue each. What a user's own is measured by.

A run of one process needs none of it: its messages go into mailboxes at once (`in_process`). It is for a serializer of
one's own, for programs that were written against Civitas, and for tests of what is written against the protocol.

Rules of this file: everything happens on one loop; a queue has an end, and whoever publishes waits for room; a handler
that raises is logged and ends nothing.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Final

from civitas_shm.errors import MessageRoutingError, TransportClosed
from civitas_shm.formats import Serializer
from civitas_shm.messages import Message

__all__ = ["InProcessTransport"]

Handler = Callable[[bytes], Awaitable[None]]

log: Final = logging.getLogger("civitas_shm.transport")


class InProcessTransport:
    """Queues of bytes by address."""

    def __init__(self, serializer: Serializer, mailbox_size: int = 1000) -> None:
        """`mailbox_size`: messages that wait at one address; more make who publishes wait."""
        self._serializer = serializer
        self._size = mailbox_size
        self._queues: dict[str, asyncio.Queue[bytes]] = {}
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._replies: dict[str, asyncio.Future[bytes]] = {}
        self._running = False

    def set_serializer(self, serializer: Serializer) -> None:
        """For who puts the parts together."""
        self._serializer = serializer

    async def start(self) -> None:
        """Idempotent."""
        self._running = True

    async def stop(self) -> None:
        """End all subscriptions; what waits is dropped, and who waits for a reply gets TransportClosed. Idempotent."""
        self._running = False
        for address in list(self._readers):
            await self.unsubscribe(address)
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(TransportClosed("the transport was stopped"))

    async def subscribe(self, address: str, handler: Handler) -> None:
        """Call `handler` for each message to `address`, one after the other. A second one replaces the first."""
        await self.unsubscribe(address)
        queue = self._queues[address] = asyncio.Queue(self._size)
        self._readers[address] = asyncio.get_running_loop().create_task(self._read(address, queue, handler))

    async def unsubscribe(self, address: str) -> None:
        """End a subscription; nothing happens when there is none."""
        self._queues.pop(address, None)
        reader = self._readers.pop(address, None)
        if reader is not None:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def publish(self, address: str, data: bytes) -> None:
        """Waits while the queue is full. MessageRoutingError: nobody has subscribed."""
        if not self._running:
            raise TransportClosed("the transport is not started")
        reply = self._replies.get(address)
        if reply is not None:
            if not reply.done():
                reply.set_result(data)
            return
        if address.startswith("_reply."):
            return  # nobody waits for it any more
        queue = self._queues.get(address)
        if queue is None:
            raise MessageRoutingError(f"Nobody has subscribed to {address!r}.")
        await queue.put(data)

    async def request(self, address: str, data: bytes, timeout: float) -> bytes:
        """The reply. `timeout` covers everything, the wait for room too; then TimeoutError."""
        reply_to = f"_reply.{uuid.uuid4()}"
        message = self._serializer.deserialize(data)
        data = self._serializer.serialize(Message.from_dict({**message.to_dict(), "reply_to": reply_to}))
        self._replies[reply_to] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self.publish(address, data)
                return await self._replies[reply_to]
        finally:
            del self._replies[reply_to]

    async def wait_ready(self) -> None:
        """At once: a subscription is in effect when `subscribe` has returned."""

    async def wait_subscribed(self, address: str, timeout: float = 2.0) -> None:
        """As `wait_ready`."""

    def has_reply_address(self, address: str) -> bool:
        """Whether somebody waits for a reply there."""
        return address in self._replies

    async def _read(self, address: str, queue: asyncio.Queue[bytes], handler: Handler) -> None:
        while True:
            data = await queue.get()
            try:
                await handler(data)
            except Exception:
                log.exception("the handler of %r failed", address)
