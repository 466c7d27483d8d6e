"""What one process waits for: asks and their deadlines, senders in line for room, and which of these a handler awaits.

Guarantees:
- an ask never expires early; the earliest one expires on time, others at most GRAIN_S late;
- one timer for everything, and none while nobody waits: a timer for each ask would cost more than the message, one in
  an idle process would wake it;
- while somebody waits, `on_look` is called every LOOK_S, and once more after the last wait has ended.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic_ns
from typing import Any, Final, Literal

from .deadlock import LOOK_S
from .transport import Wait

__all__ = ["NEVER_NS", "Expired", "RoomWait", "Waits"]

GRAIN_S: Final = 0.005
"""A bound on how often the table is scanned; no deadline of an ask is meant to the millisecond."""

NEVER_NS: Final = 1 << 63

_LOOK_NS: Final = int(LOOK_S * 1e9)


class Expired(Exception):
    """The deadline of an ask passed: set on its future, never seen outside."""


class RoomWait:
    """One sender in line for room in one mailbox."""

    __slots__ = ("awaited", "full", "id", "since_ns", "turn", "type")

    def __init__(self, number: int, message_type: str, turn: asyncio.Future[None]) -> None:
        self.id = number
        self.type = message_type
        self.since_ns = monotonic_ns()
        self.turn = turn
        self.awaited = turn
        """Its turn, later room."""
        self.full = False
        """It is the first in line, and its last try found no room."""


Ask = tuple[int, asyncio.Future[Any], int, str, int]
"""(deadline, future, mailbox that is asked, message type, asked when); times in nanoseconds of CLOCK_MONOTONIC."""


class Waits:
    """All waits of one process. Every method runs on the loop."""

    def __init__(self) -> None:
        self.asks: dict[int, Ask] = {}
        """By correlation; an ask puts itself in and takes itself out, and so does each wait for a chunk of a stream."""
        self.lines: dict[int, deque[RoomWait]] = {}
        """By mailbox; served in this order."""
        self.due_ns = NEVER_NS
        """When the timer fires; who puts in something earlier calls `arm`."""
        self.on_look: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rooms = itertools.count(1)

    def room_wait(self, message_type: str) -> RoomWait:
        """A place at the end of a line; the caller puts it there."""
        wait = RoomWait(next(self._rooms), message_type, asyncio.get_running_loop().create_future())
        if self.due_ns == NEVER_NS:
            self.arm(NEVER_NS)
        return wait

    # --- deadlines ------------------------------------------------------------------------------------------------

    def arm(self, deadline_ns: int) -> None:
        self._arm(deadline_ns, monotonic_ns())

    def _arm(self, due_ns: int, now_ns: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.on_look is not None:
            due_ns = min(due_ns, now_ns + _LOOK_NS)
        self.due_ns = due_ns
        self._timer = asyncio.get_running_loop().call_later(max(0, due_ns - now_ns) / 1e9, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        self.due_ns = NEVER_NS
        if self.on_look is not None:
            self.on_look()
        now_ns = monotonic_ns()
        for deadline_ns, future, _, _, _ in self.asks.values():
            if deadline_ns <= now_ns and not future.done():
                future.set_exception(Expired())
        # What has expired removes itself when its task runs; until then it must not arm the timer again.
        left = [ask[0] for ask in self.asks.values() if not ask[1].done()]
        if left or self.lines:
            self._arm(max(min(left, default=NEVER_NS), now_ns + int(GRAIN_S * 1e9)), now_ns)

    # --- who waits for whom ---------------------------------------------------------------------------------------

    def of(self, awaited: Mapping[asyncio.Future[Any], int], seen_ns: int) -> list[Wait]:
        """Which of these futures, each awaited by the agent of a mailbox, are asks or waits for room."""
        found = []
        for correlation, (_, future, target, kind, since_ns) in self.asks.items():
            agent = awaited.get(future)
            if agent is not None:
                found.append(Wait(agent, target, "ask", correlation, since_ns, seen_ns, kind))
        for mailbox, line in self.lines.items():
            if not line[0].full or line[0].awaited.done():
                continue  # there may be room, so nobody of this line is held up by the mailbox's agent
            for wait in line:
                agent = awaited.get(wait.awaited)
                if agent is not None:
                    found.append(Wait(agent, mailbox, "room", wait.id, wait.since_ns, seen_ns, wait.type))
        return found

    def end(self, kind: Literal["ask", "room"], number: int, error: Exception) -> bool:
        """Let one wait fail. False: it has ended already."""
        future: asyncio.Future[Any] | None = None
        if kind == "ask":
            if number in self.asks:
                future = self.asks[number][1]
        else:
            future = next((wait.awaited for line in self.lines.values() for wait in line if wait.id == number), None)
        if future is None or future.done():
            return False
        future.set_exception(error)
        return True
