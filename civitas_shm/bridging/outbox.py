"""What goes to other hosts: taken from the bridge's mailbox, published, kept in hand until the other side has it.

Guarantees:
- a message is released only when another host's bridge has committed it, when nobody waits for it any more, or when it
  has been refused for good: then its asker is told, or it is in the dead letters;
- at most WINDOW of them are on their way; the rest waits in the mailbox, and whoever fills that waits for room;
- after a reconnection everything that is on its way is sent again at once, else after REPEAT_S; what another host holds
  is asked for there, and goes elsewhere only when that host is gone;
- no operation waits: everything is done in the callback that makes it possible.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from ..bridge.back import Backs
from ..bridge.link import Link
from ..bridge.wire import Frame, Parcel, Refusal, encode_frame
from ..errors import DeserializationError, TransportClosed
from ..messages import FLAG_ASK, FLAG_MORTAL, FLAG_REPEATED, FLAGS_AT, HEADER, Message
from ..port_bus import UNROUTABLE
from ..serializer import encode
from ..transport import SENDER_PROGRAM, Delivery

if TYPE_CHECKING:
    from ..seat import Seat

__all__ = ["WINDOW", "Outbox"]

WINDOW: Final = 56
"""A mailbox has 64 entries for what is in hand; some are kept for what is buried."""
TOGETHER: Final = 8
"""Messages to one name in one frame: with more of them, few replicas would get all."""
FRAME_BYTES: Final = 256 << 10
"""A frame that has so much takes no further message."""
ROOM_BYTES: Final = 2048
"""What a frame has beside its payload, at most."""
REPEAT_S: Final = 5.0
LOOK_S: Final = 1.0
PATIENCE_S: Final = 5.0
"""Hosts that have lost a broker come back within so long: twice what a link waits between two tries at most."""
ABSENT_S: Final = 0.25
"""How often what is expected is looked for."""


class _Entry:
    """One message on its way."""

    __slots__ = ("header", "holder", "parcel", "sent_s", "token")

    def __init__(self, token: int, header: bytes, parcel: Parcel) -> None:
        self.token = token
        self.header = header
        self.parcel = parcel
        self.sent_s = 0.0
        """When it was published last; 0: not yet."""
        self.holder = ""
        """The host that has it and waits for room there."""


class Outbox:
    """Of one bridge; stands in the place of its seat's handling of messages."""

    def __init__(self, seat: Seat, link: Link, backs: Backs, host: str, epoch: int, expected: frozenset[str]) -> None:
        self._seat = seat
        self._port = seat._port
        self._link = link
        self._backs = backs
        self._host = host
        self._epoch = epoch
        self._expected = expected
        self._patient_until_s = 0.0
        self._absent: list[_Entry] = []
        """Of those on their way: to agents that are expected, and are not there yet."""
        self._seq = 0
        self._on_way: dict[int, _Entry] = {}
        """By seq, in the order in which they were taken."""
        self._frames: dict[int, list[int]] = {}
        """By key, which is the seq of its first parcel: all that are in that frame."""
        self._unsent: list[_Entry] = []
        """Of those: what the link has refused for now."""
        self._burying: set[asyncio.Task[None]] = set()
        self._look: asyncio.TimerHandle | None = None
        self._try: asyncio.TimerHandle | None = None
        self.counts = {"sent": 0, "taken": 0, "repeated": 0, "refused": 0, "unroutable": 0, "expired": 0}

    # --- from the mailbox to the link ---------------------------------------------------------------------------------

    def ready(self) -> None:
        """Messages may wait, or there is room for more of them."""
        try:
            self._pump()
        except TransportClosed:
            pass  # the process leaves the run: all of it stays in hand
        except Exception as error:  # noqa: BLE001 - a fault of ours must be as visible as one of an agent's
            self._seat._fail_soon(error)

    def _pump(self) -> None:
        seat = self._seat
        if not self._send_unsent():
            return
        fresh: list[_Entry] = []
        while len(self._on_way) + len(self._burying) < WINDOW and not self._over():
            delivery = self._port.take(seat.mailbox, -1)
            if delivery is None:
                break
            entry = self._entry(delivery)
            if entry is not None:
                self._on_way[entry.parcel.seq] = entry
                fresh.append(entry)
        self._publish(fresh)
        self._settle()

    def _over(self) -> bool:
        return self._seat._ended or self._seat._draining == "current" or self._link.state != "up"

    def _entry(self, delivery: Delivery) -> _Entry | None:
        """None: it has been dealt with."""
        token, header, kind, sender, data, count = delivery
        if count == 0:
            self._bury(token, Message.received(header, kind, sender, "", {}, 0), "it outlived its ttl in the outbox")
            return None
        if count < 0:  # a death of this process is no message's doing: it runs no code of theirs
            count = self._port.begin(self._seat.mailbox, token)
        try:
            to, payload = decode_address(data)
        except DeserializationError as error:
            message = Message.received(header, kind, sender, "", {}, count)
            self._refuse(token, header, message, UNROUTABLE, f"It is no message to another host: {error}")
            return None
        flags = header[FLAGS_AT]
        fields = HEADER.unpack(header)
        deadline_ns, left_ns = fields[15], 0
        if deadline_ns:
            left_ns = deadline_ns - time.monotonic_ns()
            if left_ns <= 0:  # nobody waits any more
                self.counts["expired"] += 1
                self._port.release(self._seat.mailbox, token)
                return None
        self._seq += 1
        parcel = Parcel(
            to, kind, sender, payload, fields[11], fields[17], fields[18], self._seq, self._backs.of(header), left_ns,
            bool(flags & FLAG_MORTAL), fields[13], count, bool(flags & FLAG_REPEATED), fields[16],
        )  # fmt: skip
        return _Entry(token, header, parcel)

    def _publish(self, entries: Sequence[_Entry]) -> None:
        """Together what goes to one name and stands side by side; what the link does not take waits in `_unsent`."""
        at = 0
        while at < len(entries):
            first, size, end = entries[at], 0, at
            while end < len(entries) and end - at < TOGETHER and size < FRAME_BYTES:
                if entries[end].parcel.to != first.parcel.to or entries[end].holder != first.holder:
                    break
                size += len(entries[end].parcel.payload)
                end += 1
            together = entries[at:end]
            if size + ROOM_BYTES > self._link.frame_bytes_max and len(together) > 1:
                for one in together:
                    if not self._publish_frame([one]):
                        self._unsent.extend(entries[entries.index(one) :])
                        return
            elif not self._publish_frame(together):
                self._unsent.extend(entries[at:])
                return
            at = end

    def _publish_frame(self, entries: Sequence[_Entry]) -> bool:
        first = entries[0]
        limit = self._link.frame_bytes_max - ROOM_BYTES
        if len(first.parcel.payload) > limit:
            text = (
                f"A payload of {len(first.parcel.payload):,} bytes does not fit through the bridge, whose limit is "
                f"{limit:,} bytes. Send less at once, or raise the limit of the server (max_payload)."
            )
            self._end(first, "PayloadTooLarge", text)
            return True
        frame = encode_frame(Frame(self._host, self._epoch, [self._fresh(entry) for entry in entries]))
        key = first.parcel.seq
        if first.holder:
            sent = self._link.publish_to_host(first.holder, frame, key)
        else:
            sent = self._link.publish(first.parcel.to, frame, key)
        if not sent:
            return False
        now_s = time.monotonic()
        self._frames[key] = [entry.parcel.seq for entry in entries]
        for entry in entries:
            if entry.sent_s:
                self.counts["repeated"] += 1
            entry.sent_s = now_s
        self.counts["sent"] += len(entries)
        return True

    @staticmethod
    def _fresh(entry: _Entry) -> Parcel:
        """Of what is sent again: with what is left of its deadline now."""
        if not entry.sent_s:
            return entry.parcel
        deadline_ns = HEADER.unpack(entry.header)[15]
        left_ns = max(1, deadline_ns - time.monotonic_ns()) if deadline_ns else 0
        return msgspec.structs.replace(entry.parcel, left_ns=left_ns, attempt=entry.parcel.attempt + 1)

    def _send_unsent(self) -> bool:
        """Whether all of it has gone."""
        if self._unsent:
            unsent = [entry for entry in self._unsent if entry.parcel.seq in self._on_way]
            self._unsent = []
            if self._link.state != "up":
                self._unsent = unsent
                return False
            self._publish(unsent)
        return not self._unsent

    # --- what the other side says -------------------------------------------------------------------------------------

    def receipts(self, host: str, frame: Frame) -> None:
        """Of another host's bridge, for this epoch."""
        for seq in frame.taken:
            entry = self._on_way.get(seq)
            if entry is not None:
                self.counts["taken"] += 1
                self._forget(entry)
                self._port.release(self._seat.mailbox, entry.token)
        for seq in frame.held:
            entry = self._on_way.get(seq)
            if entry is not None:
                entry.holder = host
                entry.sent_s = time.monotonic()
        for refusal in frame.refused:
            entry = self._on_way.get(refusal.seq)
            if entry is not None:
                self.counts["refused"] += 1
                self._end(entry, *_error_of(refusal))
        self.ready()

    def unroutable(self, key: int) -> None:
        """The link says that nobody is there."""
        for seq in self._frames.pop(key, ()):
            entry = self._on_way.get(seq)
            if entry is None:
                continue
            if entry.holder:  # the host that had it is gone: whoever has the name now gets it
                entry.holder = ""
                self._unsent.append(entry)
                continue
            self.counts["unroutable"] += 1
            if entry.parcel.to in self._expected or time.monotonic() < self._patient_until_s:
                entry.sent_s = 0.0  # nobody has got it
                self._absent.append(entry)
                if self._try is None:
                    self._try = asyncio.get_running_loop().call_later(ABSENT_S, self._try_absent)
                continue
            self._end(entry, UNROUTABLE, f"No host that the bridge reaches has an agent named {entry.parcel.to!r}.")
        self.ready()

    def reconnected(self) -> None:
        """The link is up again: so are others soon, and until then nobody is there is no last word."""
        self._patient_until_s = time.monotonic() + PATIENCE_S
        self.again()

    def again(self, over_s: float = 0.0) -> None:
        """Send again what is on its way for longer than that."""
        before_s = time.monotonic() - over_s
        late = [entry for entry in self._on_way.values() if entry.sent_s and entry.sent_s <= before_s]
        for entry in late:
            if not self._waits_no_more(entry) and entry not in self._unsent:
                self._unsent.append(entry)
        self.ready()

    def _end(self, entry: _Entry, kind: str, text: str) -> None:
        self._forget(entry)
        parcel = entry.parcel
        message = Message.received(entry.header, parcel.type, parcel.sender, parcel.to, {}, parcel.attempt)
        self._refuse(entry.token, entry.header, message, kind, text)

    def _refuse(self, token: int, header: bytes, message: Message, kind: str, text: str) -> None:
        """Its asker is told; what nobody asked for goes to the dead letters."""
        if header[FLAGS_AT] & FLAG_ASK:
            fields = {"type": kind, "text": text, "traceback": ""}
            self._port.post_reply(header, encode(fields), kind if kind == UNROUTABLE else "error", SENDER_PROGRAM, True)
            self._port.release(self._seat.mailbox, token)
        else:
            self._bury(token, message, text)

    def _bury(self, token: int, message: Message, cause: str) -> None:
        task = asyncio.get_running_loop().create_task(self._seat._failures.bury(message, token, cause))
        self._burying.add(task)
        task.add_done_callback(self._buried)

    def _buried(self, task: asyncio.Task[None]) -> None:
        self._burying.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if not isinstance(error, TransportClosed):
                self._seat._fail_soon(error)
            return
        self.ready()

    def _forget(self, entry: _Entry) -> None:
        self._on_way.pop(entry.parcel.seq, None)
        self._frames.pop(entry.parcel.seq, None)

    # --- life ---------------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """After each change: whether the seat is busy, and when to look again."""
        seat, under_way = self._seat, bool(self._on_way or self._burying)
        seat._busy = under_way
        if not under_way and seat._quiet is not None and not seat._quiet.done():
            seat._quiet.set_result(None)
        if self._on_way and self._look is None and not seat._ended:
            self._look = asyncio.get_running_loop().call_later(LOOK_S, self._looked)

    def _looked(self) -> None:
        self._look = None
        if not self._seat._ended:
            if self._link.state == "up":
                self.again(REPEAT_S)
            self._settle()

    def _try_absent(self) -> None:
        self._try = None
        absent, self._absent = self._absent, []
        for entry in absent:
            if entry.parcel.seq in self._on_way and not self._waits_no_more(entry):
                self._unsent.append(entry)
        self._unsent.sort(key=lambda entry: entry.parcel.seq)
        self.ready()

    def _waits_no_more(self, entry: _Entry) -> bool:
        """Let it go if its asker has given up."""
        deadline_ns = HEADER.unpack(entry.header)[15]
        if not deadline_ns or time.monotonic_ns() <= deadline_ns or not entry.header[FLAGS_AT] & FLAG_ASK:
            return False
        self.counts["expired"] += 1
        self._forget(entry)
        self._port.release(self._seat.mailbox, entry.token)
        return True

    def close(self) -> None:
        """No more callbacks."""
        for timer in (self._look, self._try):
            if timer is not None:
                timer.cancel()
        self._look = self._try = None

    def waiting(self) -> int:
        """On their way just now."""
        return len(self._on_way)


def decode_address(data: bytes) -> tuple[str, bytes]:
    """Name and payload of a message to an agent of another host, as `PortBus` puts them together."""
    try:
        to, payload = _decode_address(data)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise DeserializationError(f"{len(data)} bytes are no addressed payload: {error}") from error
    return to, payload


class _Addressed(msgspec.Struct):
    to: str
    payload: bytes


_addressed: Final = msgspec.msgpack.Decoder(_Addressed).decode


def _decode_address(data: bytes) -> tuple[str, bytes]:
    addressed = _addressed(data)
    return addressed.to, addressed.payload


def _error_of(refusal: Refusal) -> tuple[str, str]:
    kinds = {"unknown": UNROUTABLE, "closed": UNROUTABLE, "full": "MailboxFull", "large": "PayloadTooLarge"}
    return kinds.get(refusal.kind, "MessageRefused"), refusal.text
