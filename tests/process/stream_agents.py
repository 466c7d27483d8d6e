"""Agents that stream to one another across processes, and one that can be asked what it has seen."""

from __future__ import annotations

import asyncio
import contextlib

from civitas_shm import AgentProcess, Message
from civitas_shm.errors import StreamInterrupted


class Teller(AgentProcess):
    """Says numbers; `unlike`: each time other ones. What it hears of its readers goes to the witness."""

    async def handle(self, message: Message) -> None:
        first = 1000 * message.delivery if message.payload.get("unlike") else 0
        with_pause = message.payload.get("pause_s", 0.0)
        try:
            for number in range(first, first + message.payload["n"]):
                await self.emit({"number": number})
                if with_pause:
                    await asyncio.sleep(with_pause)
        except StreamInterrupted:
            await self.send("witness", {"seen": "nobody reads"})
            raise


class Waiter(AgentProcess):
    """Sends one chunk, then waits for something that never comes, in a block that its reader's end cuts short."""

    async def handle(self, message: Message) -> None:
        async with self.stream_reply() as out:
            await out.send({"number": 0})
            await asyncio.Future()
        await self.send("witness", {"seen": f"cut short: {out.cancelled}"})


class Summer(AgentProcess):
    """Adds up what another agent says; a plain function with a thread of its own does the same."""

    async def handle(self, message: Message) -> Message:
        total = 0
        async for chunk in self.stream("teller", {"n": message.payload["n"]}):
            total += chunk["number"]
        return self.reply({"total": total})


class PlainSummer(AgentProcess):
    def handle(self, message: Message) -> Message | None:
        if message.wants_stream:
            with self.stream_reply() as out:
                for chunk in self.stream("teller", {"n": message.payload["n"]}):
                    out.send(chunk)
            return None
        return self.reply({"total": sum(chunk["number"] for chunk in self.stream("teller", message.payload))})


class Listener(AgentProcess):
    """Reads and never ends: its process is killed meanwhile. Its successor leaves the message be."""

    async def handle(self, message: Message) -> None:
        if message.delivery > 1:
            return
        async for _ in self.stream(message.payload["to"], {"n": 10**9}):
            await self.send("witness", {"seen": "first chunk"})
            await asyncio.Future()


class Witness(AgentProcess):
    async def on_start(self) -> None:
        self.seen: dict[str, int] = {}
        self.news = asyncio.Event()

    async def handle(self, message: Message) -> Message | None:
        if "seen" in message.payload:
            self.seen[message.payload["seen"]] = self.seen.get(message.payload["seen"], 0) + 1
            return None
        with contextlib.suppress(KeyError):
            return self.reply({"times": self.seen[message.payload["of"]]})
        return self.reply({"times": 0})
