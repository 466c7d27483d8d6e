"""What the death of a process was, and what it means: for the messages that it had in hand, and for budgets.

Rules of this file: called when the process is surely gone, before anything may be handed over to a successor; the order
is repair of memory, report, judgement of what was in hand. What it means is decided in `delivery` and `verdicts`.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

from ..delivery import blame_of
from ..transport import RunMemory
from . import kernel
from .events import in_hand_plain
from .homes import Homes
from .kernel import Exit
from .pool import Worker
from .reports import Death, cause_of, death_report
from .seats import Seat
from .verdicts import Verdicts

__all__ = ["Deaths", "Finding"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Of one death."""

    death: Death
    report: str
    redelivered: int
    """Messages that it had in hand and that are handed over again."""
    counts: bool
    """Against the budgets of the supervisors that had a child in it."""


class Deaths:
    """The examiner of one run."""

    def __init__(self, memory: RunMemory, homes: Homes, verdicts: Verdicts) -> None:
        self._memory = memory
        self._homes = homes
        self._verdicts = verdicts
        self._count_oom_kills = kernel.OomKills()
        self._oom_kills = self._count_oom_kills()

    def examine(self, seat: Seat, worker: Worker, exit_: Exit | None, *, pardoned: bool) -> Finding:
        """Before the seat is vacated. `pardoned`: whatever it was, nobody is to blame, for the run ends."""
        in_hand = self._memory.slot_died(seat.planned.slot)
        kills = self._count_oom_kills()
        counted = worker.group is not None and worker.group.memory
        # Of its own group the kernel's word is exact; else the count of all may be somebody else's.
        out_of_memory = worker.oom_kills > 0 if counted else kills > self._oom_kills
        limit_mb = worker.memory_max_bytes >> 20 if worker.reached_its_limit else 0
        death = Death(
            process=seat.name,
            pid=worker.pid,
            cause=cause_of(exit_, worker.killed_because, out_of_memory, limit_mb, seat.planned.memory_limit_mb),
            in_hand=in_hand_plain(in_hand, self._homes.agent_of),
            tail=worker.tail,
        )
        self._oom_kills = max(self._oom_kills, kills)  # 0 where it cannot be read
        report = death_report(death)
        blame = blame_of(
            forgiven=seat.forgiven or pardoned,
            killed_by_us=bool(worker.killed_because),
            for_what_it_did=seat.its_own_doing,
            sigkill=exit_ is not None and exit_.signal == signal.SIGKILL,
            out_of_memory=out_of_memory,
        )
        starting = not all(resident.ready for resident in seat.residents.values())
        convicted = self._verdicts.after(in_hand, blame, self._homes.limits(), starting, death)
        return Finding(
            death=death,
            report=report,
            redelivered=len(in_hand) - convicted,
            # With the message that is to blame gone, the death says nothing about the agents any more.
            counts=not (seat.forgiven or pardoned or convicted),
        )
