"""The simulation over many seeds: the tree keeps every promise, and every clause of its specification was tested.

scripts/sim plays more of them, for as long as you like.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from civitas_shm.simulation import CLAUSES, EVENTS_MIN, FAULTS, FAULTS_MIN, play

SEEDS = 2_000
PIECES = 5
FIRED_MIN = 100


@pytest.mark.native  # half a minute of each core; the three hundred seeds below are every interpreter's
@pytest.mark.parametrize("first", range(0, PIECES * SEEDS, SEEDS))
def test_ten_thousand_seeds_break_nothing_and_every_clause_fires_a_hundred_times_in_each_fifth(first: int) -> None:
    command = [sys.executable, "-m", "civitas_shm", "sim", "--seed", str(first), "--seeds", str(SEEDS), "--json"]
    done = subprocess.run([*command, "--jobs", "1"], capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    told = json.loads(done.stdout)
    assert told["failed"] == []
    assert done.returncode == 0
    assert told["seeds"] == SEEDS
    assert told["least"]["events"] >= EVENTS_MIN
    assert told["least"]["faults"] >= FAULTS_MIN
    assert told["least"]["children"] >= 3
    assert set(told["fired"]) == set(CLAUSES)
    rare = {clause: fired for clause, fired in told["fired"].items() if fired < FIRED_MIN}
    assert not rare
    assert all(told["faults"][kind] > SEEDS for kind in FAULTS), told["faults"]


def test_three_hundred_other_seeds_break_nothing() -> None:
    batch = play(range(1_000_000, 1_000_300))
    assert batch.failed == []
    assert batch.seeds == 300
