"""What comes from other hosts: checked, known as a double or not, committed to its agent's mailbox; and answers on
their way back.

Guarantees:
- a parcel is acknowledged when it is committed, never earlier; while it waits for room in a full mailbox its sender is
  told that it is here, and its agent's other parcels queue behind it;
- nothing waits without a bound: a sender has at most WINDOW parcels on their way, answers that cannot be sent are
  ANSWERS_MAX of one host, and what is too much is dropped and counted;
- whatever arrives does no more than to be counted and logged once in LOG_S.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from ..bridge.back import Backs
from ..bridge.doubles import Doubles
from ..bridge.link import Link
from ..bridge.wire import ENTRIES_MAX, Answer, Frame, FrameError, Parcel, Refusal, decode_frame, encode_frame
from ..errors import MessageValidationError, PayloadTooLarge, SharedMemoryFull, TransportClosed
from ..messages import LANE_NORMAL, LANE_PRIORITY, foreign_header
from ..port_bus import PortBus
from ..serializer import encode
from ..transport import CLOSED, FULL, NO_MEMORY, SENT, TOO_LARGE, Reply

if TYPE_CHECKING:
    from .outbox import Outbox

__all__ = ["Inbox"]

ANSWERS_MAX: Final = 10_000
"""Of one host that cannot be reached: their askers' deadlines end the wait."""
HELD_MAX: Final = 20_000
"""Parcels of all hosts that wait for room: 56 of each host is what its bridge may have on its way."""
RECEIPT_S: Final = 0.002
"""A receipt for a question waits so long for the answer, to travel with it."""
RECEIPTS_AT_ONCE: Final = 16
FORGET_EVERY_S: Final = 1.0
LOG_S: Final = 1.0

log: Final = logging.getLogger("civitas_shm.bridge")


class _Peer:
    """What is to be said to one host."""

    __slots__ = ("answers", "epoch", "held", "host", "late", "refused", "taken", "timer")

    def __init__(self, host: str, epoch: int) -> None:
        self.host = host
        self.epoch = epoch
        self.answers: deque[Answer] = deque()
        self.taken: list[int] = []
        self.refused: list[Refusal] = []
        self.held: list[int] = []
        self.timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self.late = False
        """The timer is one of RECEIPT_S. (Of what class it is says nothing: uvloop has its own.)"""


class _Question:
    """Stands where the future of an ask would: its answer goes to another host."""

    __slots__ = ("back", "correlation", "due_ns", "inbox", "peer")

    def __init__(self, inbox: Inbox, peer: _Peer, back: bytes, due_ns: int) -> None:
        self.inbox = inbox
        self.peer = peer
        self.back = back
        self.due_ns = due_ns
        self.correlation = 0

    def done(self) -> bool:
        return False

    def set_result(self, reply: Reply) -> object:
        self.inbox.answered(self, reply)
        return None

    def set_exception(self, error: BaseException) -> object:
        return None  # the process leaves the run

    def exception(self) -> BaseException | None:
        return None


class Inbox:
    """Of one bridge."""

    def __init__(self, bus: PortBus, link: Link, backs: Backs, host: str, epoch: int, outbox: Outbox) -> None:
        self._bus = bus
        self._port = bus.port
        self._link = link
        self._backs = backs
        self._host = host
        self._epoch = epoch
        self._outbox = outbox
        self._loop = asyncio.get_running_loop()
        self._peers: dict[str, _Peer] = {}
        self._doubles = Doubles()
        self._questions: dict[int, _Question] = {}
        self._waiting: dict[int, deque[tuple[_Peer, Parcel, int]]] = {}
        """By mailbox: what waits for room, with the moment at which it came."""
        self._held = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._logged_s = 0.0
        self.counts = {
            "received": 0, "doubles": 0, "bad_frames": 0, "stale": 0, "forged": 0, "refused_here": 0, "answers": 0,
            "answers_dropped": 0,
        }  # fmt: skip

    # --- frames -------------------------------------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """One frame, from anybody."""
        try:
            frame = decode_frame(data)
        except FrameError as error:
            self._bad(f"a frame was dropped: {error}")
            return
        try:
            self._dealt(frame)
        except TransportClosed:
            pass  # the process leaves the run; what is not acknowledged comes again
        except Exception:
            log.exception("a frame of host %r could not be dealt with", frame.host)

    def _bad(self, text: str) -> None:
        self.counts["bad_frames"] += 1
        now_s = time.monotonic()
        if now_s - self._logged_s >= LOG_S:
            self._logged_s = now_s
            log.warning("%s (%d so far)", text, self.counts["bad_frames"])

    def _dealt(self, frame: Frame) -> None:
        if frame.host == self._host and frame.epoch != self._epoch:
            self.counts["stale"] += 1
            return
        peer = self._peers.get(frame.host)
        if peer is None:
            peer = self._peers[frame.host] = _Peer(frame.host, frame.epoch)
        elif frame.epoch < peer.epoch:  # a host that was taken for dead, and has a successor
            self.counts["stale"] += 1
            return
        elif frame.epoch > peer.epoch:
            peer = self._peers[frame.host] = _Peer(frame.host, frame.epoch)
        for parcel in frame.parcels:
            self._came(peer, parcel)
        for answer in frame.answers:
            self._answer_came(answer)
        if frame.to_epoch == self._epoch and (frame.taken or frame.held or frame.refused):
            self._outbox.receipts(frame.host, frame)

    # --- parcels ------------------------------------------------------------------------------------------------------

    def _came(self, peer: _Peer, parcel: Parcel) -> None:
        self.counts["received"] += 1
        known = self._doubles.known(peer.host, parcel.id)
        if known:
            self.counts["doubles"] += 1
            (peer.taken if known == "taken" else peer.held).append(parcel.seq)
            self._soon(peer)
            return
        mailbox = -1 if parcel.to.startswith("_") else self._port.resolve(parcel.to)
        if mailbox < 0:
            self._refuse(peer, parcel, "unknown", f"Host {self._host!r} has no agent named {parcel.to!r}.")
            return
        if parcel.type not in self._bus.known_types:
            try:
                self._bus.check_type(parcel.type)
            except MessageValidationError as error:
                self._refuse(peer, parcel, "type", str(error))
                return
        now_ns = time.monotonic_ns()
        if mailbox in self._waiting:
            self._wait(mailbox, peer, parcel, now_ns)
            return
        outcome = self._commit(mailbox, peer, parcel, now_ns)
        if outcome in (FULL, NO_MEMORY):
            if outcome == FULL and (stats := self._port.stats(mailbox)).overflow != "block":
                text = f"The mailbox of {parcel.to!r} is full ({stats.capacity} messages) and lets nobody wait."
                self._refuse(peer, parcel, "full", text)
            else:
                self._wait(mailbox, peer, parcel, now_ns)

    def _commit(self, mailbox: int, peer: _Peer, parcel: Parcel, came_ns: int) -> int:
        """The outcome; FULL and NO_MEMORY: nothing was done."""
        due_ns = came_ns + parcel.left_ns if parcel.left_ns else 0
        cause = foreign_header(parcel.id, parcel.trace, parcel.span, repeated=parcel.repeated or parcel.attempt > 1)
        lane = LANE_PRIORITY if parcel.priority > 0 else LANE_NORMAL
        asks = bool(parcel.back) and not parcel.mortal
        if asks:
            question = _Question(self, peer, parcel.back, due_ns)
            outcome = self._port.post_ask(
                mailbox, parcel.payload, parcel.type, parcel.sender, question, due_ns, cause, lane, parcel.priority
            )
            if outcome > 0:
                question.correlation = outcome
                self._questions[outcome] = question
                if self._sweep is None:
                    self._sweep = self._loop.call_later(FORGET_EVERY_S, self._swept)
                outcome = SENT
        else:
            expires_ns = due_ns if parcel.mortal else 0
            outcome = self._port.post(
                mailbox, parcel.payload, parcel.type, parcel.sender, cause, lane, parcel.priority, expires_ns
            )
        if outcome == SENT:
            self._doubles.take(peer.host, parcel.id)
            peer.taken.append(parcel.seq)
            self._soon(peer, patient=asks)
        elif outcome == CLOSED:
            again = self._port.resolve(parcel.to)
            if again >= 0 and again != mailbox:
                return self._commit(again, peer, parcel, came_ns)
            self._refuse(peer, parcel, "closed", f"Agent {parcel.to!r} of host {self._host!r} has stopped.")
        elif outcome == TOO_LARGE:
            error = PayloadTooLarge(len(parcel.payload), self._port.payload_max_bytes)
            self._refuse(peer, parcel, "large", str(error))
        return outcome

    def _refuse(self, peer: _Peer, parcel: Parcel, kind: str, text: str) -> None:
        self.counts["refused_here"] += 1
        self._doubles.forget(peer.host, parcel.id)
        peer.refused.append(Refusal(parcel.seq, kind, text[:1000]))
        self._soon(peer)

    # --- full mailboxes -----------------------------------------------------------------------------------------------

    def _wait(self, mailbox: int, peer: _Peer, parcel: Parcel, came_ns: int) -> None:
        if self._held >= HELD_MAX:
            return  # not acknowledged: its sender sends it again
        self._held += 1
        self._doubles.hold(peer.host, parcel.id)
        peer.held.append(parcel.seq)
        self._soon(peer)
        line = self._waiting.get(mailbox)
        if line is None:
            line = self._waiting[mailbox] = deque()
            task = self._loop.create_task(self._as_room_comes(mailbox, line))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        line.append((peer, parcel, came_ns))

    async def _as_room_comes(self, mailbox: int, line: deque[tuple[_Peer, Parcel, int]]) -> None:
        try:
            while line:
                peer, parcel, came_ns = line[0]
                if parcel.left_ns and not parcel.mortal and time.monotonic_ns() > came_ns + parcel.left_ns:
                    peer.taken.append(parcel.seq)  # nobody waits for it any more
                    self._soon(peer)
                elif self._commit(mailbox, peer, parcel, came_ns) in (FULL, NO_MEMORY):
                    room = self._port.room(mailbox)
                    if room.done():
                        await asyncio.sleep(0)
                    await room
                    continue
                line.popleft()
                self._held -= 1
        except (TransportClosed, SharedMemoryFull):
            pass  # what is not acknowledged comes again
        finally:
            self._held -= len(line)
            for peer, parcel, _ in line:
                self._doubles.forget(peer.host, parcel.id)
            self._waiting.pop(mailbox, None)

    # --- questions and answers ----------------------------------------------------------------------------------------

    def answered(self, question: _Question, reply: Reply) -> None:
        """An agent here has answered a question of another host."""
        correlation, _, kind, sender, payload, failed = reply
        self._questions.pop(correlation, None)
        peer = question.peer
        if self._peers.get(peer.host) is not peer:
            return  # its host has begun anew
        limit = self._link.frame_bytes_max - 2048
        if len(payload) > limit:
            text = f"The answer of {sender!r} has {len(payload):,} bytes; through the bridge go {limit:,} at most."
            kind, payload, failed = "error", encode({"type": "PayloadTooLarge", "text": text, "traceback": ""}), True
        if len(peer.answers) >= ANSWERS_MAX:
            peer.answers.popleft()
            self.counts["answers_dropped"] += 1
        peer.answers.append(Answer(question.back, sender, kind[:1000], payload, failed))
        self._soon(peer)

    def _swept(self) -> None:
        """Questions whose askers wait no more."""
        self._sweep = None
        now_ns = time.monotonic_ns()
        for correlation, question in list(self._questions.items()):
            if (question.due_ns and now_ns > question.due_ns) or self._peers.get(
                question.peer.host
            ) is not question.peer:
                del self._questions[correlation]
                self._port.forget(correlation)
        if self._questions:
            self._sweep = self._loop.call_later(FORGET_EVERY_S, self._swept)

    def _answer_came(self, answer: Answer) -> None:
        """To a question that was asked here."""
        cause = self._backs.cause(answer.back)
        if cause is None:
            self.counts["forged"] += 1
            self._bad("an answer was dropped: it answers nothing that was asked here")
            return
        self.counts["answers"] += 1
        try:
            self._port.post_reply(cause, answer.payload, answer.type, answer.sender, answer.failed)
        except PayloadTooLarge as error:
            fields = {"type": "PayloadTooLarge", "text": str(error), "traceback": ""}
            self._port.post_reply(cause, encode(fields), "error", answer.sender, True)
        except SharedMemoryFull:
            task = self._loop.create_task(self._answer_later(cause, answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer_later(self, cause: bytes, answer: Answer) -> None:
        while True:
            try:
                await self._port.reply_room(cause)
                self._port.post_reply(cause, answer.payload, answer.type, answer.sender, answer.failed)
                return
            except TransportClosed:
                return
            except SharedMemoryFull:
                await asyncio.sleep(0.01)

    # --- what is said to other hosts ----------------------------------------------------------------------------------

    def _soon(self, peer: _Peer, *, patient: bool = False) -> None:
        """Say it at the end of this turn of the loop; `patient`: in a moment, with the answer."""
        if patient and len(peer.taken) < RECEIPTS_AT_ONCE:
            if peer.timer is None:
                peer.timer = self._loop.call_later(RECEIPT_S, self._say, peer)
                peer.late = True
            return
        if peer.timer is not None and peer.late:
            peer.timer.cancel()
            peer.timer = None
        if peer.timer is None:
            peer.timer = self._loop.call_soon(self._say, peer)
            peer.late = False

    def _say(self, peer: _Peer) -> None:
        peer.timer = None
        while peer.answers or peer.taken or peer.refused or peer.held:
            answers: list[Answer] = []
            size = 0
            while peer.answers and len(answers) < ENTRIES_MAX:
                size += len(peer.answers[0].payload) + 256
                if answers and size > min(256 << 10, self._link.frame_bytes_max):
                    break
                answers.append(peer.answers.popleft())
            taken, refused, held = peer.taken[:ENTRIES_MAX], peer.refused[:8], peer.held[:ENTRIES_MAX]
            data = encode_frame(
                Frame(self._host, self._epoch, answers=answers, to_epoch=peer.epoch, taken=taken, refused=refused,
                      held=held)
            )  # fmt: skip
            if not self._link.publish_to_host(peer.host, data, 0):
                peer.answers.extendleft(reversed(answers))
                # Receipts are not worth keeping: what is not acknowledged comes again, and is a double then.
                peer.taken, peer.refused, peer.held = [], [], []
                return
            del peer.taken[: len(taken)], peer.refused[: len(refused)], peer.held[: len(held)]

    def again(self) -> None:
        """The link is up again: say what could not be said."""
        for peer in self._peers.values():
            if peer.answers:
                self._soon(peer)

    def close(self) -> None:
        """Say what is to be said, and no more callbacks."""
        for peer in self._peers.values():
            if peer.timer is not None:
                peer.timer.cancel()
            self._say(peer)
        for task in list(self._tasks):
            task.cancel()
        if self._sweep is not None:
            self._sweep.cancel()

    def reading(self) -> dict[str, Any]:
        """For statistics."""
        return {"held": self._held, "questions": len(self._questions), "hosts": len(self._peers)}
