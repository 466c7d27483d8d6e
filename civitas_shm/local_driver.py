"""The driver of the supervision tree for agents that all live in this process: no host, no workers.

It performs the actions of the same `supervision.step` that the host performs, and keeps the promises of
`supervision.events`: an end is told only after `on_stop` has run, every start and stop is answered, what comes of an
action is told after the step that wanted it.

Rules of this file: nothing about restarts is decided here; all methods run on the loop; time comes from the clock.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from .clock import Clock, SystemClock
from .dead_letters import DeadLetterOffice, MemoryLetters
from .deadlock import DeadlockWatch, deadlock_error
from .delay_store import MemoryDelays
from .delays import Delays
from .errors import AgentError
from .events import AgentEvent, AgentExited, AgentFailed, AgentStarted, DeadLetter, DeadlockFound, EventHandler
from .letters import Note
from .messages import LANE_CONTROL
from .notices import encode_notice
from .plugins.installed import Plugins
from .port_bus import PortBus
from .process import AgentProcess
from .program import Program
from .requests import Requests, error_of
from .runner import AgentRunner
from .supervision import (
    Action,
    AddChild,
    CancelTimer,
    ChildExited,
    ChildFailed,
    ChildReady,
    ChildRemoved,
    Escalated,
    Event,
    Failed,
    GiveUpChild,
    Running,
    SetTimer,
    ShutDown,
    Start,
    StartChild,
    StopChild,
    Stopped,
    StopRequested,
    Timer,
    Tree,
    restart_count,
    step,
)
from .supervision.watch import CRASHED, FINISHED, STOPPED
from .topology.model import AgentSpec, Drain, SupervisorSpec
from .tracebacks import error_text, format_exception
from .transport import SENDER_PROGRAM, Burials, Buried, DelayPort, InHand, MailboxSpec, Port, Wait

__all__ = ["LocalDriver", "LocalPort", "Outcome"]

log: Final = logging.getLogger("civitas_shm.supervision")


class LocalPort(Port, Burials, DelayPort, Protocol):
    """A Port that also makes and closes mailboxes and keeps what is given up, because no host does."""

    def add_mailbox(self, spec: MailboxSpec) -> int: ...
    def close_mailbox(self, mailbox: int, keep: Callable[[Buried], object] | None = None) -> list[InHand]: ...
    def waiting(self) -> dict[str, int]: ...
    def waits(self) -> list[Wait]: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How supervision ended."""

    failed: bool
    report: str = ""


class LocalDriver:
    """One tree, from `start` until `ended` is done."""

    def __init__(
        self,
        spec: SupervisorSpec,
        port: LocalPort,
        build: Callable[[AgentSpec], AgentProcess],
        *,
        on_event: EventHandler,
        clock: Clock | None = None,
        seed: int = 0,
        plugins: Plugins | None = None,
        program: Program | None = None,
        bus: PortBus | None = None,
    ) -> None:
        """`bus`: over this port, for messages that travel by a transport of the user's own."""
        self._program = program
        self._loop = asyncio.get_running_loop()
        self._clock = clock or SystemClock()
        self._port = port
        self._build = build
        self._on_event = on_event
        self.runner = AgentRunner(port, on_event=self._happened, plugins=plugins, supervise=self.supervise, bus=bus)
        self.requests = Requests(self, self.runner.bus.roster)
        self.runner.on_look = self._find_deadlocks
        self._deadlocks = DeadlockWatch()
        self.office = DeadLetterOffice(port, MemoryLetters, self._clock)
        self.delays = Delays(self._loop, port, MemoryDelays, self.office.keep)
        spec = _one_replica(spec)
        self.tree = Tree.from_spec(spec, seed)
        self._specs = {agent.name: agent for agent in spec.agents()}
        self._mailboxes: dict[str, int] = {}
        self._incarnations: dict[str, int] = {}
        """Of the last start that was ordered."""
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._inbox: deque[Event] = deque()
        self._stepping = False
        self._drain: Drain = "current"
        self._stop_by_s: float | None = None
        self._last_tracebacks: dict[str, str] = {}
        self._pardoned: set[str] = set()
        """Children whose fall counts against nobody: a restart was asked for."""
        self.running: asyncio.Future[None] = self._loop.create_future()
        """Done when every agent has been started once, or when that is not to be any more."""
        self.ended: asyncio.Future[Outcome] = self._loop.create_future()

    # --- what the runtime asks for --------------------------------------------------------------------------------

    def start(self) -> None:
        """Make all mailboxes, then start the agents in order: each may send to later ones from its `on_start`."""
        for spec in self._specs.values():
            self._mailbox(spec)
            self.requests.declared(spec)
        self.delays.start(resumed=False)
        self._feed(Start())

    async def stop(self, drain: Drain, timeout_s: float) -> Outcome:
        """Stop everything in reverse order within `timeout_s`. `all`: first let the mailboxes run empty."""
        self._stop_by_s = self._clock.monotonic_s() + timeout_s
        if drain == "all" and not self.ended.done():
            await self.runner.drained(timeout_s)
        self._feed(StopRequested())
        return await asyncio.shield(self.ended)

    def close(self) -> None:
        """Cancel everything that is under way. For an end that was not waited for."""
        self.requests.close()
        for handle in self._timers.values():
            handle.cancel()
        for task in self._tasks:
            task.cancel()

    def mailbox(self, agent: str) -> int:
        """Where the agent's messages wait."""
        return self._mailboxes[agent]

    def spec(self, agent: str) -> AgentSpec:
        return self._specs[agent]

    # --- what agents ask for: see `requests` ----------------------------------------------------------------------

    async def supervise(self, asker: str, what: str, fields: dict[str, Any]) -> Any:
        """Do it; the answer. Raises why not. `asker`: an agent, or empty: the program."""
        answered: asyncio.Future[Any] = self._loop.create_future()

        def answer(error: str, text: str, value: Any = None) -> None:
            if answered.done():
                return  # whoever asked was cancelled
            if error:
                answered.set_exception(error_of(error, text))
            else:
                answered.set_result(value)

        self.requests.take(asker, what, fields, answer)
        return await answered

    @property
    def stopping(self) -> bool:
        return self._stop_by_s is not None or self.ended.done()

    @property
    def now_s(self) -> float:
        return self._clock.monotonic_s()

    def feed(self, event: Event) -> None:
        self._feed(event)

    def admit(self, wanted: AddChild) -> None:
        self._specs[wanted.agent.name] = wanted.agent
        self._mailbox(wanted.agent)

    def tell(self, agent: str, kind: str, name: str, reason: str) -> bool:
        mailbox = self._mailboxes.get(agent)
        if mailbox is not None:  # FULL cannot be: this lane has no end; CLOSED: it is gone itself
            self._port.post(mailbox, encode_notice(name, reason), kind, SENDER_PROGRAM, None, LANE_CONTROL, 0)
        return True

    def crash(self, child: str, incarnation: int, reason: str, counts: bool, wanted: bool = False) -> None:
        if self._incarnations.get(child) == incarnation:
            if not counts:
                self._pardoned.add(child)
            self._spawn(self.runner.crash(child, reason, wanted))

    def judge(self, wanted: AddChild, then: Callable[[str], None]) -> None:
        async def ask() -> None:
            program = self._program
            then("" if program is None else await program.may_spawn(wanted.supervisor, wanted.agent, wanted.spawner))

        self._spawn(ask())

    def steer(self, child: str, incarnation: int, number: int, what: str, fields: dict[str, Any]) -> bool:
        async def work() -> None:
            try:
                await self.runner.steer(child, what, fields)
            except Exception as error:  # noqa: BLE001 - the agent's own hook: told to whoever asked
                self.requests.steered(number, type(error).__name__, str(error))
            else:
                self.requests.steered(number)

        if child not in self.runner.agents:
            return False
        self._spawn(work())
        return True

    def suspended(self, agent: str) -> bool:
        return agent in self._mailboxes and self._port.stats(self._mailboxes[agent]).suspended_since_s > 0

    def later(self, delay_s: float, work: Callable[[], None]) -> object:
        return self._loop.call_later(delay_s, work)

    # --- the tree -------------------------------------------------------------------------------------------------

    def _feed(self, event: Event) -> None:
        self._inbox.append(event)
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._inbox:
                self.tree, actions = step(self.tree, self._inbox.popleft(), self._clock.monotonic_s())
                for action in actions:
                    self._perform(action)
        finally:
            self._stepping = False

    def _perform(self, action: Action) -> None:
        match action:
            case StartChild(child, incarnation):
                self._incarnations[child] = incarnation
                self._spawn(self._start_child(child, incarnation))
            case StopChild(child, incarnation, deadline_s, drain):
                self._spawn(self._stop_child(child, incarnation, deadline_s, drain or "current"))
            case SetTimer(number, at_s):
                delay_s = max(0.0, at_s - self._clock.monotonic_s())
                self._timers[number] = self._loop.call_later(delay_s, self._time_has_come, number)
            case CancelTimer(number):
                handle = self._timers.pop(number, None)
                if handle is not None:
                    handle.cancel()
            case GiveUpChild(child, _, reason):
                self.requests.given_up(child)
                self._close_mailbox(child, reason, given_up=True)
            case ChildRemoved(child, _, _, _, reason):
                self._close_mailbox(child, reason, given_up=True)
                del self._specs[child], self._mailboxes[child]
                self._incarnations.pop(child, None)
                self._last_tracebacks.pop(child, None)
                self.requests.removed(action)
            case Escalated(_, _, reason):
                log.error("%s", reason)
            case ShutDown(_, _, reason):
                log.info("%s", reason)
            case Running():
                self._set_running()
            case Stopped():
                self._end(Outcome(failed=False))
            case Failed(reason, _, child):
                traceback = self._last_tracebacks.get(child)
                self._end(Outcome(failed=True, report=f"{reason}\n{traceback}" if traceback else reason))

    def _end(self, outcome: Outcome) -> None:
        for name in self._mailboxes:
            self._close_mailbox(name, "the run has ended")
        self._set_running()
        self.requests.close()
        self.ended.set_result(outcome)

    def _set_running(self) -> None:
        if not self.running.done():
            self.running.set_result(None)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _time_has_come(self, number: int) -> None:
        del self._timers[number]
        self._feed(Timer(number))

    # --- agents ---------------------------------------------------------------------------------------------------

    async def _start_child(self, child: str, incarnation: int) -> None:
        """Ends in AgentStarted, AgentFailed or AgentExited, one of them in any case."""
        if self._incarnations.get(child) != incarnation or child in self.runner.agents:
            return
        spec = self._specs[child]
        try:
            agent = self._build(spec)
        except Exception as error:  # noqa: BLE001 - the user's constructor: as if on_start had failed
            text = format_exception(error)
            log.error("agent %r cannot be built:\n%s", child, text)
            self._happened(AgentFailed(child, type(error).__qualname__, error_text(error), text, "__init__"))
            return
        await self.runner.start(agent, self._mailbox(spec), spec)

    async def _stop_child(self, child: str, incarnation: int, deadline_s: float, drain: Drain) -> None:
        if child not in self.runner.agents:
            # Its start has been ordered and has not begun: it never will.
            self._incarnations[child] = -1
            self.requests.ended(child, incarnation, STOPPED)
            self._feed(ChildExited(child, incarnation, stop_action=False))
            return
        if self._stop_by_s is not None:
            deadline_s = min(deadline_s, self._stop_by_s)
        await self.runner.stop(child, drain=drain, timeout_s=max(0.0, deadline_s - self._clock.monotonic_s()))

    def _happened(self, event: AgentEvent) -> None:
        """From the runner: tell the tree, then whoever wants to know."""
        child = event.agent
        incarnation = self._incarnations.get(child, 0)
        if isinstance(event, AgentStarted):
            self._feed(ChildReady(child, incarnation))
            self.requests.ready(child, event.traits)
            self._tell_program(child, None)
        elif isinstance(event, AgentFailed):
            self._last_tracebacks[child] = event.traceback
            counts = child not in self._pardoned
            self._pardoned.discard(child)
            self._tell_program(child, event)
            self.requests.ended(child, incarnation, CRASHED, f"{event.type}: {event.text}", counts=counts)
            self._feed(ChildFailed(child, incarnation, f"{event.during} raised {event.type}: {event.text}", counts))
        elif isinstance(event, DeadLetter):
            self.office.collect()
        elif isinstance(event, AgentExited):
            self.requests.ended(child, incarnation, FINISHED if event.reason == "finished" else STOPPED)
            self._feed(ChildExited(child, incarnation, stop_action=event.reason == "finished"))
        self._on_event(event)

    def _tell_program(self, child: str, failed: AgentFailed | None) -> None:
        """That a child fell, or runs again."""
        state = self.tree.children.get(child)
        if self._program is None or state is None:
            return
        if failed is not None and not self.requests.restarting(child):
            error = failed.error or AgentError(child, failed.type, failed.text, failed.traceback)
            self._program.crashed(child, state.supervisor, error)
        elif failed is None and restart_count(self.tree, child):
            self._program.replaced(child, state.supervisor)

    def _find_deadlocks(self) -> None:
        """As the host does for others: every reading while anybody waits, and no timer while nobody does."""
        for deadlock in self._deadlocks.look(self._port.waits()):
            error = deadlock_error(deadlock, self._agent_of)
            log.error("deadlock: %s", error)
            youngest = deadlock.youngest
            self.runner.bus.waits.end(youngest.kind, youngest.id, error)
            self._on_event(DeadlockFound(self._agent_of(youngest.agent), str(error)))

    def _agent_of(self, mailbox: int) -> str:
        return self._port.stats(mailbox).name

    # --- mailboxes ------------------------------------------------------------------------------------------------

    def _mailbox(self, spec: AgentSpec) -> int:
        """Its mailbox; a new one where the last was closed."""
        mailbox = self._port.add_mailbox(MailboxSpec(spec.name, spec.mailbox_size, overflow=spec.overflow))
        self._mailboxes[spec.name] = mailbox
        return mailbox

    def _close_mailbox(self, name: str, reason: str, *, given_up: bool = False) -> None:
        note = Note(f"{name!r} was given up, and its mailbox closed: {reason}")
        keep = (lambda message: self.office.keep(message, note)) if given_up else None
        left = self._port.close_mailbox(self._mailboxes[name], keep)
        if left:
            log.warning("%d messages that waited for %r are gone: %s", len(left), name, reason)


def _one_replica(spec: SupervisorSpec) -> SupervisorSpec:
    """Replicas are processes; here is one."""
    children = [
        _one_replica(child) if isinstance(child, SupervisorSpec) else replace(child, replicas=1)
        for child in spec.children
    ]
    return replace(spec, children=children)
