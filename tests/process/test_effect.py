"""The net effect of crashes, seen from the end of a chain: workers are killed at random moments, nobody takes care of
doubles, and every message has its effect exactly once.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

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
            for n in range(CAUSES):
                await run.send("relay", {"n": n})
            counts = await counted(run, 4 * CAUSES)
            assert counts.pop("tick") == 2 * CAUSES
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
