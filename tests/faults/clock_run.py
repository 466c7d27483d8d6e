"""A run whose wall clock is stepped while it works; started by test_clock.py with the clock's library loaded first.

    python clock_run.py CLOCK_STEP_FILE          prints one JSON object: what was seen

Everything is waited for by what it does, and measured on the monotonic clock, which nobody steps.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import struct
import sys
import time
from pathlib import Path
from typing import Any

from civitas_shm.errors import RunFailed
from civitas_shm.host.client import HostClient, HostOptions
from civitas_shm.topology.model import AgentSpec, PoolSpec, SupervisorSpec, TopologySpec, TransportSpec

DAY_S = 86_400
HERE = str(Path(__file__).parent)


class Clock:
    """The step that every process of the run sees."""

    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:
            self._words = mmap.mmap(file.fileno(), 16)

    def step(self, days: int) -> None:
        self._words[:8] = struct.pack("<q", days * DAY_S)

    def reads(self) -> int:
        """Of the wall clock, that saw a step."""
        return int(struct.unpack("<Q", self._words[8:16])[0])


async def stepped(clock: Clock) -> dict[str, Any]:
    """What was seen."""
    spec = TopologySpec(
        supervision=SupervisorSpec(
            children=[
                AgentSpec("slow", "fault_agents.Clocks", process="p1", handle_timeout_s=30),
                AgentSpec("other", "fault_agents.Clocks", process="p2"),
            ],
            max_restarts=2,
            restart_window_s=600,
            backoff_base_s=0.2,
            backoff_max_s=0.2,
        ),
        transport=TransportSpec("shm", arena_mb=8, mailboxes=64),
        pool=PoolSpec(size=1, pin=False),
        import_paths=[HERE],
    )
    events: list[dict[str, Any]] = []
    client = HostClient(spec, HostOptions(f"clock-{os.getpid()}"), on_event=events.append)
    await client.start()
    await client.running()
    bus = client.orders.runner.bus
    seen: dict[str, Any] = {"away_days": [], "short_s": [], "came_back_s": [], "ids": []}
    real_s = time.time()
    began_s = time.monotonic()

    async def look() -> None:
        """Ids of messages, and how far the clock of each process is from the one that is right."""
        for name in ("slow", "other"):
            answer = (await bus.ask(name, {}, timeout=60)).payload
            right_s = real_s + time.monotonic() - began_s
            seen["away_days"].append(round((answer["wall_s"] - right_s) / DAY_S))
            seen["ids"].append(answer["id"])

    await look()
    for days in (1, -1, 0):
        long = asyncio.create_task(bus.ask("slow", {"s": 0.5}, "wait", timeout=60))
        short_s = time.monotonic()
        short = asyncio.create_task(bus.ask("slow", {"s": 0.0}, "wait", timeout=0.3))  # behind the long one
        await asyncio.sleep(0.1)
        clock.step(days)
        try:
            await short
        except TimeoutError:
            seen["short_s"].append(time.monotonic() - short_s)
        await long
        await look()
        if days:  # two failures of the two that the window allows
            failed_s = time.monotonic()
            await bus.send("other", {}, "fail")
            await bus.ask("other", {}, timeout=60)
            seen["came_back_s"].append(time.monotonic() - failed_s)
    clock.step(1)  # by the wall clock the window would be over
    await bus.send("other", {}, "fail")
    try:
        await client.wait()
    except RunFailed as error:
        seen["failed"] = str(error).splitlines()[0]
    seen["reads"] = clock.reads()
    seen["event_days"] = sorted({round((event["time"] - real_s) / DAY_S) for event in events})
    return seen


if __name__ == "__main__":
    print(json.dumps(asyncio.run(stepped(Clock(sys.argv[1])))))
