"""The host's driver of the supervision tree: performs its actions on processes, memory and agents, and tells it what
comes of them.

Rules of this file:
- every start, restart and stop of an agent is an action of `supervision.step`; nothing is decided here but deadlines
  (a start, a stop, the whole stop), which the tree leaves to its driver;
- a child's end is told to the tree only when no code of it can run any more: its process said so, or is dead;
- the order at a death: reap (the pool), repair memory, report, tell the tree; so a successor finds everything in order;
- all methods run on the host's loop and none waits for a process; what comes later comes as a call or a timer.

Who calls: `main` (start, stop, what the caller says) and the pool (what workers say, and that they died).
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from ..clock import Clock
from ..dead_letters import DeadLetterOffice, FileLetters
from ..delay_store import FILE as DELAYED
from ..delay_store import FileDelays
from ..delays import Delays
from ..errors import AgentImportError, CivitasError
from ..letters import DIRECTORY as LETTERS
from ..letters import Letter, Note, count_letters
from ..placement import MAIN, Placement
from ..requests import Requests
from ..roster import Traits
from ..supervision import (
    Action,
    CancelTimer,
    ChildExited,
    ChildFailed,
    ChildReady,
    ChildRemoved,
    Escalated,
    Event,
    Failed,
    GiveUpChild,
    ProcessDied,
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
from ..supervision.state import ChildStatus
from ..supervision.watch import CRASHED, FINISHED, KILLED, STOPPED
from ..topology.model import Drain
from ..transport import RunMemory
from .audience import Audience
from .deaths import Deaths
from .events import EventLog
from .heralds import Heralds
from .homes import Homes
from .kernel import Exit
from .lives import Lives
from .pool import Worker
from .processes import Processes
from .protocol import AgentReport, Answer, Ready, Request
from .reports import failure_report
from .seats import Counts, Outcome, Resident, Seat, WorkerSettings
from .spawned import Hands, Journal
from .verdicts import Verdicts

__all__ = ["Driver"]

SUSPENSIONS: Final = {"AgentSuspended": "agent_suspended", "AgentResumed": "agent_resumed"}
"""What is said of it in the events of a run."""

DRAIN_LOOK_S: Final = 0.01
"""How often a stop with `drain: all` looks whether nothing waits any more; only at the end of a run."""


class Driver:
    """One run, from its first agent to its last."""

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
        on_running: Callable[[], None],
        seed: int | None = None,
        journal: Journal | None = None,
    ) -> None:
        self._loop = loop
        self._placement = placement
        self._memory = memory
        self._events = events
        self._clock = clock
        self._on_running = on_running
        self._tree = Tree.from_spec(
            placement.spec.supervision,
            seed=random.getrandbits(64) if seed is None else seed,
            departed=memory.last_incarnation(),
        )
        self.processes = Processes(
            loop, placement, memory, settings, events, clock, to_main=to_main, agents_of=self._agents_of
        )
        self.seats = self.processes.seats
        self._counted: Tree | None = None
        self._agents_in: Counter[str] = Counter()
        """By process, in the tree that was counted."""
        self._inbox: deque[Event] = deque()
        self._stepping = False
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._stop_code: int | None = None
        self._stop_asked = False
        self._drain_mode: Drain = placement.spec.stop.drain
        self._drained_at: dict[str, int] | None = None
        """What each agent had handled at the last look of a drain."""
        self._begun = False
        self._verdict: Outcome | None = None
        """Why the run must end though the tree would go on."""
        self._last_words: dict[str, str] = {}
        """By process or agent: the report of its last end."""
        self.counts = Counts()
        self.office = DeadLetterOffice(
            memory, lambda: FileLetters(memory.run_dir / LETTERS), clock, on_letter=self._letter_written
        )
        self._verdicts = Verdicts(memory, self.office)
        self.delays = Delays(loop, memory, lambda: FileDelays(memory.run_dir), self.office.keep)
        self.restarts: dict[str, int] = {}
        """By child."""
        self.homes = Homes(placement, memory, lambda: self._tree)
        self._lives = Lives(loop, self.processes, self.homes, lambda: self._tree, self._left_behind)
        self._deaths = Deaths(memory, self.homes, self._verdicts)
        self._hands = Hands(self, loop, memory, journal)
        self._journal = journal
        self.requests = Requests(self._hands)
        self._audience = Audience(to_main, lambda: self._tree, self.requests.restarting)
        self.judge, self.judged = self._audience.judge, self._audience.judged
        self._heralds = Heralds(loop, self.requests.roster, self.processes.order, self.processes.main)
        self.ended: asyncio.Future[Outcome] = loop.create_future()

    @property
    def placement(self) -> Placement:
        return self._placement

    @property
    def stopping(self) -> bool:
        """Whether a stop has been asked for."""
        return self._stop_asked

    @property
    def tree(self) -> Tree:
        return self._tree

    def process_of(self, child: str) -> str:
        """Name of the process that a child of the tree runs in."""
        return self.homes.process_of(child).name

    def _agents_of(self, process: str) -> int:
        if self._counted is not self._tree:  # once for all processes of a run that starts
            self._counted = self._tree
            living = (key for key, child in self._tree.children.items() if child.status is not ChildStatus.GONE)
            self._agents_in = Counter(map(self.process_of, living))
        return self._agents_in[process]

    # --- what main asks for ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Make all mailboxes, say who reads them, start the tree. So agents may send to later ones from `on_start`."""
        if count_letters(self._memory.run_dir) != 0 or self._memory.waiting(news=True):
            self._verdicts.settle(process.slot for process in self._placement.processes)
        for agent, spec in self.homes.specs.items():
            self.homes.open_mailbox(agent)
            self.requests.declared(spec)
        for wanted in self._journal.known() if self._journal is not None else []:
            refused = self.requests.adopt(wanted)
            if refused is not None:
                print(f"{refused} It was spawned in the run that is resumed; its messages wait.", file=sys.stderr)
        try:
            self.delays.start(resumed=(self._memory.run_dir / DELAYED).exists())
        # No mailbox is left, or a damaged file: the rest works.
        except (CivitasError, OSError) as error:
            print(f"Delayed messages cannot be kept in this run: {error}", file=sys.stderr)
        # All at once: agents start in order, one after the other, and each finds its process ready.
        for seat in self.seats.values():
            if seat.name != MAIN and seat.planned.agents:
                self.processes.start(seat)
        self.feed(Start())

    def stop(self, exit_code: int = 0, drain: Drain | None = None) -> None:
        """Stop in good order, last started first. `drain`: instead of the topology's. The first call's word holds."""
        if self._stop_asked or self.ended.done():
            return
        self._stop_asked = True
        self._stop_code = exit_code
        stop = self._placement.spec.stop
        self._drain_mode = drain or stop.drain
        self._events.emit("run_stopping")
        self._loop.call_later(stop.timeout_s, self._stop_by_force)
        if self._drain_mode == "all":
            self._drain()
        else:
            self.feed(StopRequested())

    def stop_now(self, outcome: Outcome | None = None) -> None:
        """No more waiting for anybody; what is left is killed."""
        self._stop_asked = True
        self._end(outcome or Outcome(self._stop_code or 0, in_order=False))

    def victims(self) -> list[Seat]:
        """Processes that chaos may hit: those that are ready, and none when the run is to end."""
        return [] if self._stop_asked else [seat for seat in self.seats.values() if seat.worker and seat.ready]

    def kill_for_chaos(self, seat: Seat) -> None:
        """SIGKILL one of the `victims`; the death counts against nobody."""
        self.processes.kill_for_chaos(seat)

    def note_stop(self, seat: Seat, for_s: float) -> None:
        """Chaos has stopped it for that long."""
        pid = seat.worker.pid if seat.worker else None
        self._events.emit("process_stopped", process=seat.name, pid=pid, for_s=for_s, cause="SIGSTOP (chaos)")

    # --- what processes say ------------------------------------------------------------------------------------------

    def heard(self, worker: Worker, message: Any) -> None:
        """From the pool: a worker has said something."""
        seat = self.processes.seat_of(worker)
        if seat is None:
            return
        match message:
            case Ready():
                self.processes.ready(seat)
                self._lives.limit_starts(seat)
                self.processes.recovered(seat)
            case AgentReport(event, incarnation):
                self.report(seat, event, incarnation)
            case Request():
                self.requested(seat, message)
            case _:
                self.processes.pool.kill(worker, f"it sent {type(message).__name__} out of turn")

    def died(self, worker: Worker, exit_: Exit | None) -> None:
        """From the pool: a process is gone, and nothing of it runs any more."""
        seat = self.processes.seat_of(worker)
        if seat is None or self.ended.done():
            return  # a standby, which the pool has replaced; or everybody leaves
        finding = self._deaths.examine(seat, worker, exit_, pardoned=self._stop_asked)
        death = finding.death
        self._last_words[seat.name] = finding.report
        children = tuple((resident.child, resident.incarnation) for resident in seat.residents.values())
        hung = seat.hung
        seat.vacate(self._clock.monotonic_s())
        self.counts.deaths += 1
        self.counts.redelivered += finding.redelivered
        self._events.emit(
            "process_died",
            process=seat.name,
            pid=death.pid,
            cause=death.cause,
            in_hand=death.in_hand,
            counts=finding.counts,
        )
        for child, incarnation in children:
            why = f"its process {seat.name} died: {death.cause}"
            self._audience.fell(child, "hung" if hung else "died", "ProcessDied", why)
            self.requests.ended(child, incarnation, KILLED, why, counts=finding.counts)
        self.feed(ProcessDied(seat.name, children, counts=finding.counts, reason=death.cause))

    def requested(self, seat: Seat, request: Request) -> None:
        """A process asks for something, for one of its agents or its program."""
        worker = seat.worker

        def answer(error: str, text: str, value: Any = None) -> None:
            if seat.worker is worker:  # else whoever asked has died
                self._heralds.flush()
                self.processes.order(seat, Answer(request.id, error, text, value))

        if request.what == "roster":
            self._heralds.subscribe(seat)
        self.requests.take(request.asker, request.what, request.fields, answer)

    def report(self, seat: Seat, event: Mapping[str, Any], incarnation: int) -> None:
        """An event of a process's agent runner, as plain values; of which life of its agent, if of any."""
        kind, agent = event.get("event"), str(event.get("agent"))
        if kind == "StopRuntime":
            self.stop(int(event["exit_code"]))
            return
        if kind == "DeadLetter":
            self.office.collect()
            return
        if kind == "AgentSteered":
            self.requests.steered(int(event["number"]), str(event["error"]), str(event["text"]))
            return
        if kind in SUSPENSIONS:
            said = {key: value for key, value in event.items() if key not in ("event", "agent")}
            self._events.emit(SUSPENSIONS[kind], process=seat.name, agent=agent, **said)
            return
        if kind == "AgentStuck":
            self._events.emit(
                "verdict", process=seat.name, verdict="stuck handler", agents=[agent], for_s=event["for_s"]
            )
            self.processes.kill_for_watch(seat, str(event["text"]), agent)
            return
        resident = seat.residents.get(agent)
        if resident is None or resident.incarnation != incarnation:
            return  # that life was declared dead before it could say so; another one may have begun since
        if kind == "AgentStarted":
            resident.set_deadline(None)
            resident.ready = True
            self.processes.recovered(seat)
            self.feed(ChildReady(resident.child, resident.incarnation))
            self.requests.ready(resident.child, msgspec.convert(event.get("traits", {}), Traits))
            self._audience.runs(resident.child)
            return
        seat.remove(agent)
        if kind == "AgentExited":
            self.processes.recovered(seat)
            why = FINISHED if event["reason"] == "finished" else STOPPED
            self.requests.ended(resident.child, resident.incarnation, why)
            self.feed(ChildExited(resident.child, resident.incarnation, stop_action=event["reason"] == "finished"))
        elif kind == "AgentFailed":
            self._failed(seat, resident, event)

    def _letter_written(self, letter: Letter) -> None:
        self.counts.dead_letters += 1
        self._events.emit("dead_letter", agent=letter.recipient, id=letter.id, cause=letter.cause)

    # --- the tree ----------------------------------------------------------------------------------------------------

    def feed(self, event: Event) -> None:
        """Tell the tree; perform what it wants. What comes of that, inside of it too, is told afterwards, in order."""
        self._inbox.append(event)
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._inbox and not self.ended.done():
                self._tree, actions = step(self._tree, self._inbox.popleft(), self._loop.time())
                for action in actions:
                    self._perform(action)
        finally:
            self._stepping = False

    def _perform(self, action: Action) -> None:
        match action:
            case StartChild(child, incarnation):
                self._start_child(child, incarnation)
            case StopChild(child, incarnation, deadline_s, drain):
                drain = drain or (self._drain_mode if self._stop_asked else "current")
                self._lives.stop(child, incarnation, deadline_s, drain)
            case SetTimer(id, at_s, _):
                self._timers[id] = self._loop.call_at(at_s, self._time, id)
            case CancelTimer(id):
                if (handle := self._timers.pop(id, None)) is not None:
                    handle.cancel()
            case GiveUpChild(child, _, reason):
                self._give_up_child(child, reason)
            case ChildRemoved():
                self._remove_child(action)
            case Escalated(supervisor, child, reason):
                self._events.emit("supervisor_gave_up", supervisor=supervisor, agent=child, cause=reason)
            case ShutDown(supervisor, child, reason):
                self._events.emit("supervisor_shut_down", supervisor=supervisor, agent=child, cause=reason)
            case Running():
                self._run_begins()
            case Stopped():
                if not self._stop_asked:
                    self._run_begins()  # it shut down by itself: whoever waits for its start has not been failed
                self._end(self._verdict or Outcome(self._stop_code or 0))
            case Failed(reason, _, child):
                self._end(Outcome(1, self._failure(reason, child), "RunFailed"))

    def _run_begins(self) -> None:
        """Said once."""
        if not self._begun:
            self._begun = True
            self._heralds.flush()
            self._on_running()

    def _time(self, timer: int) -> None:
        self._timers.pop(timer, None)
        self.feed(Timer(timer))

    def _start_child(self, child: str, incarnation: int) -> None:
        if restart_count(self._tree, child):
            self.restarts[child] = self.restarts.get(child, 0) + 1
            self.counts.restarts += 1
        self._lives.start(child, incarnation)

    def crash(self, child: str, incarnation: int, reason: str, counts: bool, wanted: bool = False) -> None:
        """End this life of an agent as if it had crashed; what comes of it is told as its crash."""
        self._lives.crash(child, incarnation, reason, counts, wanted)

    def steer(self, child: str, incarnation: int, number: int, what: str, fields: dict[str, Any]) -> bool:
        """Suspend or resume an agent."""
        return self._lives.steer(child, incarnation, number, what, fields)

    def _give_up_child(self, child: str, reason: str) -> None:
        """It does not come back: its mailbox gets a reader less, or, with the last one, is closed."""
        agent, supervisor = self._tree.children[child].agent, self._tree.children[child].supervisor
        self._events.emit("agent_given_up", agent=agent, supervisor=supervisor, cause=reason)
        note = Note(f"{agent!r} was given up, and its mailbox closed: {reason}")
        if self.homes.give_up(agent, child, lambda message: self.office.keep(message, note)):
            self.requests.given_up(agent)

    def _remove_child(self, action: ChildRemoved) -> None:
        """A spawned agent is gone for good: its mailbox is closed, and whoever waits for that is told."""
        note = Note(f"{action.child!r} was removed, and its mailbox closed")
        self.homes.move_out(action.child, lambda message: self.office.keep(message, note))
        self.restarts.pop(action.child, None)
        self._last_words.pop(action.child, None)
        self._hands.forget(action.child)
        self.requests.removed(action)

    # --- ends --------------------------------------------------------------------------------------------------------

    def _failed(self, seat: Seat, resident: Resident, event: Mapping[str, Any]) -> None:
        report = failure_report(event, seat.name)
        self._last_words[resident.child] = report
        cause = f"{event['type']}: {event['text']}"
        message = event.get("message")
        self._events.emit(
            "agent_failed",
            process=seat.name,
            pid=seat.worker.pid if seat.worker else None,
            agent=resident.spec.name,
            cause=cause,
            in_hand=[message] if message else None,
        )
        declared = self._tree.children[resident.child].dynamic is None
        if event["type"] == "AgentImportError" and declared and not restart_count(self._tree, resident.child):
            # Trying again imports nothing else: the run stops, whatever budget is left. (Not for a wrong spawn.)
            self._verdict = self._verdict or Outcome(AgentImportError.exit_code, str(event["text"]), "AgentImportError")
            self.stop()
        counts = not (resident.pardoned and event["type"] in ("LinkedAgentDown", "AgentRestarted"))
        self._audience.fell(
            resident.child, "crashed", str(event["type"]), str(event["text"]), str(event.get("traceback", ""))
        )
        self.requests.ended(resident.child, resident.incarnation, CRASHED, cause, counts=counts)
        self.feed(ChildFailed(resident.child, resident.incarnation, cause, counts))

    def _left_behind(self, resident: Resident, why: str) -> None:
        """An agent of the caller's own process that kept no deadline."""
        counts = not resident.pardoned
        self._audience.fell(resident.child, "hung", "HeartbeatTimeout", why)
        self.requests.ended(resident.child, resident.incarnation, CRASHED, why, counts=counts)
        self.feed(ChildFailed(resident.child, resident.incarnation, why, counts))

    def _drain(self) -> None:
        """`drain: all`: a message may make others anywhere, so the first agent is stopped when none is left at all.

        Mailboxes are looked at one after the other, and what goes meanwhile from a later one to an earlier one is seen
        in neither; so it takes two looks with nothing left between which nobody has finished anything.
        """
        if self.ended.done():
            return
        readings = self._memory.stats()
        handled = {reading.name: reading.handled for reading in readings}
        paused = {reading.name for reading in readings if reading.suspended_since_s}  # what waits there, waits on
        if self._memory.waiting(news=True).keys() - paused or handled != self._drained_at:
            self._drained_at = handled
            self._loop.call_later(DRAIN_LOOK_S, self._drain)
        else:
            self.feed(StopRequested())

    def _stop_by_force(self) -> None:
        """The whole stop took longer than `stop.timeout_s`."""
        if not self.ended.done():
            self._end(self._verdict or Outcome(self._stop_code or 0, in_order=False))

    def _failure(self, reason: str, child: str) -> str:
        """The report of a run that gave up: the decision, then what is known about the last straw."""
        words = [self._last_words.get(child)]
        if child in self._tree.children:
            words.append(self._last_words.get(self.process_of(child)))
        return "\n".join([reason, *(text for text in words if text)])

    def _end(self, outcome: Outcome) -> None:
        if self.ended.done():
            return
        for handle in self._timers.values():
            handle.cancel()
        self._timers.clear()
        for seat in self.seats.values():
            seat.cancel_deadlines()
        self.requests.close()
        if self._journal is not None:
            self._journal.close()
        self.ended.set_result(outcome)
