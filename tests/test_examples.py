"""The examples run as a user would run them, from a fresh interpreter, and say what they promise to say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sys.platform != "linux", reason="transport: shm needs Linux"),
]


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a Python command that must end with exit code 0."""
    finished = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment(), capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout + finished.stderr


def environment() -> dict[str, str]:
    """As it is, and with both source roots, so that an uninstalled checkout is tested too."""
    roots = [str(ROOT), str(ROOT / "transports"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, roots))}


def readme_agent() -> str:
    found = re.search(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None, "README.md has no Python block"
    return found[1]


def test_the_first_agent_in_the_readme_is_the_example_and_has_twenty_lines() -> None:
    source = readme_agent()
    assert source == (EXAMPLES / "first" / "first.py").read_text()
    assert len(source.splitlines()) <= 20


def test_the_first_agent_of_the_readme_runs_as_it_stands_and_answers_from_another_process(tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text(readme_agent())
    output = run("hello.py", cwd=tmp_path)
    greetings = re.findall(r"Hello (\w+), says process (\d+) to process (\d+)", output)
    assert [name for name, _, _ in greetings] == ["Ada", "Grace"], output
    assert all(agent != program for _, agent, program in greetings)
    assert len({agent for _, agent, _ in greetings}) == 1


def test_an_ask_survives_the_sigkill_of_the_process_that_was_answering_it(tmp_path: Path) -> None:
    output = run(EXAMPLES / "survivor" / "survivor.py", cwd=tmp_path)
    assert re.search(r"answered by process \d+ on delivery 2", output), output


@pytest.mark.parametrize("transport", ["shm", "in_process"])
def test_ping_pong_plays_every_round_and_ends_by_itself(transport: str, tmp_path: Path) -> None:
    topology = EXAMPLES / "ping_pong" / "topology.yaml"
    output = run(
        "-m", "civitas_shm", "run", topology, "--set", "ping.rounds=300", "--transport", transport, cwd=tmp_path
    )
    assert "300 round trips" in output


def test_the_examples_own_tests_pass_with_the_plug_in_that_users_have(tmp_path: Path) -> None:
    """In a pytest of their own, which has none of this project's settings."""
    plugins = ["-p", "civitas_shm.testing.plugin", "-p", "no:cacheprovider"]
    output = run("-m", "pytest", "-q", "-ra", *plugins, "-c", os.devnull, "--rootdir", EXAMPLES, EXAMPLES, cwd=tmp_path)
    assert re.search(r"^5 passed in ", output, re.MULTILINE), output


def test_every_example_is_listed_in_the_readme_of_the_examples() -> None:
    listed = set(re.findall(r"\]\((\w+)/", (EXAMPLES / "README.md").read_text()))
    assert listed == {path.name for path in EXAMPLES.iterdir() if path.is_dir() and path.name != "__pycache__"}


RUN_BY = {
    "code_atlas": "process/test_code_atlas.py::test_the_totals_equal_an_independent_count",
    "first": "test_examples.py::test_the_first_agent_of_the_readme_runs_as_it_stands_and_answers_from_another_process",
    "ping_pong": "test_examples.py::test_ping_pong_plays_every_round_and_ends_by_itself",
    "survivor": "test_examples.py::test_an_ask_survives_the_sigkill_of_the_process_that_was_answering_it",
    "word_count": "test_coming_from.py::test_it_counts",
}


def test_every_example_is_run_by_a_test() -> None:
    assert sorted(RUN_BY) == sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir() and any(path.iterdir()))
    for test in RUN_BY.values():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), test
