"""One or two readings as something to ask: who is who, what changed between them, what each agent and process is doing.

Rules of this file: pure. What a process notes is believed as far as it is fresh; a rate needs two readings of one run.
"""

from __future__ import annotations

from typing import Any, Final

from ..chart import ChartChild, ChartProcess, ChartSupervisor
from ..transport import SLOT_HOST, SLOT_MAIN, MailboxStats, SlotView, Wait
from .proc import Sample
from .readings import Hand, Reading

__all__ = ["ASKED_S", "STALE_S", "Scene"]

ASKED_S: Final = 0.2
"""A question of the host's that is younger may be one that a loop is just about to answer."""

STALE_S: Final = 1.5
"""A process notes its waits every 0.2 s while its loop turns; what is older says how things were."""


class Scene:
    """A run at `now`, and what it was at `before`, if that is known and the same run."""

    def __init__(self, before: Reading | None, now: Reading) -> None:
        if before is not None and (before.run_id != now.run_id or before.monotonic_ns >= now.monotonic_ns):
            before = None
        self.before = before
        self.now = now
        self.interval_s = 0.0 if before is None else (now.monotonic_ns - before.monotonic_ns) / 1e9
        chart = now.chart
        self.stats: dict[str, MailboxStats] = {}
        """By agent: of several records of one name, the open one, else the last."""
        for stats in now.mailboxes:
            if stats.name not in self.stats or not stats.closed or self.stats[stats.name].closed:
                self.stats[stats.name] = stats
        for name in [name for name in self.stats if name.startswith("_")]:
            del self.stats[name]  # the runtime's own
        self.names = {stats.mailbox: stats.name for stats in now.mailboxes}
        self.children: dict[str, list[ChartChild]] = {}
        self.supervisors: dict[str, ChartSupervisor] = {}
        self.processes: dict[str, ChartProcess] = {}
        if chart is not None:
            for child in chart.children:
                self.children.setdefault(child.agent, []).append(child)
            self.supervisors = {supervisor.name: supervisor for supervisor in chart.supervisors}
            self.processes = {process.name: process for process in chart.processes}
        self.slots = {slot.slot: slot for slot in now.slots}
        self.slots_before = {} if before is None else {slot.slot: slot for slot in before.slots}
        self.waits = {wait.agent: wait for wait in now.waits}
        self.hands: dict[int, list[Hand]] = {}
        for hand in now.hands:
            self.hands.setdefault(hand.mailbox, []).append(hand)
        self._before = {} if before is None else {stats.mailbox: stats for stats in before.mailboxes}
        self._process_names = {process.slot: process.name for process in self.processes.values()}
        self._in_process: dict[int, list[str]] = {}
        for name, stats in self.stats.items():
            for slot in stats.readers:
                self._in_process.setdefault(slot, []).append(name)

    # --- agents -------------------------------------------------------------------------------------------------------

    def agents(self) -> list[str]:
        """All that are known, in start order, then those that only memory knows."""
        return list(dict.fromkeys([*self.children, *self.stats]))

    def earlier(self, stats: MailboxStats) -> MailboxStats | None:
        """The same mailbox in the reading before."""
        return self._before.get(stats.mailbox)

    def rate(self, stats: MailboxStats, counter: str) -> float | None:
        """How fast a counter of its cell grew, per second."""
        before = self.earlier(stats)
        if before is None or self.interval_s <= 0:
            return None
        return max(0, int(getattr(stats, counter)) - int(getattr(before, counter))) / self.interval_s

    def histogram(self, stats: MailboxStats) -> tuple[int, ...]:
        """Of handlers that ended between the readings; of all, when none did or there is no earlier reading."""
        before = self.earlier(stats)
        if before is not None and len(before.handler_ns) == len(stats.handler_ns):
            grown = tuple(max(0, n - b) for n, b in zip(stats.handler_ns, before.handler_ns, strict=True))
            if any(grown):
                return grown
        return stats.handler_ns

    def busy_s(self, stats: MailboxStats) -> float | None:
        """How long its handler has been running; None: none runs."""
        if not stats.busy_since_ns or not stats.in_hand or stats.busy_since_ns > self.now.monotonic_ns:
            return None
        return (self.now.monotonic_ns - stats.busy_since_ns) / 1e9

    def hand(self, stats: MailboxStats) -> Hand | None:
        """The message that its handler has, or the first that it has in hand."""
        hands = self.hands.get(stats.mailbox, [])
        return next((hand for hand in hands if hand.where == "running"), hands[0] if hands else None)

    def wait(self, stats: MailboxStats) -> Wait | None:
        """What its handler waits for, if one runs and its process has noted that."""
        wait = self.waits.get(stats.mailbox)
        return wait if wait is not None and stats.in_hand and wait.since_ns <= self.now.monotonic_ns else None

    def for_s(self, wait: Wait) -> float:
        """How long it has waited."""
        return max(0.0, (self.now.monotonic_ns - wait.since_ns) / 1e9)

    def is_fresh(self, wait: Wait) -> bool:
        """Its process has looked lately."""
        return self.now.monotonic_ns - wait.seen_ns < STALE_S * 1e9

    def name(self, mailbox: int) -> str:
        """Of the agent of a mailbox."""
        return self.names.get(mailbox, "?")

    # --- processes ----------------------------------------------------------------------------------------------------

    def process_name(self, slot: int) -> str:
        """As the topology calls it; `slot 3` when there is no chart."""
        if slot == SLOT_HOST:
            return "host"
        return self._process_names.get(slot, "main" if slot == SLOT_MAIN else f"slot {slot}")

    def slots_of(self, agent: str) -> list[int]:
        """Of the processes that an agent is read in, or would be."""
        stats = self.stats.get(agent)
        if stats is not None and stats.readers:
            return list(stats.readers)
        names = {child.process for child in self.children.get(agent, [])}
        return [process.slot for process in self.processes.values() if process.name in names]

    def residents(self, slot: int) -> list[str]:
        """Agents that are read in the process of a slot."""
        return self._in_process.get(slot, [])

    def slot(self, slot: int) -> SlotView | None:
        return self.slots.get(slot)

    def pid(self, slot: int) -> int:
        """Of the living process of a slot; 0: there is none."""
        view = self.slots.get(slot)
        if view is not None and view.pid:
            return view.pid
        return 0

    def sample(self, slot: int) -> Sample | None:
        """What the kernel says of the process of a slot."""
        return self.now.samples.get(self.pid(slot))

    def cpu_share(self, slot: int) -> float | None:
        """Of one core, between the readings."""
        now = self.sample(slot)
        before = self.before.samples.get(now.pid) if self.before is not None and now is not None else None
        if now is None or before is None or before.started != now.started or self.interval_s <= 0:
            return None
        return max(0.0, now.cpu_s - before.cpu_s) / self.interval_s

    def wants_core(self, slot: int) -> bool:
        """Its process ran, or waited for a core to run on, at both readings: it computes, however little it got."""
        now = self.sample(slot)
        before = self.before.samples.get(now.pid) if self.before is not None and now is not None else None
        return now is not None and before is not None and now.state == before.state == "R"

    def does_not_answer(self, slot: int) -> bool:
        """The host's question whether its loop turns was there at both readings, to one and the same process."""
        now, before = self.slots.get(slot), self.slots_before.get(slot)
        if now is None or not now.asked or not now.alive:
            return False
        if before is None:
            process = self.processes.get(self.process_name(slot))
            return process is not None and bool(process.verdict)
        return self.interval_s >= ASKED_S and before.asked and before.incarnation == now.incarnation

    def lag_s(self, slot: int) -> float | None:
        """For how long, at least, the loop of a process has not turned; 0: it turns, or nobody had reason to ask."""
        view = self.slots.get(slot)
        if view is None or not view.alive:
            return None
        if not self.does_not_answer(slot):
            return 0.0
        blocking = self.blockers(slot)
        return max([self.interval_s, *(self.busy_s(self.stats[name]) or 0.0 for name in blocking[:1])])

    def blockers(self, slot: int) -> list[str]:
        """Agents of a process whose handlers run and wait for nobody: if its loop does not turn, one of these holds
        it.
        """
        busy = [name for name in self.residents(slot) if self.busy_s(self.stats[name]) is not None]
        # A wait that was noted may be over: who then holds the loop cannot take the note back.
        free = [name for name in busy if self.wait(self.stats[name]) is None] or busy
        return sorted(free, key=lambda name: self.stats[name].busy_since_ns)

    # --- events -------------------------------------------------------------------------------------------------------

    def last_event(self, *names: str, within_s: float | None = None, **fields: Any) -> dict[str, Any] | None:
        """The newest of these names with these fields."""
        for event in reversed(self.now.events):
            if within_s is not None and self.now.time_s - float(event["time"]) > within_s:
                return None
            if event["event"] in names and all(event.get(key) == value for key, value in fields.items()):
                return dict(event)
        return None
