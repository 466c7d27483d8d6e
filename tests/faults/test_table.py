"""The table of faults is complete, and each of its entries has a test that fails when its fault does not fire."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from .table import FAULTS, Fired

TESTS = Path(__file__).parents[1]

WANTED = {
    "kill", "stop and continue", "slow consumer", "mailbox full", "arena full", "/dev/shm full", "fd exhaustion",
    "clock step", "poison message", "start-up failure", "host kill", "host kill while adopting",
}  # fmt: skip
"""The list of classes that the project has promised, apart from the table."""


def marked() -> dict[str, list[str]]:
    """Class -> the tests that bear its marker and take `fired`."""
    found: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        if "mark.fault(" not in (text := path.read_text(encoding="utf-8")):
            continue
        for node in ast.parse(text).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.fault":
                    assert "fired" in {argument.arg for argument in node.args.args}, f"{node.name} takes no evidence"
                    (fault,) = (ast.literal_eval(argument) for argument in decorator.args)
                    found.setdefault(fault, []).append(f"{path.name}::{node.name}")
    return found


def test_every_class_of_fault_that_is_promised_is_in_the_table_and_has_a_test() -> None:
    assert set(FAULTS) == WANTED
    assert set(marked()) == WANTED


def test_the_document_tells_of_each_class() -> None:
    document = (TESTS.parent / "docs/reliability.md").read_text(encoding="utf-8")
    for fault in FAULTS:
        assert f"\n| {fault} |" in document, f"docs/reliability.md has no row for {fault!r}"


def test_a_test_in_which_nothing_has_fired_fails() -> None:
    fired = Fired("kill")
    assert "never seen to fire" in fired.missing()
    with pytest.raises(AssertionError, match="kill: deaths: none"):
        fired(0, "deaths")
    assert fired.missing()
    fired(3, "deaths")
    assert not fired.missing()
    with pytest.raises(ValueError, match="no class"):
        Fired("kil")
