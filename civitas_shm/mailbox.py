"""Mailbox: two bounded queues of messages in one process, as Civitas has them; `civitas_shm.process.Mailbox`.

Agents of civitas_shm do not use it: theirs lie in shared memory, behind a Port. It is for programs and tests that hold
messages themselves, and nothing in it survives the process.

Guarantees:
- what has `priority` > 0 is always handed out first; within a queue in the order of `put`;
- a message older than its `ttl` is never handed out: it is dropped with a warning, and counted in `expired`;
- `put` waits while its queue is full, `put_nowait` raises; no message is dropped for want of room.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from .messages import Message

__all__ = ["Mailbox"]

_log: Final = logging.getLogger(__name__)


class Mailbox:
    """Of one event loop; `maxsize` messages at most, and `priority_maxsize` urgent ones beside them."""

    def __init__(self, maxsize: int = 1000, priority_maxsize: int = 100) -> None:
        for name, size in (("maxsize", maxsize), ("priority_maxsize", priority_maxsize)):
            if size < 1:
                raise ValueError(f"{name} of a mailbox is {size}; at least 1 message must fit")
        self._normal: deque[Message] = deque()
        self._urgent: deque[Message] = deque()
        self._limits = {id(self._normal): maxsize, id(self._urgent): priority_maxsize}
        self._waiters: dict[asyncio.Future[None], None] = {}
        self.expired = 0
        """Messages that were older than their ttl when their turn came."""

    async def put(self, message: Message) -> None:
        """Add a message; waits while the queue of its priority is full."""
        queue = self._queue(message)
        await self._until(lambda: len(queue) < self._limits[id(queue)])
        queue.append(message)
        self._changed()

    def put_nowait(self, message: Message) -> None:
        """Add a message at once; asyncio.QueueFull when the queue of its priority has no room."""
        queue = self._queue(message)
        if len(queue) >= self._limits[id(queue)]:
            which = "priority" if queue is self._urgent else "normal"
            raise asyncio.QueueFull(f"the {which} queue holds {len(queue)} messages, as many as it may")
        queue.append(message)
        self._changed()

    async def get(self) -> Message:
        """The next message, urgent ones first; waits while there is none."""
        await self._until(lambda: self._fresh(self._urgent) or self._fresh(self._normal))
        return self._taken(self._urgent or self._normal)

    async def get_priority(self) -> Message:
        """The next urgent message; the others stay where they are. Waits while there is none."""
        await self._until(lambda: self._fresh(self._urgent))
        return self._taken(self._urgent)

    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self._urgent and not self._normal

    def depth(self) -> int:
        """How many messages wait, those that have outlived their ttl included."""
        return len(self._urgent) + len(self._normal)

    def peek(self, limit: int | None = None) -> list[Message]:
        """The first `limit` messages (None: all) in the order of `get`; they stay."""
        return [*self._urgent, *self._normal][:limit]

    def drain(self) -> list[Message]:
        """Take all messages, in the order of `get`, those that have outlived their ttl included."""
        messages = self.peek()
        self._urgent.clear()
        self._normal.clear()
        self._changed()
        return messages

    def _queue(self, message: Message) -> deque[Message]:
        return self._urgent if message.priority > 0 else self._normal

    def _fresh(self, queue: deque[Message]) -> bool:
        """Whether there is a message that may be handed out; those in front of it are dropped."""
        while queue and _is_expired(queue[0]):
            message = self._taken(queue)
            self.expired += 1
            _log.warning(
                "message %s of type %r from %r was dropped: it is older than its ttl of %.3g s",
                message.id, message.type, message.sender, message.ttl,
            )  # fmt: skip
        return bool(queue)

    def _taken(self, queue: deque[Message]) -> Message:
        message = queue.popleft()
        self._changed()
        return message

    async def _until(self, ready: Callable[[], bool]) -> None:
        while not ready():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters[waiter] = None
            try:
                await waiter
            finally:
                self._waiters.pop(waiter, None)

    def _changed(self) -> None:
        """Whoever waits looks again, in the order in which they came."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


def _is_expired(message: Message) -> bool:
    return message.ttl is not None and time.time() - message.timestamp > message.ttl
