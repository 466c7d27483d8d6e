"""A chain of agents that take no care of doubles: what is counted at its end is the net effect of all crashes."""

from __future__ import annotations

import asyncio

from civitas_shm import AgentProcess, Message


class Relay(AgentProcess):
    """Three sends for each message, one of them equal to all others of its kind; lingers so that it dies in between."""

    async def handle(self, message: Message) -> None:
        n = message.payload["n"]
        for key in (f"{n} a", "tick", f"{n} b", "tick"):
            await self.send("ledger", {"key": key})
            await asyncio.sleep(0.001)


class Walker(AgentProcess):
    """Goes on where it stopped, by what it saved; all that it sends is equal. Lingers between a send and its saving."""

    async def handle(self, message: Message) -> None:
        while self.state.get("at", 0) < message.payload["to"]:
            await self.send("ledger", {"key": "step"})
            if self.state.get("at", 0) % 4 == 0:
                await asyncio.sleep(0.001)
            self.state["at"] = self.state.get("at", 0) + 1
            await self.checkpoint(now=True)


class Ledger(AgentProcess):
    """Counts what comes, in a state that is saved with the release of each message."""

    async def handle(self, message: Message) -> Message | None:
        if message.type == "message" and "key" in message.payload:
            counts = self.state.setdefault("counts", {})
            counts[message.payload["key"]] = counts.get(message.payload["key"], 0) + 1
            return None
        return self.reply({"counts": self.state.get("counts", {})})
