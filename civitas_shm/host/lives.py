"""The lives of agents in their processes: the orders that begin and end one, and the deadlines of both.

Rules of this file:
- what begins and ends is decided in the tree; what is decided here is only when to wait no longer;
- an agent that keeps no deadline is ended with its process, for nothing else can end it. In the caller's own process,
  which nobody but its user may end, it counts as failed and is left behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import msgspec

from ..placement import MAIN
from ..supervision import Tree
from ..supervision.state import ChildState
from ..topology.model import Drain
from .homes import Homes
from .processes import Processes
from .protocol import CrashAgent, StartAgent, SteerAgent, StopAgent
from .seats import Resident, Seat

__all__ = ["Lives"]

STOP_GRACE_S: Final = 1.5
"""Beyond an agent's own deadline: a handler that was cancelled may clean up for a second, and says so."""


class Lives:
    """Of all agents of one run."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        processes: Processes,
        homes: Homes,
        tree: Callable[[], Tree],
        left_behind: Callable[[Resident, str], None],
    ) -> None:
        """`left_behind`: told of an agent of `main` that kept no deadline, and why it counts as failed."""
        self._loop = loop
        self._processes = processes
        self._homes = homes
        self._tree = tree
        self._left_behind = left_behind

    def _seat_of(self, child: str) -> Seat:
        return self._processes.seats[self._homes.process_of(child).name]

    def _resident(self, state: ChildState, incarnation: int) -> tuple[Seat, Resident] | None:
        """That life of it, unless its end is on its way."""
        seat = self._seat_of(state.key)
        resident = seat.residents.get(state.agent)
        return None if resident is None or resident.incarnation != incarnation else (seat, resident)

    # --- begin --------------------------------------------------------------------------------------------------------

    def start(self, child: str, incarnation: int) -> None:
        """In its process, which is started if it is not there."""
        state = self._tree().children[child]
        spec = self._homes.specs[state.agent]
        seat = self._seat_of(child)
        resident = Resident(child, incarnation, spec)
        seat.residents[spec.name] = resident
        mailbox = self._homes.begin_life(spec.name, incarnation)
        if seat.worker is None and seat.name != MAIN:
            self._processes.start(seat)
        if seat.ready:
            self._limit_start(seat, resident)
        # Not only once the process is ready: the order waits in its socket, right behind the slot.
        self._processes.order(seat, StartAgent(msgspec.to_builtins(spec), mailbox, incarnation))

    def limit_starts(self, seat: Seat) -> None:
        """Its process is ready: from now on the starts of its agents have their deadlines."""
        for resident in list(seat.residents.values()):
            if not resident.limited:
                self._limit_start(seat, resident)

    def _limit_start(self, seat: Seat, resident: Resident) -> None:
        """The agent runner ends a start that awaits too long; this catches one that blocks its process."""
        timeout_s = resident.spec.start_timeout_s + STOP_GRACE_S
        resident.set_deadline(self._loop.call_later(timeout_s, self._start_late, seat, resident))

    def _start_late(self, seat: Seat, resident: Resident) -> None:
        why = (
            f"on_start of {resident.spec.name!r} blocked its process for more than {resident.spec.start_timeout_s:g} "
            "s; await something in it, or raise start_timeout_s"
        )
        self._end_by_force(seat, resident, why)

    # --- end ----------------------------------------------------------------------------------------------------------

    def stop(self, child: str, incarnation: int, deadline_s: float, drain: Drain) -> None:
        state = self._tree().children[child]
        found = self._resident(state, incarnation)
        if found is None:
            return
        seat, resident = found
        timeout_s = max(0.0, deadline_s - self._loop.time())
        resident.set_deadline(self._loop.call_later(timeout_s + STOP_GRACE_S, self._stop_late, seat, resident))
        self._processes.order(seat, StopAgent(state.agent, drain, timeout_s))

    def crash(self, child: str, incarnation: int, reason: str, counts: bool, wanted: bool) -> None:
        """End this life of an agent as if it had crashed; what comes of it is told as its crash."""
        state = self._tree().children[child]
        found = self._resident(state, incarnation)
        if found is None:
            return
        seat, resident = found
        resident.pardoned = not counts
        timeout_s = resident.spec.shutdown_timeout_s + STOP_GRACE_S  # its `on_stop` has as long as in a stop
        resident.set_deadline(self._loop.call_later(timeout_s, self._end_by_force, seat, resident, reason))
        self._processes.order(seat, CrashAgent(state.agent, reason, wanted))

    def steer(self, child: str, incarnation: int, number: int, what: str, fields: dict[str, Any]) -> bool:
        """Suspend or resume it. False: that life is not there."""
        state = self._tree().children[child]
        found = self._resident(state, incarnation)
        if found is None:
            return False
        self._processes.order(found[0], SteerAgent(state.agent, number, what, fields))
        return True

    def _stop_late(self, seat: Seat, resident: Resident) -> None:
        self._end_by_force(seat, resident, f"{resident.spec.name!r} did not stop in time")

    def _end_by_force(self, seat: Seat, resident: Resident, why: str) -> None:
        if seat.worker is not None:
            seat.forgiven = seat.forgiven or resident.pardoned
            self._processes.pool.kill(seat.worker, why)
        else:
            seat.remove(resident.spec.name)
            self._left_behind(resident, why)
