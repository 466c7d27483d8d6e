"""Agents that try to give their keys away, and one that looks for them, for test_secrets.py."""

from __future__ import annotations

import os
import sys
from typing import Any

from plugin_agents import in_memory

from civitas_shm import AgentProcess, Message


class Leaky(AgentProcess):
    """Says its keys in every way that a careless program does."""

    def __init__(self, name: str, address: str = "", **options: Any) -> None:
        super().__init__(name, **options)
        self.address = address

    async def handle(self, message: Message) -> Message | None:
        keys = f"{self.get_credential('service')} {self.address} {self.config['password']}"
        match message.payload["do"]:
            case "print":
                print("stdout", keys)
                print("stderr", keys, file=sys.stderr)
                self.log.error("logged %s", keys)
            case "raise":
                try:
                    raise ValueError(keys)
                except ValueError as error:
                    raise RuntimeError(f"cannot log in with {keys}") from error
            case "die":
                print("last words", keys, file=sys.stderr, flush=True)
                os._exit(7)
            case "look":
                return self.reply({"holds": in_memory(message.payload["halves"]), "pid": os.getpid()})
        return self.reply({"pid": os.getpid()})


class Other(AgentProcess):
    """Has nothing to do with these keys."""

    async def handle(self, message: Message) -> Message:
        return self.reply(
            {
                "holds": in_memory(message.payload["halves"]),
                "variable": os.environ.get("CANARY_OWN_KEY"),
                "pid": os.getpid(),
            }
        )
