"""A real Redis server for one test: on a socket in a directory of its own, with nothing on a disk unless asked for."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

__all__ = ["RedisServer"]


class RedisServer:
    """`with RedisServer(path of redis-server) as server`; `server.url` leads to it."""

    def __init__(self, program: str, *options: str, port: int | None = None) -> None:
        """`port`: TCP on 127.0.0.1 instead of a socket file."""
        self._program = program
        self._options = options
        self._port = port
        self._folder = Path(tempfile.mkdtemp(prefix="civ-redis-"))  # short: a socket's path has 107 characters at most
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> str:
        return str(self._folder / "s")

    @property
    def url(self) -> str:
        return f"unix://{self.socket}" if self._port is None else f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        """Returns when it answers."""
        where = ("--port", "0", "--unixsocket", self.socket) if self._port is None else ("--port", str(self._port))
        self._process = subprocess.Popen(
            [self._program, *where, "--bind", "127.0.0.1", "--dir", str(self._folder), "--save", "", *self._options],
            stdout=subprocess.DEVNULL,
        )
        while not self._answers():
            assert self._process.poll() is None, "redis-server ended at once"
            time.sleep(0.002)

    def _answers(self) -> bool:
        family, address = (
            (socket.AF_UNIX, self.socket) if self._port is None else (socket.AF_INET, ("127.0.0.1", self._port))
        )
        with socket.socket(family) as link:
            try:
                link.connect(address)
                link.sendall(b"PING\r\n")
                return link.recv(100) != b""
            except OSError:
                return False

    def kill(self) -> None:
        """With SIGKILL; its memory is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._folder)
