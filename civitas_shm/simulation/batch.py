"""Many seeds, added up; and what is told of one that failed.

Rules of this file: plain data that can be written as JSON and read again, because the seeds of one run are played by
several processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..supervision.tree import step as real_step
from ..topology.model import SupervisorSpec, TopologySpec
from .schedule import FAULTS, FaultKind, Schedule
from .shrink import shrink
from .simulate import Result, replay, simulate
from .world import Step

__all__ = ["Batch", "FailedSeed", "play"]


@dataclass(frozen=True, slots=True)
class FailedSeed:
    """What is told of a seed that failed."""

    seed: int
    invariant: str
    violation: str
    tree: list[str]
    """The supervisors and agents, and the processes, one a line."""
    schedule: list[str]
    """The smallest schedule that still fails, one entry a line, in order of time."""
    entries_before: int
    """How many there were before it was shrunk."""


@dataclass(slots=True)
class Batch:
    """The sum of many seeds."""

    seeds: int = 0
    events: int = 0
    simulated_s: float = 0.0
    least: dict[str, int] = field(default_factory=dict)
    """Of one seed: the fewest events, faults and children that any of them had."""
    faults: Counter[str] = field(default_factory=Counter)
    fired: Counter[str] = field(default_factory=Counter)
    failed: list[FailedSeed] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """One more seed; `failed` is the caller's, because shrinking takes its time."""
        self.seeds += 1
        self.events += result.events
        self.simulated_s += result.simulated_s
        self.faults.update(result.faults)
        self.fired.update(result.fired)
        if result.failure is None:
            faults = sum(result.faults[kind] for kind in FAULTS)
            self._least({"events": result.events, "faults": faults, "children": result.children})

    def merge(self, other: Batch) -> None:
        """What another process has played."""
        self.seeds += other.seeds
        self.events += other.events
        self.simulated_s += other.simulated_s
        self.faults.update(other.faults)
        self.fired.update(other.fired)
        self.failed.extend(other.failed)
        self._least(other.least)

    def _least(self, other: dict[str, int]) -> None:
        for name, value in other.items():
            self.least[name] = min(value, self.least.get(name, value))

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "seeds": self.seeds,
            "events": self.events,
            "simulated_s": self.simulated_s,
            "least": self.least,
            "faults": dict(self.faults),
            "fired": dict(self.fired),
            "failed": [asdict(failed) for failed in self.failed],
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Batch:
        """The inverse of `to_plain`."""
        return cls(
            seeds=plain["seeds"],
            events=plain["events"],
            simulated_s=plain["simulated_s"],
            least=plain["least"],
            faults=Counter(plain["faults"]),
            fired=Counter(plain["fired"]),
            failed=[FailedSeed(**failed) for failed in plain["failed"]],
        )


def play(
    seeds: Iterable[int],
    *,
    topology: TopologySpec | None = None,
    faults: Sequence[FaultKind] = FAULTS,
    step: Step = real_step,
    failures_max: int = 1,
) -> Batch:
    """Play them one after the other, until so many have failed."""
    batch = Batch()
    for seed in seeds:
        result = simulate(seed, topology=topology, faults=faults, step=step)
        batch.add(result)
        if result.failure is not None:
            batch.failed.append(_told(result, step))
            if len(batch.failed) >= failures_max:
                break
    return batch


def _told(result: Result, step: Step) -> FailedSeed:
    failure = result.failure
    assert failure is not None

    def fails(schedule: Schedule) -> bool:
        violation = replay(result.placement, failure, schedule, step)
        return violation is not None and violation.invariant == failure.invariant

    smallest = shrink(failure.schedule, fails)
    violation = replay(result.placement, failure, smallest, step)
    tree = _lines(result.placement.spec.supervision, 0)
    tree += [f"process {process.name}: {', '.join(process.agents) or '–'}" for process in result.placement.processes]
    return FailedSeed(
        seed=result.seed,
        invariant=failure.invariant,
        violation=failure.violation if violation is None else str(violation),
        tree=tree,
        schedule=[str(entry) for entry in smallest],
        entries_before=len(failure.schedule),
    )


def _lines(spec: SupervisorSpec, depth: int) -> list[str]:
    significant = ", significant" if spec.significant else ""
    reset = "" if spec.backoff_reset_s is None else f", reset after {spec.backoff_reset_s:g} s"
    found = [
        f"{'  ' * depth}{spec.name}: {spec.strategy}, {spec.max_restarts} restarts in {spec.restart_window_s:g} s, "
        f"{spec.backoff} {spec.backoff_base_s:g} s to {spec.backoff_max_s:g} s{reset}, auto_shutdown "
        f"{spec.auto_shutdown}, {spec.restart}{significant}"
    ]
    for child in spec.children:
        if isinstance(child, SupervisorSpec):
            found += _lines(child, depth + 1)
            continue
        replicas = f", {child.replicas} replicas" if child.replicas > 1 else ""
        significant = ", significant" if child.significant else ""
        found.append(
            f"{'  ' * (depth + 1)}{child.name}: {child.restart}{replicas}{significant}, start within "
            f"{child.start_timeout_s:g} s, stop within {child.shutdown_timeout_s:g} s"
        )
    return found
