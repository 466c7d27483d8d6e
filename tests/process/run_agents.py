"""Agents that the tests of real processes run: each does one thing that a test wants to see, or survive."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from civitas_shm import AgentProcess, ErrorAction, Message


class Echo(AgentProcess):
    """Answers with the payload and what its process is."""

    async def handle(self, message: Message) -> Message:
        return self.reply(
            {
                **message.payload,
                "pid": os.getpid(),
                "cpus": sorted(os.sched_getaffinity(0)),
                "nice": os.getpriority(os.PRIO_PROCESS, 0),
                "env": {key: os.environ.get(key, "") for key in ("FROM_TOPOLOGY", "OMP_NUM_THREADS")},
                "devices": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
                "command": Path("/proc/self/cmdline").read_text(encoding="utf-8"),
                "delivery": message.delivery,
            }
        )


class Sink(AgentProcess):
    """Appends each number to a file, and lingers a little so that it can be killed in the middle."""

    async def handle(self, message: Message) -> None:
        with open(self.config["out"], "a", encoding="ascii") as out:
            out.write(f"{message.payload['n']}\n")
        await asyncio.sleep(self.config.get("pause_s", 0))


class Asks(AgentProcess):
    """Passes a question on to another agent."""

    async def handle(self, message: Message) -> Message:
        reply = await self.ask(self.config["to"], message.payload, timeout=60)
        return self.reply(reply.payload)


class Dies(AgentProcess):
    """Ends its process as it is told, on deliveries up to `until`."""

    async def handle(self, message: Message) -> Message | None:
        if message.delivery > message.payload.get("until", 1_000_000):
            return self.reply({"delivery": message.delivery, "pid": os.getpid()})
        print("last words on stderr", file=sys.stderr)
        match message.payload["how"]:
            case "signal":
                os.kill(os.getpid(), message.payload["number"])
            case "exit":
                os._exit(message.payload["code"])
            case "segv":
                ctypes.string_at(0)
        return None


class Finishes(AgentProcess):
    """Ends well, by its own word, at the first message."""

    async def handle(self, message: Message) -> None:
        raise LookupError("nothing left to do")

    async def on_error(self, exc: Exception, message: Message) -> ErrorAction:
        return ErrorAction.STOP


class Fails(AgentProcess):
    """Raises."""

    async def handle(self, message: Message) -> None:
        raise LookupError("nothing there")


class HoldsTheGil(AgentProcess):
    """Says that it begins, then holds the interpreter lock in C for a minute."""

    async def handle(self, message: Message) -> None:
        await self.send("mark", {"n": os.getpid()})
        ctypes.PyDLL(None).usleep(60_000_000)


class Starts(AgentProcess):
    """Starts a program that outlives it, and tells its pid."""

    async def handle(self, message: Message) -> Message:
        child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        return self.reply({"child": child.pid, "pid": os.getpid()})


class Slow(AgentProcess):
    """Takes its time with every message."""

    async def handle(self, message: Message) -> None:
        await self.send("mark", {"n": message.payload["n"]})
        await asyncio.sleep(message.payload.get("s", 60))


class BlocksAtStart(AgentProcess):
    """Never comes back from on_start, and never awaits."""

    async def on_start(self) -> None:
        time.sleep(120)


class HangsAtStart(AgentProcess):
    """Never comes back from on_start, but awaits."""

    async def on_start(self) -> None:
        await asyncio.sleep(120)


class Hog(AgentProcess):
    """Takes memory until somebody minds."""

    async def handle(self, message: Message) -> None:
        taken = []
        while True:
            taken.append(bytearray(os.urandom(4 << 20)))
            await asyncio.sleep(0.005)


class Says(AgentProcess):
    """Writes in every way there is."""

    async def on_start(self) -> None:
        print("at the start")

    async def handle(self, message: Message) -> Message:
        print("printed\ntwice")
        print("without an end", end="")
        print(", later ended")
        print("to stderr", file=sys.stderr)
        self.log.warning("logged %d", 7)
        self.log.debug("not wanted")
        logging.getLogger("a.library").error("from a library")
        os.write(1, b"raw bytes \xff\n")
        subprocess.run(["echo", "from a child"], check=True)
        return self.reply({"pid": os.getpid()})


class Ends(AgentProcess):
    """Ends the run with the exit code that it is told."""

    async def handle(self, message: Message) -> None:
        await self.stop_runtime(message.payload["code"])


class SendsItself(AgentProcess):
    """Sends itself `n` messages at its first start, and takes a minute for each."""

    async def on_start(self) -> None:
        for n in range(self.config["n"]):
            await self.send(self.name, {"n": n})

    async def handle(self, message: Message) -> None:
        await asyncio.sleep(60)


class SendsMark(AgentProcess):
    """Sends `mark` as many numbers as it is told, at its start."""

    async def on_start(self) -> None:
        for n in range(self.config["n"]):
            await self.send("mark", {"n": n})

    async def handle(self, message: Message) -> None:
        pass


class SaysAtStart(AgentProcess):
    """Prints one line."""

    async def on_start(self) -> None:
        print("said at the start")

    async def handle(self, message: Message) -> None:
        pass


class FailsAtStart(AgentProcess):
    """Prints one line, then raises, each time."""

    async def on_start(self) -> None:
        print("said before it failed")
        raise LookupError("cannot begin")

    async def handle(self, message: Message) -> None:
        pass


class SlowAtStart(AgentProcess):
    """Takes a second until it is ready."""

    async def on_start(self) -> None:
        await asyncio.sleep(1)

    async def handle(self, message: Message) -> None:
        pass


class Talks(AgentProcess):
    """Prints numbered lines, then ends the run."""

    async def on_start(self) -> None:
        await self.send(self.name, {})

    async def handle(self, message: Message) -> None:
        for n in range(self.config["lines"]):
            print("number", n)
            await asyncio.sleep(0.003)
        await self.stop_runtime(3)


class SaysEnvironment(AgentProcess):
    """Prints what a service manager has told this process."""

    async def on_start(self) -> None:
        print(*(f"{name}={os.environ.get(name)}" for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC")))

    async def handle(self, message: Message) -> None:
        pass


class BlocksLater(AgentProcess):
    """Blocks its loop for a minute, one second after its start."""

    async def on_start(self) -> None:
        await self.send(self.name, {})

    async def handle(self, message: Message) -> None:
        await asyncio.sleep(1)
        time.sleep(60)


class Watcher(AgentProcess):
    """Monitors, links and spawns as it is told, and writes what it hears into a file that outlives it."""

    async def handle(self, message: Message) -> Message:
        fields = dict(message.payload)
        if message.type == "slow":
            await asyncio.sleep(fields["s"])
        elif message.type == "spawn":
            await self.spawn(Echo, **fields)
        elif message.type != "message":
            await getattr(self, message.type)(**fields)
        return self.reply({"pid": os.getpid()})

    async def on_down(self, name: str, reason: str) -> None:
        with open(self.config["out"], "a") as out:
            out.write(f"{name} {reason}\n")
        if self.config.get("dies_of_news") and not Path(self.config["out"] + ".died").exists():
            Path(self.config["out"] + ".died").touch()
            os.kill(os.getpid(), 9)


class Linked(Echo):
    """Links with another agent whenever it starts."""

    async def on_start(self) -> None:
        await self.link(self.config["to"])


class Poisoned(AgentProcess):
    """Gets one message at its first start and raises at it, until a file says that it is mended."""

    async def on_start(self) -> None:
        sent, _ = self.config["files"]
        if not Path(sent).exists():
            Path(sent).touch()
            await self.send(self.name, {"n": 7})

    async def handle(self, message: Message) -> None:
        _, mended = self.config["files"]
        if not Path(mended).exists():
            raise LookupError("poisoned")
        await self.send("mark", message.payload)


class Planner(AgentProcess):
    """Orders a message for `mark`, and then ends its process, once, where it is told to."""

    async def handle(self, message: Message) -> None:
        await self.send("mark", {"n": message.payload["n"]}, delay=message.payload["delay"])
        if message.payload.get("die") and message.delivery == 1:
            os.kill(os.getpid(), signal.SIGKILL)
