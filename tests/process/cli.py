"""The command line as a user runs it: for tests of real runs started, listed, stopped and read from a shell."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from civitas_shm.cli.app import app
from civitas_shm_transports.shm.survey import find_runs, remove_stale

HERE = Path(__file__).parent

TOPOLOGY = """
transport: {{type: shm, arena_mb: 4, mailboxes: 64}}
pool: {{size: 1, standby: 0}}
stop: {{drain: {drain}, timeout_s: {timeout_s}}}
supervision:
  children:
    - agent: {{name: first, type: run_agents.{first}, config: {config}}}
    - agent: {{name: mark, type: run_agents.Sink, config: {{out: {out}}}}}
"""


class Shell:
    """One user's shell: a run directory of its own, topologies in it, commands that are waited for or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.env = {
            **os.environ,
            "CIVITAS_SHM_DIR": str(self.runs),
            "PYTHONPATH": os.pathsep.join([*sys.path, str(HERE)]),
            "PYTHONUNBUFFERED": "1",
        }
        self.started: list[subprocess.Popen[str]] = []

    def topology(
        self, name: str, first: str = "Slow", *, drain: str = "current", timeout_s: float = 20, config: str = "{}"
    ) -> Path:
        """A file whose run has that name."""
        path = self.folder / f"{name}.yaml"
        out = self.folder / f"{name}.out"
        path.write_text(TOPOLOGY.format(first=first, out=out, drain=drain, timeout_s=timeout_s, config=config))
        return path

    def popen(self, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        """Start a command and go on."""
        command = [sys.executable, "-m", "civitas_shm", *map(str, arguments)]
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, text=True, env=self.env, cwd=self.folder, **(pipes | options))
        self.started.append(process)
        return process

    def do(self, *arguments: object, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """A command to its end. A run is a process of its own; what looks at one or orders something is played by this
        one, because an interpreter that begins costs a third of a second, and some tests look dozens of times."""
        words = [str(argument) for argument in arguments]
        if words[0] == "run":
            process = self.popen(*words)
            out, err = process.communicate()
            returned = process.returncode
        else:
            # What differs from this process: a variable that is not there in a shell is not there in the command.
            changed = {name: self.env.get(name) for name in {*os.environ, *self.env}}
            with contextlib.chdir(self.folder):
                result = CliRunner().invoke(app, words, env=changed)
            if result.exc_info is not None and not isinstance(result.exception, SystemExit | None):
                raise result.exception
            returned, out, err = result.exit_code, result.stdout, result.stderr
        assert code is None or returned == code, f"{words}: {returned}\n{out}\n{err}"
        return subprocess.CompletedProcess(words, returned, out, err)

    def ps(self, *options: str) -> dict[str, dict[str, Any]]:
        """By name; what others have left in /dev/shm is not ours to count."""
        runs = json.loads(self.do("ps", "--json", *options).stdout)["runs"]
        return {run["name"]: run for run in runs if Path(run["path"]).parent == self.runs}

    def until_state(self, name: str, state: str) -> dict[str, Any]:
        """The watchdog of pytest-timeout is the only limit."""
        while True:
            found = self.ps("--all").get(name, {})
            if found.get("state") == state:
                return found
            time.sleep(0.05)

    def end(self) -> None:
        """End what a failed test has left."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for run in find_runs(self.runs):
            if run.path.parent == self.runs and run.state == "live":  # others' runs on this machine are found too
                self.do("stop", run.name, "--now", code=None)
        for run in find_runs(self.runs):
            if run.path.parent == self.runs and run.state != "live":
                remove_stale(run)


def until(condition: Callable[[], object]) -> None:
    """The watchdog of pytest-timeout is the only limit."""
    while not condition():
        time.sleep(0.03)
