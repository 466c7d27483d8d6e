"""What a process of the run does when the host orders it: in a worker, and in the caller for the agents of `main`.

Rules of this file: an order never blocks the loop for others beyond the agent's own code; it is answered by a report,
success or not, so the host is never left to guess; orders for one agent are done in the order in which they came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import msgspec

from ..errors import DeadlockError, TransportClosed
from ..events import AgentEvent, AgentExited, AgentFailed, AgentSteered
from ..loading import build_agent
from ..plugins.installed import Plugins
from ..process import AgentProcess
from ..requests import error_of
from ..runner import AgentRunner
from ..topology.model import AgentSpec
from ..tracebacks import error_text, format_exception
from ..transport import Port
from .protocol import AgentReport, Answer, CrashAgent, EndWait, Known, Request, StartAgent, SteerAgent, StopAgent

__all__ = ["Orders"]

Build = Callable[[AgentSpec], AgentProcess]


class Orders:
    """Obeys over one Port; `send` takes the reports."""

    def __init__(
        self,
        port: Port,
        send: Callable[[msgspec.Struct], object],
        build: Build = build_agent,
        plugins: Plugins | None = None,
        expected: int | None = None,
    ) -> None:
        self.runner = AgentRunner(
            port, on_event=self._report, plugins=plugins, supervise=self.supervise, expected=expected
        )
        self.runner.bus.registry.refreshed_by(lambda: self.supervise("", "roster", {}))
        self._send = send
        self._build = build
        self._last: dict[str, asyncio.Task[None]] = {}
        """By agent: the order that is being done, behind all earlier ones."""
        self._steering: set[asyncio.Task[None]] = set()
        self._requests: dict[int, asyncio.Future[Any]] = {}
        self._last_request = 0
        self._closed = False
        self._why = "this process has left the run"
        self._lives: dict[str, int] = {}
        """By agent: the incarnation that runs here, or is being started."""

    def obey(self, message: StartAgent | StopAgent | CrashAgent | SteerAgent | EndWait | Answer | Known) -> None:
        """Begin to do it."""
        work: Callable[[], Awaitable[None]]
        match message:
            case Answer():
                self._answered(message)
                return
            case Known():
                self._known(message)
                return
            case EndWait():
                self.runner.bus.waits.end(message.kind, message.id, DeadlockError(message.cycle))
                return
            case StartAgent():
                spec = msgspec.convert(message.spec, AgentSpec)
                name, work = spec.name, partial(self._start, spec, message.mailbox, message.incarnation)
            case StopAgent(name=name):
                work = partial(self._stop, message)
            case CrashAgent(name=name):
                work = partial(self.runner.crash, name, message.reason, message.wanted)
            case SteerAgent():
                self._tend(self._steer(message, self._last.get(message.name)))
                return
        before = self._last.get(name)
        if not isinstance(message, StartAgent) and name in self.runner.agents:
            before = None  # an end overtakes a start that has not returned: the runner cancels it
        self._last[name] = asyncio.get_running_loop().create_task(self._in_turn(name, before, work))

    async def supervise(self, asker: str, what: str, fields: dict[str, Any]) -> Any:
        """Ask the host, and return when it has done it, with its answer; raises the error that it answers."""
        if self._closed:
            raise TransportClosed(self._why)
        self._last_request += 1
        request = self._last_request
        answered = self._requests[request] = asyncio.get_running_loop().create_future()
        self._send(Request(request, asker, what, fields))
        try:
            return await answered
        finally:
            self._requests.pop(request, None)

    def _known(self, news: Known) -> None:
        roster = self.runner.bus.roster
        for agent, traits in news.traits.items():
            if traits is None:
                roster.drop(agent)
            else:
                roster.put(agent, traits)
        if news.all is not None:
            roster.keep_only(news.all)

    def _answered(self, answer: Answer) -> None:
        waiting = self._requests.get(answer.id)
        if waiting is None or waiting.done():
            return  # whoever asked was cancelled meanwhile
        if answer.error:
            waiting.set_exception(error_of(answer.error, answer.text))
        else:
            waiting.set_result(answer.value)

    async def close(self, why: str = "") -> None:
        """Give up what is still being done: the process leaves. Agents that still run are not stopped.

        `why`: what those are told who wait for an answer of the host.
        """
        self._why = why or self._why
        self._closed = True
        for waiting in self._requests.values():
            if not waiting.done():
                waiting.set_exception(TransportClosed(self._why))
                waiting.exception()  # who is torn down as well does not look any more
        tasks = [*self._last.values(), *self._steering]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.runner.plugins.close()

    async def _in_turn(
        self, agent: str, before: asyncio.Task[None] | None, work: Callable[[], Awaitable[None]]
    ) -> None:
        try:
            if before is not None:
                await asyncio.wait([before])
            await work()
        finally:
            if self._last.get(agent) is asyncio.current_task():
                del self._last[agent]

    async def _start(self, spec: AgentSpec, mailbox: int, incarnation: int) -> None:
        if spec.name in self.runner.agents:  # it kept no deadline, and was left behind
            await self.runner.stop(spec.name, timeout_s=0.0)
        self._lives[spec.name] = incarnation
        try:
            agent = self._build(spec)
        except Exception as error:  # noqa: BLE001 - the user's constructor; the host decides what follows
            text = format_exception(error)
            self._report(AgentFailed(spec.name, type(error).__name__, error_text(error), text, "__init__", None))
            return
        try:
            await self.runner.start(agent, mailbox, spec)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self._report(AgentExited(spec.name, "stopped"))  # by a stop that overtook its start

    async def _stop(self, message: StopAgent) -> None:
        await self.runner.stop(message.name, drain=message.drain, timeout_s=message.timeout_s)

    async def _steer(self, order: SteerAgent, before: asyncio.Task[None] | None) -> None:
        """Behind the start of the agent, but beside its stop, which must not wait for a hook of the user's."""
        if before is not None:
            await asyncio.wait([before])
        try:
            await self.runner.steer(order.name, order.what, order.fields)
        except Exception as error:  # noqa: BLE001 - the agent's own hook: told to whoever asked
            self._report(AgentSteered(order.name, order.number, type(error).__name__, str(error)))
        else:
            self._report(AgentSteered(order.name, order.number))

    def _tend(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._steering.add(task)
        task.add_done_callback(self._steering.discard)

    def _report(self, event: AgentEvent) -> None:
        is_end = isinstance(event, AgentExited | AgentFailed)
        incarnation = self._lives.pop(event.agent, 0) if is_end else self._lives.get(event.agent, 0)
        self._send(AgentReport(event.to_plain(), incarnation))
