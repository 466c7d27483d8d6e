"""The door of the command line: what it imports, how errors end, which exit codes come out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import rich_click as click
from click.testing import CliRunner

from civitas_shm import __version__, errors
from civitas_shm.cli.app import VERBS, app

HEAVY = ("civitas_shm.runtime", "civitas_shm.host", "pydantic", "yaml", "psutil", "asyncio", "uvloop", "msgspec")
"""What `--help`, `version` and completion work without."""


def civitas(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "civitas_shm", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        check=False,
    )


def loaded_after(arguments: Sequence[str], environment: dict[str, str] | None = None) -> set[str]:
    code = (
        "import sys\n"
        "from civitas_shm.cli.app import app\n"
        "try:\n"
        f"    app.main({list(arguments)!r}, prog_name='civitas-shm')\n"
        "except SystemExit:\n"
        "    print('\\nLOADED', *sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **(environment or {})},
    )
    return set(done.stdout.split("LOADED")[-1].split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["completion", "bash"]])
def test_help_version_and_completion_import_nothing_heavy(arguments: list[str]) -> None:
    assert loaded_after(arguments) & set(HEAVY) == set()


def test_completing_a_command_imports_nothing_heavy() -> None:
    shell = {"_CIVITAS_SHM_COMPLETE": "bash_complete", "COMP_WORDS": "civitas-shm ru", "COMP_CWORD": "1"}
    assert loaded_after([], shell) & set(HEAVY) == set()


def test_the_help_names_every_verb() -> None:
    text = CliRunner().invoke(app, ["--help"]).output
    for verb in VERBS:
        assert f" {verb} " in text


def test_an_unknown_verb_is_usage_with_a_suggestion() -> None:
    result = CliRunner().invoke(app, ["rnu"])
    assert result.exit_code == 2
    assert "there is no command 'rnu'; did you mean 'run'?" in result.stderr


@pytest.mark.parametrize("name", sorted(set(errors.__all__) - {"ErrorAction"}))
def test_every_error_ends_with_its_exit_code_and_its_text_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = getattr(errors, name)
    error = kind.__new__(kind)
    Exception.__init__(error, "what is wrong")

    @click.command("version")
    def failing() -> None:
        raise error

    monkeypatch.setattr("civitas_shm.cli.version.command", failing)
    result = CliRunner().invoke(app, ["version"])
    assert result.exit_code == kind.exit_code
    assert result.stderr == "what is wrong\n"
    assert result.stdout == ""


def test_a_traceback_comes_only_when_asked_for(tmp_path: Path) -> None:
    assert "Traceback" not in civitas("plan", cwd=tmp_path).stderr
    assert "Traceback" in civitas("plan", cwd=tmp_path, CIVITAS_SHM_DEBUG="1").stderr


@pytest.mark.parametrize(
    ("arguments", "topology", "code", "part"),
    [
        (["frobnicate"], None, 2, "there is no command"),
        (["plan", "--frobnicate"], None, 2, "No such option"),
        (["plan", "a", "-t", "b"], None, 2, "give one of them"),
        (["plan", "--set", "x"], None, 2, "has not the form AGENT.KEY=VALUE"),
        (["plan", "--transport", "smh"], "supervision: {children: [{name: a, type: m.A}]}", 2, "did you mean 'shm'?"),
        (["run", "--resume", "--fresh"], None, 2, "give one of them"),
        (["run", "--chaos", "kill"], None, 2, "has not the form kill=INTERVAL"),
        (["run", "--name", "My Run"], None, 2, "cannot name a run"),
        (["run", "--workers", "0"], None, 2, "--workers"),
        (["plan"], None, 3, "topology.yaml: there is no such file"),
        (["run"], "supervision: {childen: []}", 3, "topology.yaml:1:15: supervision.childen: unknown key 'childen'"),
        (["plan", "--set", "b.x=1"], "supervision: {children: [{name: a, type: m.A}]}", 3, "there is no agent 'b'"),
        (["run"], "supervision: {children: [{name: a, type: nowhere.A}]}", 4, "there is no module 'nowhere'"),
        (["plan"], "supervision: {children: [{name: a, type: nowhere.A}]}", 4, "agent 'a': type 'nowhere.A'"),
    ],
)
def test_exit_codes_of_what_is_wrong_before_anything_runs(
    arguments: list[str], topology: str | None, code: int, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if topology is not None:
        (tmp_path / "topology.yaml").write_text(topology)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert done.exit_code == code
    assert part in done.stderr
    assert done.stdout == ""


def test_version_as_json_says_what_is_installed() -> None:
    plain = json.loads(civitas("version", "--json").stdout)
    assert plain["civitas_shm"] == __version__
    assert plain["python"] == sys.version.split()[0]
    assert "native_layout" in plain


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_of_each_shell_calls_us(shell: str) -> None:
    result = CliRunner().invoke(app, ["completion", shell])
    assert result.exit_code == 0
    assert f"_CIVITAS_SHM_COMPLETE={shell}_complete" in result.stdout


def test_completion_completes_a_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_CIVITAS_SHM_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "civitas-shm do")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert civitas().stdout.split() == ["plain,doctor"]
