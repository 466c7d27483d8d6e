"""The list of what cannot run over shm is true: each name is a test of the suite, and each has a reason."""

from __future__ import annotations

import ast
from pathlib import Path

from .anywhere import NOT_ON_SHM

HERE = Path(__file__).parent


def those_that_ask_for_a_place() -> set[str]:
    """Those that take the fixture `anywhere`."""
    found = set()
    for path in HERE.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and "anywhere" in {argument.arg for argument in node.args.args}:
                found.add(node.name)
    return found


def test_what_cannot_run_over_shm_is_a_test_of_the_suite_and_says_why() -> None:
    suite = those_that_ask_for_a_place()
    assert len(suite) > 10
    assert NOT_ON_SHM.keys() <= suite, sorted(NOT_ON_SHM.keys() - suite)
    assert all(len(reason.split()) > 3 for reason in NOT_ON_SHM.values())
    assert len(NOT_ON_SHM) < len(suite) / 3, "the list is for exceptions"
