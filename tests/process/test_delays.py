"""Delayed messages in real processes: the death of sender, receiver and host loses none and doubles none."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from civitas_shm.errors import CivitasError, RunHasMessages
from civitas_shm.topology.model import StopSpec

pytestmark = pytest.mark.process

Agent = Callable[..., Any]


def run_async(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def test_delayed_messages_outlive_their_sender_their_receiver_and_the_host(
    start_run: Any, agent: Agent, tmp_path: Path
) -> None:
    out = tmp_path / "mark"
    out.touch()

    def agents() -> list[Any]:
        return [agent("Sink", "mark", config={"out": str(out)}, process="w1"), agent("Planner", process="w2")]

    def came() -> list[int]:
        return sorted(map(int, out.read_text().split()))

    async def first() -> None:
        async with start_run(*agents()) as run:
            for n in range(10):
                await run.send("planner", {"n": n, "delay": 0.05, "die": n == 3})
            await run.until(lambda: came() == list(range(10)))
            # What is ordered from here on is due after the deaths that follow.
            for n in range(10, 20):
                await run.send("planner", {"n": n, "delay": 3.0, "die": n == 13})
            await run.send("planner", {"n": 20, "delay": 0.0})
            await run.until(lambda: came()[-1] == 20)  # so all orders before it are committed
            os.kill(run.client.host_pid, signal.SIGKILL)
            with pytest.raises(CivitasError):
                await run.client.wait()
        assert came() == [*range(10), 20]

    async def without_saying() -> None:
        with pytest.raises(RunHasMessages, match="10 messages waiting"):
            async with start_run(*agents()):
                pass

    async def again() -> None:
        async with start_run(*agents(), options={"resume": True}, stop=StopSpec(drain="all")) as run:
            await run.until(lambda: len(came()) >= 21)
            await asyncio.sleep(0.1)  # a double would be here by now
            await run.client.stop()
            assert (await run.client.wait()).waiting == {}
        assert came() == list(range(21))

    run_async(first)
    run_async(without_saying)
    run_async(again)


def test_a_run_that_stops_keeps_what_waits_for_its_time_and_says_so(
    start_run: Any, agent: Agent, tmp_path: Path
) -> None:
    async def test() -> None:
        agents = [agent("Sink", "mark", config={"out": str(tmp_path / "mark")}), agent("Planner")]
        async with start_run(*agents, stop=StopSpec(drain="all")) as run:
            await run.send("planner", {"n": 1, "delay": 1000.0})
            await run.client.stop()
            assert (await run.client.wait()).waiting == {"mark": 1}

    run_async(test)
