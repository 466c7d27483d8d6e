"""Agents of test_defects.py, in a module that every process can import by this name."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from civitas_shm import AgentProcess, ErrorAction, Message


class Hop(AgentProcess):
    """Asks the first agent on its way to go on with the rest of it."""

    async def handle(self, message: Message) -> Message:
        pids = [os.getpid()]
        if way := message.payload["way"]:
            pids += (await self.ask(way[0], {"way": way[1:]})).payload["pids"]
        return self.reply({"pids": pids})


class Fragile(AgentProcess):
    """Counts what it handles, in itself and in its unsaved state, and crashes or ends when told to."""

    def __init__(self, name: str, **rest: object) -> None:
        super().__init__(name, **rest)  # type: ignore[arg-type]
        self.count = 0

    async def handle(self, message: Message) -> Message | None:
        if message.type in ("crash", "end"):
            raise ValueError(f"{self.name} was told to {message.type}")
        self.count += 1
        self.state["count"] = self.state.get("count", 0) + 1
        return self.reply({"count": self.count, "saved": self.state["count"], "pid": os.getpid()})

    async def on_error(self, exc: Exception, message: Message) -> ErrorAction:
        return ErrorAction.STOP if message.type == "end" else ErrorAction.ESCALATE


class Notes(Fragile):
    """Writes what it does into a file, and cannot start when that has two lines."""

    def note(self, what: str) -> None:
        with Path(self.config["notes"]).open("a") as out:
            out.write(f"{what}\n")

    async def on_start(self) -> None:
        self.note("start")
        if self.config.get("once_not") == len(Path(self.config["notes"]).read_text().splitlines()):
            raise OSError("what it needs is not there yet")

    async def handle(self, message: Message) -> Message | None:
        if message.type == "note":
            await asyncio.sleep(0.005)  # so that what is told to stop it finds it between two messages
            self.note(str(message.payload["n"]))
            return None
        return await super().handle(message)


class Watcher(AgentProcess):
    """Counts the ends of an agent."""

    async def on_start(self) -> None:
        self.downs = 0
        await self.monitor(self.config["watch"])

    async def on_down(self, name: str, reason: str) -> None:
        self.downs += 1

    async def handle(self, message: Message) -> Message:
        return self.reply({"downs": self.downs})


class Hangs(AgentProcess):
    """Its handler ends only when it is cancelled."""

    async def handle(self, message: Message) -> None:
        await asyncio.Event().wait()
