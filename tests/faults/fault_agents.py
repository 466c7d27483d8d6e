"""Agents that use up what they can have, or say what their clocks show."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from civitas_shm import AgentProcess, Message


class TakesFiles(AgentProcess):
    """Opens files until the kernel refuses; answers all the same."""

    async def handle(self, message: Message) -> Message:
        match message.type:
            case "take":
                _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
                self._taken: list[int] = []
                while True:
                    try:
                        self._taken.append(os.open(os.devnull, os.O_RDONLY))
                    except OSError as error:
                        return self.reply({"errno": error.errno, "taken": len(self._taken)})
            case "pass on":
                answer = await self.ask(message.payload["to"], message.payload, timeout=60)
                return self.reply(answer.payload)
        return self.reply({"pid": os.getpid(), "n": message.payload.get("n"), "bytes": len(message.payload["data"])})


class Clocks(AgentProcess):
    """Says what time it is; takes its time; fails."""

    async def handle(self, message: Message) -> Message | None:
        match message.type:
            case "wait":
                await asyncio.sleep(message.payload["s"])
            case "fail":
                raise LookupError("as it was told")
        return self.reply({"wall_s": time.time(), "pid": os.getpid(), "id": message.id})


class FailsAtFirst(AgentProcess):
    """Its start fails as often as it is told, over all its lives: raises, then ends its process, in turn."""

    async def on_start(self) -> None:
        tries = Path(self.config["tries"])
        with open(tries, "a", encoding="ascii") as file:
            file.write("x")
        count = tries.stat().st_size
        if count <= self.config["failures"]:
            if count % 2:
                raise LookupError(f"start {count} fails")
            os._exit(3)

    async def handle(self, message: Message) -> Message:
        return self.reply({"delivery": message.delivery})


class Poison(AgentProcess):
    """Notes each hand-over, then waits for the word to end its process: a file, which it takes away."""

    async def handle(self, message: Message) -> None:
        out = Path(self.config["out"])
        with open(out / self.name, "a", encoding="ascii") as file:
            file.write(f"{message.payload['n']} {message.delivery}\n")
        word = out / f"die-{self.name}"
        while message.payload.get("poison"):
            if word.exists():
                word.unlink()
                os._exit(7)
            await asyncio.sleep(0.002)


HIDES = """
import os, sys, time
os.environ.clear()
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
program = "import os, time; print(os.getpid(), flush=True); time.sleep(3600)"
os.execve(sys.executable, [sys.executable, "-c", program], {})
"""


class Hides(AgentProcess):
    """Starts a process that has left its parent and its session, and bears no mark."""

    async def handle(self, message: Message) -> Message:
        with subprocess.Popen([sys.executable, "-c", HIDES], stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            hidden = int(parent.stdout.readline())
        return self.reply({"pid": os.getpid(), "hidden": hidden})
