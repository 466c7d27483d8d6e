"""Agents that the watch has to tell apart: stuck, blocked, waiting for one another."""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from civitas_shm import AgentProcess, DeadlockError, Message
from civitas_shm.errors import ErrorAction


class Link(AgentProcess):
    """Asks the next one of the circle, and says what came of it."""

    async def on_error(self, exc: Exception, message: Message) -> ErrorAction:
        return ErrorAction.SKIP

    async def handle(self, message: Message) -> Message | None:
        steps = message.payload.get("steps", 0)
        if steps > 2:  # the question that failed still waits here
            return self.reply({"by": self.name})
        began = time.monotonic()
        try:
            reply = await self.ask(self.config["to"], {"steps": steps + 1}, "go_on", timeout=60)
        except DeadlockError as error:
            return self.reply({"by": self.name, "cycle": [list(wait) for wait in error.cycle], "text": str(error)})
        return self.reply({"took_s": time.monotonic() - began, **reply.payload})


class Fills(AgentProcess):
    """Fills the mailbox of its peer while the peer fills this one's; or asks it (`asks`) while it is filled.

    Neither begins before both are in their handlers: what is in a mailbox before that would be handled.
    """

    async def handle(self, message: Message) -> Message | None:
        if message.type == "filling":
            return self.reply({})
        (Path(self.config["here"]) / self.name).touch()
        while not (Path(self.config["here"]) / self.config["to"]).exists():
            await asyncio.sleep(0.002)
        try:
            if self.config.get("asks"):
                await asyncio.sleep(0.3)
                await self.ask(self.config["to"], {}, "filling", timeout=60)
            else:
                for n in range(20):
                    await self.send(self.config["to"], {"n": n}, "filling", timeout=60)
        except DeadlockError as error:
            return self.reply({"cycle": [list(wait) for wait in error.cycle]})
        return self.reply({})


class Sticks(AgentProcess):
    """Does not come back from its handler, in the way it is told; after a crash it does."""

    async def handle(self, message: Message) -> Message | None:
        if message.type == "pid":
            return self.reply({"pid": os.getpid()})
        match message.payload["how"]:
            case "await":
                await asyncio.sleep(3600)
            case "ignore":
                while True:
                    try:
                        await asyncio.sleep(3600)
                    except asyncio.CancelledError:
                        continue
            case "block":
                time.sleep(3600)
            case "gil":
                ctypes.PyDLL(None).sleep(3600)
            case "spin":
                while True:
                    pass
        return None


class SticksInThread(AgentProcess):
    """The same with a plain handler."""

    def handle(self, message: Message) -> Message | None:  # type: ignore[override]
        if message.type == "pid":
            return self.reply({"pid": os.getpid()})
        time.sleep(3600)
        return None


class Grows(AgentProcess):
    """Takes memory until somebody ends it; a successor answers."""

    async def handle(self, message: Message) -> Message | None:
        if message.type == "pid":
            return self.reply({"pid": os.getpid()})
        taken = []
        while True:
            taken.append(bytearray(os.urandom(1 << 20) * 4))
            await asyncio.sleep(0.01)


DAEMON = """
import os, sys, time
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
print(os.getpid(), flush=True)
time.sleep(3600)
"""


class Spawns(AgentProcess):
    """Starts processes of its own: a child, a daemon that left everything, and a copy of its worker."""

    async def handle(self, message: Message) -> Message | None:
        if message.type == "pid":
            return self.reply({"pid": os.getpid()})
        child = subprocess.Popen(["sleep", "3600"])
        with subprocess.Popen([sys.executable, "-c", DAEMON], stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            daemon = int(parent.stdout.readline())
        copy = os.fork()
        if not copy:
            try:
                time.sleep(3600)
            finally:
                os._exit(0)
        return self.reply({"pids": [child.pid, daemon, copy]})


class Waits(AgentProcess):
    """Holds its message until another agent pokes it; answers what is asked at once."""

    async def handle(self, message: Message) -> Message | None:
        match message.type:
            case "hold":
                while not os.path.exists(self.config.get("go", "/nowhere")):
                    await asyncio.sleep(0.01)
            case "grow":
                self.state["data"] = b"x" * message.payload["bytes"]
            case "poke":
                return self.reply({"poked": True})
        return self.reply({"now": True})


class Random(AgentProcess):
    """Slow at random; its handler asks only agents behind it, so none waits in a circle; its tasks ask anybody."""

    async def on_start(self) -> None:
        self.random = random.Random(self.name)
        self.asides: set[asyncio.Task[Message]] = set()

    async def handle(self, message: Message) -> Message | None:
        number, agents = int(self.name[1:]), self.config["agents"]
        await asyncio.sleep(self.random.choice([0, 0, 0, 0.3]))
        if self.random.random() < 0.2:
            aside = asyncio.ensure_future(self.ask(f"a{self.random.randrange(agents)}", {}, "aside", timeout=60))
            self.asides.add(aside)
            aside.add_done_callback(self.asides.discard)
        if number + 1 < agents and message.type != "aside":
            await self.ask(f"a{self.random.randrange(number + 1, agents)}", {}, timeout=60)
        if self.random.random() < 0.05:
            time.sleep(0.25)  # its process notes nothing meanwhile
        return self.reply({})
