"""The host's eye on a run: reads shared memory and /proc, tells verdicts, and lets the driver act on them.

Rules of this file: one timer for everything, no message to anybody who is well; what follows from a reading is decided
in `watch` and `deadlock`, which are pure; nothing here waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from ..deadlock import DeadlockWatch, deadlock_error
from ..transport import MailboxStats, RunMemory
from . import kernel
from .driver import Driver
from .events import EventLog
from .probes import Probes
from .protocol import EndWait
from .seats import Seat
from .watch import Busy, Observation, ProcessWatch

__all__ = ["POLL_S", "Watcher"]

POLL_S: Final = 0.25
"""How late a message can be whose sender was stopped between committing it and ringing: the one case that is not an
event. One timer for all processes; a timer in each would cost 0.024 % of a core. A deadlock needs two of these."""

VERDICTS_EVERY: Final = 4
"""Polls: processes are looked at once a second."""


class Watcher:
    """Of one run; `poll` is called every POLL_S."""

    def __init__(
        self, driver: Driver, memory: RunMemory, events: EventLog, probes: Probes, tend: Callable[[], None]
    ) -> None:
        self._driver = driver
        self._memory = memory
        self._events = events
        self._probes = probes
        self._tend = tend
        self._stopped_timeout_s = driver.placement.spec.watch.stopped_timeout_s
        self._deadlocks = DeadlockWatch()
        self._watches: dict[int, ProcessWatch] = {}
        """By pid: a successor begins anew."""
        self._probed: set[int] = set()
        """Slots."""
        self._polls = 0

    def poll(self) -> None:
        """Ring who sleeps beside work; end deadlocks; every VERDICTS_EVERY calls, look at processes and limits."""
        self._driver.counts.safety_rings += self._memory.safety_poll()
        self._driver.office.collect()  # of a process that could not say that it gave something up
        self._end_deadlocks()
        self._polls += 1
        if self._polls % VERDICTS_EVERY == 0:
            self._judge()
            self._enforce_memory_limits()
            self._tend()

    # --- deadlocks ------------------------------------------------------------------------------------------------

    def _end_deadlocks(self) -> None:
        for deadlock in self._deadlocks.look(self._memory.waits()):
            error = deadlock_error(deadlock, self._driver.homes.agent_of)
            youngest = deadlock.youngest
            agent = self._driver.homes.agent_of(youngest.agent)
            self._driver.counts.deadlocks += 1
            circle = [self._driver.homes.agent_of(wait.agent) for wait in deadlock.waits]
            self._events.emit("deadlock", agent=agent, agents=circle, cause=str(error))
            self._driver.processes.tell(agent, EndWait(youngest.kind, youngest.id, error.cycle))

    # --- processes ------------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        seats = [seat for seat in self._driver.seats.values() if seat.worker is not None and seat.ready]
        stats = {reading.name: reading for reading in self._memory.stats()}
        now_ns, now_s = time.monotonic_ns(), time.monotonic()
        watches: dict[int, ProcessWatch] = {}
        for seat in seats:
            assert seat.worker is not None
            pid = seat.worker.pid
            watch = watches[pid] = self._watches.get(pid) or ProcessWatch(self._stopped_timeout_s)
            if pid not in self._watches:
                self._probed.discard(seat.planned.slot)  # what its predecessor was asked
            self._look(seat, pid, watch, self._observe(seat, pid, stats, now_ns), now_s)
        self._watches = watches

    def _observe(self, seat: Seat, pid: int, stats: dict[str, MailboxStats], now_ns: int) -> Observation:
        slot = seat.planned.slot
        state, traced = kernel.process_state(pid)
        busy, waiting = [], 0
        for resident in seat.residents.values():
            reading = stats.get(resident.spec.name)
            if reading is None or not resident.ready:
                continue
            if (
                reading.busy_since_ns and len(reading.readers) == 1
            ):  # replicas share a cell: it cannot be told whose it is
                spec = resident.spec
                for_s = max(0, now_ns - reading.busy_since_ns) / 1e9
                busy.append(Busy(spec.name, for_s, spec.handle_timeout_s, 1 + spec.max_retries, reading.busy_since_ns))
            waiting += reading.waiting
        answered = slot not in self._probed or self._memory.answered(slot)
        return Observation(True, state, traced, answered, busy, waiting)

    def _look(self, seat: Seat, pid: int, watch: ProcessWatch, seen: Observation, now_s: float) -> None:
        slot = seat.planned.slot
        reading = watch.look(seen, now_s)
        if seen.answered:
            self._probed.discard(slot)
        if reading.probe:
            self._memory.probe(slot)
            self._probed.add(slot)
        seat.verdict = watch.told.value if watch.told else ""
        if reading.report:
            self._events.emit(
                "verdict",
                process=seat.name,
                pid=pid,
                verdict=reading.verdict.value,
                agents=sorted(busy.agent for busy in seen.busy) or None,
                for_s=round(reading.for_s, 3),
            )
        if reading.kill:
            self._driver.processes.kill_for_watch(seat, reading.kill, reading.convicted)

    def _enforce_memory_limits(self) -> None:
        limited = [seat for seat in self._driver.seats.values() if seat.planned.memory_limit_mb and seat.worker]
        if not limited:
            return
        samples = self._probes.sample({seat.worker.pid for seat in limited if seat.worker and seat.worker.pid})
        for seat in limited:
            sample = samples.get(seat.worker.pid) if seat.worker else None
            limit_mb = seat.planned.memory_limit_mb
            if sample and limit_mb and sample.private_bytes > limit_mb << 20:
                self._driver.processes.kill_for_memory(seat, sample.private_bytes)
