"""A run under a host process, as the program that started it sees it: the client of the host with what `Runtime` needs.

Rules of this file: the host decides and this follows; one task waits for the end, and whoever wants to know waits for
that task; readings are asked of the host only when somebody looks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from .dead_letters import read_letters
from .errors import TransportClosed
from .host.client import Ended, HostClient, HostOptions
from .letters import Letter
from .loading import argv_handed_down
from .local_run import KILLED
from .log_lines import LogLines, line_printer
from .port_bus import PortBus
from .process import AgentProcess
from .program import Program
from .snapshot import AgentSnapshot, ProcessSnapshot, RuntimeSnapshot, state_word
from .topology.model import AgentSpec, TopologySpec
from .transport import MailboxStats, load_transport

__all__ = ["HostedRun"]

LOOK_S: Final = 1.0
"""How often the host takes a reading while somebody looks: as often as a screen is drawn."""


FAREWELL_S: Final = 5.0
"""How long the host's process may take to end after its last message."""


class HostedRun:
    """One run under a host. All methods belong to the loop that called `start`."""

    def __init__(
        self,
        spec: TopologySpec,
        options: HostOptions,
        build: Callable[[AgentSpec], AgentProcess],
        *,
        log_lines: bool,
        program: Program | None = None,
    ) -> None:
        self._spec = spec
        self._name = options.name
        self._agents: dict[str, AgentProcess] = {}
        """The newest object of each that lives in this process."""
        self._build = build
        self._client = HostClient(
            spec,
            options,
            on_line=line_printer(spec.logging.format),
            on_event=self._happened,
            on_snapshot=self._seen,
            build=self._built,
            program=program,
        )
        self._log_lines = LogLines(spec.logging) if log_lines else None
        self._end: asyncio.Task[Ended] | None = None
        self._stop_asked = False
        self._exit_code = 0
        self._telling: asyncio.Task[None] | None = None
        self._looking = False
        self._processes: dict[str, ProcessSnapshot] = {}
        self._last_snapshot = RuntimeSnapshot(name=self._name, transport=spec.transport.type)
        self._waiting: dict[str, int] = {}

    # --- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start host, workers and agents. Raises what prevented it; then nothing is left."""
        try:
            with argv_handed_down():
                await self._client.start()
            self._end = asyncio.get_running_loop().create_task(self._client.wait())
            self._end.add_done_callback(_looked_at)
            if self._stop_asked:
                await self._client.stop(exit_code=self._exit_code)
            await self._client.running()
        except BaseException:
            await self._abandon()
            raise

    def request_stop(self, exit_code: int = 0) -> None:
        """Begin to stop in good order; the first one's exit code counts."""
        if not self._stop_asked:  # the host takes a second request as an order to kill
            self._stop_asked = True
            self._exit_code = exit_code
            self._tell(now=False)

    async def stop(self) -> None:
        """Stop in good order, and return when host and workers are gone. Idempotent; `wait` says how it ended."""
        if self._end is None:
            return
        if not self._end.done():
            self.request_stop()
            await asyncio.wait([self._end])
        self._forget_logging()

    async def wait(self) -> int:
        """The exit code, at the end of the run. Raises its error: RunFailed if supervision gave up or the host died."""
        if self._end is None:
            raise TransportClosed("the run was never started")
        ended = await asyncio.shield(self._end)
        return ended.exit_code

    async def failure(self) -> BaseException | None:
        """Why the run has failed, if it has. For those who found the port closed: the end is on its way then."""
        if self._end is None:
            return None
        await asyncio.wait([self._end], timeout=FAREWELL_S)
        return self._end.exception() if self._end.done() and not self._end.cancelled() else None

    def kill(self) -> None:
        """End at once. What waits stays in shared memory."""
        self._stop_asked = True
        self._exit_code = KILLED
        self._tell(now=True)

    def _tell(self, *, now: bool) -> None:
        if self._end is not None and not self._end.done():
            self._telling = asyncio.get_running_loop().create_task(
                self._client.stop(now=now, exit_code=self._exit_code)
            )

    async def _abandon(self) -> None:
        """`start` failed or was cancelled: see the run off."""
        if self._end is not None and not self._end.done():
            await self._client.stop(now=True)
            await asyncio.wait([self._end])
        self._forget_logging()

    def _forget_logging(self) -> None:
        if self._log_lines is not None:
            self._log_lines.remove()

    # --- agents and messages ------------------------------------------------------------------------------------------

    @property
    def bus(self) -> PortBus:
        return self._client.orders.runner.bus

    @property
    def alive(self) -> bool:
        """Whether it has begun and not ended yet."""
        return self._end is not None and not self._end.done()

    async def supervise(self, what: str, fields: dict[str, Any]) -> Any:
        """Ask supervision for something, as the program."""
        return await self._client.orders.supervise("", what, fields)

    def agent_names(self) -> list[str]:
        """All agents that there are just now."""
        names = self._client.port.names()
        declared = [agent.name for agent in self._spec.supervision.agents()]
        return declared + [name for name in names if name not in declared]

    def agent(self, name: str) -> AgentProcess | None:
        """The object of an agent of `main` that runs just now, or ran last."""
        return self._agents.get(name)

    def _built(self, spec: AgentSpec) -> AgentProcess:
        agent = self._build(spec)
        self._agents[spec.name] = agent
        return agent

    # --- readings -------------------------------------------------------------------------------------------------

    def waiting(self) -> dict[str, int]:
        """Messages that wait or are in hand; after the end, those that stay for `resume`."""
        if self._end is None or self._end.done():
            return self._waiting
        counts = {stats.name: stats.unfinished for stats in self._stats()}
        return {name: count for name, count in counts.items() if count}

    def dead_letters(self) -> list[Letter]:
        """As they lie in the run's directory, the newest first."""
        directory = load_transport(self._spec.transport.type).run_directory
        return [] if directory is None else read_letters(directory(self._name))

    def snapshot(self) -> RuntimeSnapshot:
        """The counts as they are, the rest from the host's last reading. The first call asks the host for readings."""
        if self._end is None or self._end.done():
            return self._last_snapshot
        if not self._looking:
            self._looking = True
            self._client.want_snapshots(LOOK_S)
        return self._with_counts()

    def _seen(self, snapshot: RuntimeSnapshot) -> None:
        self._last_snapshot = snapshot

    def _happened(self, event: dict[str, Any]) -> None:
        name = event.get("process", "")
        known = self._processes.get(name, ProcessSnapshot(name, restarts=-1))
        match event["event"]:
            case "process_started":
                known = replace(known, pid=event.get("pid"), state="running", restarts=known.restarts + 1)
                self._processes[name] = known
            case "process_died":
                self._processes[name] = replace(known, pid=None, state="dead")
            case "run_stopped":
                self._waiting = dict(event.get("waiting") or {})
                self._last_snapshot = self._with_counts()

    def _with_counts(self) -> RuntimeSnapshot:
        """Read from the memory, which is still mapped here at the last event: exact, whether anybody looked or not."""
        last = self._last_snapshot
        return replace(
            last,
            processes=self._process_readings(),
            agents=tuple(self._agent_readings()),
        )

    def _process_readings(self) -> tuple[ProcessSnapshot, ...]:
        """The host's last reading; of who has died or begun since then, what the event said."""
        readings = {process.name: process for process in self._last_snapshot.processes}
        for name, known in self._processes.items():
            read = readings.get(name)
            if read is None:
                readings[name] = known
            elif read.pid != known.pid:
                readings[name] = replace(read, pid=known.pid, state=known.state, cpu_percent=None, rss_bytes=None)
        return tuple(readings.values())

    def _agent_readings(self) -> list[AgentSnapshot]:
        known = {agent.name: agent for agent in self._last_snapshot.agents}
        found = []
        for stats in self._stats():
            agent = known.get(stats.name, AgentSnapshot(stats.name))
            state = state_word(agent.state, stats.suspended_since_s)
            found.append(replace(agent, queue=stats.waiting, handled=stats.handled, dropped=stats.dropped, state=state))
        return found

    def _stats(self) -> list[MailboxStats]:
        port = self._client.port
        mailboxes = (port.resolve(name) for name in self.agent_names())
        return [port.stats(mailbox) for mailbox in mailboxes if mailbox >= 0]


def _looked_at(end: asyncio.Task[Ended]) -> None:
    """Whether anybody asks how the run ended is up to the program; asyncio shall not complain if nobody does."""
    if not end.cancelled():
        end.exception()
