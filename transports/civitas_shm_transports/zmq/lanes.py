"""The two ends of a lane: what one link has for another until that has it, and how far it has taken the other's.

Rules of this file: no socket, no clock (every time is an argument, in seconds); decide only. `machine` asks.

Guarantees (PROTOCOL.md, "A lane"), whatever is lost, doubled or comes in another order between the two:
- `Receiving.take` hands out each body once, in the order of `Sending.add`;
- bounded: a lane holds QUEUE_MAX bodies and QUEUE_BYTES at its sender, and nothing at its receiver.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from . import wire

__all__ = [
    "ACK_EVERY",
    "QUEUE_BYTES",
    "QUEUE_MAX",
    "RESEND_MAX_S",
    "RESEND_S",
    "WINDOW",
    "Kept",
    "Receiving",
    "Sending",
]

QUEUE_MAX: Final = 4096
"""Bodies that a lane keeps: four times what may be on its way, so that a turn of the loop never runs dry."""
QUEUE_BYTES: Final = 32 << 20
"""Of them; one body may be larger, alone."""
WINDOW: Final = 1024
"""Bodies on their way: a hundredth of what the proxy keeps for one connection (`proxy.HWM`)."""
WINDOW_BYTES: Final = 8 << 20
FRAME_BYTES: Final = 64 << 10
"""Bodies of one turn go in frames of about so much: one system call of the proxy each way."""
RESEND_S: Final = 0.2
"""Silence after which the receiver is asked: a hundred times what it usually takes."""
RESEND_MAX_S: Final = 2.0
ACK_EVERY: Final = 64
"""Bodies after which the sender is told without delay: a sixteenth of WINDOW, so that it never stands."""


@dataclass(slots=True, eq=False)
class Kept:
    """A body that its receiver may not have yet."""

    name: str
    """The agent or the host that it is for."""
    to_host: bool
    body: bytes
    key: int
    """The bridge's word for it, when it wants to hear that nobody gets it; else 0."""
    sent: bool = False


class Sending:
    """The sender's end."""

    def __init__(self) -> None:
        self._kept: deque[Kept] = deque()
        """Number `_got + 1` and on."""
        self._got = 0
        self._sent = 0
        """The highest number of the present round: it goes back to `_got` at a gap."""
        self._sent_max = 0
        self._bytes = 0
        self._bytes_on_way = 0
        self._want = False
        self._silence_s = RESEND_S
        self.ask_at_s: float | None = None
        """When to ask the receiver, because nothing was heard."""
        self.resent = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def next(self) -> int:
        """The number of the next body to go."""
        return self._sent + 1

    @property
    def kept_bytes(self) -> int:
        """Of all bodies that are kept."""
        return self._bytes

    @property
    def due(self) -> bool:
        """There is something to send."""
        return self._want or self._may_send()

    def has_room(self, size_bytes: int) -> bool:
        """Whether `add` may be called with a body of that size."""
        return not self._kept or (len(self._kept) < QUEUE_MAX and self._bytes + size_bytes <= QUEUE_BYTES)

    def add(self, kept: Kept) -> None:
        """Take it; it goes with the next `frames`, when there is room on the way."""
        self._kept.append(kept)
        self._bytes += len(kept.body)

    def frames(self, now: float) -> Iterator[tuple[int, list[bytes], bool]]:
        """(first, bodies, want) of each frame to be sent now."""
        while self._may_send():
            first, size_bytes, bodies = self._sent + 1, 0, []
            for kept in islice(self._kept, self._sent - self._got, None):
                if not self._may_send() or size_bytes >= FRAME_BYTES:
                    break
                self._sent += 1
                self.resent += kept.sent
                kept.sent = True
                bodies.append(kept.body)
                size_bytes += len(kept.body) + 8
                self._bytes_on_way += len(kept.body)
            yield first, bodies, self._take_want()
        self._sent_max = max(self._sent_max, self._sent)
        if self._want:
            yield self._sent + 1, [], self._take_want()
        if self.ask_at_s is None and self._sent > self._got:
            self.ask_at_s = now + self._silence_s

    def ask(self, now: float) -> None:
        """Nothing was heard: the next frame asks, and the one after it comes later."""
        self._silence_s = min(self._silence_s * 2, RESEND_MAX_S)
        self.ask_at_s = now + self._silence_s
        self._want = True

    def ask_now(self) -> None:
        """The way is open again: ask at once what has come."""
        self._silence_s, self.ask_at_s = RESEND_S, None
        self._want = self._sent_max > self._got

    def heard(self, got: int, gap: bool, now: float) -> int:
        """How many bodies the receiver has by what it says. BadFrame for what cannot be."""
        if got > self._sent_max:
            raise wire.BadFrame(f"number {got} is said to have come, and {self._sent_max} was the last to go")
        come = max(0, got - self._got)
        for _ in range(come):
            size_bytes = len(self._kept.popleft().body)
            self._bytes -= size_bytes
            self._got += 1
            if self._got <= self._sent:
                self._bytes_on_way -= size_bytes
        self._sent = max(self._sent, self._got)
        if gap and got == self._got and self._sent > got:
            self._sent, self._bytes_on_way = got, 0
        if come or gap:
            self._silence_s = RESEND_S
            self.ask_at_s = now + RESEND_S if self._sent > self._got else None
        return come

    def close(self) -> list[Kept]:
        """The receiver is gone: all that it may not have, in order."""
        left = list(self._kept)
        self._kept.clear()
        self._bytes = 0
        return left

    def _may_send(self) -> bool:
        on_way = self._sent - self._got
        return on_way < len(self._kept) and on_way < WINDOW and (not on_way or self._bytes_on_way < WINDOW_BYTES)

    def _take_want(self) -> bool:
        want, self._want = self._want, False
        return want


class Receiving:
    """The receiver's end."""

    def __init__(self) -> None:
        self.got = 0
        self._gap = False
        self._gap_told = -1
        self._untold = 0
        self.owes = False
        """The sender is to be told something, soon."""
        self.owes_now = False
        """... at once."""
        self.doubles = 0
        self.gaps = 0

    def take(self, lane: wire.Lane) -> list[bytes]:
        """The bodies that are new."""
        if lane.want:
            self.owes = self.owes_now = True
        if lane.first > self.got + 1:
            if lane.want or self._gap_told != self.got:
                self.gaps += self._gap_told != self.got
                self._gap, self._gap_told = True, self.got
                self.owes = self.owes_now = True
            return []
        if not lane.bodies:
            return []
        doubles = min(self.got + 1 - lane.first, len(lane.bodies))
        self.doubles += doubles
        new = lane.bodies[doubles:] if doubles else lane.bodies
        self.got += len(new)
        self._untold += len(new)
        self.owes = True
        self.owes_now = self.owes_now or self._untold >= ACK_EVERY
        return new

    def tell(self) -> tuple[int, bool]:
        """(got, gap): all that the sender is to know; it counts as told."""
        gap, self._gap = self._gap, False
        self.owes = self.owes_now = False
        self._untold = 0
        return self.got, gap
