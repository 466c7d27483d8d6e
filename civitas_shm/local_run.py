"""A run whose agents all live in this process: port, driver, events, log lines and readings put together.

`Runtime` holds either one of these or the client of a host; both offer the same few operations.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any, Final

from .bus import MessageBus
from .clock import SystemClock
from .errors import CivitasError, ConfigurationError, RunFailed
from .events import AgentEvent, AgentFailed, AgentResumed, AgentSuspended, DeadlockFound, StopRuntime
from .host.events import EventLog
from .host.reports import ended_sentence
from .letters import Letter
from .local_driver import LocalDriver, LocalPort, Outcome
from .log_lines import LogLines
from .plugins.installed import Plugins
from .port_bus import PortBus
from .process import AgentProcess
from .program import Program
from .redaction import keep_secret
from .snapshot import AgentSnapshot, ProcessSnapshot, RuntimeSnapshot, state_word
from .supervision import report_children
from .topology.model import AgentSpec, TopologySpec
from .topology.secrecy import secrets_of

__all__ = ["KILLED", "LocalRun"]

MAIN: Final = "main"

KILLED: Final = 130
"""Exit code of a run that was not given the time to stop in order: as of a program that Ctrl-C has ended."""


class LocalRun:
    """One run in this process. All methods belong to its loop."""

    def __init__(
        self,
        spec: TopologySpec,
        name: str,
        port: Any,
        build: Callable[[AgentSpec], AgentProcess],
        *,
        events_path: str | None,
        log_lines: bool,
        plugins: Plugins | None = None,
        program: Program | None = None,
        bus: MessageBus | None = None,
    ) -> None:
        """`bus`: over this port; messages travel by its transport then."""
        for operation in ("add_mailbox", "close_mailbox", "waiting", "waits", "bury", "buried"):
            if not hasattr(port, operation):
                raise ConfigurationError(
                    f"transport {spec.transport.type!r} runs in one process, so its port has to make and close "
                    f"mailboxes and keep dead letters itself; it has no {operation}()."
                )
        keep_secret(secrets_of(spec))
        self._spec = spec
        self._name = name
        self._port: LocalPort = port
        self._build = build
        self._agents: dict[str, AgentProcess] = {}
        """The newest object of each."""
        self._loop = asyncio.get_running_loop()
        self._events = EventLog(SystemClock(), lambda event: None)
        if events_path is not None:
            self._events.open(events_path)
        self._log_lines = LogLines(spec.logging) if log_lines else None
        self._exit_code = 0
        self._stopping: asyncio.Task[Outcome] | None = None
        self._finished: asyncio.Future[int] = self._loop.create_future()
        self._began_s = time.monotonic()
        self._readings: dict[str, tuple[float, int]] = {}
        self._last_snapshot = RuntimeSnapshot(name=name, transport=spec.transport.type)
        self._process: Any = None
        self._report = ""
        """Why supervision gave up."""
        self._carried = bus
        self._driver = LocalDriver(
            spec.supervision,
            self._port,
            self._built,
            on_event=self._happened,
            plugins=plugins,
            program=program,
            bus=bus,
        )
        self.bus: PortBus = self._driver.runner.bus

    # --- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start every agent, in order. RunFailed when supervision gave up over it."""
        self._port.start(self._loop)
        if self._carried is not None:
            await self._carried.start([agent.name for agent in self._spec.supervision.agents()])
        self._events.emit("run_started", process=MAIN, pid=os.getpid(), run=self._name)
        self._driver.ended.add_done_callback(self._supervision_ended)
        self._driver.start()
        try:
            await asyncio.shield(self._driver.running)
        except asyncio.CancelledError:
            await self.stop()
            raise
        if self._driver.ended.done() and self._driver.ended.result().failed:
            raise RunFailed(self._report)

    def request_stop(self, exit_code: int = 0) -> None:
        """Begin to stop in good order; the first one's exit code counts."""
        if self._stopping is None and not self._finished.done():
            self._exit_code = exit_code
            stop = self._spec.stop
            self._stopping = self._loop.create_task(self._driver.stop(stop.drain, stop.timeout_s))

    async def stop(self) -> None:
        """Stop in good order, and return when that is done. Idempotent."""
        self.request_stop()
        await asyncio.shield(self._finished)
        if self._carried is not None:
            await self._carried.stop()
        await self._driver.runner.plugins.close()

    async def wait(self) -> int:
        """The exit code, at the end of the run. RunFailed when supervision gave up."""
        code = await asyncio.shield(self._finished)
        failure = await self.failure()
        if failure is not None:
            raise failure
        return code

    async def failure(self) -> CivitasError | None:
        """Why the run has failed, if it has."""
        return RunFailed(self._report) if self._report else None

    def kill(self) -> None:
        """End at once: nothing is finished, no `on_stop` is called."""
        self._exit_code = KILLED
        self._driver.close()
        self._finish()

    def _supervision_ended(self, ended: asyncio.Future[Outcome]) -> None:
        outcome = ended.result()
        if outcome.failed:
            self._exit_code = 1
            self._report = outcome.report
        self._finish()

    def _finish(self) -> None:
        if self._finished.done():
            return
        self._last_snapshot = self.snapshot()
        self._driver.delays.close()
        self._driver.office.collect()
        self._port.stop(self._report or ended_sentence(self._name, self._exit_code, {}))
        self._events.emit("run_stopped", exit_code=self._exit_code, cause=self._report)
        self._events.close()
        if self._log_lines is not None:
            self._log_lines.remove()
        self._finished.set_result(self._exit_code)

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return not self._finished.done()

    async def supervise(self, what: str, fields: dict[str, Any]) -> Any:
        """Ask supervision for something, as the program."""
        return await self._driver.supervise("", what, fields)

    def agent_names(self) -> list[str]:
        """All agents that there are just now."""
        return list(dict.fromkeys(child.agent for child in self._driver.tree.children.values()))

    # --- agents ---------------------------------------------------------------------------------------------------

    def agent(self, name: str) -> AgentProcess | None:
        """The object that runs just now, or ran last."""
        return self._agents.get(name)

    def _built(self, spec: AgentSpec) -> AgentProcess:
        agent = self._build(spec)
        self._agents[spec.name] = agent
        return agent

    def _happened(self, event: AgentEvent) -> None:
        if isinstance(event, StopRuntime):
            self.request_stop(event.exit_code)
        elif isinstance(event, AgentFailed):
            self._events.emit("agent_failed", process=MAIN, agent=event.agent, cause=f"{event.type}: {event.text}")
        elif isinstance(event, AgentSuspended):
            self._events.emit(
                "agent_suspended", process=MAIN, agent=event.agent, reason=event.reason, category=event.category
            )
        elif isinstance(event, AgentResumed):
            self._events.emit("agent_resumed", process=MAIN, agent=event.agent, approver=event.approver)
        elif isinstance(event, DeadlockFound):
            self._events.emit("deadlock", process=MAIN, agent=event.agent, cause=event.text)

    # --- readings -------------------------------------------------------------------------------------------------

    def waiting(self) -> dict[str, int]:
        """Messages that wait or are in hand, by agent. None outlive the run."""
        return {} if self._finished.done() else self._port.waiting()

    def dead_letters(self) -> list[Letter]:
        """The newest first; they are gone with this object."""
        return self._driver.office.store.letters()

    def snapshot(self) -> RuntimeSnapshot:
        """One reading; after the end, the last one."""
        if self._finished.done():
            return self._last_snapshot
        now_s = time.monotonic()
        return RuntimeSnapshot(
            name=self._name,
            transport=self._spec.transport.type,
            uptime_s=now_s - self._began_s,
            processes=(self._process_snapshot(),),
            agents=self._agent_snapshots(now_s),
        )

    def _process_snapshot(self) -> ProcessSnapshot:
        if self._process is None:
            import psutil  # only for who looks: 15 ms

            self._process = psutil.Process()
        with self._process.oneshot():
            cpu_percent, rss_bytes = self._process.cpu_percent(None), self._process.memory_info().rss
        return ProcessSnapshot(MAIN, pid=os.getpid(), cpu_percent=cpu_percent, rss_bytes=rss_bytes)

    def _agent_snapshots(self, now_s: float) -> tuple[AgentSnapshot, ...]:
        found = []
        for child in report_children(self._driver.tree):
            stats = self._port.stats(self._driver.mailbox(child.name))
            before_s, handled_before = self._readings.get(child.name, (self._began_s, 0))
            self._readings[child.name] = (now_s, stats.handled)
            passed_s = now_s - before_s
            found.append(
                AgentSnapshot(
                    child.name,
                    process=MAIN,
                    supervisor=child.supervisor,
                    queue=stats.waiting,
                    handled=stats.handled,
                    dropped=stats.dropped,
                    rate_per_s=(stats.handled - handled_before) / passed_s if passed_s > 0 else None,
                    handler_p50_us=stats.handler_p50_us,
                    restarts=child.restarts,
                    state=state_word(child.status, stats.suspended_since_s),
                )
            )
        return tuple(found)
