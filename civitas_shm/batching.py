"""An agent that takes several waiting messages at once: `handle_batch(messages)` instead of `handle`.

    class Writer(AgentProcess):
        batch_size = 50

        async def handle_batch(self, messages):
            await self.db.insert_many([message.payload for message in messages])

Guarantees:
- each message is in hand, on its own, from before the handler begins until it has returned: when the process dies in
  between, every message of the batch comes again, none is lost, and none that was not in the batch;
- what comes again after a death or a failure comes alone, in a batch of one: so the message that ends the process is
  found, and the others are not held up by it;
- a batch is what waits, up to `batch_size`: nobody waits for it to become full.

Narrower than for `handle`: what the handler of a batch of several sends is not known as a double when it comes again
(a send belongs to one message), so it is sent at least once. No state is saved as the effect of several messages:
`state: shm` is refused, and upon what `checkpoint()` saves elsewhere the messages may come again. They are
released one by one after the handler has returned: a death in these microseconds makes those that are left come again.
A suspension begins behind the whole batch, and a death before the release brings messages of it again after `resume`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from .errors import ConfigurationError, DeserializationError, TransportClosed
from .failures import uncancelled
from .messages import Message
from .notices import decode_notice
from .process import HANDLED
from .transport import Delivery
from .user_code import awaited

if TYPE_CHECKING:
    from .seat import Seat

__all__ = ["BATCH_SIZE", "BATCH_SIZE_MAX", "Batches", "has_batches"]

BATCH_SIZE: Final = 32
BATCH_SIZE_MAX: Final = 60
"""A mailbox has 64 entries for what is in hand, of all its readers together; some are kept for what is buried."""


def has_batches(agent: Any) -> bool:
    """Whether its class defines `handle_batch`."""
    return callable(getattr(agent, "handle_batch", None))


class Batches:
    """The turns of one such agent; `work` is what `Seat._work` is for the others."""

    def __init__(self, seat: Seat, size: int) -> None:
        self._seat = seat
        self._size = size
        self._next: Delivery | None = None
        """Taken, and to be dealt with by itself, behind the batch."""

    @classmethod
    def of(cls, seat: Seat) -> Batches:
        """ConfigurationError: the agent cannot have batches."""
        agent, spec = seat.agent, seat.spec
        size = getattr(agent, "batch_size", BATCH_SIZE)
        if not isinstance(size, int) or not 1 <= size <= BATCH_SIZE_MAX // spec.replicas:
            raise ConfigurationError(
                f"batch_size of {spec.name!r} is {size!r}; it must be 1 to {BATCH_SIZE_MAX // spec.replicas} "
                f"({BATCH_SIZE_MAX} messages in hand, shared by {spec.replicas} replicas)."
            )
        if spec.state == "shm":
            raise ConfigurationError(
                f"{spec.name!r} defines handle_batch and has state: shm, which is saved with one message and not with "
                "several. Use handle, or another kind of state."
            )
        if spec.delivery != "at_least_once" or not asyncio.iscoroutinefunction(agent.handle_batch):  # type: ignore[attr-defined]
            raise ConfigurationError(
                f"{spec.name!r} defines handle_batch, which must be `async def`, and its delivery at_least_once."
            )
        return cls(seat, size)

    async def work(self) -> None:
        """Take and handle until nothing waits, the agent ends or drains."""
        seat = self._seat
        try:
            while not self._over():
                if seat._alone.closed:
                    await seat._alone.passage(seat)
                batch = await self._taken()
                if batch and not await self._handled(batch):
                    return
                if self._over():
                    return  # `_next` stays in hand: for this life if it goes on, else for the next one
                if self._next is None and not batch:
                    return
                if self._next is not None and not await self._single(self._next):
                    return
                await asyncio.sleep(0)
        except TransportClosed:
            pass  # what is in hand stays there for the successor
        except asyncio.CancelledError as error:
            if not seat._cancelling:
                await seat._fail(uncancelled(error), "handle_batch", None)
        except Exception as error:  # noqa: BLE001 - a fault of ours must be as visible as one of theirs
            await seat._fail(error, "handle_batch", None)
        finally:
            HANDLED.set(None)
            seat._busy = False
            seat._alone.leave(seat)
            if seat._quiet is not None and not seat._quiet.done():
                seat._quiet.set_result(None)

    def _over(self) -> bool:
        return self._seat._draining == "current"

    async def _taken(self) -> list[tuple[int, Message]]:
        """What waits, up to the size; `_next` is what ended it."""
        seat, batch = self._seat, list[tuple[int, Message]]()
        while self._next is None and len(batch) < self._size:
            delivery = seat._port.take(seat.mailbox, -1)
            if delivery is None:
                break
            token, header, kind, sender, data, count = delivery
            try:
                if count != 1:
                    raise DeserializationError("not of a batch")
                payload = seat._decode(data)
            except DeserializationError:
                self._next = delivery
                break
            batch.append((token, Message.received(header, kind, sender, seat.agent.name, payload, count)))
        return batch

    async def _handled(self, batch: list[tuple[int, Message]]) -> bool:
        """False: the agent has ended over it. When a batch of several fails, each of it is tried alone."""
        seat = self._seat
        HANDLED.set(batch[0][1])
        try:
            await self._call([message for _, message in batch])
        except GeneratorExit:
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and (seat._cancelling or len(batch) > 1):
                raise  # nothing is tried again in a loop that is being torn down; all of it stays in hand
            if len(batch) == 1:
                if not await seat._recovered(error, batch[0][1], batch[0][0]):
                    return False
            else:
                seat.agent.log.warning(
                    "handle_batch raised %s on %d messages; each is tried alone", type(error).__qualname__, len(batch)
                )
                for one in batch:
                    if not await self._handled([one]):
                        return False
                return True
        if seat._keeper.due:
            saves = await seat._end_begun()
            seat._keeper.due = False
            if saves:  # as the effect of none of them
                await seat._keeper.checkpoint(True, True)
            if seat._suspension.wanted:
                await seat._suspend_at()
        for token, _ in batch:
            seat._port.release(seat.mailbox, token)
        return True

    async def _single(self, delivery: Delivery) -> bool:
        """What is no part of a batch: news, what came before, what has outlived its ttl, what cannot be decoded."""
        seat, self._next = self._seat, None
        token, header, kind, sender, data, count = delivery
        if count == 0:
            await seat._failures.expired(delivery)
            return True
        try:
            payload = seat._decode(data)
        except DeserializationError as error:
            if (notice := decode_notice(kind, data)) is None:
                await seat._failures.reject(delivery, error)
                return True
            if count < 0:
                await seat._begin_alone(token, -count)
            if not await seat._noticed(notice, delivery):
                return False
            seat._port.release(seat.mailbox, token)
            return True
        if count < 0:
            count = await seat._begin_alone(token, -count)
        message = Message.received(header, kind, sender, seat.agent.name, payload, count)
        return await self._handled([(token, message)])

    async def _call(self, messages: list[Message]) -> None:
        """The answers are given by `reply_to`; a result has no meaning and is an error."""
        result: Any = await awaited(self._seat.agent.handle_batch(messages))  # type: ignore[attr-defined]
        if result is not None:
            raise TypeError("handle_batch returned something; answer asks with `await self.reply_to(message, {...})`")
