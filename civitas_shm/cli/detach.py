"""`run --detach`: the run in a session of its own, its output in a log, and a starter that says how it began.

Rules of this file:
- the starter forks before anything has been imported that has threads, waits until every agent is ready or the start
  has failed, and only then ends: so a script knows;
- a start that failed is reported on the starter's stderr with all that the run has printed, and with its exit code;
  then nothing of it is left;
- the run keeps no descriptor of the starter's terminal or pipes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import rich_click as click

from ..errors import ConfigurationError
from ..log_file import LogFile, new_log
from ..transport import load_transport
from .app import EXIT_INTERRUPTED

__all__ = ["Detached", "Started", "detach"]

_READ_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Started:
    """What the starter prints."""

    name: str
    pid: int
    log: str


class Detached:
    """The run's side, after the fork."""

    def __init__(self, name: str, report_fd: int, log_path: Path, stream: LogFile) -> None:
        self._name = name
        self._report_fd = report_fd
        self._stream = stream
        self.log_path = log_path

    def running(self) -> None:
        """Every agent is ready: the starter may end."""
        module = load_transport("shm")
        assert module.run_directory is not None
        log = str(module.run_directory(self._name) / "log")
        with contextlib.suppress(BrokenPipeError):  # the starter was killed; that ends nothing
            os.write(self._report_fd, json.dumps(asdict(Started(self._name, os.getpid(), log))).encode())
        os.close(self._report_fd)

    def finish(self, exit_code: int) -> None:
        """The last line."""
        print(f"run {self._name} ended with exit code {exit_code}", file=sys.stderr)
        self._stream.finish()


def detach(name: str, transport: str, *, stamped: bool, as_json: bool) -> Detached:
    """Fork. Returns in the run; the starter ends here, with the exit code that says how the run began."""
    module = load_transport(transport)
    if not module.multi_process or module.run_directory is None:
        raise ConfigurationError(
            f"run --detach needs a run with a host and a directory of its own; transport {transport!r} has neither. "
            "Use transport: shm, or start the program in the background by other means (systemd, nohup)."
        )
    base = module.run_directory(name).parent
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    if base.lstat().st_uid != os.geteuid() or base.is_symlink():
        raise ConfigurationError(f"{base} must be a directory of this user. Set CIVITAS_SHM_DIR to one.")
    log_path, log_fd = new_log(base, name)
    read_fd, write_fd = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(write_fd)
        code = _await_start(pid, read_fd, log_path, log_fd, as_json)
        sys.stdout.flush()
        sys.exit(code)
    os.close(read_fd)
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    for fd in (null, log_fd):
        os.close(fd)
    os.set_inheritable(write_fd, False)
    stream = LogFile(2, stamped=stamped)
    sys.stdout = sys.stderr = stream
    return Detached(name, write_fd, log_path, stream)


def _await_start(pid: int, read_fd: int, log_path: Path, log_fd: int, as_json: bool) -> int:
    """The starter's exit code."""
    try:
        said = b""
        while data := os.read(read_fd, _READ_BYTES):
            said += data
        if said:
            _tell(Started(**json.loads(said)), as_json)
            return 0
        _, status = os.waitpid(pid, 0)
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGTERM)  # it is our child and not waited for: the pid is its own
        os.waitpid(pid, 0)
        log_path.unlink(missing_ok=True)
        return EXIT_INTERRUPTED
    log_path.unlink(missing_ok=True)
    printed = os.pread(log_fd, 1 << 20, 0).decode("utf-8", "backslashreplace")
    click.echo(printed, nl=False, err=True)
    if os.WIFSIGNALED(status):
        click.echo(f"The run died before it was ready: {signal.Signals(os.WTERMSIG(status)).name}.", err=True)
        return 1
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        click.echo("The run ended before all of its agents were ready.", err=True)
    return code


def _tell(started: Started, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(asdict(started)))
    else:
        click.echo(
            f"{started.name} runs, pid {started.pid}. Its output: civitas-shm logs {started.name}; "
            f"its end: civitas-shm stop {started.name}"
        )
