"""The caller's side of a run: starts the host, attaches as slot 1, runs the agents of `main`, hears how it ends.

    client = HostClient(spec, HostOptions(name="demo"), on_line=print_line)
    port = await client.start()          # the memory is attached; agents of `main` are started as the host orders
    await client.running()               # every agent is ready; raises what prevented it
    …
    await client.stop()                  # in good order; a second call, or now=True, at once
    ended = await client.wait()          # Ended, or RunFailed when supervision gave up or the host died

Rules of this file: one client is one run; everything happens on the loop that called `start`; whatever way the run
ends, `wait` returns or raises once, the port is stopped (so pending asks fail), and no descriptor or process stays
behind.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..errors import AgentError, CivitasError, RunFailed, SpawnError
from ..loading import build_agent
from ..notify import ServiceSettings
from ..plugins.installed import Plugins
from ..program import Program
from ..redaction import keep_secret
from ..requests import error_of
from ..snapshot import RuntimeSnapshot
from ..supervisor import HeartbeatTimeout
from ..topology.model import AgentSpec, TopologySpec
from ..topology.secrecy import secrets_of
from ..transport import Port, load_transport
from . import kernel, wire
from .logs import as_text
from .orders import Build, Orders
from .protocol import (
    Answer,
    Boot,
    Chaos,
    ClientComes,
    CrashAgent,
    Ended,
    EndWait,
    FromHost,
    Happened,
    Judge,
    Judgement,
    Known,
    Leave,
    Life,
    Line,
    Output,
    Ready,
    Refused,
    Running,
    Snapshot,
    StartAgent,
    SteerAgent,
    Stop,
    StopAgent,
    WantSnapshots,
    Welcome,
)
from .reports import ended_sentence, waiting_sentence

if TYPE_CHECKING:
    from ..clients.server import ClientServer

__all__ = ["Chaos", "Ended", "HostClient", "HostOptions", "Line"]

_EXIT_GRACE_S: Final = 5.0
"""From the host's last message to the end of its process."""


@dataclass(frozen=True, slots=True)
class HostOptions:
    """What `run` is told beside the topology."""

    name: str
    workers: int | None = None
    resume: bool = False
    fresh: bool = False
    chaos: Chaos | None = None
    events_path: str | None = None
    log_path: str | None = None
    """A file that takes what the caller prints: the host makes it the run's log."""
    service: ServiceSettings | None = None
    """The service manager that the host reports to."""
    spin_ns: int | None = None
    """None: the host's default."""


def _print_line(line: Line) -> None:
    print(as_text(line), file=sys.stderr)


def _ignore(_: Any) -> None:
    pass


class HostClient:
    """One run, as its caller sees it."""

    def __init__(
        self,
        spec: TopologySpec,
        options: HostOptions,
        *,
        on_line: Callable[[Line], None] = _print_line,
        on_event: Callable[[dict[str, Any]], None] = _ignore,
        on_snapshot: Callable[[RuntimeSnapshot], None] = _ignore,
        build: Build = build_agent,
        program: Program | None = None,
    ) -> None:
        self._program = program
        self._judging: set[asyncio.Task[None]] = set()
        self._spec = spec
        self._options = options
        self._on_line = on_line
        self._on_event = on_event
        self._on_snapshot = on_snapshot
        self._build = build
        self._process: subprocess.Popen[bytes] | None = None
        self._host_pidfd = -1
        self._memory_fds: list[int] = []
        self._orders: Orders | None = None
        self._closing = False
        self._clients: ClientServer | None = None
        """Once somebody has come."""
        self.snapshot: RuntimeSnapshot | None = None
        """The last one that was wanted; the host sends one at the end in any case."""
        self.port: Port
        self.run_id = ""
        self.notes: list[str] = []
        """What the placement decided differently from what one might expect: sentences for the user."""

    @property
    def host_pid(self) -> int:
        """For tests and reports; 0 before `start`."""
        return self._process.pid if self._process else 0

    @property
    def orders(self) -> Orders:
        """The agents of `main`, and their bus (`orders.runner.bus`)."""
        if self._orders is None:
            raise RuntimeError("the run is not started")
        return self._orders

    async def start(self) -> Port:
        """Start the host and attach. Raises what the host refused: ConfigurationError, RunAlive, SharedMemoryFull …"""
        keep_secret(secrets_of(self._spec))
        loop = self._loop = asyncio.get_running_loop()
        self._welcome: asyncio.Future[None] = loop.create_future()
        self._running: asyncio.Future[None] = loop.create_future()
        self._ended: asyncio.Future[Ended] = loop.create_future()
        self._gone: asyncio.Future[None] = loop.create_future()
        mine, its = wire.socket_pair()
        with its:
            self._channel: wire.Channel[FromHost] = wire.Channel(loop, mine, FromHost, self._heard, self._lost)
            self._process = self._spawn(its.fileno())
        self._host_pidfd = os.pidfd_open(self._process.pid)
        loop.add_reader(self._host_pidfd, self._host_ended)
        options = self._options
        self._channel.send(
            Boot(
                topology=self._spec.to_plain(),
                name=options.name,
                workers=options.workers,
                resume=options.resume,
                fresh=options.fresh,
                chaos=options.chaos,
                events_path=options.events_path,
                log_path=options.log_path,
                service=options.service,
                spin_ns=options.spin_ns,
            )
        )
        try:
            await self._welcome
        except BaseException:
            await self._close()
            raise
        return self.port

    async def running(self) -> None:
        """Return when every agent is ready for the first time. Raises what ended the run before that."""
        awaited: list[asyncio.Future[Any]] = [self._running, self._ended]
        await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        if not self._running.done():
            await self.wait()
            raise SpawnError("the run was stopped before all of its agents had started")

    async def wait(self) -> Ended:
        """The end of the run. Raises its error: RunFailed (supervision gave up, the host died), AgentImportError …"""
        try:
            ended = await asyncio.shield(self._ended)
        finally:
            if self._ended.done():
                await self._close()
        if ended.error:
            error = error_of(ended.error, ended.report)
            if ended.waiting:
                error.add_note(waiting_sentence(ended.waiting))
            raise error
        return ended

    async def stop(self, *, now: bool = False, exit_code: int = 0) -> None:
        """Ask for the end; `wait` tells when it has come. The second call, or `now`, does not wait for handlers."""
        self._channel.send(Stop(now, exit_code))

    def want_snapshots(self, interval_s: float) -> None:
        """Call `on_snapshot` at this interval; 0 ends it. Costs a reading of /proc for each process."""
        self._channel.send(WantSnapshots(interval_s))

    # --- the host ------------------------------------------------------------------------------------------------

    def _spawn(self, control_fd: int) -> subprocess.Popen[bytes]:
        me = os.pidfd_open(os.getpid())  # the host sees our end by it, whoever may hold the socket
        try:
            return subprocess.Popen(
                [sys.executable, "-m", "civitas_shm.host.main", str(control_fd), str(me)],
                pass_fds=[control_fd, me],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={name: value for name, value in os.environ.items() if name not in self._spec.private_variables},
            )
        except OSError as error:
            raise SpawnError(f"The host process cannot be started: {error}.") from error
        finally:
            os.close(me)

    def _heard(self, message: FromHost, fds: list[int]) -> None:
        match message:
            case Welcome():
                self._attach(message, fds)
            case Refused(error, text, exit_code):
                self._fail(error_of(error, text, exit_code))
            case StartAgent() | StopAgent() | CrashAgent() | SteerAgent() | EndWait() | Answer() | Known():
                self.orders.obey(message)
            case Life():
                self._lived(message)
            case Judge(number, supervisor, agent, spawner):
                task = self._loop.create_task(self._judge(number, supervisor, agent, spawner))
                self._judging.add(task)
                task.add_done_callback(self._judging.discard)
            case Output(lines, dropped):
                if dropped:
                    lost = f"{dropped} lines were lost: they came faster than they were read"
                    self._on_line(Line(lines[0].time_s, "host", self.host_pid, "stderr", lost, level="WARNING"))
                for line in lines:
                    self._on_line(line)
            case Happened(event):
                if event["event"] == "run_stopping" and self._clients is not None:
                    self._clients.refuse(f"The run {self._options.name!r} is stopping: it takes nothing new.")
                self._on_event(event)
            case ClientComes():
                self._take_client(fds[0])
            case Snapshot(snapshot):
                self.snapshot = snapshot
                self._on_snapshot(snapshot)
            case Running():
                self._running.set_result(None)
            case Ended():
                if not self._ended.done():
                    self._ended.set_result(message)
            case Leave():
                pass  # the caller leaves when it has heard the end

    def _lived(self, life: Life) -> None:
        program = self._program
        if program is None:
            return
        if life.what == "replaced":
            program.replaced(life.agent, life.supervisor)
        elif life.what == "hung":
            program.crashed(life.agent, life.supervisor, HeartbeatTimeout(life.agent, 1, life.text))
        else:
            error = AgentError(life.agent, life.type, life.text, life.traceback)
            program.crashed(life.agent, life.supervisor, error)

    async def _judge(self, number: int, supervisor: str, agent: dict[str, Any], spawner: str) -> None:
        refused = ""
        if self._program is not None:
            refused = await self._program.may_spawn(supervisor, msgspec.convert(agent, AgentSpec), spawner)
        self._channel.send(Judgement(number, refused))

    def _attach(self, message: Welcome, fds: list[int]) -> None:
        self._memory_fds = fds
        self.run_id = message.run_id
        self.notes = message.notes
        try:
            attach = load_transport(message.transport).attach
            assert attach is not None  # the host has refused those
            self.port = attach(message.attach, fds)
            self.port.start(self._loop)
        except (CivitasError, OSError, ValueError) as error:
            self._fail(SpawnError(f"This process cannot attach to the run's memory: {error}."))
            return
        except Exception:
            self._fail(
                SpawnError("This process cannot attach to the run's memory: a fault of civitas-shm or its build.")
            )
            raise  # the loop tells it
        self._orders = Orders(self.port, self._channel.send, self._build, Plugins(self._spec.plugins))
        self._channel.send(Ready(message.attach["slot"]))
        self._welcome.set_result(None)

    def _take_client(self, fd: int) -> None:
        if self._clients is None:
            from ..clients.server import ClientServer  # only where a client comes

            self._clients = ClientServer(self._loop, self.orders.runner.bus, self._options.name, self.run_id)
        self._clients.take(fd)

    def _lost(self, error: Exception | None) -> None:
        """The host has closed; its pidfd says when it is gone."""
        if error is not None:
            kernel.kill(self._host_pidfd)

    def _host_ended(self) -> None:
        assert self._process is not None
        status = self._process.poll()
        if status is None:
            return
        self._loop.remove_reader(self._host_pidfd)
        self._channel.read_rest()
        how = str(kernel.Exit(status) if status >= 0 else kernel.Exit(0, -status))
        text = f"The host process (pid {self.host_pid}) died: {how}. Its workers were killed with it."
        self._fail(RunFailed(f"{text} {waiting_sentence(self._waiting())}".rstrip()))
        self._gone.set_result(None)

    def _waiting(self) -> dict[str, int]:
        """What a dead host has left: the memory is still mapped here."""
        if self._orders is None or self._closing:
            return {}
        readings = (self.port.stats(self.port.resolve(name)) for name in self.port.names())
        return {reading.name: count for reading in readings if (count := reading.unfinished)}

    def _farewell(self) -> str:
        """What has become of the run, for those who still wait for an answer; empty when that is not known."""
        if not self._ended.done():
            return ""
        if (error := self._ended.exception()) is not None:
            return str(error)
        ended = self._ended.result()
        if ended.error:
            return (
                f"The run {self._options.name!r} has failed: {ended.report} {waiting_sentence(ended.waiting)}".rstrip()
            )
        return ended_sentence(self._options.name, ended.exit_code, ended.waiting)

    def _fail(self, error: CivitasError) -> None:
        """The first reason holds; what has ended already is not failed."""
        for future in (self._welcome, self._ended):
            if not future.done():
                future.set_exception(error)
                future.exception()  # whoever awaits gets it; nobody need

    async def _close(self) -> None:
        """Leave the memory, see the host off, give back every descriptor. Idempotent."""
        if self._closing:
            return
        self._closing = True
        if self._orders is not None:
            why = self._farewell()
            if self._clients is not None:
                self._clients.close(why)
            await self._orders.close(why)
            self.port.stop(why)
        self._channel.close()
        await asyncio.wait([self._gone], timeout=_EXIT_GRACE_S)
        if not self._gone.done():  # it hangs at its end: nothing of the run depends on it any more
            kernel.kill(self._host_pidfd)
            await self._gone
        os.close(self._host_pidfd)
        for fd in self._memory_fds:  # not earlier: the lock of our slot goes with them
            os.close(fd)
        self._memory_fds.clear()
