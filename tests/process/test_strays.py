"""Processes that user code starts in workers die with them; at the death of the host, with the next run or gc."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from click.testing import CliRunner

from civitas_shm.cli.app import app
from civitas_shm.errors import RunFailed
from civitas_shm.host import strays
from civitas_shm.topology.model import AgentSpec, PoolSpec, ProcessSpec

pytestmark = pytest.mark.process

TWO: dict[str, Any] = {"processes": [ProcessSpec("w1"), ProcessSpec("w2")], "pool": PoolSpec(size=1)}


def run_async(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def spec(name: str, process: str) -> AgentSpec:
    return AgentSpec(name, "watch_agents.Spawns", process=process)


def lives(pid: int) -> bool:
    return strays._start_ticks(pid) != 0  # a zombie does not


def test_all_that_a_worker_has_started_dies_with_it_and_nothing_of_its_neighbour(start_run: Any) -> None:
    async def test() -> None:
        async with start_run(spec("a", "w1"), spec("b", "w2"), **TWO) as run:
            of_a, of_b = (await run.ask("a", {}))["pids"], (await run.ask("b", {}))["pids"]
            assert all(map(lives, [*of_a, *of_b]))
            os.kill(run.pid("w1"), signal.SIGKILL)
            await run.until(lambda: not any(map(lives, of_a)))
            await run.until(lambda: run.named("process_recovered"))
            assert all(map(lives, of_b))
        assert not any(map(lives, of_b)), "they outlived the run"

    run_async(test)


def test_a_daemon_that_ends_by_itself_leaves_no_zombie(start_run: Any) -> None:
    async def test() -> None:
        async with start_run(spec("a", "w1"), **TWO) as run:
            _, daemon, _ = (await run.ask("a", {}))["pids"]
            os.kill(daemon, signal.SIGTERM)
            await run.until(lambda: not os.path.exists(f"/proc/{daemon}"))

    run_async(test)


def test_what_a_killed_host_leaves_is_found_by_its_mark_and_ended_by_gc_and_no_stranger_is(start_run: Any) -> None:
    stranger = subprocess.Popen(["sleep", "3600"])
    # A live run's process, and one whose pids mean something elsewhere.
    mine = f"mine:{os.getpid()}:{strays._start_ticks(os.getpid())}:{strays._namespace()}"
    others = [
        subprocess.Popen(["sleep", "3600"], env={**os.environ, strays.RUN_MARK: mark})
        for mark in (mine, "elsewhere:999999:1:1", "nonsense", "a:b:c:d")
    ]

    async def test() -> list[int]:
        async with start_run(spec("a", "w1"), **TWO) as run:
            pids: list[int] = (await run.ask("a", {}))["pids"]
            os.kill(run.client.host_pid, signal.SIGKILL)
            with pytest.raises(RunFailed):
                await run.client.wait()
        return pids

    try:
        while True:
            pids = asyncio.run(test())
            found = {stray.pid: stray for stray in strays.find_strays()}
            assert not found.keys() & {stranger.pid, *(other.pid for other in others)}
            shown = CliRunner().invoke(app, ["gc"])
            lived = all(map(lives, pids))
            ended = CliRunner().invoke(app, ["gc", "--empty"])
            asyncio.run(_until_gone(pids))
            assert all(lives(process.pid) for process in (stranger, *others))
            if set(pids) <= found.keys() and lived and f"Ended process {pids[0]}, left by the dead" in ended.output:
                break  # else another run of this user that began just now was faster, as it should
        assert f"Would end process {pids[0]}, left by the dead run" in shown.output
    finally:
        for process in (stranger, *others):
            process.kill()
            process.wait()


def test_the_next_run_ends_what_a_killed_host_has_left(start_run: Any) -> None:
    async def test() -> None:
        async with start_run(spec("a", "w1"), **TWO) as run:
            pids = (await run.ask("a", {}))["pids"]
            os.kill(run.client.host_pid, signal.SIGKILL)
            with pytest.raises(RunFailed):
                await run.client.wait()
        async with start_run(spec("a", "w1"), options={"resume": True}, **TWO):
            assert not any(map(lives, pids))

    run_async(test)


async def _until_gone(pids: list[int]) -> None:
    while any(map(lives, pids)):
        await asyncio.sleep(0.002)
