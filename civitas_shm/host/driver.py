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
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import msgspec

from ..clock import Clock
from ..dead_letters import DeadLetterOffice, FileLetters
from ..delivery import blame_of
from ..errors import AgentImportError
from ..letters import DIRECTORY as LETTERS
from ..letters import Letter, Note, count_letters
from ..placement import MAIN, Placement
from ..requests import Requests
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
    step,
)
from ..supervision.state import ChildStatus
from ..supervision.watch import CRASHED, FINISHED, KILLED, STOPPED
from ..topology.model import Drain
from ..transport import RunMemory
from . import kernel
from .events import EventLog, in_hand_plain
from .homes import Homes
from .kernel import Exit
from .pool import Worker
from .protocol import AgentReport, Answer, Assign, CrashAgent, Ready, Request, StartAgent, StopAgent, ToWorker
from .reports import Death, cause_of, death_report, failure_report
from .seats import Counts, Outcome, Resident, Seat, WorkerSettings
from .spawned import Hands, Journal
from .verdicts import Verdicts

__all__ = ["Driver", "ProcessPool"]

PROCESS_START_TIMEOUT_S: Final = 30.0
"""From the order to `Ready`: no user code runs before it; on an idle machine it takes 2 ms, with a fresh exec 60 ms."""

STOP_GRACE_S: Final = 1.5
"""Beyond an agent's own deadline: a handler that was cancelled may clean up for a second, and says so."""

DRAIN_LOOK_S: Final = 0.01
"""How often a stop with `drain: all` looks whether nothing waits any more; only at the end of a run."""


class ProcessPool(Protocol):
    """What the driver needs of `pool.Pool`."""

    def assign(self, order: Assign, *, exec_env: dict[str, str] | None = None) -> Worker: ...
    def order(self, worker: Worker, message: ToWorker) -> None: ...
    def kill(self, worker: Worker, because: str) -> None: ...


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
        self._settings = settings
        self._events = events
        self._clock = clock  # the loop's own time stands still within one turn: good for timers, not for measuring
        self._to_main = to_main
        self._on_running = on_running
        self._tree = Tree.from_spec(placement.spec.supervision, seed=random.getrandbits(64) if seed is None else seed)
        self.seats: dict[str, Seat] = {
            process.name: Seat(process, incarnation=memory.incarnation(process.slot)) for process in placement.processes
        }
        self.seats[MAIN].ready = True
        self._inbox: deque[Event] = deque()
        self._stepping = False
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._oom_kills = kernel.oom_kills()
        self._stop_code: int | None = None
        self._stop_asked = False
        self._drain_mode: Drain = placement.spec.stop.drain
        self._begun = False
        self._verdict: Outcome | None = None
        """Why the run must end though the tree would go on."""
        self._last_words: dict[str, str] = {}
        """By process or agent: the report of its last end."""
        self.pool: ProcessPool
        self.counts = Counts()
        self.office = DeadLetterOffice(
            memory, lambda: FileLetters(memory.run_dir / LETTERS), clock, on_letter=self._letter_written
        )
        self._verdicts = Verdicts(memory, self.office)
        self.restarts: dict[str, int] = {}
        """By child."""
        self.homes = Homes(placement, memory, lambda: self._tree)
        self._hands = Hands(self, loop, memory, journal)
        self._journal = journal
        self.requests = Requests(self._hands)
        self.ended: asyncio.Future[Outcome] = loop.create_future()

    @property
    def placement(self) -> Placement:
        return self._placement

    @property
    def main(self) -> Seat:
        """The caller's own process."""
        return self.seats[MAIN]

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

    def _seat_of(self, child: str) -> Seat:
        return self.seats[self.process_of(child)]

    # --- what main asks for ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Make all mailboxes, say who reads them, start the tree. So agents may send to later ones from `on_start`."""
        if count_letters(self._memory.run_dir) != 0 or self._memory.waiting():
            self._verdicts.settle(process.slot for process in self._placement.processes)
        for agent in self.homes.specs:
            self.homes.open_mailbox(agent)
        for wanted in self._journal.known() if self._journal is not None else []:
            refused = self.requests.adopt(wanted)
            if refused is not None:
                print(f"{refused} It was spawned in the run that is resumed; its messages wait.", file=sys.stderr)
        # All at once: agents start in order, one after the other, and each finds its process ready.
        for seat in self.seats.values():
            if seat.name != MAIN and seat.planned.agents:
                self._start_process(seat)
        self.feed(Start())

    def stop(self, exit_code: int = 0, drain: Drain | None = None) -> None:
        """Stop in good order, last started first. `drain`: instead of the topology's. The first call's word holds."""
        if self._stop_asked or self.ended.done():
            return
        self._stop_asked = True
        self._stop_code = exit_code
        stop = self._placement.spec.stop
        self._drain_mode = drain or stop.drain
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
        assert seat.worker is not None
        seat.forgiven = True
        self.pool.kill(seat.worker, "chaos")

    def note_stop(self, seat: Seat, for_s: float) -> None:
        """Chaos has stopped it for that long."""
        pid = seat.worker.pid if seat.worker else None
        self._events.emit("process_stopped", process=seat.name, pid=pid, for_s=for_s, cause="SIGSTOP (chaos)")

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
            self.pool.kill(seat.worker, why)

    def tell(self, agent: str, message: ToWorker) -> None:
        """An order to the process that runs an agent, if any does just now."""
        for seat in self.seats.values():
            if agent in seat.residents and (seat.ready or seat.name == MAIN):
                self._order(seat, message)

    # --- what processes say ------------------------------------------------------------------------------------------

    def heard(self, worker: Worker, message: Any) -> None:
        """From the pool: a worker has said something."""
        seat = self.seats.get(worker.process)
        if seat is None or seat.worker is not worker:
            return  # of an earlier process of that name
        match message:
            case Ready():
                self._process_ready(seat)
            case AgentReport(event):
                self.report(seat, event)
            case Request():
                self.requested(seat, message)
            case _:
                self.pool.kill(worker, f"it sent {type(message).__name__} out of turn")

    def died(self, worker: Worker, exit_: Exit | None) -> None:
        """From the pool: a process is gone, and nothing of it runs any more."""
        seat = self.seats.get(worker.process)
        if seat is None or seat.worker is not worker or self.ended.done():
            return  # a standby, which the pool has replaced; or everybody leaves
        in_hand = self._memory.slot_died(seat.planned.slot)
        kills = kernel.oom_kills()
        out_of_memory = kills > self._oom_kills
        death = Death(
            process=seat.name,
            pid=worker.pid,
            cause=cause_of(exit_, worker.killed_because, out_of_memory),
            in_hand=in_hand_plain(in_hand, self.homes.agent_of),
            tail=worker.tail,
        )
        self._oom_kills = kills
        self._last_words[seat.name] = death_report(death)
        blame = blame_of(
            forgiven=seat.forgiven or self._stop_asked,
            killed_by_us=bool(worker.killed_because),
            for_what_it_did=seat.its_own_doing,
            sigkill=exit_ is not None and exit_.signal == signal.SIGKILL,
            out_of_memory=out_of_memory,
        )
        starting = not all(resident.ready for resident in seat.residents.values())
        convicted = self._verdicts.after(in_hand, blame, self.homes.limits(), starting, death)
        # With the message that is to blame gone, the death says nothing about the agents any more.
        counts = not (seat.forgiven or self._stop_asked or convicted)
        children = tuple((resident.child, resident.incarnation) for resident in seat.residents.values())
        seat.vacate(self._clock.monotonic_s())
        self.counts.deaths += 1
        self.counts.redelivered += len(in_hand) - convicted
        self._events.emit(
            "process_died", process=seat.name, pid=death.pid, cause=death.cause, in_hand=death.in_hand, counts=counts
        )
        for child, incarnation in children:
            self.requests.ended(child, incarnation, KILLED, f"its process {seat.name} died: {death.cause}")
        self.feed(ProcessDied(seat.name, children, counts=counts, reason=death.cause))

    def requested(self, seat: Seat, request: Request) -> None:
        """A process asks for something, for one of its agents or its program."""
        worker = seat.worker

        def answer(error: str, text: str) -> None:
            if seat.worker is worker:  # else whoever asked has died
                self._order(seat, Answer(request.id, error, text))

        self.requests.take(request.asker, request.what, request.fields, answer)

    def report(self, seat: Seat, event: Mapping[str, Any]) -> None:
        """An event of a process's agent runner, as plain values."""
        kind, agent = event.get("event"), str(event.get("agent"))
        if kind == "StopRuntime":
            self.stop(int(event["exit_code"]))
            return
        if kind == "DeadLetter":
            self.office.collect()
            return
        if kind == "AgentStuck":
            self._events.emit(
                "verdict", process=seat.name, verdict="stuck handler", agents=[agent], for_s=event["for_s"]
            )
            self.kill_for_watch(seat, str(event["text"]), agent)
            return
        resident = seat.residents.get(agent)
        if resident is None:
            return  # it was declared dead before it could say so
        if kind == "AgentStarted":
            resident.set_deadline(None)
            resident.ready = True
            self._recovered(seat)
            self.feed(ChildReady(resident.child, resident.incarnation))
            self.requests.ready(resident.child)
            return
        seat.remove(agent)
        if kind == "AgentExited":
            self._recovered(seat)
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
                self._stop_child(child, incarnation, deadline_s, drain)
            case SetTimer(id, at_s, _):
                self._timers[id] = self._loop.call_at(at_s, self._time, id)
            case CancelTimer(id):
                if (handle := self._timers.pop(id, None)) is not None:
                    handle.cancel()
            case GiveUpChild(child, _, reason):
                self._give_up_child(child, reason)
            case ChildRemoved():
                self._remove_child(action)
            case Escalated():
                pass  # the report that follows says it
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
            self._on_running()

    def _time(self, timer: int) -> None:
        self._timers.pop(timer, None)
        self.feed(Timer(timer))

    def _start_child(self, child: str, incarnation: int) -> None:
        state = self._tree.children[child]
        spec = self.homes.specs[state.agent]
        seat = self._seat_of(child)
        resident = Resident(child, incarnation, spec)
        seat.residents[spec.name] = resident
        if incarnation > 1:
            self.restarts[child] = self.restarts.get(child, 0) + 1
            self.counts.restarts += 1
        if seat.worker is None and seat.name != MAIN:
            self._start_process(seat)
        # Not only once the process is ready: the order waits in its socket, and one way to it and back is saved.
        self._order_start(seat, resident)

    def _order_start(self, seat: Seat, resident: Resident) -> None:
        spec = resident.spec
        if seat.ready:
            self._limit_start(seat, resident)
        self._order(seat, StartAgent(msgspec.to_builtins(spec), self.homes.open_mailbox(spec.name)))

    def _limit_start(self, seat: Seat, resident: Resident) -> None:
        """The agent runner ends a start that awaits too long; this catches one that blocks its process."""
        timeout_s = resident.spec.start_timeout_s + STOP_GRACE_S
        resident.set_deadline(self._loop.call_later(timeout_s, self._start_late, seat, resident))

    def _stop_child(self, child: str, incarnation: int, deadline_s: float, wanted: Drain | None) -> None:
        state = self._tree.children[child]
        seat = self._seat_of(child)
        resident = seat.residents.get(state.agent)
        if resident is None or resident.incarnation != incarnation:
            return  # its end is on its way
        timeout_s = max(0.0, deadline_s - self._loop.time())
        resident.set_deadline(self._loop.call_later(timeout_s + STOP_GRACE_S, self._stop_late, seat, resident))
        drain = wanted or (self._drain_mode if self._stop_asked else "current")
        self._order(seat, StopAgent(state.agent, drain, timeout_s))

    def _give_up_child(self, child: str, reason: str) -> None:
        """It does not come back: its mailbox gets a reader less, or, with the last one, is closed."""
        agent = self._tree.children[child].agent
        note = Note(f"{agent!r} was given up, and its mailbox closed: {reason}")
        if self.homes.give_up(agent, child, lambda message: self.office.keep(message, note)):
            self.requests.given_up(agent)

    def _remove_child(self, action: ChildRemoved) -> None:
        """A spawned agent is gone for good: its mailbox is closed, and whoever waits for that is told."""
        note = Note(f"{action.child!r} was removed, and its mailbox closed")
        self.homes.move_out(action.child, lambda message: self.office.keep(message, note))
        self.restarts.pop(action.child, None)
        self._hands.forget(action.child)
        self.requests.removed(action)

    def crash(self, child: str, incarnation: int, reason: str) -> None:
        """End this life of an agent as if it had crashed; what comes of it is told as its crash."""
        state = self._tree.children[child]
        seat = self._seat_of(child)
        resident = seat.residents.get(state.agent)
        if resident is None or resident.incarnation != incarnation:
            return
        timeout_s = resident.spec.shutdown_timeout_s + STOP_GRACE_S  # its `on_stop` has as long as in a stop
        resident.set_deadline(self._loop.call_later(timeout_s, self._end_by_force, seat, resident, reason))
        self._order(seat, CrashAgent(state.agent, reason))

    # --- processes ---------------------------------------------------------------------------------------------------

    def _start_process(self, seat: Seat) -> None:
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
            agents=sum(
                child.status is not ChildStatus.GONE and self.process_of(key) == planned.name
                for key, child in self._tree.children.items()
            ),
        )
        if seat.died_at_s is not None:
            self._events.emit("process_restarting", process=seat.name)
        seat.worker = self.pool.assign(order, exec_env=dict(planned.env) if planned.gpu else None)
        seat.deadline = self._loop.call_later(PROCESS_START_TIMEOUT_S, self._process_late, seat, seat.worker)

    def _process_ready(self, seat: Seat) -> None:
        assert seat.worker is not None
        seat.settle()
        self._events.emit("process_started", process=seat.name, pid=seat.worker.pid)
        for resident in list(seat.residents.values()):
            if not resident.limited:
                self._limit_start(seat, resident)
        self._recovered(seat)

    def _recovered(self, seat: Seat) -> None:
        """All agents of a process that had died are back."""
        if seat.died_at_s is None or not seat.ready or not all(r.ready for r in seat.residents.values()):
            return
        in_s = self._clock.monotonic_s() - seat.died_at_s
        seat.died_at_s = None
        pid = seat.worker.pid if seat.worker else None
        self._events.emit("process_recovered", process=seat.name, pid=pid, in_s=round(in_s, 6))

    def _order(self, seat: Seat, message: ToWorker) -> None:
        if seat.worker is None:
            self._to_main(message)
        else:
            self.pool.order(seat.worker, message)

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
        if event["type"] == "AgentImportError" and resident.incarnation == 1 and declared:
            # Trying again imports nothing else: the run stops, whatever budget is left. (Not for a wrong spawn.)
            self._verdict = self._verdict or Outcome(AgentImportError.exit_code, str(event["text"]), "AgentImportError")
            self.stop()
        self.requests.ended(resident.child, resident.incarnation, CRASHED, cause)
        self.feed(ChildFailed(resident.child, resident.incarnation, cause))

    def _process_late(self, seat: Seat, worker: Worker) -> None:
        if seat.worker is worker and not seat.ready:
            self.pool.kill(worker, f"it was not ready within {PROCESS_START_TIMEOUT_S:g} s of its start")

    def _start_late(self, seat: Seat, resident: Resident) -> None:
        why = (
            f"on_start of {resident.spec.name!r} blocked its process for more than {resident.spec.start_timeout_s:g} "
            "s; await something in it, or raise start_timeout_s"
        )
        self._end_by_force(seat, resident, why)

    def _stop_late(self, seat: Seat, resident: Resident) -> None:
        self._end_by_force(seat, resident, f"{resident.spec.name!r} did not stop in time")

    def _end_by_force(self, seat: Seat, resident: Resident, why: str) -> None:
        if seat.worker is not None:
            self.pool.kill(seat.worker, why)
        else:  # the caller's own process: nobody but its user may end it
            seat.remove(resident.spec.name)
            self.requests.ended(resident.child, resident.incarnation, CRASHED, why)
            self.feed(ChildFailed(resident.child, resident.incarnation, why))

    def _drain(self) -> None:
        """`drain: all`: a message may make others anywhere, so the first agent is stopped when none is left at all."""
        if self.ended.done():
            return
        if self._memory.waiting():
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
