"""code_atlas as a user runs it: its totals equal an independent count, whatever is killed.

The tree is made by `make_tree.py`: odd names, encodings, broken files, links. `own_count.py` shares no code with the
agents; both are run as programs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ATLAS = ROOT / "examples" / "code_atlas"

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sys.platform != "linux", reason="transport: shm needs Linux"),
]

Run = Callable[..., tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]]


def environment() -> dict[str, str]:
    roots = [str(ROOT), str(ROOT / "transports"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, roots))}


def program(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment(), capture_output=True, text=True, check=False
    )


def make_tree(directory: Path, files: int) -> Path:
    made = program(ATLAS / "make_tree.py", directory, "--files", str(files))
    assert made.returncode == 0, made.stderr
    return directory


@pytest.fixture(scope="module")
def small_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Less than a second of analysis."""
    return make_tree(tmp_path_factory.mktemp("small") / "tree", files=60)


@pytest.fixture(scope="module")
def large_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than a second of analysis for two workers: room for several kills."""
    return make_tree(tmp_path_factory.mktemp("large") / "tree", files=800)


@pytest.fixture
def atlas(tmp_path: Path) -> Run:
    """`atlas(tree, *options)`: the finished run and its lifecycle events; the report is at `tmp_path/report.json`."""

    def run(tree: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
        finished = program(
            *("-m", "civitas_shm", "run", ATLAS / "topology.yaml", "--name", f"atlas-{os.getpid()}"),
            *("--set", f"walker.path={tree}", "--set", f"report.out={tmp_path / 'report.json'}"),
            *("--events", tmp_path / "events.jsonl", *options),
            cwd=tmp_path,
        )
        events = tmp_path / "events.jsonl"
        return finished, [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []

    return run


def assert_exact(tree: Path, report: Path, *options: str) -> None:
    checked = program(ATLAS / "own_count.py", tree, "--check", report, *options)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.startswith("exact:")


def test_a_walk_that_goes_on_behind_any_file_yields_exactly_the_rest(small_tree: Path) -> None:
    spec = importlib.util.spec_from_file_location("measure", ATLAS / "measure.py")
    assert spec is not None
    assert spec.loader is not None
    measure = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(measure)
    whole = list(measure.python_files(os.fsencode(small_tree)))
    assert len(whole) > 60
    for number, (path, _) in enumerate(whole):
        assert list(measure.python_files(os.fsencode(small_tree), path)) == whole[number + 1 :]


def test_own_count_notices_one_number_that_is_wrong(small_tree: Path, tmp_path: Path) -> None:
    counted = program(ATLAS / "own_count.py", small_tree, "--per-file")
    report = json.loads(counted.stdout)
    report["per_file"][7]["imports"] += 1
    (tmp_path / "report.json").write_text(json.dumps(report))
    checked = program(ATLAS / "own_count.py", small_tree, "--check", tmp_path / "report.json")
    assert checked.returncode == 1
    assert report["per_file"][7]["path"] in checked.stdout or repr(report["per_file"][7]["path"]) in checked.stdout


def test_the_totals_equal_an_independent_count(small_tree: Path, tmp_path: Path, atlas: Run) -> None:
    finished, events = atlas(small_tree)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert_exact(small_tree, tmp_path / "report.json")
    assert [events[0]["event"], events[-1]["event"]] == ["run_started", "run_stopped"]
    assert "process_died" not in {event["event"] for event in events}


def test_directories_to_skip_are_left_out_wherever_they_lie_and_named_in_the_report(tmp_path: Path, atlas: Run) -> None:
    tree = tmp_path / "tree"
    for path in (
        "site-packages/a.py",
        "lib/site-packages/deep/b.py",
        "lib/c.py",
        "site-packages.py",
        "e/site-packages2/d.py",
    ):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text("import os\n")
    finished, _ = atlas(tree, "--set", "walker.skip=[site-packages]")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert_exact(tree, tmp_path / "report.json", "--skip", "site-packages")
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["path"] for row in report["per_file"]] == ["e/site-packages2/d.py", "lib/c.py", "site-packages.py"]
    assert report["skip"] == ["site-packages"]


def test_one_worker_gives_the_same_totals(small_tree: Path, tmp_path: Path, atlas: Run) -> None:
    finished, _ = atlas(small_tree, "--workers", "1")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert_exact(small_tree, tmp_path / "report.json")


def test_the_same_topology_runs_in_process(small_tree: Path, tmp_path: Path, atlas: Run) -> None:
    finished, _ = atlas(small_tree, "--transport", "in_process")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert_exact(small_tree, tmp_path / "report.json")


def test_the_totals_are_exact_while_workers_are_killed(large_tree: Path, tmp_path: Path, atlas: Run) -> None:
    """Once here; tests/torture/run_atlas.py plays it as often as you like."""
    finished, events = atlas(large_tree, "--chaos", "kill=0.3s", "--workers", "2")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert sum(event["event"] == "process_died" for event in events) >= 2
    assert_exact(large_tree, tmp_path / "report.json")


def test_a_run_that_was_stopped_half_way_goes_on_with_resume_and_stays_exact(large_tree: Path, tmp_path: Path) -> None:
    # A copy that gives up draining at once, so that SIGTERM leaves most of the work in shared memory.
    shutil.copytree(ATLAS, tmp_path / "atlas")
    topology = tmp_path / "atlas" / "topology.yaml"
    text = topology.read_text()
    assert "timeout_s: 10 " in text
    topology.write_text(text.replace("timeout_s: 10 ", "timeout_s: 0.1 "))
    command = [
        *(sys.executable, "-m", "civitas_shm", "run", str(topology), "--name", f"resumed-{os.getpid()}"),
        *("--set", f"walker.path={large_tree}", "--set", f"report.out={tmp_path / 'report.json'}", "--workers", "1"),
    ]
    first = subprocess.Popen(
        [*command, "--events", str(tmp_path / "events.jsonl")],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "events.jsonl").exists() or "process_started" not in (tmp_path / "events.jsonl").read_text():
        assert first.poll() is None
        time.sleep(0.01)
    time.sleep(0.5)  # of more than two seconds of work
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate()
    assert first.returncode == 0, said
    assert "--resume" in said
    assert not (tmp_path / "report.json").exists()
    second = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert second.returncode == 6, second.stderr  # never dropped without being told to
    third = subprocess.run([*command, "--resume"], env=environment(), capture_output=True, text=True, check=False)
    assert third.returncode == 0, third.stderr
    assert_exact(large_tree, tmp_path / "report.json")


@pytest.mark.timeout(400)  # a kill each 0.1 s: on a busy machine most lives end before they have done much
def test_the_totals_are_exact_under_kills_and_stops_with_a_host_killed_and_resumed_twice(large_tree: Path) -> None:
    played = program(ROOT / "tests/torture/run_atlas.py", "host", large_tree, "--times", "1")
    assert played.returncode == 0, played.stdout + played.stderr
    assert "2 hosts and" in played.stdout


def test_an_empty_directory_is_counted_as_nothing(tmp_path: Path, atlas: Run) -> None:
    (tmp_path / "empty").mkdir()
    finished, _ = atlas(tmp_path / "empty")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["files"], report["lines"], report["per_file"]) == (0, 0, [])


def test_a_directory_that_is_not_there_fails_the_run_and_names_the_setting(tmp_path: Path, atlas: Run) -> None:
    finished, _ = atlas(tmp_path / "nowhere")
    assert finished.returncode == 1
    assert "walker.path" in finished.stderr
    assert not (tmp_path / "report.json").exists()
