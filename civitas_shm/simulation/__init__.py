"""Simulation: the third driver of the supervision tree, beside the in-process runtime and the host.

Layer 1: no I/O, no clock, no processes. A world is made from a seed: virtual time, simulated processes, agents, faults.
It drives the very same `supervision.step`, backoff, policy and placement as a real run, and after every step an auditor
compares what the tree does with an account of what is due, kept in another way from the same tables.

    chance     numbers from a seed, the same everywhere
    trees      random topologies
    schedule   the words of a fault schedule
    world      clock, processes, agents: performs what the tree asks for
    asked      what a step asked for
    units, turns, account   what is due
    audit      the invariants, as a table
    clauses    the rows of the specification, counted as they fire
    simulate   one seed
    shrink     the smallest schedule that still fails
    batch      many seeds, added up

    python -m civitas_shm sim --seeds 10000
    python -m civitas_shm sim topology.yaml --seeds 1000 --faults kill,pause
"""

from __future__ import annotations

from .audit import INVARIANTS, Violation
from .batch import Batch, FailedSeed, play
from .clauses import CLAUSES
from .schedule import FAULTS, FaultKind
from .simulate import EVENTS_MIN, FAULTS_MIN, Failure, Result, replay, simulate

__all__ = [
    "CLAUSES",
    "EVENTS_MIN",
    "FAULTS",
    "FAULTS_MIN",
    "INVARIANTS",
    "Batch",
    "FailedSeed",
    "Failure",
    "FaultKind",
    "Result",
    "Violation",
    "play",
    "replay",
    "simulate",
]
