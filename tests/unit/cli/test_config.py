"""`config show` prints what holds, and who said it: option, environment, topology, default, in this order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from civitas_shm.cli.app import app
from civitas_shm.config import VARIABLES

TOPOLOGY = """\
name: atlas
transport: shm
stop:
  timeout: 7
logging: {level: error}
supervision: {children: [agent: {name: a, type: m.A}]}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "topology.yaml").write_text(TOPOLOGY)
    return tmp_path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["config", "show", *arguments])


def settings(*arguments: str) -> dict[str, Any]:
    result = invoke("--json", *arguments)
    assert result.exit_code == 0, result.output
    return {name: tuple(row.values()) for name, row in json.loads(result.stdout)["settings"].items()}


def test_the_topology_goes_before_the_defaults_and_has_a_place() -> None:
    found = settings()
    assert found["name"] == ("atlas", "topology.yaml:1:7")
    assert found["transport.type"] == ("shm", "topology.yaml:2:12")
    assert found["stop.timeout_s"] == (7.0, "topology.yaml:4:12")
    assert found["logging.level"] == ("ERROR", "topology.yaml:5:18")
    assert found["pool.size"] == ("auto", "default")


def test_the_environment_goes_before_the_topology(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"CIVITAS_SHM_TRANSPORT": "in_process", "LOG_LEVEL": "debug", "CIVITAS_SHM_WORKERS": "5"}
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    found = settings()
    assert found["transport.type"] == ("in_process", "environment CIVITAS_SHM_TRANSPORT")
    assert found["logging.level"] == ("DEBUG", "environment LOG_LEVEL")
    assert found["pool.size"] == (5, "environment CIVITAS_SHM_WORKERS")
    monkeypatch.setenv("CIVITAS_SHM_LOG_LEVEL", "info")
    assert settings()["logging.level"] == ("INFO", "environment CIVITAS_SHM_LOG_LEVEL")


def test_options_go_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {"CIVITAS_SHM_TRANSPORT": "shm", "LOG_LEVEL": "debug", "CIVITAS_SHM_WORKERS": "5"}.items():
        monkeypatch.setenv(variable, value)
    found = settings("--transport", "in_process", "--workers", "2", "-q", "--log-format", "json", "--name", "other")
    assert found["transport.type"] == ("in_process", "option --transport")
    assert found["pool.size"] == (2, "option --workers")
    assert found["logging.level"] == ("WARNING", "option --quiet")
    assert found["logging.format"] == ("json", "option --log-format")
    assert found["name"] == ("other", "option --name")


def test_keys_are_said_to_be_set_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "canary-1")
    monkeypatch.setenv("NATS_URL", "nats://user:canary-2@host:4222")
    assert settings()["ANTHROPIC_API_KEY"] == ("set", "environment ANTHROPIC_API_KEY")
    assert settings()["nats_url"] == ("nats://***@host:4222", "environment NATS_URL")
    assert "canary" not in invoke("--origin").output + invoke("--json").output


def test_the_table_has_origins_when_asked() -> None:
    plain, with_origins = invoke().stdout.splitlines(), invoke("--origin").stdout.splitlines()
    assert plain[0].split() == ["SETTING", "VALUE"]
    assert with_origins[0].split() == ["SETTING", "VALUE", "FROM"]
    assert any(line.split() == ["transport.type", "shm", "topology.yaml:2:12"] for line in with_origins)


def test_without_a_topology_there_are_the_defaults_and_one_that_is_named_must_be_there(folder: Path) -> None:
    (folder / "topology.yaml").unlink()
    assert settings()["transport.type"] == ("in_process", "default")
    assert invoke("-t", "missing.yaml").exit_code == 3


def test_what_cannot_be_is_refused_as_run_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENCY_SERIALIZER", "xml")
    assert invoke().exit_code == 3
