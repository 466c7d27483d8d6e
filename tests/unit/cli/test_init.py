"""`init` makes a project that runs as it is, and writes over nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from civitas_shm.cli.app import app
from civitas_shm.cli.scaffold import FILES, SCHEMA
from civitas_shm.topology.yaml12 import read


def test_the_project_can_be_planned_as_it_is(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["init", str(tmp_path / "My Project")])
    assert result.exit_code == 0
    assert {path.name for path in (tmp_path / "My Project").iterdir()} == {*FILES, SCHEMA}
    assert "name: my-project" in (tmp_path / "My Project" / "topology.yaml").read_text()
    planned = CliRunner().invoke(app, ["plan", str(tmp_path / "My Project" / "topology.yaml")])
    assert planned.exit_code == 0, planned.stderr
    assert "squarer#1" in planned.stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    assert CliRunner().invoke(app, ["init", str(tmp_path / "first")]).exit_code == 0
    return tmp_path / "first"


def python(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=project, env=environment, capture_output=True, text=True, check=False
    )


def test_the_project_runs_in_one_process(project: Path) -> None:
    done = python(project, "-m", "civitas_shm", "run", "--transport", "in_process", "--set", "asker.count=4")
    assert done.returncode == 0, done.stderr
    assert "the sum of the first 4 squares is 30" in done.stdout + done.stderr


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="agents in shared memory need Linux")
def test_the_project_runs_in_several_processes(project: Path) -> None:
    done = python(project, "-m", "civitas_shm", "run", "--name", f"init-test-{os.getpid()}")
    assert done.returncode == 0, done.stderr
    assert "the sum of the first 10 squares is 385" in done.stderr


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="agents in shared memory need Linux")
def test_the_projects_sum_is_the_same_while_its_processes_are_killed(project: Path) -> None:
    options = ["--name", f"init-test-{os.getpid()}", "--set", "asker.count=40000", "--chaos", "kill=50ms"]
    done = python(project, "-m", "civitas_shm", "run", *options, "--events", "events.jsonl")
    assert done.returncode == 0, done.stderr
    sums = {line.split()[-1] for line in done.stderr.splitlines() if "the sum of" in line}
    assert sums == {str(40_000 * 40_001 * 80_001 // 6)}
    assert "process_died" in (project / "events.jsonl").read_text()


def test_the_projects_own_test_passes(project: Path) -> None:
    # -p: an uninstalled checkout has no entry points.
    done = python(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "civitas_shm.testing.plugin")
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout or sys.platform != "linux"


def test_the_projects_program_runs(project: Path) -> None:
    text = (project / "topology.yaml").read_text()
    (project / "topology.yaml").write_text(text.replace("transport: shm ", "transport: in_process "))
    done = python(project, "run.py")
    assert done.returncode == 0, done.stderr
    assert "the sum of the first 10 squares is 385" in done.stdout + done.stderr


def test_the_projects_schema_takes_its_topology(project: Path) -> None:
    topology = (project / "topology.yaml").read_text()
    assert topology.splitlines()[0] == f"# yaml-language-server: $schema=./{SCHEMA}"
    jsonschema.Draft202012Validator(json.loads((project / SCHEMA).read_text())).validate(read(topology).data)
    valid = CliRunner().invoke(app, ["topology", "validate", "--classes", str(project / "topology.yaml")])
    assert valid.exit_code == 0, valid.output


def test_a_project_can_be_made_in_another_directory(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["init", "first", "--dir", str(tmp_path / "deep")]).exit_code == 0
    assert (tmp_path / "deep" / "first" / "topology.yaml").exists()


def test_a_new_project_joins_what_is_in_its_directory(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("kept")
    assert CliRunner().invoke(app, ["init", str(tmp_path)]).exit_code == 0
    assert (tmp_path / "notes.txt").read_text() == "kept"


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text("mine")
    result = CliRunner().invoke(app, ["init", str(tmp_path)], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "has agents.py already" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["agents.py"]


def test_a_file_is_no_place_for_a_project(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("file", "file/below"):
        assert CliRunner().invoke(app, ["init", str(tmp_path / name)]).exit_code == 2
