"""docs/behaviours.md: its program does what the page says, in one process and in many."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs" / "behaviours.md"


@pytest.mark.parametrize("transport", ["in_process", "shm"])
def test_the_program_of_the_page_runs(transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if transport == "shm":
        pytest.importorskip("civitas_shm_transports.shm", reason="the transport is not installed")
    monkeypatch.setenv("CIVITAS_SHM_DIR", str(tmp_path / "runs"))
    [program] = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    script = tmp_path / "page.py"
    script.write_text(program, encoding="utf-8")
    result = subprocess.run([sys.executable, script, transport], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    expected = {"counter": "RUNNING", "summarizer": "STOPPED", "guard": "RUNNING", "front": "RUNNING"}
    assert result.stdout.strip().splitlines()[-1] == str(expected)
    assert "fell" not in result.stdout
