"""Real processes that do not go on: what the host says about them and does, and whom it leaves alone."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from civitas_shm.topology.model import AgentSpec, PoolSpec, ProcessSpec, WatchSpec

pytestmark = pytest.mark.process


def run_async(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


TWO = {"processes": [ProcessSpec("w1"), ProcessSpec("w2"), ProcessSpec("w3")], "pool": PoolSpec(size=1)}


def spec(kind: str, name: str, process: str = "w1", **fields: Any) -> AgentSpec:
    return AgentSpec(name, f"watch_agents.{kind}", process=process, **fields)


# --- deadlocks -------------------------------------------------------------------------------------------------------


def test_a_circle_of_asks_over_three_processes_is_found_and_named(start_run: Any) -> None:
    async def test() -> None:
        names = {"a": ("w1", "b"), "b": ("w2", "c"), "c": ("w3", "a")}
        agents = [spec("Link", name, process, config={"to": to}) for name, (process, to) in names.items()]
        async with start_run(*agents, **TWO) as run:
            reply = await run.ask("a", {})
            assert reply["by"] == "c"
            assert [wait[:4] for wait in reply["cycle"]] == [
                ["a", "b", "ask", "go_on"], ["b", "c", "ask", "go_on"], ["c", "a", "ask", "go_on"],
            ]  # fmt: skip
            await run.until(lambda: run.named("deadlock"))
            (event,) = run.named("deadlock")
            assert event["agent"] == "c"
            assert event["cause"] == reply["text"]
            # The tests' only bound on time is the watchdog; the text says how long it took, for who wants to know.
            assert 0 < reply["cycle"][2][4] < 60

    run_async(test)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_circle_through_full_mailboxes_is_found_too(start_run: Any, tmp_path: Path, mixed: bool) -> None:
    async def test() -> None:
        here = str(tmp_path)
        agents = [
            spec("Fills", "a", "w1", mailbox_size=2, config={"to": "b", "here": here}),
            spec("Fills", "b", "w2", mailbox_size=2, config={"to": "a", "here": here, "asks": mixed}),
        ]
        async with start_run(*agents, **TWO) as run:
            replies = await asyncio.gather(run.ask("a", {}), run.ask("b", {}))
            (cycle,) = [reply["cycle"] for reply in replies if reply]
            kinds = sorted(wait[2] for wait in cycle)
            assert kinds == (["ask", "room"] if mixed else ["room", "room"])
            assert len(run.named("deadlock")) == 1

    run_async(test)


def test_slow_handlers_that_ask_one_another_at_random_without_a_circle_are_left_alone(start_run: Any) -> None:
    async def test() -> None:
        agents = [spec("Random", f"a{n}", f"w{1 + n % 3}", config={"agents": 6}) for n in range(6)]
        async with start_run(*agents, **TWO) as run:
            bus = run.client.orders.runner.bus
            asks = [bus.ask(f"a{n % 3}", {}, timeout=60) for n in range(12)]
            assert len(await asyncio.gather(*asks)) == 12
            assert not run.named("deadlock")
            assert not run.named("agent_failed")

    run_async(test)


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_a_stopped_process_is_told_then_killed_and_its_successor_goes_on(start_run: Any) -> None:
    async def test() -> None:
        async with start_run(spec("Sticks", "s"), watch=WatchSpec(stopped_timeout_s=2.0)) as run:
            pid = run.pid("w1")
            os.kill(pid, signal.SIGSTOP)
            await run.until(lambda: run.named("process_recovered"))
            (verdict,) = run.named("verdict")
            assert (verdict["verdict"], verdict["pid"]) == ("stopped", pid)
            (death,) = run.named("process_died")
            assert "SIGKILL (stopped (SIGSTOP) for" in death["cause"]
            assert "watch.stopped_timeout_s is 2" in death["cause"]
            assert run.pid("w1") != pid

    run_async(test)


def test_who_goes_on_in_time_is_told_well_and_left_alone(start_run: Any) -> None:
    async def test() -> None:
        async with start_run(spec("Sticks", "s")) as run:
            pid = run.pid("w1")
            os.kill(pid, signal.SIGSTOP)
            await run.until(lambda: run.named("verdict"))
            os.kill(pid, signal.SIGCONT)
            await run.until(lambda: len(run.named("verdict")) == 2)
            assert [event["verdict"] for event in run.named("verdict")] == ["stopped", "idle"]
            assert not run.named("process_died")

    run_async(test)


@pytest.mark.parametrize("how", ["block", "gil", "spin"])
def test_a_blocked_loop_is_killed_after_handle_timeout_and_the_message_is_blamed(start_run: Any, how: str) -> None:
    async def test() -> None:
        agents = [spec("Sticks", "s", handle_timeout_s=0.5), spec("Sticks", "neighbour")]
        async with start_run(*agents) as run:
            pid = run.pid("w1")
            await run.send("s", {"how": how})
            await run.until(lambda: run.named("process_died"))
            death = run.named("process_died")[0]
            assert "handle of 's' has run for" in death["cause"]
            assert "the loop does not answer: something blocks it" in death["cause"]
            assert death["counts"]
            assert death["pid"] == pid

    run_async(test)


def test_a_handler_that_awaits_too_long_is_cancelled_and_its_process_lives(start_run: Any) -> None:
    async def test() -> None:
        async with start_run(spec("Sticks", "s", handle_timeout_s=0.5), supervision={"backoff_base_s": 0.0}) as run:
            await run.send("s", {"how": "await"})
            await run.until(lambda: run.named("agent_failed"))
            (failed,) = run.named("agent_failed")
            assert failed["cause"] == (
                "TimeoutError: handle of 's' ran longer than its handle_timeout_s of 0.5 s and was cancelled"
            )
            reply = await run.client.orders.runner.bus.ask("s", {}, "pid", timeout=60)
            assert reply.payload["pid"] == run.pid("w1")
            assert not run.named("process_died")

    run_async(test)


@pytest.mark.parametrize(
    ("kind", "payload", "why"),
    [("Sticks", {"how": "ignore"}, "ignores that it was cancelled"), ("SticksInThread", {}, "is a plain function")],
)
def test_a_handler_that_cannot_be_ended_ends_its_process(
    start_run: Any, kind: str, payload: dict[str, Any], why: str
) -> None:
    async def test() -> None:
        async with start_run(spec(kind, "s", handle_timeout_s=0.3)) as run:
            await run.send("s", payload)
            await run.until(lambda: run.named("process_died"))
            assert why in run.named("process_died")[0]["cause"]
            assert run.named("verdict")[0]["verdict"] == "stuck handler"

    run_async(test)


def test_a_long_computation_without_a_limit_is_told_and_left_alone(start_run: Any) -> None:
    async def test() -> None:
        async with start_run(spec("Sticks", "s")) as run:
            await run.send("s", {"how": "block"})
            await run.until(lambda: run.named("verdict"))
            (verdict,) = run.named("verdict")
            assert (verdict["verdict"], verdict["agents"]) == ("blocked loop", ["s"])
            began = time.monotonic()
            await run.until(lambda: time.monotonic() > began + 2.5)
            assert not run.named("process_died")

    run_async(test)


def test_a_process_over_its_memory_limit_is_killed_and_the_report_names_limit_and_value(start_run: Any) -> None:
    async def test() -> None:
        processes = [ProcessSpec("w1", memory_limit_mb=150)]
        async with start_run(spec("Grows", "g"), processes=processes) as run:
            await run.send("g", {})
            await run.until(lambda: run.named("process_died"))
            cause = run.named("process_died")[0]["cause"]
            assert "memory limit: " in cause
            assert "processes.w1.memory_limit_mb is 150" in cause

    run_async(test)
