"""The wall clock is stepped under a live run, in every process of it: nothing that waits or counts time may notice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.process

HERE = Path(__file__).parent


@pytest.mark.fault("clock step")
def test_defect_40_no_deadline_window_or_backoff_notices_that_the_wall_clock_jumps_by_a_day(
    tmp_path: Path, need_tool: Any, fired: Any
) -> None:
    compiler, library, step = need_tool("cc", "gcc"), tmp_path / "clock_step.so", tmp_path / "step"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", HERE / "clock_step.c", "-o", library], check=True)
    step.write_bytes(bytes(16))
    env = {
        **os.environ,
        "CIVITAS_SHM_DIR": str(tmp_path / "runs"),
        "CLOCK_STEP_FILE": str(step),
        "LD_PRELOAD": str(library),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, HERE / "clock_run.py", step], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    fired(seen["away_days"] == [0, 0, 1, 1, -1, -1, 0, 0], "two workers saw the wrong date, forwards and backwards")
    fired(seen["event_days"] == [-1, 0, 1], "so did the host, in its events")
    fired(seen["reads"], "reads of a clock that was wrong")
    # A deadline of 0.3 s that began before the step ends no earlier for it, and it does end.
    assert len(seen["short_s"]) == 3
    assert min(seen["short_s"]) >= 0.3
    assert min(seen["came_back_s"]) >= 0.0
    assert len(seen["came_back_s"]) == 2
    assert "failed" in seen, "the restart window was forgiven by the clock"
    assert "restart" in seen["failed"]
    stamps = [int(id_.replace("-", "")[:12], 16) for id_ in seen["ids"]]
    assert stamps == sorted(stamps), "ids of one process ascend"
