"""The host process, `python -m civitas_shm.host.main CONTROL_FD CALLER_PIDFD`: starts a run, watches it, ends it.

Rules of this file:
- no user code, no pydantic, no rich: what runs here decides over everybody's life and must not be taken down by it;
- it lives exactly as long as the run; when the caller is gone it ends the run at once and keeps what waits;
- whatever goes wrong before the first agent starts is told to the caller as the error that it is (`Refused`);
- it is in a session of its own, so that Ctrl-C at the terminal reaches the caller alone; SIGTERM here is a stop too.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import msgspec

from ..clock import SystemClock
from ..control.server import ControlServer
from ..errors import CivitasError, ConfigurationError
from ..log_file import settle
from ..notify import ServiceReports
from ..placement import Placement, place
from ..redaction import keep_secret
from ..topology.model import Drain, TopologySpec
from ..topology.secrecy import secrets_of
from ..transport import SLOT_MAIN, MemoryPlan, RunMemory, load_transport
from . import cgroups, descriptors, kernel, strays, wire
from .announcer import Announcer
from .cgroups import Groups
from .chaos import ChaosMaker
from .charting import Charting
from .desk import HostDesk
from .driver import Driver
from .events import EventLog
from .forkserver import keep_descriptors_here
from .loop import new_loop
from .pool import Pool, PoolBroken
from .probes import Probes
from .protocol import (
    AgentReport,
    Boot,
    ClientComes,
    Ended,
    FromCaller,
    Happened,
    Judgement,
    Ready,
    Refused,
    Request,
    Running,
    Snapshot,
    Stop,
    WantSnapshots,
    Welcome,
)
from .readings import Readings
from .seats import Outcome, WorkerSettings
from .spawned import Journal
from .watcher import POLL_S, Watcher

__all__ = ["Host", "main"]

SPIN_NS: Final = 20_000
"""How long a process with a core of its own looks for messages before it sleeps; the median gap under load is below."""

LEAVE_TIMEOUT_S: Final = 2.0
"""What a process whose agents are all stopped gets to end by itself: atexit handlers, threads of its user."""

LAST_WORDS_S: Final = 5.0
"""How long the last message may wait for a caller that does not read."""


class Host:
    """One run. `run` is its life."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, caller_pidfd: int) -> None:
        self._loop = loop
        self._clock = SystemClock()
        self._caller_pidfd = caller_pidfd
        self._boot: asyncio.Future[Boot] = loop.create_future()
        self._main_ready: asyncio.Future[None] = loop.create_future()
        self._gone = False
        self._driver: Driver | None = None
        self._pool: Pool | None = None
        self._readings: Readings | None = None
        self._desk: HostDesk | None = None
        self._control: ControlServer | None = None
        self._service: ServiceReports | None = None
        self._polls = 0
        self._probes = Probes()
        self._keeper = 0
        self._started_s = 0.0
        self._snapshots: asyncio.TimerHandle | None = None
        self._snapshot_interval_s = 0.0
        self._ever_ran = False
        self._caller: wire.Channel[FromCaller] = wire.Channel(loop, sock, FromCaller, self._heard, self._caller_gone)
        self._tell = Announcer(loop, self._caller)
        # Its end is seen also when a child that it has forked holds the socket open.
        loop.add_reader(caller_pidfd, self._caller_gone, None)
        loop.set_exception_handler(self._fault)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop, False)

    async def run(self) -> int:
        """From the boot message to the end of the run. Returns this process's exit status."""
        await asyncio.wait([self._boot])
        if self._boot.cancelled():
            return 1  # the caller died before it could say what it wants
        try:
            return await self._live(self._boot.result())
        except CivitasError as error:
            self._tell.now(Refused(type(error).__name__, str(error), error.exit_code))
            await self._caller.drained(LAST_WORDS_S)
            return error.exit_code
        finally:
            self._tell.flush()
            self._caller.close()
            self._loop.remove_reader(self._caller_pidfd)
            if self._keeper:
                kernel.end_keeper(self._keeper)

    async def _live(self, boot: Boot) -> int:
        spec = TopologySpec.from_plain(boot.topology)
        keep_secret(secrets_of(spec))
        placement = place(
            spec, kernel.available_cpus(), boot.workers, numa_nodes=kernel.numa_nodes(), environ=os.environ
        )
        spec = placement.spec
        settings = _settings(spec, boot)
        descriptors.check(
            placement.slots_needed, len(placement.workers) + placement.standby, kernel.pid_of(self._caller_pidfd)
        )
        for stray in strays.end_strays():  # what an earlier run has left may hold what this one needs: ports, devices
            print(f"ended process {stray.pid}, left by the dead run {stray.run}: {stray.command}", file=sys.stderr)
        strays.mark_run(boot.name)
        pool = self._pool = Pool(
            self._loop,
            transport=spec.transport.type,
            user_preload=spec.pool.preload,
            import_paths=spec.import_paths,
            on_line=self._tell.line,
            on_broken=self._broken,
            groups=_groups(boot.name),
        )
        try:
            return await self._live_with(pool, boot, spec, placement, settings)
        finally:
            await pool.close()

    async def _live_with(
        self, pool: Pool, boot: Boot, spec: TopologySpec, placement: Placement, settings: WorkerSettings
    ) -> int:
        memory = _create_memory(spec, boot, placement.slots_needed)
        events = EventLog(self._clock, lambda event: self._tell.soon(Happened(event)))
        try:
            settle(None if boot.log_path is None else Path(boot.log_path), memory.run_dir)
            self._open_control(spec, memory)
            if boot.service is not None and self._desk is not None:
                self._service = ServiceReports(
                    self._loop, boot.service, status=self._desk.status_line, progress=lambda: self._polls
                )
            if self._desk is not None:
                events.keep(memory.run_dir)
            if boot.events_path is not None:
                events.open(boot.events_path)
            self._tell.now(
                Welcome(
                    memory.run_id,
                    memory.name,
                    spec.transport.type,
                    memory.attach_spec(
                        SLOT_MAIN,
                        memory.incarnation(SLOT_MAIN) + 1,
                        settings.spin_ns if placement.processes[0].spin else 0,
                    ),
                    len(memory.fds()),
                    [*placement.notes, *memory.told],
                ),
                memory.fds(),
            )
            driver = self._driver = Driver(
                self._loop,
                placement,
                memory,
                settings,
                events,
                self._clock,
                to_main=self._tell.soon,
                on_running=self._running,
                journal=_journal(spec, memory, boot.resume),
            )
            driver.processes.pool = pool
            keep_memory = load_transport(spec.transport.type).keep_memory
            self._keeper = keep_memory() if keep_memory is not None else 0
            pool.open(
                memory.fds(),
                standby=placement.standby,
                on_message=driver.heard,
                on_death=driver.died,
                keeper=self._keeper,
            )
            try:
                await asyncio.wait([self._main_ready])
                outcome = await self._supervise(boot, driver, pool, memory, events)
                if outcome.in_order:
                    await pool.dismiss(LEAVE_TIMEOUT_S)
            finally:
                await pool.close()
        except BaseException:
            if self._driver is not None:
                self._driver.office.close(memory.run_dir)
            self._close_control(memory, keep=bool(self._waiting(memory)))
            events.close()
            raise
        return await self._finish(boot, outcome, driver, memory, events)

    async def _supervise(self, boot: Boot, driver: Driver, pool: Pool, memory: RunMemory, events: EventLog) -> Outcome:
        self._started_s = self._loop.time()
        caller_pid = kernel.pid_of(self._caller_pidfd)
        self._readings = Readings(driver, memory, memory.name, boot.topology["transport"]["type"], caller_pid)
        if self._desk is not None:
            self._desk.driver = driver
        events.emit("run_started", pid=os.getpid(), run=memory.name, run_id=memory.run_id)
        if self._gone:
            driver.stop_now()
        elif not driver.stopping:  # by a pool that was broken before it was of use
            driver.start()
        watcher = Watcher(driver, memory, events, self._probes, pool.tend)
        charting = Charting(driver, memory, caller_pid, self._clock.wall_s())

        def poll() -> None:
            try:
                watcher.poll()
            except OSError as error:
                if not descriptors.exhausted(error):
                    raise  # else nobody can be looked at just now; messages do not need it
            charting.keep(self._desk.state if self._desk is not None else "running")
            self._polls += 1  # what the service manager's watchdog sees: the loop turns, and this work is done

        timers = [self._every(POLL_S, poll)]
        chaos = ChaosMaker(self._loop, boot.chaos, driver) if boot.chaos is not None else None
        try:
            return await driver.ended
        finally:
            if chaos is not None:
                chaos.close()
            for timer in timers:
                timer.cancel()
            self._want_snapshots(0)
            self._send_snapshot()  # the last one: what a summary is made of

    async def _finish(self, boot: Boot, outcome: Outcome, driver: Driver, memory: RunMemory, events: EventLog) -> int:
        driver.office.collect()
        letters = driver.office.close(memory.run_dir)
        waiting = self._waiting(memory)
        if outcome.error == "AgentImportError" and not self._ever_ran and not boot.resume:
            waiting = {}  # nothing has begun: the corrected program starts anew, and so do these messages
        self._close_control(memory, keep=bool(waiting))
        events.emit(
            "run_stopped",
            exit_code=outcome.exit_code,
            waiting=waiting or None,
            dead_letters=letters or None,
            cause=outcome.report,
        )
        events.close()
        self._tell.flush()
        counts = asdict(driver.counts) | {"dropped_lines": self._tell.dropped_lines}
        self._tell.now(Ended(outcome.exit_code, outcome.error, outcome.report, waiting, counts))
        await self._caller.drained(LAST_WORDS_S)
        return outcome.exit_code

    def _waiting(self, memory: RunMemory) -> dict[str, int]:
        """At the end: what waits, by agent, with what waits for its time."""
        waiting = memory.waiting()
        if self._driver is not None:
            for agent, count in self._driver.delays.close().items():
                waiting[agent] = waiting.get(agent, 0) + count
        return waiting

    # --- the caller ---------------------------------------------------------------------------------------------------

    def _heard(self, message: FromCaller, fds: list[int]) -> None:
        match message:
            case Boot():
                if not self._boot.done():
                    self._boot.set_result(message)
            case Ready():
                if not self._main_ready.done():
                    self._main_ready.set_result(None)
            case AgentReport(event, incarnation):
                if self._driver is not None:
                    self._driver.report(self._driver.processes.main, event, incarnation)
            case Request():
                if self._driver is not None:
                    self._driver.requested(self._driver.processes.main, message)
            case Judgement(number, refused):
                if self._driver is not None:
                    self._driver.judged(number, refused)
            case Stop(now, exit_code):
                self._asked_to_stop(now, exit_code)
            case WantSnapshots(interval_s):
                self._want_snapshots(interval_s)

    def _asked_to_stop(self, now: bool, exit_code: int = 0, drain: Drain | None = None) -> None:
        """By the caller, by a signal or over the control socket: the first in good order, the second at once."""
        if self._service is not None:
            self._service.stopping()
        if self._driver is None:
            self._caller_gone(None)  # before anything has begun: the same as if it were gone
        elif now or self._driver.stopping:
            self._driver.stop_now()
        else:
            self._driver.stop(exit_code, drain)

    def _caller_gone(self, error: Exception | None) -> None:
        """It died, or it broke the protocol: the run ends with it, at once; what waits is kept."""
        self._gone = True
        self._loop.remove_reader(self._caller_pidfd)
        self._boot.cancel()
        self._main_ready.cancel()
        if self._driver is not None:
            self._driver.stop_now()

    def _running(self) -> None:
        self._ever_ran = True
        if self._desk is not None:
            self._desk.running = True
        if self._service is not None:
            self._service.ready()
        self._tell.now(Running())

    # --- the control socket -------------------------------------------------------------------------------------------

    def _open_control(self, spec: TopologySpec, memory: RunMemory) -> None:
        self._desk = HostDesk(memory, kernel.pid_of(self._caller_pidfd), spec, self._clock, self._stop_over_control)
        try:
            self._control = ControlServer(self._loop, memory.run_dir, self._desk.answer, self._hand_over)
        except OSError as error:  # a file system without sockets: a run without ps is better than none
            print(f"{memory.run_dir}: no control socket can be had there ({error}); ps and stop do not reach this run.",
                  file=sys.stderr)  # fmt: skip

    def _stop_over_control(self, now: bool, drain: Drain | None) -> None:
        self._asked_to_stop(now, drain=drain)

    def _hand_over(self, fd: int) -> None:
        self._tell.now(ClientComes(), [fd])

    def _close_control(self, memory: RunMemory, *, keep: bool) -> None:
        """The socket goes while the directory is ours; who waits for the end is told when the lock is free."""
        if self._service is not None:
            self._service.stopping()
            self._service.close()
        if self._control is not None:
            self._control.stop_listening()
        memory.close(keep=keep)
        if self._control is not None:
            self._control.close()

    # --- timers -------------------------------------------------------------------------------------------------------

    def _every(self, interval_s: float, work: Any) -> _Ticker:
        return _Ticker(self._loop, interval_s, work)

    def _want_snapshots(self, interval_s: float) -> None:
        self._snapshot_interval_s = interval_s
        if self._snapshots is not None:
            self._snapshots.cancel()
            self._snapshots = None
        if interval_s > 0:
            self._snapshot_again()

    def _snapshot_again(self) -> None:
        self._snapshots = self._loop.call_later(self._snapshot_interval_s, self._snapshot_again)
        self._send_snapshot()

    def _send_snapshot(self) -> None:
        if self._readings is not None:
            samples = self._probes.sample(self._readings.pids())
            snapshot = self._readings.snapshot(samples, self._started_s, self._loop.time())
            self._tell.now(Snapshot(snapshot), droppable=True)

    def _fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception of ours in a callback: going on half-broken could hang the run, so it ends, and says why."""
        error = context.get("exception")
        what = str(context["message"]) if error is None else "".join(traceback.format_exception(error))
        print(what, file=sys.stderr)
        if self._driver is not None:
            report = f"The host process has a fault of its own; please report it.\n{what}"
            self._driver.stop_now(Outcome(1, report, "RunFailed", in_order=False))
        else:
            self._caller_gone(None)

    def _broken(self, error: PoolBroken) -> None:
        if self._driver is not None:
            self._driver.stop_now(Outcome(1, str(error), "SpawnError", in_order=False))


class _Ticker:
    """Calls at an interval until it is cancelled."""

    def __init__(self, loop: asyncio.AbstractEventLoop, interval_s: float, work: Any) -> None:
        self._loop = loop
        self._interval_s = interval_s
        self._work = work
        self._handle = loop.call_later(interval_s, self._tick)

    def _tick(self) -> None:
        self._handle = self._loop.call_later(self._interval_s, self._tick)
        self._work()

    def cancel(self) -> None:
        self._handle.cancel()


def _settings(spec: TopologySpec, boot: Boot) -> WorkerSettings:
    return WorkerSettings(
        transport=spec.transport.type,
        spin_ns=SPIN_NS if boot.spin_ns is None else boot.spin_ns,
        import_paths=list(spec.import_paths),
        log_level=spec.logging.level,
        log_levels=dict(spec.logging.agents),
        plugins=msgspec.to_builtins(spec.plugins),
    )


def _groups(name: str) -> Groups | None:
    """Cgroups of this run's workers, where some may be made."""
    where = cgroups.find_place()
    return Groups.open(where, strays.host_id(name)) if isinstance(where, cgroups.Place) else None


def _journal(spec: TopologySpec, memory: RunMemory, resume: bool) -> Journal | None:
    """Of agents that are spawned; none where no supervisor can have some, now or in the run that is resumed."""
    path = memory.run_dir / "spawned"
    if not spec.supervision.dynamic_supervisors() and not (resume and path.exists()):
        return None
    return Journal(path, resume=resume)


def _create_memory(spec: TopologySpec, boot: Boot, slots: int) -> RunMemory:
    module = load_transport(spec.transport.type)
    if not module.multi_process:
        raise ConfigurationError(
            f"transport {spec.transport.type!r} does not reach other processes; a host is of no use to it."
        )
    plan = MemoryPlan(
        slots=slots,
        mailboxes=spec.transport.mailboxes,
        arena_bytes=spec.transport.arena_mb << 20,
        kind=spec.transport.segments,
    )
    memory: RunMemory = module.create(boot.name, plan, fresh=boot.fresh, resume=boot.resume)
    return memory


def main(argv: list[str]) -> int:
    """The process's whole life."""
    keep_descriptors_here()
    gc.freeze()  # what was imported stays; collections need not look at it
    kernel.set_name("civ-host")
    kernel.become_subreaper()
    sock = socket.socket(fileno=int(argv[0]))
    caller_pidfd = int(argv[1])

    async def live() -> int:
        return await Host(asyncio.get_running_loop(), sock, caller_pidfd).run()

    with asyncio.Runner(loop_factory=new_loop) as loops:
        return loops.run(live())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
