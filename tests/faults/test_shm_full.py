"""/dev/shm is full under a live run: an error with names, never SIGBUS, and with room again it goes on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .load import Load

pytestmark = pytest.mark.process

EXTENT = 1 << 20
"""What an arena asks the kernel for at once."""


@pytest.mark.fault("/dev/shm full")
def test_a_full_dev_shm_is_an_error_that_says_who_holds_what_and_with_room_the_run_goes_on(
    tmp_path: Path, fired: Any
) -> None:
    load = Load(tmp_path, ("s0",), ("k0",))
    env = {**os.environ, "CIVITAS_SHM_DIR": str(tmp_path / "runs"), "PYTHONPATH": os.pathsep.join(sys.path)}
    program = Path(__file__).with_name("full_run.py")
    done = subprocess.run(
        [sys.executable, program, "24m", load.folder], capture_output=True, text=True, env=env, check=False
    )
    if done.returncode == 77:
        fired.skip(f"a mount namespace of its own: {done.stdout.strip()}; run as root")
    assert done.returncode == 0, f"ended with {done.returncode}\n{done.stdout}{done.stderr}"
    seen = json.loads(done.stdout)
    fired(seen["free_bytes"] < EXTENT, "file system without room for another extent")
    fired(len(seen["refusals"]), "sends that the kernel refused")
    for text in (seen["refusals"][0], seen["caller_error"]):
        assert re.search(r"/dev/shm has 0\.\d MiB free of 24\.0 MiB: ", text), text
        assert "other files " in text
        assert "the run 'full-" in text
        assert "docker run --shm-size=1g" in text
    assert "k0 " in seen["refusals"][0]
    assert seen["deaths"] == ["SIGKILL"], "the one that the test has sent; no SIGBUS"
    assert seen["free_bytes_then"] < EXTENT, "a successor began without a new extent"
    assert seen["waiting"] == {}
    assert seen["left"] == []
    assert load.check(seen["in_hand"]) > 50
