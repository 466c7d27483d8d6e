"""Snapshots of a run: from the driver's notes, the memory's statistics and the probes to `snapshot.RuntimeSnapshot`.

Rules of this file: reads only; nobody is asked; rates are over the time between two readings.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..placement import MAIN
from ..snapshot import AgentSnapshot, ProcessSnapshot, RuntimeSnapshot, state_word
from ..supervision import Tree
from ..supervision.state import ChildState, ChildStatus
from ..transport import MailboxStats, RunMemory
from .driver import Driver
from .probes import Sample

__all__ = ["Readings", "agent_state"]

_ORDER = (
    ChildStatus.STARTING,
    ChildStatus.STOPPING,
    ChildStatus.WAITING,
    ChildStatus.READY,
    ChildStatus.DOWN,
    ChildStatus.GONE,
)
"""The first of these that a replica is in, is what the agent is in."""


def agent_state(children: list[ChildState]) -> str:
    """One word for an agent and all its replicas."""
    for status in _ORDER:
        if any(child.status is status for child in children):
            return "running" if status is ChildStatus.READY else status.value
    return "down"


class Readings:
    """Makes snapshots; keeps the last one's counts for the rates."""

    def __init__(self, driver: Driver, memory: RunMemory, name: str, transport: str, caller_pid: int) -> None:
        self._driver = driver
        self._memory = memory
        self._name = name
        self._transport = transport
        self._caller_pid = caller_pid
        self._handled: dict[str, int] = {}
        # A resumed run has handled some before.
        self._first_handled = {reading.name: reading.handled for reading in memory.stats()}
        self._read_at_s = 0.0

    def pids(self) -> set[int]:
        """All processes that a snapshot shows."""
        workers = {seat.worker.pid for seat in self._driver.seats.values() if seat.worker and seat.worker.pid}
        return {os.getpid(), self._caller_pid, *workers}

    def snapshot(self, samples: Mapping[int, Sample], started_s: float, now_s: float) -> RuntimeSnapshot:
        """The run as it is."""
        stats = {reading.name: reading for reading in self._memory.stats()}
        interval_s = now_s - self._read_at_s if self._read_at_s else 0.0
        snapshot = RuntimeSnapshot(
            name=self._name,
            transport=self._transport,
            uptime_s=now_s - started_s,
            shared_bytes=self._memory.used_bytes(),
            processes=tuple(self._processes(samples)),
            agents=tuple(self._agent(name, stats.get(name), interval_s) for name in self._agents()),
        )
        self._handled = {name: reading.handled for name, reading in stats.items()}
        self._read_at_s = now_s
        return snapshot

    def _agents(self) -> list[str]:
        return list(dict.fromkeys(child.agent for child in self._tree.children.values()))

    @property
    def _tree(self) -> Tree:
        return self._driver.tree

    def _processes(self, samples: Mapping[int, Sample]) -> list[ProcessSnapshot]:
        shown = [_process("host", os.getpid(), samples)]
        for seat in self._driver.seats.values():
            if seat.name == MAIN:
                if seat.planned.agents:
                    shown.append(_process(MAIN, self._caller_pid, samples))
                continue
            pid = seat.worker.pid if seat.worker and seat.worker.pid else None
            absent = "starting" if seat.worker else "waiting"
            shown.append(
                _process(
                    seat.name,
                    pid,
                    samples,
                    cpus=seat.planned.cpus,
                    restarts=seat.restarts,
                    state=(seat.verdict or None) if seat.ready else absent,
                )
            )
        return shown

    def _agent(self, name: str, stats: MailboxStats | None, interval_s: float) -> AgentSnapshot:
        children = [child for child in self._tree.children.values() if child.agent == name]
        processes = dict.fromkeys(self._driver.process_of(child.key) for child in children)
        handled = stats.handled if stats else 0
        rate = (handled - self._handled[name]) / interval_s if interval_s and name in self._handled else None
        return AgentSnapshot(
            name=name,
            process=",".join(processes),
            queue=stats.waiting if stats else 0,
            handled=handled - self._first_handled.get(name, 0),
            dropped=stats.dropped if stats else 0,
            rate_per_s=rate,
            handler_p50_us=stats.handler_p50_us if stats else None,
            restarts=sum(self._driver.restarts.get(child.key, 0) for child in children),
            state=state_word(agent_state(children), stats.suspended_since_s if stats else 0.0),
            supervisor=children[0].supervisor if children else "",
        )


def _process(
    name: str,
    pid: int | None,
    samples: Mapping[int, Sample],
    *,
    cpus: tuple[int, ...] = (),
    restarts: int = 0,
    state: str | None = None,
) -> ProcessSnapshot:
    sample = samples.get(pid) if pid is not None else None
    return ProcessSnapshot(
        name=name,
        pid=pid,
        cpus=cpus,
        cpu_percent=sample.cpu_percent if sample else None,
        rss_bytes=sample.rss_bytes if sample else None,
        state=state or (sample.state if sample else "running"),
        restarts=restarts,
    )
