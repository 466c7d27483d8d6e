"""A worker is killed with a batch in hand: each of its messages comes again, alone, and none that was not in it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from civitas_shm.topology.model import AgentSpec

pytestmark = pytest.mark.process


@pytest.mark.parametrize("hold", ["before", "after"])
def test_every_message_of_a_batch_comes_again_alone_and_a_store_by_id_has_each_effect_once(
    start_run: Any, tmp_path: Path, hold: str
) -> None:
    """`hold`: the death comes before or after the batch is committed to the store, in any case before its release."""

    def batches() -> list[list[list[int]]]:
        path = tmp_path / "batches"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def stored(query: str) -> list[int]:
        db = sqlite3.connect(tmp_path / "store")
        try:
            return [row[0] for row in db.execute(query)]
        finally:
            db.close()

    db = sqlite3.connect(tmp_path / "store")
    db.executescript("CREATE TABLE effects (id TEXT PRIMARY KEY, n INTEGER); CREATE TABLE commits (messages INTEGER);")
    db.close()

    async def test() -> None:
        ledger = AgentSpec("ledger", "batch_agents.Ledger", config={"folder": str(tmp_path), "hold": hold})
        async with start_run(ledger) as run:
            await run.send("ledger", {"n": 0})
            await run.until(batches)
            for n in range(1, 11):
                await run.send("ledger", {"n": n})
            (tmp_path / "gate").touch()
            await run.until(lambda: len(batches()) == 2)
            if hold == "after":
                await run.until(lambda: (tmp_path / "committed").exists())
            assert batches() == [[[0, 1]], [[n, 1] for n in range(1, 7)]]
            (tmp_path / "killed").touch()
            os.kill(run.pid(), signal.SIGKILL)
            await run.until(lambda: len(stored("SELECT n FROM effects")) == 11)
            await run.client.stop()
            assert (await run.client.wait()).waiting == {}

    asyncio.run(test())
    again = batches()[2:]
    assert again[:6] == [[[n, 2]] for n in range(1, 7)]
    assert [one for batch in again[6:] for one in batch] == [[n, 1] for n in range(7, 11)]
    assert stored("SELECT n FROM effects ORDER BY n") == list(range(11))
    first = [1, 6] if hold == "after" else [1]
    assert stored("SELECT messages FROM commits") == [*first, *[1] * 6, *map(len, again[6:])]
