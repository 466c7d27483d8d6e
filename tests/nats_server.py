"""A real NATS server for tests: on a free port of 127.0.0.1, with nothing on a disk unless asked for."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest

__all__ = ["NatsServer", "need_nats"]


def need_nats() -> str:
    """The program. Skips the test that needs it where it is not installed; fails there on CI."""
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    program = str(beside) if beside.exists() else shutil.which("nats-server")
    if program is None or importlib.util.find_spec("nats") is None:
        text = 'a NATS server and its client are missing: pip install "civitas-shm[nats,nats-server]"'
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)
    return program


class NatsServer:
    """`with NatsServer() as server`; `server.url` leads to it, also after it was stopped and started again."""

    def __init__(self, *options: str, scheme: str = "nats") -> None:
        self._program = need_nats()
        self._options = options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it takes connections."""
        self._process = subprocess.Popen(
            [self._program, "-a", "127.0.0.1", "-p", str(self.port), *self._options],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                assert self._process.poll() is None, "nats-server ended at once"
                time.sleep(0.005)

    def stop(self, *, kill: bool = False) -> None:
        """With SIGTERM, or SIGKILL."""
        if self._process is not None:
            (self._process.kill if kill else self._process.terminate)()
            self._process.wait()
            self._process = None

    def __enter__(self) -> NatsServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(kill=True)
