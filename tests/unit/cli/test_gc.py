"""`gc` shows what runs left and what it would remove; it removes only when told to, and never what lives."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from civitas_shm import transport
from civitas_shm.cli.app import app
from civitas_shm.cli.gc import decide
from civitas_shm.errors import RunAlive
from civitas_shm.runs import RunFound
from civitas_shm.transport import TransportModule

ATLAS = RunFound("atlas", "a1", 17, 5 << 20, Path("/run/atlas"))
OTHER = RunFound("other", "b2", 0, 1 << 20, Path("/run/other"), "empty")
LIVE = RunFound("web", "c3", None, 2 << 20, Path("/run/web"), "live", None)
BROKEN = RunFound("broken", "", None, 0, Path("/run/broken"), "unreadable", None, "its run.json (0 bytes) is damaged")
LETTERS = RunFound("letters", "d4", 0, 0, Path("/run/letters"), "dead", 3)
ENDED = RunFound("job", "", 0, 100, Path("/run/job"), "ended", has_log=True)
FOREIGN = RunFound("theirs", "e5", None, 3 << 20, Path("/dev/shm"), "foreign", None, uid=1000)
ALL = [ATLAS, OTHER, LIVE, BROKEN, LETTERS, ENDED, FOREIGN]

alive: set[str] = set()


@pytest.fixture
def removed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []

    def remove(run: RunFound) -> None:
        if run.name in alive:
            raise RunAlive("it was resumed")
        names.append(run.name)

    module = TransportModule("shm", True, lambda: None, find_runs=lambda: list(ALL), remove_stale=remove)
    monkeypatch.setattr(transport, "load_transport", lambda scheme: module)
    return names


def lines(*arguments: str) -> dict[str, str]:
    result = CliRunner().invoke(app, ["gc", *arguments])
    assert result.exit_code == 0, result.output
    return {line.split()[1]: line for line in result.stdout.splitlines()[:-1]}


def test_without_yes_everything_is_shown_and_kept(removed: list[str]) -> None:
    shown = lines()
    assert shown["atlas"].startswith("remove ")
    assert "5.0 MiB" in shown["atlas"]
    assert "dead, with 17 messages waiting" in shown["atlas"]
    assert "dead, with 3 dead letters" in shown["letters"]
    assert "cannot be read: its run.json (0 bytes) is damaged" in shown["broken"]
    assert shown["web"].startswith("keep ")
    assert "running" in shown["web"]
    assert shown["theirs"].startswith("keep ")
    assert "of user 1000" in shown["theirs"]
    assert "gc --yes" in CliRunner().invoke(app, ["gc"]).stdout
    assert removed == []


def test_with_yes_all_goes_but_what_lives_or_is_anothers(removed: list[str]) -> None:
    shown = lines("--yes")
    assert removed == ["atlas", "other", "broken", "letters", "job"]
    assert shown["atlas"].startswith("removed ")
    assert shown["web"].startswith("keep ")


def test_with_empty_only_what_surely_holds_nothing_goes(removed: list[str]) -> None:
    lines("--empty")
    assert removed == ["other", "job"]


def test_names_limit_what_goes_and_an_unknown_one_is_said(removed: list[str]) -> None:
    lines("atlas", "web", "--yes")
    assert removed == ["atlas"]
    result = CliRunner().invoke(app, ["gc", "atals", "--yes"])
    assert result.exit_code == 7
    assert "no run or rest of one named 'atals'" in result.stderr
    assert removed == ["atlas"]


def test_yes_and_empty_contradict_each_other(removed: list[str]) -> None:
    assert CliRunner().invoke(app, ["gc", "--yes", "--empty"]).exit_code == 2
    assert removed == []


def test_a_run_that_came_to_life_meanwhile_is_kept_and_the_others_go(
    removed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.alive", {"atlas"})
    result = CliRunner().invoke(app, ["gc", "--yes"])
    assert result.exit_code == 0
    assert "atlas: kept, because it is alive again" in result.stderr
    assert "atlas" not in removed
    assert "other" in removed


def test_json_has_each_run_and_what_became_of_it(removed: list[str]) -> None:
    plain = json.loads(CliRunner().invoke(app, ["gc", "--json"]).stdout)
    assert plain["removed"] == []
    atlas = {"name": "atlas", "run_id": "a1", "waiting": 17, "path": "/run/atlas", "state": "dead", "to_remove": True}
    assert atlas.items() <= plain["runs"][0].items()
    assert plain["runs"][3]["waiting"] is None
    assert json.loads(CliRunner().invoke(app, ["gc", "--json", "--empty"]).stdout)["removed"] == ["other", "job"]


def test_nothing_left_is_said(removed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ALL", [])
    assert CliRunner().invoke(app, ["gc", "--yes"]).stdout == "Nothing is left of runs, and none is alive.\n"


def test_memory_that_cannot_be_read_is_not_counted_as_empty() -> None:
    assert decide([BROKEN, replace(BROKEN, state="orphan"), ATLAS, LETTERS], (), empty=True) == []
