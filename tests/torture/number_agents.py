"""Agents of `run_numbers.py`: a source that notes each number once it is committed, a sink that notes what it got."""

from __future__ import annotations

import asyncio
import os

from civitas_shm import AgentProcess, Message


class Source(AgentProcess):
    """Sends 0, 1, 2, … and appends n to `sent` once `send(n)` has returned. A successor goes on after the last line."""

    async def handle(self, message: Message) -> None:
        with open(self.config["sent"], "ab", buffering=0) as sent:
            # Numbers after the last noted one were perhaps committed and not noted; they go out once more.
            for n in range(_next(self.config["sent"]), self.config["count"]):
                await self.send("sink", {"n": n})
                sent.write(b"%d\n" % n)
                if n % 100 == 0:
                    await asyncio.sleep(self.config["pause_s"])  # else all is over before the kills are
        await self.send("sink", {"end": True})


class Sink(AgentProcess):
    """Appends each number to `got` before the message is released."""

    async def on_start(self) -> None:
        self._got = open(self.config["got"], "ab", buffering=0)  # noqa: SIM115 - open as long as the agent
        self._handled = 0

    async def on_stop(self) -> None:
        self._got.close()

    async def handle(self, message: Message) -> None:
        if message.payload.get("end"):
            await self.stop_runtime(exit_code=0)
            return
        self._got.write(b"%d\n" % message.payload["n"])
        self._handled += 1
        if self._handled % 500 == 0:
            await asyncio.sleep(0)


def _next(path: str) -> int:
    """The number after the last complete line."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 64))
        lines = file.read().split(b"\n")
    return int(lines[-2]) + 1 if len(lines) > 1 and lines[-2] else 0


class Starter(AgentProcess):
    """Tells the source to begin, once: its state survives it."""

    async def on_start(self) -> None:
        await self.send(self.name, {"go": True})

    async def handle(self, message: Message) -> None:
        if not self.state.get("told"):
            await self.send("source", {"go": True})
            self.state["told"] = True
