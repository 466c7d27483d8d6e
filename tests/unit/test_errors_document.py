"""docs/errors.md is what scripts/generate-errors makes of errors.py today."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from civitas_shm import errors

ROOT = Path(__file__).parents[2]


def test_document_is_current() -> None:
    check = [sys.executable, ROOT / "scripts" / "generate-errors", "--check"]
    result = subprocess.run(check, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_document_names_every_error_with_the_exit_code_that_the_class_has() -> None:
    entries = (ROOT / "docs" / "errors.md").read_text().split("\n### ")
    codes = {entry.split("`")[1]: int(entry.rsplit("xit code ", 1)[1].split("*")[0]) for entry in entries[1:]}
    classes = [value for name in errors.__all__ if isinstance(value := getattr(errors, name), type)]
    assert codes == {c.__name__: c.exit_code for c in classes if issubclass(c, errors.CivitasError)}


def test_every_error_has_a_sentence_of_its_own() -> None:
    for name in errors.__all__:
        assert getattr(errors, name).__dict__.get("__doc__"), f"{name} has no docstring"
