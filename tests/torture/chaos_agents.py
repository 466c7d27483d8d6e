"""Agents of `run_chaos.py`: sources that note what they send, sinks that note what they handle."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from history import mark_of

from civitas_shm import AgentProcess, Message, SharedMemoryFull

CHUNK = 20
"""Messages a turn; a turn is one message to itself, so that a source stays open for a stop."""


REFUSED_S = 0.05


class Source(AgentProcess):
    """Numbers to the sinks in turn, each noted before it is sent (`b`) and once `send` has returned (`r`)."""

    async def on_start(self) -> None:
        self._notes = Path(self.config["folder"]) / f"sent-{self.name}"
        self._out = os.open(self._notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._next = self._begun() + 1
        self._pad_bytes = self.config.get("pad_bytes", 0)
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
            payload = {"from": self.name, "n": n, "mark": mark_of(self.name, n), "pad": bytes(self._pad_bytes)}
            os.write(self._out, b"b%d\n" % n)
            try:
                await self.send(sink, payload, timeout=self.config.get("send_timeout_s", 30.0))
            except SharedMemoryFull as error:
                self._note_refusal(str(error))
                await asyncio.sleep(REFUSED_S)
                continue
            os.write(self._out, b"r%d\n" % n)
        await asyncio.sleep(0)
        await self.send(self.name, {"pid": os.getpid()})

    def _note_refusal(self, text: str) -> None:
        """Memory is short: what was not committed is no loss, and the next number is tried."""
        with open(self._notes.parent / f"refused-{self.name}", "a") as out:
            out.write(text + "\n")

    def _begun(self) -> int:
        """The highest number that was noted; a number is never used twice."""
        lines = self._notes.read_bytes().split()
        return max((int(line[1:]) for line in lines[-3:]), default=-1)


class Sink(AgentProcess):
    """Notes each message, then lingers, so that a kill mostly finds one in hand."""

    async def on_start(self) -> None:
        path = Path(self.config["folder"]) / f"got-{self.name}"
        self._hold = path.with_name("hold")
        self._out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def on_stop(self) -> None:
        os.close(self._out)

    async def handle(self, message: Message) -> None:
        while (self._hold).exists():
            await asyncio.sleep(0.005)
        note = message.payload
        if "n" not in note:
            return  # of a program that only fills this mailbox
        os.write(self._out, f"{note['from']} {note['n']} {note['mark']}\n".encode())
        await asyncio.sleep(self.config.get("pause_s", {}).get(self.name, 0.001))
