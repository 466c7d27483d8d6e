"""The processes of a run as its driver has them: who sits in which seat, how it starts, and what it is told.

Rules of this file:
- a process is started when the driver says so, and ends by itself or by the pool; no decision about agents is here;
- nothing waits for a process: an order to one that is not ready waits in its socket;
- `main`'s seat has no worker; what is said to it goes to the caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from ..clock import Clock
from ..placement import MAIN, Placement
from ..transport import RunMemory
from .events import EventLog
from .pool import Worker
from .protocol import Assign, ToWorker
from .seats import Seat, WorkerSettings

__all__ = ["ProcessPool", "Processes"]

PROCESS_START_TIMEOUT_S: Final = 30.0
"""From the order to `Ready`: no user code runs before it; on an idle machine it takes 2 ms, with a fresh exec 60 ms."""


class ProcessPool(Protocol):
    """What is needed of `pool.Pool`."""

    def assign(self, order: Assign, *, exec_env: dict[str, str] | None = None, memory_max_bytes: int = 0) -> Worker: ...
    def order(self, worker: Worker, message: ToWorker) -> None: ...
    def kill(self, worker: Worker, because: str) -> None: ...


class Processes:
    """One run's, main included."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        placement: Placement,
        memory: RunMemory,
        settings: WorkerSettings,
        events: EventLog,
        clock: Clock,
        *,
        to_main: Callable[[msgspec.Struct], object],
        agents_of: Callable[[str], int],
    ) -> None:
        """`agents_of`: how many agents a process is to have, by its name."""
        self._loop = loop
        self._memory = memory
        self._settings = settings
        self._events = events
        self._clock = clock  # the loop's own time stands still within one turn: good for timers, not for measuring
        self._to_main = to_main
        self._agents_of = agents_of
        self.pool: ProcessPool
        self.seats: dict[str, Seat] = {
            process.name: Seat(process, incarnation=memory.incarnation(process.slot)) for process in placement.processes
        }
        """By process."""
        self.main.ready = True

    @property
    def main(self) -> Seat:
        """The caller's own process."""
        return self.seats[MAIN]

    def seat_of(self, worker: Worker) -> Seat | None:
        """The seat that a worker has now; None for a standby, and for an earlier process of that name."""
        seat = self.seats.get(worker.process)
        return seat if seat is not None and seat.worker is worker else None

    # --- start --------------------------------------------------------------------------------------------------------

    def start(self, seat: Seat) -> None:
        """Have the pool give it a worker."""
        planned = seat.planned
        seat.incarnation += 1
        order = Assign(
            process=planned.name,
            slot=planned.slot,
            transport=self._settings.transport,
            attach=self._memory.attach_spec(
                planned.slot, seat.incarnation, self._settings.spin_ns if planned.spin else 0
            ),
            memory_fds=self._memory.fds(),
            env=dict(planned.env),
            cpus=list(planned.cpus),
            nice=planned.nice,
            import_paths=self._settings.import_paths,
            log_level=self._settings.log_level,
            log_levels=self._settings.log_levels,
            plugins=self._settings.plugins,
            agents=self._agents_of(planned.name),
        )
        if seat.died_at_s is not None:
            self._events.emit("process_restarting", process=seat.name)
        limit_mb = planned.memory_limit_mb
        seat.worker = self.pool.assign(
            order,
            exec_env=dict(planned.env) if planned.gpu else None,
            # Beside what the limit is about, the kernel counts the messages that it has sent and that wait.
            memory_max_bytes=(limit_mb << 20) + self._memory.plan.arena_bytes if limit_mb else 0,
        )
        seat.deadline = self._loop.call_later(PROCESS_START_TIMEOUT_S, self._late, seat, seat.worker)

    def ready(self, seat: Seat) -> None:
        """Its worker says so."""
        assert seat.worker is not None
        seat.settle()
        self._events.emit("process_started", process=seat.name, pid=seat.worker.pid)

    def recovered(self, seat: Seat) -> None:
        """Told if all agents of a process that had died are back."""
        if seat.died_at_s is None or not seat.ready or not all(r.ready for r in seat.residents.values()):
            return
        in_s = self._clock.monotonic_s() - seat.died_at_s
        seat.died_at_s = None
        pid = seat.worker.pid if seat.worker else None
        self._events.emit("process_recovered", process=seat.name, pid=pid, in_s=round(in_s, 6))

    def _late(self, seat: Seat, worker: Worker) -> None:
        if seat.worker is worker and not seat.ready:
            self.pool.kill(worker, f"it was not ready within {PROCESS_START_TIMEOUT_S:g} s of its start")

    # --- orders -------------------------------------------------------------------------------------------------------

    def order(self, seat: Seat, message: ToWorker) -> None:
        if seat.worker is None:
            self._to_main(message)
        else:
            self.pool.order(seat.worker, message)

    def tell(self, agent: str, message: ToWorker) -> None:
        """An order to the process that runs an agent, if any does just now."""
        for seat in self.seats.values():
            if agent in seat.residents and (seat.ready or seat.name == MAIN):
                self.order(seat, message)

    # --- kills --------------------------------------------------------------------------------------------------------

    def kill_for_chaos(self, seat: Seat) -> None:
        """SIGKILL; the death counts against nobody."""
        assert seat.worker is not None
        seat.forgiven = True
        self.pool.kill(seat.worker, "chaos")

    def kill_for_memory(self, seat: Seat, private_bytes: int) -> None:
        """It is over its `memory_limit_mb`."""
        if seat.worker is not None:
            seat.its_own_doing = True
            self.pool.kill(
                seat.worker,
                f"memory limit: {private_bytes >> 20} MiB taken, processes.{seat.name}.memory_limit_mb is "
                f"{seat.planned.memory_limit_mb}",
            )

    def kill_for_watch(self, seat: Seat, why: str, agent: str) -> None:
        """A verdict of `watch`: SIGKILL, which also ends who is stopped. `agent`: whose handler is to blame, if any."""
        if seat.worker is not None:
            seat.its_own_doing = bool(agent)
            seat.hung = True
            self.pool.kill(seat.worker, why)
