"""`plan` shows what `run` would do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from civitas_shm.cli.app import app

TOPOLOGY = """\
transport: shm
processes:
  w1: {cpus: [%d], nice: 5, memory_limit_mb: 64}
pool: {standby: 0}
supervision:
  children:
    - agent: {name: walker, type: json.JSONDecoder, process: w1}
    - agent: {name: analyser, type: json.JSONDecoder, replicas: 3}
"""


@pytest.fixture
def topology(tmp_path: Path) -> str:
    file = tmp_path / "atlas.yaml"
    file.write_text(TOPOLOGY % min(os.sched_getaffinity(0)))
    return str(file)


def test_the_table_has_processes_cores_agents_and_memory(topology: str) -> None:
    result = CliRunner().invoke(app, ["plan", topology], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("atlas · shm · 4 workers, 0 standby")
    rows = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert rows["w1"] == [str(min(os.sched_getaffinity(0))), "5", "64", "MiB", "walker"]
    assert rows["w2"][-1] == "analyser#0"
    assert "MiB at the start" in result.stdout


def test_json_has_the_same_in_a_stable_form(topology: str) -> None:
    result = CliRunner().invoke(app, ["plan", "--json", "-t", topology])
    plain = json.loads(result.stdout)
    assert [process["name"] for process in plain["processes"]] == ["main", "w1", "w2", "w3", "w4"]
    assert plain["processes"][1]["agents"] == ["walker"]
    assert plain["processes"][1]["nice"] == 5
    assert 0 < plain["shared_memory"]["expected_bytes"] < plain["shared_memory"]["reserved_bytes"]
    assert plain["notes"] == []


def test_workers_lowers_replicas_and_says_so(topology: str) -> None:
    plain = json.loads(CliRunner().invoke(app, ["plan", "--json", "--workers", "2", topology]).stdout)
    assert [process["name"] for process in plain["processes"]] == ["main", "w1", "w2", "w3"]
    assert plain["notes"] == ["agent 'analyser': 2 of 3 replicas run, one per process (--workers)."]


def test_in_process_takes_no_shared_memory(topology: str) -> None:
    plain = json.loads(CliRunner().invoke(app, ["plan", "--json", "--transport", "in_process", topology]).stdout)
    assert plain["shared_memory"]["expected_bytes"] == 0


def test_a_core_that_is_not_there_is_exit_code_3(topology: str) -> None:
    Path(topology).write_text(TOPOLOGY % 4095)
    result = CliRunner().invoke(app, ["plan", topology])
    assert result.exit_code == 3
    assert "processes.w1.cpus asks for 4095" in result.stderr
