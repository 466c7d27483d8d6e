"""What the host does when it is asked over the control socket: the doing to `control.decide`.

Rules of this file: nothing blocks; a reading of all mailboxes is made at most every READING_S however many ask; what is
not there yet (the driver, while the run starts) is said to be `starting`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, Literal

from .. import __version__
from ..clock import Clock
from ..control.decide import Answer, HandOver, Later, Letter, Steer, Stop, decide
from ..control.letters import LetterRequest, answer_letters
from ..control.protocol import (
    DELAYS_PAGE_MAX,
    PAYLOAD_SHOWN_MAX,
    AgentState,
    Delays,
    DelaysCancel,
    DelaysList,
    Outcomes,
    Refusal,
    Reply,
    ResumeAgent,
    RunStates,
    RunStatus,
    RunTopology,
    Steered,
    Stopping,
    SuspendAgent,
    read_request,
)
from ..dead_letters import store_of
from ..letters import count_letters
from ..snapshot import state_word
from ..supervision import report_children
from ..topology.model import Drain, TopologySpec
from ..topology.shown import show
from ..transport import RunMemory
from .driver import Driver

__all__ = ["READING_S", "HostDesk"]

READING_S: Final = 0.1
"""How old the numbers of a reply may be: thousands of mailboxes take milliseconds, and anybody may ask at any rate."""

StopRun = Callable[[bool, Drain | None], None]


class HostDesk:
    """Answers for one run, from the moment its memory is there."""

    def __init__(self, memory: RunMemory, caller_pid: int, spec: TopologySpec, clock: Clock, stop: StopRun) -> None:
        self._memory = memory
        self._caller_pid = caller_pid
        self._spec = spec
        self._agents = len(spec.supervision.agents())
        self._shown: tuple[str, dict[str, Any]] | None = None
        """The last that was asked for, with its salt: a topology of thousands of agents takes a while to make."""
        self._clock = clock
        self._stop = stop
        self._since_s = clock.wall_s()
        self._counted_s = float("-inf")
        self._counted: tuple[int, int | None] = (0, 0)
        self._stop_asked = False
        self.driver: Driver | None = None
        self.running = False
        """Every agent was ready once."""

    def answer(self, body: bytes) -> Reply | HandOver:
        """The reply to one frame; what it asks for is done, or begun."""
        request = read_request(body, __version__)
        if isinstance(request, Refusal):
            return request
        match decide(request, self.state):
            case Answer(what="status"):
                return self.status()
            case Answer(what="topology", salt=salt):
                return self.topology(salt)
            case Answer(what="states", agent=agent):
                return self.states(agent)
            case Answer():
                return Stopping(already=True)
            case Stop(now, drain):
                self._stop_asked = True
                self._stop(now, drain)
                return Stopping()
            case Letter(letter_request):
                return self._letters(letter_request)
            case Later(later):
                return self._later(later)
            case Steer(order):
                return self._steer(order)
            case refusal:
                return refusal

    def status(self) -> RunStatus:
        """The run as it is."""
        waiting, dead_letters = self._counts()
        driver = self.driver
        return RunStatus(
            name=self._memory.name,
            run_id=self._memory.run_id,
            state=self.state,
            version=__version__,
            host_pid=os.getpid(),
            pid=self._caller_pid,
            since_s=self._since_s,
            processes=sum(1 for seat in driver.seats.values() if seat.residents) if driver else 0,
            agents=self._agents,
            waiting=waiting,
            dead_letters=dead_letters,
            restarts=driver.counts.restarts if driver else 0,
            deaths=driver.counts.deaths if driver else 0,
            suspended=sorted(one.name for one in self._memory.stats() if one.suspended_since_s),
        )

    def topology(self, salt: str) -> RunTopology:
        """What runs, as declared and as it is."""
        if self._shown is None or self._shown[0] != salt:
            self._shown = salt, show(self._spec, salt)
        return RunTopology(topology=self._shown[1], agents=self._agent_states())

    def states(self, agent: str) -> RunStates:
        """Who has a state in the memory, and that of one."""
        sizes = self._memory.stored_states()
        if sizes.get(agent, PAYLOAD_SHOWN_MAX + 1) > PAYLOAD_SHOWN_MAX:
            return RunStates(size_bytes=sizes)
        state, message = self._memory.stored_state(agent) or (None, b"")
        return RunStates(size_bytes=sizes, state=state, message=message)

    def _agent_states(self) -> list[AgentState]:
        driver = self.driver
        if driver is None:
            return []
        waiting = self._memory.waiting()
        suspended = {one.name: one.suspended_since_s for one in self._memory.stats()}
        return [
            AgentState(
                name=child.name,
                supervisor=child.supervisor,
                process=driver.homes.process_of(child.name).name,
                state=state_word(child.status, suspended.get(child.agent, 0.0)),
                restarts=child.restarts,
                waiting=waiting.get(child.agent, 0),
                spawned=driver.tree.children[child.name].dynamic is not None,
            )
            for child in report_children(driver.tree)
        ]

    def status_line(self) -> str:
        """For people, on one line."""
        now = self.status()
        letters = f", {now.dead_letters:,} dead letters" if now.dead_letters else ""
        return f"{now.state}: {now.agents} agents in {now.processes} processes, {now.waiting:,} messages wait{letters}"

    def _letters(self, request: LetterRequest) -> Reply:
        if self.driver is not None:
            office = self.driver.office
            return answer_letters(request, office.store, office.replay)
        store = store_of(self._memory.run_dir)
        try:
            return answer_letters(request, store, None)
        finally:
            if store is not None:
                store.close()

    def _later(self, request: DelaysList | DelaysCancel) -> Reply:
        if self.driver is None:  # it is stopped before it has started
            return Refusal(kind="busy", text="the run has not started")
        delays = self.driver.delays
        if isinstance(request, DelaysList):
            page, last = delays.page(request.after, DELAYS_PAGE_MAX)
            return Delays(delayed=page, total=delays.total, last=last)
        return Outcomes(outcomes=delays.take_back(request.ids))

    def _steer(self, order: SuspendAgent | ResumeAgent) -> Reply:
        """Begun, or refused; what its own hook raises is in the agent's log."""
        assert self.driver is not None  # else the run does not run
        refused: list[str] = []

        def answer(error: str, text: str, value: Any = None) -> None:
            if error:
                refused.append(text)

        if isinstance(order, SuspendAgent):
            self.driver.requests.take("", "suspend", {"name": order.name, "reason": order.reason}, answer)
        else:
            self.driver.requests.take("", "resume", {"name": order.name, "approver": order.approver}, answer)
        return Refusal(kind="malformed", text=refused[0]) if refused else Steered()

    @property
    def state(self) -> Literal["starting", "running", "stopping"]:
        """How far the run is."""
        if self._stop_asked or (self.driver is not None and self.driver.stopping):
            return "stopping"
        return "running" if self.running else "starting"

    def _counts(self) -> tuple[int, int | None]:
        now_s = self._clock.monotonic_s()
        if now_s - self._counted_s >= READING_S:
            delayed = self.driver.delays.waiting() if self.driver is not None else {}
            waiting = sum(self._memory.waiting().values()) + sum(delayed.values())
            self._counted = (waiting, count_letters(self._memory.run_dir))
            self._counted_s = now_s
        return self._counted
