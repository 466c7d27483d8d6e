"""Agents that use models and tools, and a tool, for test_plugins.py."""

from __future__ import annotations

import os
import sys
from typing import Any, ClassVar

from civitas_shm import AgentProcess, Message

VENDORS = ("anthropic", "openai", "httpx2", "pydantic", "opentelemetry")


class Asks(AgentProcess):
    """Passes its question on to a model."""

    async def handle(self, message: Message) -> Message:
        response = await self.llm.chat("", [{"role": "user", "content": message.payload["say"]}])
        return self.reply({"said": response.content, "cost": response.cost_usd, "pid": os.getpid()})


class Searches(AgentProcess):
    """Lets the model call a tool, until it has an answer."""

    async def handle(self, message: Message) -> Message:
        turns: list[dict[str, Any]] = [{"role": "user", "content": message.payload["say"]}]
        while calls := (response := await self.llm.chat("", turns, self.tools.list_tools())).tool_calls:
            turns.append(response.as_message())
            turns += [call.result(await self.tools.get(call.name).execute(**call.input)) for call in calls]
        return self.reply({"said": response.content})


class Plain(AgentProcess):
    """Uses neither, and says what its process has loaded, and whether it holds a text."""

    async def handle(self, message: Message) -> Message:
        return self.reply(
            {
                "loaded": [name for name in VENDORS if name in sys.modules],
                "holds": in_memory(message.payload["halves"]),
                "key": self.get_credential("anthropic"),
                "pid": os.getpid(),
            }
        )


class Keyed(Plain):
    """As Plain, but uses its model first."""

    async def handle(self, message: Message) -> Message:
        await self.llm.chat("", [{"role": "user", "content": "hello"}])
        return await super().handle(message)


def in_memory(halves: list[str]) -> bool:
    """Whether the two halves stand side by side anywhere in this process's memory. Never joined here, or they would."""
    first, second = (half.encode() for half in halves)
    with open("/proc/self/maps", encoding="ascii") as maps, open("/proc/self/mem", "rb", buffering=0) as memory:
        for line in maps:
            span, mode = line.split()[:2]
            begin, end = (int(part, 16) for part in span.split("-"))
            if "w" not in mode or "[v" in line or "/dev/shm" in line or "civ" in line:
                continue
            try:
                memory.seek(begin)
                data = memory.read(end - begin)
            except (OSError, ValueError, OverflowError):
                continue
            place = data.find(first)
            while place >= 0:
                if data[place + len(first) :].startswith(second):
                    return True
                place = data.find(first, place + 1)
    return False


class Shelf:
    """A tool."""

    name = "shelf"
    schema: ClassVar = {"description": "What stands on it.", "input_schema": {"type": "object"}}

    def __init__(self, books: int = 0) -> None:
        self.books = books

    async def execute(self, row: int) -> dict[str, int]:
        return {"row": row, "books": self.books, "pid": os.getpid()}
