"""`gc` lists what dead runs left; it removes only when told to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from civitas_shm import transport
from civitas_shm.cli.app import app
from civitas_shm.errors import RunAlive
from civitas_shm.transport import StaleRun, TransportModule

STALE = [StaleRun("atlas", "a1", 17, 5 << 20, Path("/run/a1")), StaleRun("other", "b2", 0, 1 << 20, Path("/run/b2"))]


@pytest.fixture
def removed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []

    def remove(run: StaleRun) -> None:
        if run.name in alive:
            raise RunAlive("it was resumed")
        names.append(run.name)

    module = TransportModule("shm", True, lambda: None, stale_runs=lambda: list(STALE), remove_stale=remove)
    monkeypatch.setattr(transport, "load_transport", lambda scheme: module)
    return names


alive: set[str] = set()


def test_without_yes_runs_are_listed_and_kept(removed: list[str]) -> None:
    result = CliRunner().invoke(app, ["gc"])
    assert result.exit_code == 0
    assert "atlas  5.0 MiB  17 messages wait  /run/a1" in result.stdout
    assert "gc --yes" in result.stdout
    assert removed == []


def test_with_yes_runs_are_removed(removed: list[str]) -> None:
    result = CliRunner().invoke(app, ["gc", "--yes"])
    assert result.exit_code == 0
    assert "Removed; 6.0 MiB are free again." in result.stdout
    assert removed == ["atlas", "other"]


def test_a_run_that_came_to_life_meanwhile_is_kept_and_the_others_go(
    removed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.alive", {"atlas"})
    result = CliRunner().invoke(app, ["gc", "--yes"])
    assert result.exit_code == 0
    assert "atlas: kept, because it is alive again" in result.stderr
    assert "Removed; 1.0 MiB are free again." in result.stdout
    assert removed == ["other"]


def test_json_has_each_run_and_what_became_of_it(removed: list[str]) -> None:
    plain = json.loads(CliRunner().invoke(app, ["gc", "--json"]).stdout)
    assert plain["removed"] == []
    atlas = {"name": "atlas", "run_id": "a1", "waiting": 17, "size_bytes": 5 << 20, "path": "/run/a1"}
    assert plain["runs"][0] == atlas
    assert json.loads(CliRunner().invoke(app, ["gc", "--json", "--yes"]).stdout)["removed"] == ["a1", "b2"]


def test_memory_that_cannot_be_read_is_not_counted_as_empty(
    removed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.STALE", [StaleRun("atlas", "", -1, 0, Path("/run/a1"))])
    assert "cannot be read" in CliRunner().invoke(app, ["gc"]).stdout
    assert json.loads(CliRunner().invoke(app, ["gc", "--json"]).stdout)["runs"][0]["waiting"] is None


def test_nothing_left_is_said(removed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.STALE", [])
    assert CliRunner().invoke(app, ["gc", "--yes"]).stdout == "Nothing is left of dead runs.\n"
