"""The unit in docs/deployment.md is one that systemd takes, and its command is one that we take."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

from civitas_shm.cli.app import app

DOCUMENT = Path(__file__).parents[2] / "docs" / "deployment.md"


def unit() -> str:
    found = re.search(r"```ini\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path, need_tool: Any) -> None:
    tool = need_tool("systemd-analyze", "systemd")
    path = tmp_path / "atlas.service"
    path.write_text(unit().replace("/opt/atlas/venv/bin/civitas-shm", "/bin/true").replace("User=atlas", "User=root"))
    checked = subprocess.run([tool, "verify", "--man=no", str(path)], capture_output=True, text=True, check=False)
    ours = [line for line in checked.stderr.splitlines() if "atlas.service" in line]
    # Systemd before 254 does not know this key, says so, and goes on; the document says what is missing then.
    assert [line for line in ours if "DelegateSubgroup" not in line] == []


def test_its_command_is_one_that_run_understands() -> None:
    [command] = re.findall(r"^ExecStart=(.*)$", unit(), re.MULTILINE)
    _, verb, *arguments = shlex.split(command)
    assert verb == "run"
    run = app.get_command(None, "run")  # type: ignore[arg-type]
    assert run is not None
    context = run.make_context("run", list(arguments))
    assert context.params["resume"] is True


def test_what_is_not_restarted_are_our_exit_codes_for_what_starting_again_does_not_mend() -> None:
    from civitas_shm import errors

    [codes] = re.findall(r"^RestartPreventExitStatus=(.*)$", unit(), re.MULTILINE)
    never = {errors.ConfigurationError, errors.AgentImportError, errors.TransportUnavailable}
    assert {int(code) for code in codes.split()} == {2, *(error.exit_code for error in never)}
