"""The public types, as a user's type checker sees them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_mypy_accepts_and_refuses_what_it_should_in_a_users_file() -> None:
    file = Path(__file__).with_name("public_api.py")
    mypy = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(file)]
    result = subprocess.run(mypy, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_both_packages_say_that_they_are_typed() -> None:
    assert (ROOT / "civitas_shm" / "py.typed").exists()
    assert (ROOT / "transports" / "civitas_shm_transports" / "py.typed").exists()
