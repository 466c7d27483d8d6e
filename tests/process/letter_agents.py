"""Agents for the tests of delivery: each notes what it handles before it does what it is told."""

from __future__ import annotations

import asyncio
import ctypes
import os
from pathlib import Path

from civitas_shm import AgentProcess, Message


def note(agent: AgentProcess, message: Message) -> None:
    """One line per hand-over, on disk before anything else happens."""
    line = f"{message.payload.get('n', -1)} {message.delivery} {os.getpid()}\n"
    out = Path(agent.config["out"])
    with open(out / agent.name, "a", encoding="ascii") as file:
        file.write(line)


class Noting(AgentProcess):
    """Handles for `pause_s`; dies, raises or asks if the message says so."""

    async def handle(self, message: Message) -> Message | None:
        note(self, message)
        payload = message.payload
        match payload.get("do"):
            case "crash":
                if payload.get("crowd"):  # not before the others have begun
                    await asyncio.sleep(0.3 if message.delivery == 1 else 0.0)
                ctypes.string_at(0)
            case "exit":
                os._exit(7)
            case "raise":
                raise LookupError(f"number {payload.get('n')}")
            case "raise once" if message.delivery == 1:
                raise LookupError("the first time")
            case "ask":
                await self.ask(payload["whom"], {"n": payload["n"]}, timeout=30)
        pause_s = payload.get("pause_s", self.config.get("pause_s", 0))
        if pause_s:
            await asyncio.sleep(pause_s if message.delivery == 1 or not payload.get("crowd") else 0)
        return self.reply({"n": payload.get("n"), "delivery": message.delivery})


class Once(Noting):
    """The same, at most once."""
