"""What a process is doing, told from outside: a pure table from observations to a verdict, and what follows from it.

| ends | state in /proc | probe answered | handler | verdict | what follows |
|---|---|---|---|---|---|
| yes | - | - | - | DEAD | nothing here: its pidfd has told the pool |
| no | T, t and traced | - | - | TRACED | reported; never killed: somebody looks into it |
| no | T | - | - | STOPPED | reported; killed after `stopped_timeout_s` |
| no | D | no | - | KERNEL_WAIT | reported; nothing ends it before the kernel does |
| no | other | no | - | BLOCKED | reported after REPORT_S; killed when a handler in it is over its `handle_timeout_s` |
| no | other | yes | over every limit | STUCK | killed: the handler ignores that it was cancelled |
| no | other | yes | runs, or messages wait | BUSY | nothing |
| no | other | yes | none, nothing waits | IDLE | nothing |

Rules of this file:
- no I/O, no clock; a reading is a set of observations, taken about once a second;
- nobody is asked but who gives reason to: a probe (a bit in shared memory, taken by the loop when it polls) goes to a
  process in which a handler has run for SUSPICIOUS_S, or where messages wait and nobody handles one. An idle process
  is never woken;
- time is what the readings have covered, at most STEP_MAX_S each, that of handlers too: a host that was stopped itself,
  together with everything else (`docker pause`, a machine that slept, a clock that jumped), blames nobody for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

__all__ = ["Busy", "Observation", "ProcessWatch", "Reading", "Verdict", "verdict_of"]

SUSPICIOUS_S: Final = 1.0
"""A handler that runs longer gives reason to ask whether its loop still turns."""

REPORT_S: Final = 2.0
"""A loop that does not answer for so long is told as an event: two readings; what is shorter is a long computation."""

GRACE_S: Final = 2.0
"""Beyond `handle_timeout_s`: the loop cancels the handler by itself and gives it a second to clean up."""

STEP_MAX_S: Final = 2.0


class Verdict(Enum):
    """What a process is doing. The values are what people read."""

    IDLE = "idle"
    BUSY = "busy"
    STUCK = "stuck handler"
    BLOCKED = "blocked loop"
    KERNEL_WAIT = "kernel wait"
    STOPPED = "stopped"
    TRACED = "traced"
    DEAD = "dead"

    @property
    def healthy(self) -> bool:
        return self in (Verdict.IDLE, Verdict.BUSY)

    @property
    def trouble(self) -> bool:
        """Worth a word from here; a death is told by who reaps it."""
        return not self.healthy and self is not Verdict.DEAD


@dataclass(frozen=True, slots=True)
class Busy:
    """A handler that runs."""

    agent: str
    for_s: float
    timeout_s: float | None = None
    """Its `handle_timeout_s`."""
    attempts: int = 1
    """How often it may be tried on one message, each time for `timeout_s`: 1 + max_retries."""
    since_ns: int = 0
    """When it began, by which it is known again."""

    @property
    def late(self) -> bool:
        """It should have been cancelled by its own loop."""
        return self.timeout_s is not None and self.for_s > self.timeout_s + GRACE_S

    @property
    def lost(self) -> bool:
        """It was cancelled as often as it could be, and runs."""
        return self.timeout_s is not None and self.for_s > self.attempts * (self.timeout_s + GRACE_S)


@dataclass(frozen=True, slots=True)
class Observation:
    """One reading of one process."""

    alive: bool = True
    state: str = "S"
    """The letter in /proc/PID/stat."""
    traced: bool = False
    answered: bool = True
    """The probe of the last reading was taken; true when there was none."""
    busy: Sequence[Busy] = ()
    waiting: int = 0
    """Messages that wait for agents which it runs."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What follows from one reading."""

    verdict: Verdict
    for_s: float = 0.0
    """How long it has been so."""
    report: bool = False
    """It is news: an unhealthy verdict that has held long enough, or the end of one that was told."""
    probe: bool = False
    """Ask whether its loop turns; the next reading has the answer."""
    kill: str = ""
    """Why the process must be killed."""
    convicted: str = ""
    """The agent whose message in hand is to blame, if it can only be that one."""


def verdict_of(seen: Observation) -> Verdict:
    """The table above."""
    if not seen.alive or seen.state in "ZX":
        return Verdict.DEAD
    if seen.state in "Tt":
        return Verdict.TRACED if seen.traced else Verdict.STOPPED
    if not seen.answered:
        return Verdict.KERNEL_WAIT if seen.state == "D" else Verdict.BLOCKED
    if any(busy.lost for busy in seen.busy):
        return Verdict.STUCK
    return Verdict.BUSY if seen.busy or seen.waiting else Verdict.IDLE


class ProcessWatch:
    """One process, from its readiness to its end."""

    def __init__(self, stopped_timeout_s: float) -> None:
        self._stopped_timeout_s = stopped_timeout_s
        self._verdict = Verdict.IDLE
        self._for_s = 0.0
        self._told = False
        self._last_s: float | None = None
        self._busy: dict[str, tuple[int, float]] = {}
        """Handlers of the last reading, by agent: since when, and for how much of what was covered."""

    @property
    def told(self) -> Verdict | None:
        """The unhealthy verdict that stands and was reported."""
        return self._verdict if self._told else None

    def look(self, seen: Observation, now_s: float) -> Reading:
        """One reading; `now_s` on the monotonic clock."""
        step_s = 0.0 if self._last_s is None else min(now_s - self._last_s, STEP_MAX_S)
        seen = replace(seen, busy=self._covered(seen.busy, STEP_MAX_S if self._last_s is None else step_s))
        self._last_s = now_s
        verdict = verdict_of(seen)
        if verdict is self._verdict:
            self._for_s += step_s
        else:
            self._for_s = 0.0
        over = self._told and verdict is not self._verdict and verdict.healthy
        if verdict is not self._verdict and not verdict.healthy:
            self._told = False  # another trouble is other news
        self._verdict = verdict
        news = over or (verdict.trouble and not self._told and self._for_s >= _report_after_s(verdict))
        if news:
            self._told = not over
        kill, convicted = self._decide(verdict, seen)
        probe = verdict in (Verdict.IDLE, Verdict.BUSY, Verdict.STUCK) and _suspicious(seen)
        return Reading(verdict, self._for_s, news, probe, kill, convicted)

    def _covered(self, busy: Sequence[Busy], step_s: float) -> list[Busy]:
        """The same handlers, with the time that readings have covered: one that is new began after the last of them."""
        known = self._busy
        self._busy = {}
        for one in busy:
            since_ns, covered_s = known.get(one.agent, (one.since_ns, 0.0))
            covered_s = covered_s + step_s if since_ns == one.since_ns else step_s
            self._busy[one.agent] = (one.since_ns, min(one.for_s, covered_s))
        return [replace(one, for_s=self._busy[one.agent][1]) for one in busy]

    def _decide(self, verdict: Verdict, seen: Observation) -> tuple[str, str]:
        if verdict is Verdict.STOPPED and 0 < self._stopped_timeout_s <= self._for_s:
            return (
                f"stopped (SIGSTOP) for {self._for_s:.3g} s; watch.stopped_timeout_s is {self._stopped_timeout_s:g}",
                "",
            )
        if verdict is Verdict.BLOCKED and self._for_s >= SUSPICIOUS_S and any(busy.late for busy in seen.busy):
            return _blocked(seen.busy), _only(seen.busy)
        if verdict is Verdict.STUCK:
            lost = next(busy for busy in seen.busy if busy.lost)
            return (
                f"handle of {lost.agent!r} has run for {lost.for_s:.3g} s and ignores that it was cancelled; its "
                f"handle_timeout_s is {lost.timeout_s:g}",
                lost.agent,
            )
        return "", ""


def _report_after_s(verdict: Verdict) -> float:
    return REPORT_S if verdict is Verdict.BLOCKED else 0.0


def _suspicious(seen: Observation) -> bool:
    if seen.busy:
        return any(busy.for_s >= SUSPICIOUS_S for busy in seen.busy)
    return seen.waiting > 0


def _blocked(busy: Sequence[Busy]) -> str:
    late = max(busy, key=lambda one: one.for_s if one.late else 0.0)
    text = (
        f"handle of {late.agent!r} has run for {late.for_s:.3g} s, its handle_timeout_s is {late.timeout_s:g}, and the "
        "loop does not answer: something blocks it"
    )
    others = [repr(one.agent) for one in busy if one is not late]
    return f"{text}; busy too: {', '.join(others)}" if others else text


def _only(busy: Sequence[Busy]) -> str:
    """Nobody is convicted for what a neighbour may have done."""
    return busy[0].agent if len(busy) == 1 else ""
