"""An agent that takes batches and writes them into a store that cannot commit with its mailbox."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path

from civitas_shm import AgentProcess, Message


class Ledger(AgentProcess):
    """Writes what it gets under the message's id. `config["hold"]`: where its first life waits to be killed."""

    batch_size = 6

    async def handle_batch(self, messages: list[Message]) -> None:
        folder = Path(self.config["folder"])
        with open(folder / "batches", "a", encoding="ascii") as out:
            out.write(json.dumps([[message.payload["n"], message.delivery] for message in messages]) + "\n")
        if messages[0].payload["n"] == 0:
            while not (folder / "gate").exists():  # until the others wait
                await asyncio.sleep(0.002)
        held = len(messages) > 1 and not (folder / "killed").exists()
        if held and self.config["hold"] == "before":
            await asyncio.Future()
        with sqlite3.connect(folder / "store") as db:
            db.executemany(
                "INSERT OR IGNORE INTO effects VALUES (?, ?)",
                [(message.id, message.payload["n"]) for message in messages],
            )
            db.execute("INSERT INTO commits VALUES (?)", (len(messages),))
        db.close()
        if held:
            (folder / "committed").touch()
            await asyncio.Future()
