"""Agents of `run_chaos.py`: sources that note what they send, sinks that note what they handle."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from history import mark_of

from civitas_shm import AgentProcess, Message

CHUNK = 20
"""Messages a turn; a turn is one message to itself, so that a source stays open for a stop."""


class Source(AgentProcess):
    """Numbers to the sinks in turn, each noted before it is sent (`b`) and once `send` has returned (`r`)."""

    async def on_start(self) -> None:
        self._notes = Path(self.config["folder"]) / f"sent-{self.name}"
        self._out = os.open(self._notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._next = self._begun() + 1
        await self.send(self.name, {"pid": os.getpid()})

    async def on_stop(self) -> None:
        os.close(self._out)

    async def handle(self, message: Message) -> None:
        if message.payload["pid"] != os.getpid():
            return  # a turn of an earlier life; this one has its own
        for _ in range(CHUNK):
            if (self._notes.parent / "enough").exists():
                return
            n, self._next = self._next, self._next + 1
            sink = self.config["sinks"][n % len(self.config["sinks"])]
            os.write(self._out, b"b%d\n" % n)
            await self.send(sink, {"from": self.name, "n": n, "mark": mark_of(self.name, n)})
            os.write(self._out, b"r%d\n" % n)
        await asyncio.sleep(0)
        await self.send(self.name, {"pid": os.getpid()})

    def _begun(self) -> int:
        """The highest number that was noted; a number is never used twice."""
        lines = self._notes.read_bytes().split()
        return max((int(line[1:]) for line in lines[-3:]), default=-1)


class Sink(AgentProcess):
    """Notes each message, then lingers, so that a kill mostly finds one in hand."""

    async def on_start(self) -> None:
        path = Path(self.config["folder"]) / f"got-{self.name}"
        self._out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def on_stop(self) -> None:
        os.close(self._out)

    async def handle(self, message: Message) -> None:
        note = message.payload
        os.write(self._out, f"{note['from']} {note['n']} {note['mark']}\n".encode())
        await asyncio.sleep(0.001)
