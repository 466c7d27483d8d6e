"""Agents that go wrong in every way that a look from outside has to tell apart."""

from __future__ import annotations

import asyncio
import ctypes

from civitas_shm import AgentProcess, Message
from civitas_shm.errors import ErrorAction


class Sick(AgentProcess):
    """As it is told."""

    async def on_error(self, exc: Exception, message: Message) -> ErrorAction:
        return ErrorAction.ESCALATE if message.type == "fail" else ErrorAction.SKIP

    async def handle(self, message: Message) -> Message | None:
        match message.type:
            case "gil":
                ctypes.PyDLL(None).sleep(3600)
            case "spin":
                while True:
                    pass
            case "fail":
                raise RuntimeError("no way out")
            case "sleep":
                await asyncio.sleep(3600)
            case "circle" if (steps := message.payload.get("steps", 0)) < 2:  # the question that failed still waits
                await self.ask(message.payload["to"], {"to": self.name, "steps": steps + 1}, "circle", timeout=3600)
        return self.reply({})
