"""Agents whose state is in a store, and a store that ends its process, for test_state_stores.py."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from civitas_shm import AgentProcess, Message
from civitas_shm.plugins.sqlite_store import SQLiteStateStore


class Counter(AgentProcess):
    """Adds, says so, and saves; it takes no care of doubles. Lingers, so that it dies in between."""

    async def handle(self, message: Message) -> Message | None:
        if message.type == "look":
            return self.reply({"total": self.state.get("total", 0), "pid": os.getpid()})
        self.state["total"] = self.state.get("total", 0) + 1
        self.state["seen"] = [*self.state.get("seen", []), message.payload["n"]]
        await self.send("heard", {"n": message.payload["n"]})
        if message.payload["n"] % 4 == 0:
            await asyncio.sleep(0.001)
        await self.checkpoint()
        return None


class Heard(AgentProcess):
    """Keeps what it hears in shared memory, with the release of each message."""

    async def handle(self, message: Message) -> Message | None:
        if message.type == "look":
            return self.reply({"heard": self.state.get("heard", [])})
        self.state.setdefault("heard", []).append(message.payload["n"])
        return None


class Deadly(SQLiteStateStore):
    """Kills its process at the write of a number, before or after it has done it; each of both once."""

    def __init__(self, db_path: str, before: int, after: int) -> None:
        super().__init__(db_path)
        self._at = {"before": before, "after": after}

    async def write(self, agent_name: str, state: dict[str, Any], *rest: Any) -> None:
        self._die("before", state)
        await super().write(agent_name, state, *rest)
        self._die("after", state)

    def _die(self, when: str, state: dict[str, Any]) -> None:
        done = Path(f"{self.db_path}.{when}")
        if state.get("total") == self._at[when] and not done.exists():
            done.touch()
            os.kill(os.getpid(), signal.SIGKILL)
