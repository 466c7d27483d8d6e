"""Faults of timing, on a real run under load whose history is checked: who is stopped, and who is slow."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from civitas_shm.host import kernel
from civitas_shm.topology.model import AgentSpec, PoolSpec

from .load import DRAINED, Load

pytestmark = pytest.mark.process


@pytest.mark.fault("stop and continue")
def test_whoever_is_stopped_and_continued_goes_on_and_nothing_is_lost_or_doubled(
    start_run: Any, tmp_path: Path, fired: Any
) -> None:
    load = Load(tmp_path)

    async def stopped(run: Any, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        await run.until(lambda: kernel.process_state(pid)[0] == "T")
        fired(1, f"process in state T: {Path(f'/proc/{pid}/comm').read_text().strip()}")

    async def test() -> None:
        async with start_run(*load.agents(), pool=PoolSpec(size=1, standby=1), **DRAINED) as run:
            await load.flows(run)
            for process in ("p-k0", "p-s0"):
                await stopped(run, run.pid(process))
                await run.until(lambda: run.named_process("verdict", process))  # noqa: B023
                assert run.named_process("verdict", process)[-1]["verdict"] == "stopped"
                os.kill(run.pid(process), signal.SIGCONT)
                await load.flows(run)
            [fork_server] = run.children("civ-fork")
            for pid in (fork_server.pid, run.client.host_pid):  # messages pass through neither of them
                await stopped(run, pid)
                await load.flows(run)
                os.kill(pid, signal.SIGCONT)
            await run.until(lambda: len(run.named("verdict")) >= 4)  # both were told well again
            assert not run.named("process_died")
            assert await load.finish(run) > 100

    asyncio.run(test())


@pytest.mark.fault("start-up failure")
def test_starts_that_fail_under_load_are_counted_and_tried_again_and_what_waits_is_handled(
    start_run: Any, tmp_path: Path, fired: Any
) -> None:
    load = Load(tmp_path)
    config = {"tries": str(tmp_path / "tries"), "failures": 4}
    fails = AgentSpec("fails", "fault_agents.FailsAtFirst", process="p-fails", config=config)

    async def test() -> None:
        supervision = {"max_restarts": 4, "backoff_base_s": 0.01}
        async with start_run(*load.agents(), fails, supervision=supervision, **DRAINED) as run:
            fired(len(run.named("agent_failed")), "starts that raised")
            fired(len(run.named("process_died")), "starts that ended their process")
            assert [event["cause"] for event in run.named("agent_failed")] == [
                "LookupError: start 1 fails", "LookupError: start 3 fails",
            ]  # fmt: skip
            assert [death["cause"] for death in run.named("process_died")] == ["exit code 3"] * 2
            assert await run.ask("fails", {}) == {"delivery": 1}
            await load.flows(run)
            await load.finish(run)

    asyncio.run(test())


@pytest.mark.fault("slow consumer")
def test_a_slow_consumer_delays_its_own_senders_and_nobody_else(start_run: Any, tmp_path: Path, fired: Any) -> None:
    slow = Load(tmp_path / "slow", ("s0",), ("k0",))
    fast = Load(tmp_path / "fast", ("s1",), ("k1",))
    agents = [*slow.agents(mailbox_size=10, pause_s={"k0": 0.05}), *fast.agents(mailbox_size=10)]

    async def test() -> None:
        async with start_run(*agents, **DRAINED) as run:
            port = run.client.port
            k0, s0 = port.resolve("k0"), port.resolve("s0")
            await run.until(lambda: port.stats(k0).waiting == 10 and port.stats(s0).wants_room_in == k0)
            fired(1, "sender that waits for room in a mailbox with 10 of 10 places taken")
            before = slow.handled("k0")
            await fast.flows(run, 300)
            assert slow.handled("k0") - before < fast.handled("k1") / 3
            assert port.stats(k0).dropped == 0
            fast.enough()
            assert await slow.finish(run) > 10
        assert fast.check(0) > 300

    asyncio.run(test())
