"""Whole runs under torture, in the test run: each class of blow counted, no message lost (`run_chaos.py`)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.process

KILLS, HOSTS, STOPS = 1000, 15, 50
PAUSE_S = 0.004


@pytest.mark.timeout(400)
@pytest.mark.fault("host kill")
def test_whole_runs_lose_nothing_under_kills_and_stops_of_everybody(tmp_path: Path, fired: Any) -> None:
    """The script itself fails when too few of a class happened, or too few kills found a message in hand."""
    wanted = ["--kills", KILLS, "--hosts", HOSTS, "--stops", STOPS, "--pause", PAUSE_S, "--keep", tmp_path]
    played = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("run_chaos.py")), *map(str, wanted)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert played.returncode == 0, played.stdout + played.stderr
    for what in ("worker", "standby", "host", "host at its start"):
        found = re.search(rf"(\d+) {what}[,;]", played.stdout)
        fired(int(found[1]) if found else 0, f"kills of a {what}")
    found = re.search(r"(\d+) stops", played.stdout)
    fired(int(found[1]) >= STOPS if found else 0, "stops")
