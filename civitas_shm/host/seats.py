"""The driver's notes: what it was told, who sits where and holds which agents, what it has counted, how it ended.

Rules of this file: data and their small changes; deadlines are kept here so that each is cancelled with what it is for.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from ..placement import PlannedProcess
from ..topology.model import AgentSpec
from .pool import Worker

__all__ = ["Counts", "Outcome", "Resident", "Seat", "WorkerSettings"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the run ended, as far as supervision goes."""

    exit_code: int
    report: str = ""
    error: str = ""
    """Class in `errors` that the caller raises with the report."""
    in_order: bool = True
    """Every agent was stopped; else processes are killed with what they have in hand."""


@dataclass(slots=True)
class Counts:
    """Of the whole run."""

    deaths: int = 0
    restarts: int = 0
    redelivered: int = 0
    dead_letters: int = 0
    safety_rings: int = 0
    deadlocks: int = 0


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What every worker is told, beside its own slot."""

    transport: str
    spin_ns: int
    import_paths: list[str] = field(default_factory=list)
    log_level: str = "INFO"
    log_levels: dict[str, str] = field(default_factory=dict)
    plugins: dict[str, Any] = field(default_factory=lambda: {"models": [], "tools": []}, repr=False)
    """As plain data; the host builds none of them."""


@dataclass(eq=False, slots=True)
class Resident:
    """One life of one agent in a process, from the tree's StartChild to its end."""

    child: str
    """Key in the supervision tree."""
    incarnation: int
    spec: AgentSpec
    ready: bool = False
    pardoned: bool = False
    """It is made to fall over a death that counts against nobody, so neither does its fall."""
    _deadline: asyncio.TimerHandle | None = None

    @property
    def limited(self) -> bool:
        """Whether it has a deadline: of its start, from the moment when its process is ready, or of its stop."""
        return self._deadline is not None

    def set_deadline(self, handle: asyncio.TimerHandle | None) -> None:
        """Of its start, then of its stop: the last one holds."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = handle


@dataclass(eq=False, slots=True)
class Seat:
    """One process of the plan. `main`'s has no worker and is always ready."""

    planned: PlannedProcess
    worker: Worker | None = None
    ready: bool = False
    incarnation: int = 0
    restarts: int = 0
    forgiven: bool = False
    """Its death will be the host's own doing and counts against nobody."""
    its_own_doing: bool = False
    """The host kills it for what a handler did: memory, a loop that is blocked."""
    hung: bool = False
    """The host kills it because it does not answer."""
    verdict: str = ""
    """What `watch` says of it, if that is nothing good."""
    died_at_s: float | None = None
    """When the process died whose agents are not all back."""
    deadline: asyncio.TimerHandle | None = None
    residents: dict[str, Resident] = field(default_factory=dict)
    """By agent; two replicas of one agent are never in one process."""

    @property
    def name(self) -> str:
        return self.planned.name

    def settle(self) -> None:
        """Its process is ready."""
        self.ready = True
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def vacate(self, now_s: float) -> None:
        """Its process is dead, and everything in it."""
        self.cancel_deadlines()
        self.residents.clear()
        self.worker = None
        self.ready = False
        self.forgiven = False
        self.its_own_doing = False
        self.hung = False
        self.verdict = ""
        self.restarts += 1
        self.died_at_s = now_s

    def remove(self, agent: str) -> None:
        """One agent has ended."""
        self.residents.pop(agent).set_deadline(None)

    def cancel_deadlines(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None
        for resident in self.residents.values():
            resident.set_deadline(None)
