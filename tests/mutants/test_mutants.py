"""Each defect of `table.py` is planted in a copy of the sources, and the test that is named after it must fail there,
for its reason.

A sample of them is played in an ordinary test run; `scripts/mutants` plays all (CIVITAS_MUTANTS=all).

Rules of this file: the checkout is never written to; a copy is made once a session and changed in one file at a time;
each test runs in an interpreter of its own, over the copy alone.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from .table import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
COPIED = ("civitas_shm", "transports", "tests", "pyproject.toml")

IN_SCOPE = {1, 2, 7, 8, 11, 12, 16, 17, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 34, 37, 44}
"""Of the original's defects those that were seen and not only read, in what is built so far, on one machine."""

SAMPLE = 3
WATCHDOG_S = 10
"""For the one test, which takes a second or two in an unchanged copy."""

OTHERWISE_BROKEN = re.compile(
    r"(?:\w+\.)*(?:ImportError|ModuleNotFoundError|SyntaxError|IndentationError|NameError|UnboundLocalError)\b"
)


def played() -> list[Mutant]:
    if os.environ.get("CIVITAS_MUTANTS") == "all":
        return [*MUTANTS]
    quick = [mutant for mutant in MUTANTS if mutant.says != "Timeout"]
    return [quick[number * len(quick) // SAMPLE] for number in range(SAMPLE)]


@pytest.fixture(scope="session")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources once more, with what was built of them."""
    folder = tmp_path_factory.mktemp("mutants")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy2(ROOT / name, folder / name)
    return folder


def errors_of(test: str, copy: Path) -> tuple[str, str]:
    """(what pytest says of the errors of this test's failures; all that it printed)."""
    report = copy / "report.xml"
    report.unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    path = [str(copy), str(copy / "transports"), os.environ.get("PYTHONPATH", "")]  # the copy before the checkout
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly"]
    command += ["-o", f"timeout={WATCHDOG_S}", "--junitxml", str(report), f"tests/{test}"]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=copy, env=environment, **output) as child:
        printed = child.communicate()[0]
    for segment in Path("/dev/shm").glob(f"civitas-*-{child.pid}-*"):
        segment.unlink()  # a test that fails in the middle of a run of its own ends with its process, and leaves these
    failures = [] if not report.exists() else ElementTree.parse(report).iter("failure")
    lines = [line[1:].strip() for failure in failures for line in (failure.text or "").splitlines() if line[:2] == "E "]
    return "\n".join(lines), printed


@pytest.mark.parametrize("mutant", played(), ids=lambda mutant: mutant.id)
def test_the_defect_is_found(mutant: Mutant, copy: Path) -> None:
    source = copy / mutant.file
    text = source.read_text()
    try:
        source.write_text(text.replace(mutant.before, mutant.after))
        said, printed = errors_of(mutant.test, copy)
    finally:
        source.write_text(text)
    if not said and re.search(r"^1 skipped in ", printed, re.MULTILINE) and os.environ.get("CI") != "true":
        pytest.skip(f"{mutant.test} cannot be played here: {printed}")
    assert said, f"{mutant.test} does not fail:\n{printed}"
    assert OTHERWISE_BROKEN.match(said) is None, f"the change broke something else:\n{said}"
    assert re.search(mutant.says, said), f"{mutant.test} fails, but not for its reason ({mutant.says}):\n{said}"


# --- the table ------------------------------------------------------------------------------------------------------


def test_every_defect_has_an_entry() -> None:
    there = [mutant.defect for mutant in MUTANTS]
    assert there == sorted(there)
    assert {*there} >= IN_SCOPE


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_an_entry_changes_one_place_and_names_a_test_after_its_defect(mutant: Mutant) -> None:
    text = (ROOT / mutant.file).read_text()
    assert text.count(mutant.before) == 1, f"the text is there {text.count(mutant.before)} times"
    ast.parse(text.replace(mutant.before, mutant.after))
    file, _, name = mutant.test.partition("::")
    assert name.startswith(f"test_defect_{mutant.defect}_")
    assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), f"there is no {mutant.test}"


@pytest.mark.skipif(os.environ.get("CIVITAS_MUTANTS") != "all", reason="two seconds, only beside all mutants")
def test_only_a_failure_of_the_test_itself_counts(copy: Path) -> None:
    file = copy / "tests" / "unit" / "test_of_mutants.py"
    try:
        file.write_text("def test_bad():\n    assert [1, 2] == [2, 1]\n")
        assert "assert [1, 2] == [2, 1]" in errors_of("unit/test_of_mutants.py::test_bad", copy)[0]
        file.write_text("import no_such_module\n\n\ndef test_bad():\n    assert False\n")
        assert errors_of("unit/test_of_mutants.py::test_bad", copy)[0] == ""
    finally:
        file.unlink()
