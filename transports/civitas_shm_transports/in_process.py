"""Mailboxes in plain Python, for agents that share one process: no shared memory, no host, every system.

It is the reference of the contract in `civitas_shm.transport`: same outcomes, same order, same capacity as `shm`, so
that a topology tested here behaves there. What it cannot have is survival: messages die with the process.

Rules of this file: everything happens on the thread of one loop, so there are no locks; payloads are bytes here too, so
that nothing mutable is shared between agents; only the imports of layers 0 and 1.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from civitas_shm.errors import TransportClosed
from civitas_shm.messages import (
    FLAG_ASK,
    FLAG_FAILED,
    FLAG_FOREIGN,
    FLAG_MORTAL,
    FLAG_REPEATED,
    FLAG_REPLY,
    FLAGS_AT,
    HEADER,
    LANE_CONTROL,
    LANE_NORMAL,
    LANE_PRIORITY,
    Cause,
    new_header,
)
from civitas_shm.transport import (
    CLOSED,
    DELAYS,
    FULL,
    REPLY_DROPPED,
    SAME_MESSAGE,
    SENDER_PROGRAM,
    SENT,
    SLOT_MAIN,
    STRIKES_MAX,
    TOO_LARGE,
    Buried,
    Delivery,
    InHand,
    MailboxSpec,
    MailboxStats,
    Reply,
    Sink,
    TransportModule,
    Wait,
)

__all__ = ["InProcessPort", "transport"]

CLOSED_KEPT: Final = 1000
"""Mailboxes of agents that are gone whose names still say that they have stopped; of earlier ones a number is left."""

PAYLOAD_BYTES_MAX: Final = 1 << 31
"""The payload length in the header has 32 bits; half of that keeps every sum inside of them."""

_CORRELATION_AND_DEADLINE: Final = struct.Struct("<QQ")
_CORRELATION: Final = 56
"""Offset in the header; the deadline follows it."""

_ID: Final = slice(32, 48)
_LANE: Final = 28
_HISTOGRAM_SIZE: Final = 32

_Entry = tuple[bytes, str, int | str, bytes, int]
"""(header, type, sender, payload, delivery count to hand over with)."""


class _Mailbox:
    """One agent's three lanes, what its reader has in hand, and its numbers."""

    __slots__ = (
        "armed",
        "asking",
        "busy_since_ns",
        "closed",
        "counts",
        "dropped",
        "handled",
        "handler_ns",
        "handling",
        "in_hand",
        "index",
        "lanes",
        "on_ready",
        "once",
        "redeliver",
        "redelivered",
        "room",
        "sent",
        "spec",
        "state",
        "strikes",
        "suspended_ns",
    )

    def __init__(self, index: int, spec: MailboxSpec) -> None:
        self.index = index
        self.spec = spec
        self.closed = False
        self.lanes: tuple[deque[_Entry], deque[_Entry], deque[_Entry]] = (deque(), deque(), deque())
        # Control never waits: only the runtime writes it.
        self.counts: tuple[float, int, int] = (float("inf"), spec.priority_capacity, spec.capacity)
        self.redeliver: deque[_Entry] = deque()
        self.in_hand: dict[int, _Entry] = {}
        self.once: set[int] = set()
        """Tokens of what may not be handed over again."""
        self.strikes: dict[bytes, int] = {}
        """By message id; only of messages whose handler has failed."""
        self.on_ready: Callable[[], None] | None = None
        self.armed = False
        """True: the reader has seen the mailbox empty, so the next post has to call it."""
        self.room: list[asyncio.Future[None]] = []
        self.state: tuple[bytes, bytes] | None = None
        self.asking = -1
        self.suspended_ns = 0
        self.busy_since_ns = 0
        self.handling = ""
        self.handled = self.sent = self.redelivered = self.dropped = 0
        self.handler_ns = [0] * _HISTOGRAM_SIZE

    def waiting(self) -> int:
        return len(self.redeliver) + sum(map(len, self.lanes))

    def entries(self) -> Iterator[_Entry]:
        yield from self.redeliver
        for lane in self.lanes:
            yield from lane


class InProcessPort:
    """The one door of a process whose agents all live in it; also makes and closes mailboxes, as a host would."""

    slot = SLOT_MAIN
    payload_max_bytes = PAYLOAD_BYTES_MAX
    state_max_bytes = PAYLOAD_BYTES_MAX

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = False
        self._why = ""
        self._mailboxes: list[_Mailbox] = []
        self._by_name: dict[str, int] = {}
        self._closed: deque[_Mailbox] = deque()
        """The first closed first, CLOSED_KEPT of them."""
        self._gone = _Mailbox(-1, MailboxSpec("_gone"))
        self._gone.closed = True
        self._asks: dict[int, tuple[asyncio.Future[Reply] | Sink, int]] = {}
        """Correlation -> (future, mailbox of the asker)."""
        self._last_correlation = 0
        self._last_token = 0
        self._waits: list[Wait] = []
        self._graves: dict[tuple[int, int], Buried] = {}
        """By mailbox and token, until somebody stores their letters."""
        self.on_death: Callable[[], object] | None = None
        self.on_stranger: Callable[[Reply], object] | None = None
        self.replies_dropped = 0
        """Replies that came when nobody waited any more."""

    # --- as a host would ------------------------------------------------------------------------------------------

    def add_mailbox(self, spec: MailboxSpec) -> int:
        """Make a mailbox and publish its name. An open one of the same name is returned as it is."""
        known = self._by_name.get(spec.name)
        if known is not None and not self._mailboxes[known].closed:
            return known
        mailbox = _Mailbox(len(self._mailboxes), spec)
        self._mailboxes.append(mailbox)
        self._by_name[spec.name] = mailbox.index
        return mailbox.index

    def close_mailbox(self, mailbox: int, keep: Callable[[Buried], object] | None = None) -> list[InHand]:
        """Nothing can be committed after this. What waited is removed and returned; its askers get the news at once."""
        box = self._mailboxes[mailbox]
        box.closed = True
        for entry in box.entries() if keep is not None else ():
            assert keep is not None
            keep(self._buried(box, -1, (*entry[:4], entry[4] - 1)))
        removed = [
            InHand(mailbox, -1, self.slot, delivery - 1, header, kind, self._sender(sender), len(payload))
            for header, kind, sender, payload, delivery in box.entries()
        ]
        for entry in list(box.entries()):
            self._answer(entry[0], "", box.index, b"", failed=True)
        box.redeliver.clear()
        for lane in box.lanes:
            lane.clear()
        self._wake_for_room(box)
        self._closed.append(box)
        if len(self._closed) > CLOSED_KEPT and not self._closed[0].in_hand:
            self._forget(self._closed.popleft())
        return removed

    def _forget(self, box: _Mailbox) -> None:
        """It was closed long ago: its number stays closed, its name is unknown again."""
        if self._by_name.get(box.spec.name) == box.index:
            del self._by_name[box.spec.name]
        self._mailboxes[box.index] = self._gone

    def waiting(self) -> dict[str, int]:
        """Messages that wait or are in hand, by agent, news of the runtime not counted; only agents that have some."""
        counts = {box.spec.name: self.stats(box.index).unfinished for box in self._mailboxes if not box.closed}
        return {name: count for name, count in counts.items() if count}

    # --- messages that were given up ------------------------------------------------------------------------------

    def buried(self) -> list[Buried]:
        return list(self._graves.values())

    def discard(self, mailbox: int, token: int) -> None:
        self._graves.pop((mailbox, token), None)

    def answer_failed(self, header: bytes, payload: bytes, mailbox: int) -> None:
        self._answer(header, "error", mailbox, payload, failed=True)

    def repost(self, mailbox: int, letter: Buried, sender: int) -> int:
        box = self._mailboxes[mailbox]
        original = HEADER.unpack(letter.header)
        priority, hops = original[13], original[10]
        lane = LANE_PRIORITY if priority > 0 else LANE_NORMAL
        outcome = self._admit(box, letter.payload, lane)
        if outcome != SENT:
            return outcome
        known = SENDER_PROGRAM if sender < 0 else sender
        header = new_header(
            mailbox=mailbox, lane=lane, sender=known, priority=priority, cause=letter.header,
            payload_len=len(letter.payload), hops=min(hops + 1, 0xFFFF),
        )  # fmt: skip
        self._commit(box, (header, letter.type, known, letter.payload, 1), lane, known)
        return SENT

    def _buried(self, box: _Mailbox, token: int, entry: _Entry, note: bytes = b"", *, once: bool = False) -> Buried:
        header, kind, sender, payload, delivery = entry
        strikes = box.strikes.pop(header[_ID], 0)
        name = self._sender(sender)
        return Buried(
            box.index, token, delivery, strikes, header, kind, name, payload, note, once=once, recipient=box.spec.name
        )

    # --- delayed messages -----------------------------------------------------------------------------------------

    def open_delays(self, on_orders: Callable[[], None]) -> None:
        self._orders = self.add_mailbox(MailboxSpec(DELAYS))
        self.listen(self._orders, on_orders)

    def take_order(self, done: int = -1) -> Delivery | None:
        return None if self._stopped else self.take(self._orders, done)

    def release_order(self, token: int) -> None:
        self.release(self._orders, token)

    def next_number(self) -> int:
        return 1  # nothing of it outlives the port

    def fire(
        self, mailbox: int, header: bytes, payload: bytes, type: str, sender: str, priority: int, expires_ns: int,
        number: int,
    ) -> int:  # fmt: skip
        lane = LANE_PRIORITY if priority > 0 else LANE_NORMAL
        known = self._by_name.get(sender, SENDER_PROGRAM)
        return CLOSED if self._stopped else self.post(mailbox, payload, type, known, header, lane, priority, expires_ns)

    def was_sent(self, mailbox: int, number: int) -> bool:
        return False

    # --- life -----------------------------------------------------------------------------------------------------

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        for box in self._mailboxes:
            self._rouse(box)

    def stop(self, why: str = "") -> None:
        if self._stopped:
            return
        self._stopped = True
        self._why = why or "this process has left the run: nothing can be sent or received here any more"
        waiting: list[asyncio.Future[Reply] | Sink | asyncio.Future[None]]
        waiting = [future for future, _ in self._asks.values()]
        for box in self._mailboxes:
            box.on_ready = None
            waiting.extend(box.room)
            box.room.clear()
        self._asks.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(TransportClosed(self._why))
                # An asker that is being torn down itself does not look any more; that is no news for the log.
                future.exception()

    # --- names ----------------------------------------------------------------------------------------------------

    def resolve(self, name: str) -> int:
        return self._by_name.get(name, -1)

    def names(self) -> list[str]:
        return [n for n, mailbox in self._by_name.items() if n != DELAYS and not self._mailboxes[mailbox].closed]

    def _sender(self, sender: int | str) -> str:
        if isinstance(sender, str):
            return sender
        return "_runtime" if sender == SENDER_PROGRAM else self._mailboxes[sender].spec.name

    # --- sending --------------------------------------------------------------------------------------------------

    def post(
        self,
        mailbox: int,
        payload: bytes,
        type: str,
        sender: int | str,
        cause: Cause | None = None,
        lane: int = 2,
        priority: int = 0,
        expires_ns: int = 0,
    ) -> int:
        self._check_open()
        box = self._mailboxes[mailbox]
        outcome = self._admit(box, payload, lane)
        if outcome != SENT:
            return outcome
        known, flags, id = self._identity(sender, cause)
        header = new_header(
            mailbox=mailbox, lane=lane, sender=known, priority=priority, cause=cause, payload_len=len(payload),
            flags=flags | (FLAG_MORTAL if expires_ns else 0), deadline_ns=expires_ns, id=id,
        )  # fmt: skip
        self._commit(box, (header, type, sender, payload, 1), lane, known)
        return SENT

    def post_ask(
        self,
        mailbox: int,
        payload: bytes,
        type: str,
        sender: int | str,
        future: asyncio.Future[Reply] | Sink,
        deadline_ns: int,
        cause: Cause | None = None,
        lane: int = 2,
        priority: int = 0,
        seq: int = 0,
    ) -> int:
        self._check_open()
        box = self._mailboxes[mailbox]
        outcome = self._admit(box, payload, lane)
        if outcome != SENT:
            return outcome
        correlation = self.new_correlation()
        known, flags, id = self._identity(sender, cause)
        header = new_header(
            mailbox=mailbox, flags=FLAG_ASK | flags, lane=lane, sender=known, priority=priority,
            correlation=correlation, deadline_ns=deadline_ns, cause=cause, payload_len=len(payload), seq=seq, id=id,
        )  # fmt: skip
        self._asks[correlation] = (future, known)
        if known != SENDER_PROGRAM:
            self._mailboxes[known].asking = mailbox
        self._commit(box, (header, type, sender, payload, 1), lane, known)
        return correlation

    @staticmethod
    def _identity(sender: int | str, cause: Cause | None) -> tuple[int, int, bytes | None]:
        """(sender in the header, flags, id): of what comes from another host, those that it had there."""
        if isinstance(sender, int):
            return sender, 0, None
        if cause is None:
            return SENDER_PROGRAM, FLAG_FOREIGN, None
        return SENDER_PROGRAM, FLAG_FOREIGN | cause[FLAGS_AT] & FLAG_REPEATED, cause[_ID]

    def forget(self, correlation: int) -> None:
        self._end_ask(correlation)

    def new_correlation(self) -> int:
        self._last_correlation += 1
        return self._last_correlation

    def keep(self, correlation: int, sink: Sink) -> None:
        self._asks[correlation] = (sink, SENDER_PROGRAM)

    def lives(self, cause: Cause) -> bool:
        return True

    def reply_room(self, cause: Cause) -> asyncio.Future[None]:
        """No reply is ever refused for want of memory here."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future

    def post_reply(
        self, cause: Cause, payload: bytes, type: str, sender: int | str, failed: bool = False, seq: int = 0
    ) -> bool:
        self._check_open()
        return self._answer(cause, type, sender, payload, failed, seq)

    def _answer(self, cause: Cause, type: str, sender: int | str, payload: bytes, failed: bool, seq: int = 0) -> bool:
        correlation, deadline_ns = _CORRELATION_AND_DEADLINE.unpack_from(cause, _CORRELATION)
        if not correlation:
            return False
        future = self._end_ask(correlation)
        if future is None or future.done() or (deadline_ns and time.monotonic_ns() > deadline_ns):
            self.replies_dropped += 1
            return False
        known, foreign, _ = self._identity(sender, None)
        flags = FLAG_REPLY | foreign | (FLAG_FAILED if failed else 0)
        header = new_header(
            flags=flags, sender=known, correlation=correlation, cause=cause, payload_len=len(payload), seq=seq
        )
        future.set_result((correlation, header, type, self._sender(sender), payload, failed))
        return True

    def _end_ask(self, correlation: int) -> asyncio.Future[Reply] | Sink | None:
        future, asker = self._asks.pop(correlation, (None, SENDER_PROGRAM))
        if asker != SENDER_PROGRAM:
            self._mailboxes[asker].asking = -1
        return future

    def _admit(self, box: _Mailbox, payload: bytes, lane: int) -> int:
        """Whether one more message may be committed now; makes room where the policy says so."""
        if box.closed:
            return CLOSED
        if len(payload) > PAYLOAD_BYTES_MAX:
            return TOO_LARGE
        waiting = box.lanes[lane]
        if len(waiting) < box.counts[lane]:
            return SENT
        overflow = box.spec.overflow
        if overflow not in ("drop_oldest", "latest"):
            return FULL
        for _ in range(1 if overflow == "drop_oldest" else len(waiting)):
            header = waiting.popleft()[0]
            box.dropped += 1
            self._answer(header, REPLY_DROPPED, box.index, b"", failed=True)
        return SENT

    def _commit(self, box: _Mailbox, entry: _Entry, lane: int, sender: int) -> None:
        box.lanes[lane].append(entry)
        if sender != SENDER_PROGRAM:
            self._mailboxes[sender].sent += 1
        if box.armed:
            self._rouse(box)

    def _rouse(self, box: _Mailbox) -> None:
        """Let the loop call the reader. Never at once: the sender's handler is still running."""
        if self._loop is not None and box.on_ready is not None:
            box.armed = False
            self._loop.call_soon(self._call_reader, box)

    @staticmethod
    def _call_reader(box: _Mailbox) -> None:
        if box.on_ready is not None:
            box.on_ready()

    # --- receiving ------------------------------------------------------------------------------------------------

    def take(self, mailbox: int, done: int = -1) -> Delivery | None:
        self._check_open()
        box = self._mailboxes[mailbox]
        if done >= 0:
            self._release(box, done)
        if box.redeliver:
            header, kind, sender, payload, delivery = entry = box.redeliver.popleft()
            box.redelivered += 1
        else:
            for lane in box.lanes:
                if lane:
                    header, kind, sender, payload, delivery = entry = lane.popleft()
                    if box.room and lane is not box.lanes[LANE_CONTROL]:
                        self._wake_for_room(box)
                    break
            else:
                box.armed = True
                return None
        self._last_token = token = self._last_token + 1
        box.in_hand[token] = entry
        now_ns = time.monotonic_ns()
        if header[FLAGS_AT] & FLAG_MORTAL and now_ns > _CORRELATION_AND_DEADLINE.unpack_from(header, _CORRELATION)[1]:
            box.dropped += 1
            return token, header, kind, self._sender(sender), payload, 0
        box.busy_since_ns = now_ns
        box.handling = kind
        return token, header, kind, self._sender(sender), payload, delivery

    def release(self, mailbox: int, token: int) -> None:
        self._check_open()
        self._release(self._mailboxes[mailbox], token)

    def _release(self, box: _Mailbox, token: int) -> None:
        entry = box.in_hand.pop(token, None)
        if entry is None:
            return
        box.once.discard(token)
        if box.strikes:
            box.strikes.pop(entry[0][_ID], None)
        box.handled += 1
        took_us = (time.monotonic_ns() - box.busy_since_ns) // 1000
        box.handler_ns[min(took_us.bit_length(), _HISTOGRAM_SIZE - 1)] += 1
        box.busy_since_ns = 0
        box.handling = ""

    def begin(self, mailbox: int, token: int) -> int:
        """Nothing is ever suspected here: no process dies and leaves messages in hand."""
        return self._mailboxes[mailbox].in_hand[token][4]

    def forgo(self, mailbox: int, token: int) -> bool:
        self._mailboxes[mailbox].once.add(token)
        return True

    def strike(self, mailbox: int, token: int) -> int:
        box = self._mailboxes[mailbox]
        id_ = box.in_hand[token][0][_ID]
        box.strikes[id_] = strikes = min(box.strikes.get(id_, 0) + 1, STRIKES_MAX)
        return strikes

    def bury(self, mailbox: int, token: int, header: bytes, note: bytes) -> int:
        self._check_open()
        box = self._mailboxes[mailbox]
        entry = box.in_hand.get(token)
        if entry is not None:
            self._graves[(mailbox, token)] = self._buried(box, token, entry, note)
            self._release(box, token)
        return SENT

    def commit_state(self, mailbox: int, token: int, state: bytes) -> int:
        self._check_open()
        box = self._mailboxes[mailbox]
        if token == SAME_MESSAGE:
            id_ = box.state[1] if box.state is not None else b""
        else:
            id_ = b"" if token < 0 else box.in_hand[token][0][_ID]
        box.state = (state, id_)
        return SENT

    def stored_state(self, mailbox: int) -> tuple[bytes, bytes] | None:
        return self._mailboxes[mailbox].state

    def note_suspended(self, mailbox: int, since_ns: int) -> None:
        self._mailboxes[mailbox].suspended_ns = since_ns

    def state_elsewhere(self, mailbox: int, id: bytes) -> None:
        """Nothing: what handlers have sent is not remembered here."""

    def listen(self, mailbox: int, on_ready: Callable[[], None]) -> None:
        box = self._mailboxes[mailbox]
        box.on_ready = on_ready
        self._rouse(box)

    def unlisten(self, mailbox: int, comes_back: bool = False) -> None:
        """Unless it comes back, also what a death is elsewhere: what is in hand is handed over again, counted."""
        box = self._mailboxes[mailbox]
        box.on_ready = None
        box.armed = False
        if comes_back:
            return
        box.busy_since_ns = 0
        box.handling = ""
        for token, (header, kind, sender, payload, delivery) in box.in_hand.items():
            if token in box.once:
                entry = header, kind, sender, payload, delivery
                self._graves[(mailbox, token)] = self._buried(box, token, entry, once=True)
            else:
                box.redeliver.append((header, kind, sender, payload, delivery + 1))
        box.in_hand.clear()
        box.once.clear()

    # --- waiting for room, numbers --------------------------------------------------------------------------------

    def room(self, mailbox: int) -> asyncio.Future[None]:
        self._check_open()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        box = self._mailboxes[mailbox]
        if box.closed or all(len(lane) < count for lane, count in zip(box.lanes, box.counts, strict=True)):
            future.set_result(None)
        else:
            box.room.append(future)
        return future

    @staticmethod
    def _wake_for_room(box: _Mailbox) -> None:
        for future in box.room:
            if not future.done():
                future.set_result(None)
        box.room.clear()

    def collect(self) -> None:
        """Nothing is on its way here: a reply resolves its future when it is posted."""

    def note_waits(self, waits: Sequence[Wait]) -> None:
        self._waits = list(waits)

    def waits(self) -> list[Wait]:
        """What was noted last, as a host would read it."""
        return list(self._waits)

    def held(self) -> tuple[int, list[tuple[str, int]], str]:
        """Nothing here is refused for want of memory."""
        return 0, [], ""

    def stats(self, mailbox: int) -> MailboxStats:
        box = self._mailboxes[mailbox]
        return MailboxStats(
            name=box.spec.name,
            capacity=box.spec.capacity,
            waiting=box.waiting(),
            in_hand=len(box.in_hand),
            handled=box.handled,
            sent=box.sent,
            redelivered=box.redelivered,
            dropped=box.dropped,
            garbage=0,
            busy_since_ns=box.busy_since_ns,
            handler_ns=tuple(box.handler_ns),
            readers=() if box.on_ready is None else (self.slot,),
            closed=box.closed,
            asking=box.asking,
            overflow=box.spec.overflow,
            handling=box.handling,
            suspended_since_s=box.suspended_ns / 1e9,
            news=len(box.lanes[LANE_CONTROL])
            + sum(entry[0][_LANE] == LANE_CONTROL for entry in (*box.in_hand.values(), *box.redeliver)),
        )

    def _check_open(self) -> None:
        if self._stopped:
            raise TransportClosed(self._why)


def transport() -> TransportModule:
    """What `civitas_shm.transport.load_transport` asks for."""
    return TransportModule(scheme="in_process", multi_process=False, create=InProcessPort)
