"""The net effect of crashes, seen from the end of a chain: workers are killed at random moments, nobody takes care of
doubles, and every message has its effect exactly once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from typing import Any

import pytest

from civitas_shm.errors import CivitasError
from civitas_shm.host.protocol import Chaos
from civitas_shm.topology.model import AgentSpec

pytestmark = pytest.mark.process

CAUSES = 250
STEPS = 4000


def made(kind: str, process: str, state: Any = "none") -> AgentSpec:
    return AgentSpec(kind.lower(), f"effect_agents.{kind}", process=process, state=state)


async def counted(run: Any, total: int) -> dict[str, int]:
    """What the ledger has when it has as many as are wanted, and after that nothing more comes."""
    while True:
        counts: dict[str, int] = (await run.ask("ledger", {}))["counts"]
        if sum(counts.values()) >= total:
            port = run.client.orders.runner.port
            if not any(port.stats(port.resolve(name)).waiting for name in ("relay", "ledger", "walker")):
                return (await run.ask("ledger", {}))["counts"]  # type: ignore[no-any-return]
        await asyncio.sleep(0.02)


def readings(run: Any, name: str) -> Any:
    port = run.client.orders.runner.port
    return port.stats(port.resolve(name))


def test_a_deterministic_chain_has_its_effect_exactly_once(start_run: Any) -> None:
    async def test() -> None:
        agents = [made("Ledger", "w2", "shm"), made("Relay", "w1"), made("Walker", "w1", "shm")]
        async with start_run(*agents, options={"chaos": Chaos(kill_s=0.05)}) as run:
            await run.send("walker", {"to": STEPS // 4})  # sends to the same receiver, from the same process
            for n in range(CAUSES):
                await run.send("relay", {"n": n})
            counts = await counted(run, 4 * CAUSES + STEPS // 4)
            assert (counts.pop("tick"), counts.pop("step")) == (2 * CAUSES, STEPS // 4)
            assert counts == {f"{n} {part}": 1 for n in range(CAUSES) for part in "ab"}
            # That it was hard: workers died, with sends of the message in hand behind them.
            assert len(run.named("process_recovered")) >= 10
            reading = readings(run, "relay")
            assert reading.redelivered >= 5
            assert reading.replay_dropped >= 5
            assert (reading.replay_diverged, reading.not_remembered) == (0, 0)

    asyncio.run(test())


def test_a_handler_that_goes_on_by_its_saved_state_loses_and_doubles_nothing(start_run: Any) -> None:
    async def test() -> None:
        agents = [made("Ledger", "w2", "shm"), made("Relay", "w1"), made("Walker", "w1", "shm")]
        async with start_run(*agents, options={"chaos": Chaos(kill_s=0.05)}) as run:
            await run.send("walker", {"to": STEPS})
            assert await counted(run, STEPS) == {"step": STEPS}
            assert len(run.named("process_recovered")) >= 5
            assert readings(run, "walker").redelivered >= 3
            assert readings(run, "walker").replay_dropped >= 1  # it died between a send and its saving

    asyncio.run(test())


def test_host_deaths_change_nothing_of_that(start_run: Any) -> None:
    """The host is killed, and all workers with it; the run is resumed, three times, in the middle of handlers."""
    dice = random.Random(20261121)
    agents = [made("Ledger", "w2", "shm"), made("Relay", "w1"), made("Walker", "w1", "shm")]

    async def killed(options: dict[str, Any], *, first: bool) -> None:
        with contextlib.suppress(CivitasError):
            async with start_run(*agents, options=options) as run:
                if first:
                    await run.send("walker", {"to": STEPS})
                    for n in range(CAUSES):
                        await run.send("relay", {"n": n})
                await asyncio.sleep(dice.uniform(0.1, 0.3))
                os.kill(run.client.host_pid, signal.SIGKILL)
                await run.client.wait()

    async def test() -> None:
        await killed({}, first=True)
        for _ in range(2):
            await killed({"resume": True}, first=False)
        async with start_run(*agents, options={"resume": True}) as run:
            counts = await counted(run, 4 * CAUSES + STEPS)
            assert (counts.pop("tick"), counts.pop("step")) == (2 * CAUSES, STEPS)
            assert counts == {f"{n} {part}": 1 for n in range(CAUSES) for part in "ab"}
            assert readings(run, "relay").redelivered + readings(run, "walker").redelivered >= 3

    asyncio.run(test())
