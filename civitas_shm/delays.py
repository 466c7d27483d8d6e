"""Delays: keeps messages that are to be sent later, sends each when it is due, once or again and again.

Runs in the host, or, without a host, in the program; the one reader of the mailbox DELAYS.

Guarantees, whatever is killed when, the host included:
- an order is let go of only after it is in the store, and an order that is stored twice is one;
- what is due is committed to its recipient exactly once, as far as its own death goes: the number of the publish is
  stored before it (`Store.intend`), and the successor asks the mailbox whether it happened (`DelayPort.was_sent`). Only
  a mailbox that drops messages (`drop_oldest`, `latest`) may have lost the evidence with them, and gets it again;
- never early; late only by what its recipient's full mailbox, or the time that no host lived, holds it up. What repeats
  is not made up for: of several times that were missed it is sent for one;
- never more than DELAYED_MAX at once: beyond, orders stay in their mailbox, and then who sends more gets DelayedFull;
- what cannot be sent any more (its recipient is gone) is a dead letter.

`delay` and `every` count on the monotonic clock; `at` follows the wall clock, looked at every LOOK_S. Two messages that
are due at different times come in this order, unless a full mailbox lets one wait.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import msgspec

from .delay_store import Delayed, Store
from .errors import DeserializationError
from .letters import Note
from .messages import HEADER, ID_AT
from .sending import ORDER_CANCEL, ORDER_SEND, Order
from .serializer import decode_dict
from .transport import CLOSED, DELAYS, FULL, NO_MEMORY, SENT, Buried, DelayPort, Delivery

__all__ = ["DELAYED_MAX", "Delays"]

_log: Final = logging.getLogger(__name__)

DELAYED_MAX: Final = 100_000
"""Messages that wait for their time in one run. In memory about 1 KB each and their payload, in the store as much."""

TURN: Final = 64
"""Orders, or messages that are due, that are dealt with before the loop turns: a tenth of a millisecond each at
most."""

AGAIN_NS: Final = 50_000_000
"""After a recipient had no room: what is late already may be late by so much more."""

ILL_S: Final = 1.0
"""Between two tries to store something on a full disk."""

LOOK_S: Final = 1.0
"""How late a message may be whose wall clock was set forward while it waited."""

_TIME: Final = 16
"""Index of `time_ns` in a header."""


class Loop(Protocol):
    """What is needed of an event loop."""

    def call_soon(self, callback: Callable[[], object]) -> Any: ...
    def call_later(self, delay: float, callback: Callable[[], object]) -> Any: ...


class Delays:
    """Of one run and one loop."""

    def __init__(
        self,
        loop: Loop,
        port: DelayPort,
        open_store: Callable[[], Store],
        keep_letter: Callable[[Buried, Note], object],
        *,
        most: int = DELAYED_MAX,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._loop = loop
        self._port = port
        self._open_store = open_store
        self._keep_letter = keep_letter
        self._most = most
        self._monotonic_ns = monotonic_ns
        self._wall_ns = wall_ns
        self._kept: Store | None = None
        self._delayed: dict[int, Delayed] = {}
        """By number in the store."""
        self._due: list[tuple[int, int]] = []
        """Heap of (due on the monotonic clock, number); some are of entries that have changed since."""
        self._at: list[tuple[int, int]] = []
        """The same on the wall clock, of orders with `at`."""
        self._timer: Any = None
        self._held: Delivery | None = None
        """An order that could not be stored."""
        self._closed = False

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self, resumed: bool) -> None:
        """Begin to take orders. `resumed`: first settle what an earlier host may have died over; while nobody runs
        yet."""
        if resumed:
            kept = self._store.load(self._monotonic_ns(), self._wall_ns())
            newest = max((delayed.number for delayed in kept), default=0)
            for delayed in kept:
                self._settle(delayed, newest)
        self._port.open_delays(self._orders)
        self._arm()

    def close(self) -> dict[str, int]:
        """Stop; how many messages stay in the store, by recipient. Those that repeat are not counted."""
        waiting = self.waiting()
        self._closed = True
        self._unarm()
        if self._kept is not None:
            self._kept.close()
            self._kept = None
        return waiting

    def waiting(self) -> dict[str, int]:
        """Messages that wait for their time, by recipient. What repeats is no reason to keep a run, and not counted."""
        counts: dict[str, int] = {}
        for delayed in self._delayed.values():
            if not delayed.every_ns:
                counts[delayed.to] = counts.get(delayed.to, 0) + 1
        return counts

    # --- who looks from outside ---------------------------------------------------------------------------------------

    @property
    def total(self) -> int:
        """How many wait for their time, those that repeat too."""
        return len(self._delayed)

    def page(self, after: int, limit: int) -> tuple[list[dict[str, Any]], int]:
        """Those that came after the one of that number, in order, as `Delayed.to_plain`; and the number of the last."""
        now_ns, wall_ns = self._monotonic_ns(), self._wall_ns()
        later = (delayed for delayed in self._delayed.values() if delayed.n > after)
        found = list(itertools.islice(later, limit))
        return [delayed.to_plain(now_ns, wall_ns) for delayed in found], found[-1].n if found else after

    def take_back(self, ids: Sequence[str]) -> dict[str, str | None]:
        """Forget those messages for good, whoever has ordered them. By id: None where it was done, else why not."""
        by_id = {delayed.id: delayed.n for delayed in self._delayed.values()}
        return {id_: self._taken_back(id_, by_id) for id_ in ids}

    def _taken_back(self, id_: str, by_id: dict[bytes, int]) -> str | None:
        if self._closed:
            return "the run is stopping; what waits is kept for `run --resume`"
        try:
            n = by_id.pop(uuid.UUID(id_).bytes, None)
        except ValueError:
            n = None
        if n is None:
            return "no delayed message has this id: it was sent meanwhile, or taken back"
        try:
            self._store.remove(n)
        except OSError as error:
            return f"it could not be taken back, and still comes: {error}"
        self._forget(n)
        return None

    @property
    def _store(self) -> Store:
        """Opened at the first use: most runs have none."""
        if self._kept is None:
            self._kept = self._open_store()
        return self._kept

    def _settle(self, delayed: Delayed, newest: int) -> None:
        """Was it sent? Only of the newest number the mailbox can tell. Another one stands there because a full disk has
        kept it; that message is sent, perhaps again, rather than lost."""
        self._delayed[delayed.n] = delayed
        mailbox = self._port.resolve(delayed.to)
        newest_here = delayed.number and delayed.number == newest and mailbox >= 0
        if newest_here and self._port.was_sent(mailbox, delayed.number):
            self._sent(delayed)
        else:
            self._schedule(delayed)

    # --- orders -------------------------------------------------------------------------------------------------------

    def _orders(self) -> None:
        """Some may have come."""
        if self._closed:
            return
        for _ in range(TURN):
            if len(self._delayed) >= self._most:
                return  # they wait in the mailbox; `_fire_due` looks again
            held, self._held = self._held, None
            delivery = held or self._port.take_order()
            if delivery is None:
                self._arm()
                return
            try:
                self._order(delivery)
            except OSError as error:
                self._held = delivery
                self._ill(error, self._orders)
                return
            self._port.release_order(delivery[0])
        self._loop.call_soon(self._orders)

    def _ill(self, error: OSError, again: Callable[[], object]) -> None:
        """The store cannot be written: a full disk. Orders wait in their mailbox meanwhile; nothing is lost."""
        _log.error("a delayed message cannot be stored, the next try is in %g s: %s", ILL_S, error)
        self._loop.call_later(ILL_S, again)

    def _order(self, delivery: Delivery) -> None:
        _, header, kind, sender, data, _ = delivery
        try:
            fields = decode_dict(data)
            if kind == ORDER_CANCEL:
                self._forget(self._store.cancel(sender, str(fields["key"])))
                return
            if kind != ORDER_SEND:
                raise DeserializationError(f"{kind!r} is no type of an order")
            order = msgspec.msgpack.decode(fields["order"], type=Order)
        except (DeserializationError, KeyError, TypeError, msgspec.DecodeError) as error:
            self._give_up(header, DELAYS, kind, sender, data, f"no order of a delayed message: {error}")
            return
        now_ns, wall_ns = self._monotonic_ns(), self._wall_ns()
        since_ns = max(0, wall_ns - HEADER.unpack(header)[_TIME])  # since its commit
        delayed = Delayed(
            n=0, id=header[ID_AT], key=order.key, sender=sender, to=order.to, type=order.type, header=header,
            payload=order.payload, due_ns=now_ns - since_ns + order.delay_ns, at_ns=order.at_ns,
            every_ns=order.every_ns, ttl_ns=order.ttl_ns, priority=order.priority,
        )  # fmt: skip
        if order.key and order.every_ns and self._is_same(delayed):
            return  # ordered anew by the next life of its sender: it goes on as it is
        self._forget(self._store.cancel(sender, order.key) if order.key else None)
        if self._store.add(delayed, wall_ns + delayed.due_ns - now_ns):
            self._delayed[delayed.n] = delayed
            self._schedule(delayed)

    def _is_same(self, new: Delayed) -> bool:
        n = self._store.find(new.sender, new.key)
        return n is not None and n in self._delayed and self._delayed[n].repeats_as(new)

    def _forget(self, n: int | None) -> None:
        if n is not None:
            self._delayed.pop(n, None)

    def _schedule(self, delayed: Delayed) -> None:
        if delayed.at_ns:
            heapq.heappush(self._at, (delayed.at_ns, delayed.n))
        else:
            heapq.heappush(self._due, (delayed.due_ns, delayed.n))

    def _again(self, delayed: Delayed) -> None:
        self._schedule(delayed)
        self._arm()

    # --- when something is due ----------------------------------------------------------------------------------------

    def _unarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self._unarm()
        waits = []
        if self._due:
            waits.append((self._due[0][0] - self._monotonic_ns()) / 1e9)
        if self._at:
            waits.append(min(LOOK_S, (self._at[0][0] - self._wall_ns()) / 1e9))
        if waits and not self._closed:
            self._timer = self._loop.call_later(max(0.0, min(waits)), self._fire_due)

    def _fire_due(self) -> None:
        self._timer = None
        if self._closed:
            return
        was_full = len(self._delayed) >= self._most
        for _ in range(TURN):
            delayed = self._next_due()
            if delayed is None:
                break
            self._fire(delayed)
        self._arm()
        if was_full and len(self._delayed) < self._most:
            self._loop.call_soon(self._orders)

    def _next_due(self) -> Delayed | None:
        for heap, now_ns in ((self._due, self._monotonic_ns()), (self._at, self._wall_ns())):
            while heap and heap[0][0] <= now_ns:
                due_ns, n = heapq.heappop(heap)
                delayed = self._delayed.get(n)
                if delayed is not None and due_ns == (delayed.at_ns or delayed.due_ns):
                    return delayed  # else it was cancelled, or is due at another time by now
        return None

    def _fire(self, delayed: Delayed) -> None:
        mailbox = self._port.resolve(delayed.to)
        outcome = CLOSED
        if mailbox >= 0:
            delayed.number = self._port.next_number()
            try:
                self._store.intend(delayed)
            except OSError as error:
                delayed.number = 0
                self._ill(error, lambda: self._again(delayed))
                return
            expires_ns = self._monotonic_ns() + delayed.ttl_ns if delayed.ttl_ns else 0
            outcome = self._port.fire(
                mailbox, delayed.header, delayed.payload, delayed.type, delayed.sender, delayed.priority, expires_ns,
                delayed.number,
            )  # fmt: skip
        if outcome == SENT:
            self._sent(delayed)
        elif outcome in (FULL, NO_MEMORY):
            delayed.number = 0
            with contextlib.suppress(OSError):  # see `_settle`
                self._store.intend(delayed)
            delayed.due_ns, delayed.at_ns = self._monotonic_ns() + AGAIN_NS, 0
            self._schedule(delayed)
        else:
            self._give_up(
                delayed.header, delayed.to, delayed.type, delayed.sender, delayed.payload,
                f"when it was due, its recipient {delayed.to!r} had stopped or could never take it",
            )  # fmt: skip
            self._end(delayed)

    def _sent(self, delayed: Delayed) -> None:
        """Its copy is committed: it ends, or waits for its next time."""
        if not delayed.every_ns:
            self._end(delayed)
            return
        now_ns, wall_ns = self._monotonic_ns(), self._wall_ns()
        last_ns = now_ns + delayed.at_ns - wall_ns if delayed.at_ns else delayed.due_ns
        missed = max(0, now_ns - last_ns) // delayed.every_ns
        delayed.due_ns = last_ns + (missed + 1) * delayed.every_ns
        delayed.at_ns = delayed.number = 0
        with contextlib.suppress(OSError):  # as in `_end`
            self._store.intend(delayed, wall_ns + delayed.due_ns - now_ns)
        self._schedule(delayed)

    def _end(self, delayed: Delayed) -> None:
        with contextlib.suppress(OSError):  # it is sent; a host that dies before the disk has room sends it once more
            self._store.remove(delayed.n)
        self._delayed.pop(delayed.n, None)

    def _give_up(self, header: bytes, to: str, kind: str, sender: str, payload: bytes, cause: str) -> None:
        message = Buried(-1, -1, 0, 0, header, kind, sender, payload, recipient=to)
        self._keep_letter(message, Note(f"a delayed message: {cause}"))
