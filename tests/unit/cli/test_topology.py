"""`topology` checks, shows and compares; what is secret it neither shows nor overlooks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from civitas_shm.cli.app import app
from civitas_shm.cli.tree_text import running_tree
from civitas_shm.control.protocol import AgentState
from civitas_shm.topology.json_schema import json_schema
from civitas_shm.topology.load import load_topology_text
from civitas_shm.topology.shown import show

TOPOLOGY = """\
name: atlas
transport: shm
supervision:
  children:
    - agent: {name: walker, type: agents.Walker, process: w1, credentials: {x: "${CANARY_KEY}"}}
    - supervisor:
        name: inner
        strategy: ONE_FOR_ALL
        children:
          - agent: {name: report, type: agents.Report, replicas: 2, state: none}
    - {type: dynamic_supervisor, name: pool, max_children: 3}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CANARY_KEY", "canary-1234")
    monkeypatch.setenv("CIVITAS_SHM_DIR", str(tmp_path / "runs"))
    (tmp_path / "topology.yaml").write_text(TOPOLOGY)
    (tmp_path / "other.yaml").write_text(TOPOLOGY.replace("replicas: 2", "replicas: 3").replace("process: w1, ", ""))
    (tmp_path / "bad.yaml").write_text("pol: {}\nsupervision: {children: [{name: a, type: A}]}\n")
    (tmp_path / "agents.py").write_text("from civitas_shm import AgentProcess\nclass Walker(AgentProcess): ...\n")
    return tmp_path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["topology", *arguments])


def test_a_valid_file_is_said_to_be_with_what_is_in_it(folder: Path) -> None:
    result = invoke("validate")
    assert (result.exit_code, result.stdout) == (0, "topology.yaml is valid: 2 agents, 3 supervisors, shm.\n")


def test_all_problems_of_all_files_are_said_and_the_code_is_3(folder: Path) -> None:
    result = invoke("validate", "topology.yaml", "bad.yaml", "missing.yaml")
    assert result.exit_code == 3
    assert [line.split(": ")[0] for line in result.stderr.splitlines()] == [
        "bad.yaml:1:1",
        "bad.yaml:2:42",
        "missing.yaml",
    ]
    assert "topology.yaml is valid" in result.stdout
    plain = json.loads(invoke("validate", "--json", "topology.yaml", "bad.yaml").stdout)["files"]
    assert [(one["file"], one["valid"], len(one["problems"])) for one in plain] == [
        ("topology.yaml", True, 0), ("bad.yaml", False, 2),
    ]  # fmt: skip


def test_a_file_can_be_checked_where_its_secrets_are_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CANARY_KEY")
    refused = invoke("validate")
    assert refused.exit_code == 3
    assert "the environment variable 'CANARY_KEY' is not set" in refused.stderr
    assert invoke("validate", "--unset-ok").exit_code == 0


def test_classes_are_looked_for_when_asked(folder: Path) -> None:
    result = invoke("validate", "--classes")
    assert result.exit_code == 4
    assert "agents.Report" in result.stderr
    assert "agents.Walker" not in result.stderr


def test_a_tree_is_shown_as_it_is_declared(folder: Path) -> None:
    assert invoke("show").stdout.splitlines() == [
        "[sup] root (ONE_FOR_ONE, 3 restarts in 60 s)",
        "├── [agent] walker (agents.Walker · process w1 · credentials for x)",
        "├── [sup] inner (ONE_FOR_ALL, 3 restarts in 60 s)",
        "│   └── [agent] report (agents.Report · 2 replicas · state none)",
        "└── [dyn] pool (at most 3 children)",
    ]


def test_a_tree_is_shown_as_it_runs() -> None:
    topology = show(load_topology_text(TOPOLOGY, environment={"CANARY_KEY": "k"}), "")
    agents = [
        AgentState("walker", "root", "w1", "running", 2, 17),
        AgentState("report#0", "inner", "w2", "running", 0, 1),
        AgentState("report#1", "inner", "w3", "starting", 1, 1),
        AgentState("crawler", "pool", "w2", "running", 0, 0, spawned=True),
    ]
    assert running_tree(topology, agents) == [
        "[sup] root (ONE_FOR_ONE, 3 restarts in 60 s)",
        "├── [agent] walker (RUNNING · w1 · 2 restarts · 17 waiting)",
        "├── [sup] inner (ONE_FOR_ALL, 3 restarts in 60 s)",
        "│   └── [agent] report (RUNNING, STARTING · w2,w3 · 1 restart · 1 waiting)",
        "└── [dyn] pool (at most 3 children)",
        "    └── [agent] crawler (RUNNING · w2)",
    ]
    assert "[agent] walker (NOT STARTED)" in running_tree(topology, [])[1]


def test_no_secret_is_shown(folder: Path) -> None:
    for arguments in (["show"], ["show", "--json"], ["diff", "topology.yaml", "other.yaml", "--json"]):
        result = invoke(*arguments)
        assert result.exit_code == 0
        assert "canary" not in result.output
    plain = json.loads(invoke("show", "--json").stdout)
    assert plain["source"] == "file"
    assert plain["topology"]["supervision"]["children"][0]["credentials"] == {"x": "***"}


def test_differences_are_said_and_can_be_an_exit_code(folder: Path) -> None:
    result = invoke("diff", "topology.yaml", "other.yaml")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == ["~ agent walker: process w1 → –", "~ agent report: replicas 2 → 3"]
    assert invoke("diff", "topology.yaml", "other.yaml", "--exit-code").exit_code == 1
    same = invoke("diff", "topology.yaml", "topology.yaml", "--exit-code")
    assert (same.exit_code, same.stdout) == (0, "topology.yaml and topology.yaml are the same system.\n")


def test_differences_as_data(folder: Path) -> None:
    (folder / "less.yaml").write_text(TOPOLOGY.split("    - supervisor:")[0])
    plain = json.loads(invoke("diff", "topology.yaml", "less.yaml", "--json").stdout)
    assert [(change["kind"], change["what"], change["name"]) for change in plain["changes"]] == [
        ("removed", "agent", "report"), ("removed", "supervisor", "inner"), ("removed", "supervisor", "pool"),
    ]  # fmt: skip
    text = invoke("diff", "less.yaml", "topology.yaml").stdout
    assert "+ agent report: type agents.Report, replicas 2, state none, supervisor inner" in text


def test_what_is_neither_a_file_nor_a_run_is_said_to_be(folder: Path) -> None:
    result = invoke("show", "nothing")
    assert result.exit_code == 7
    assert "There is no file, nor live run, named 'nothing'" in result.stderr


def test_the_schema_is_printed(folder: Path) -> None:
    assert json.loads(invoke("schema").stdout) == json.loads(json.dumps(json_schema()))
