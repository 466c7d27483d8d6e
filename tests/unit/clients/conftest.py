"""Both ends of clients in one process: a run without processes, a server for it, and clients that dial it directly."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest

from civitas_shm.clients import blocking, client
from civitas_shm.clients.dial import Line
from civitas_shm.clients.server import ClientServer
from civitas_shm.control.protocol import Connected, Reply
from civitas_shm.errors import RunNotFound
from civitas_shm.host.wire import FrameDecoder
from civitas_shm.testing import RuntimeUnderTest


class Switchboard:
    """In the place of the host: connects who dials with the server, on the loop of the server."""

    def __init__(self) -> None:
        self.server: ClientServer | None = None
        self.replies: list[Reply] = []
        self.dialled = 0

    def serve(self, runtime: RuntimeUnderTest) -> ClientServer:
        """A server for the run that is under way."""
        self.loop = asyncio.get_running_loop()
        self.server = ClientServer(self.loop, runtime.runtime._run.bus, "shop", "0" * 32)
        return self.server

    def dial(self, name: str | None = "shop", timeout_s: float = 0, wait_s: float = 0) -> Line:
        """What `clients.dial.dial` does, less the host. Not on the server's loop."""
        if self.server is None:
            raise RunNotFound("nobody serves")
        self.dialled += 1
        mine, its = socket.socketpair()
        self.loop.call_soon_threadsafe(self.server.take, its.detach())
        [reply] = FrameDecoder[Reply](Reply).feed(mine.recv(64 << 10))
        self.replies.append(reply)
        if not isinstance(reply, Connected):
            mine.close()
            raise RunNotFound(reply.text)
        return Line(mine, reply.run, os.getpid())


@pytest.fixture
def switchboard(monkeypatch: pytest.MonkeyPatch, runtime: RuntimeUnderTest) -> Iterator[Switchboard]:
    """`switchboard.serve(runtime)`: clients that connect from then on are those of this run."""
    board = Switchboard()
    for module in (client, blocking):
        monkeypatch.setattr(module, "dial", board.dial)
    yield board

    async def end() -> None:
        if board.server is not None:
            board.server.close("the test is over")
            await runtime.until(lambda: board.server is None or board.server.clients == 0)

    runtime.run(end())
