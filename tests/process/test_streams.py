"""Streams between processes that are killed: of the writer, of the reader, and of agents that are plain functions."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from civitas_shm.errors import StreamInterrupted
from civitas_shm.streams.reader import Question, Reader, Stream
from civitas_shm.topology.model import AgentSpec

pytestmark = pytest.mark.process


def made(kind: str, process: str, name: str = "") -> AgentSpec:
    return AgentSpec(name or kind.lower(), f"stream_agents.{kind}", process=process)


def stream_of(run: Any, name: str, payload: dict[str, Any], maxsize: int = 256) -> Stream:
    bus = run.client.orders.runner.bus
    return Stream(Reader(bus.streams, Question(name, payload, "message", 30.0, 30.0, 60.0, maxsize)))


async def witnessed(run: Any, what: str, times: int = 1) -> None:
    while (await run.ask("witness", {"of": what}))["times"] < times:
        await asyncio.sleep(0.01)


def test_the_writers_death_is_not_noticed_if_its_successor_says_the_same_and_else_interrupts(start_run: Any) -> None:
    async def test() -> None:
        async with start_run(made("Teller", "w1"), made("Witness", "w2")) as run:
            numbers = []
            async for chunk in stream_of(run, "teller", {"n": 2000, "pause_s": 0.0001}, maxsize=64):
                numbers.append(chunk["number"])
                if len(numbers) in (100, 700):
                    os.kill(run.pid("w1"), signal.SIGKILL)
                    pid = run.pid("w1")
                    await run.until(lambda pid=pid: run.pid("w1") != pid)
            assert numbers == list(range(2000))

            stream = stream_of(run, "teller", {"n": 10**9, "unlike": True}, maxsize=8)
            before = [(await anext(stream))["number"] for _ in range(20)]
            os.kill(run.pid("w1"), signal.SIGKILL)
            with pytest.raises(StreamInterrupted, match="its successor answers otherwise from chunk 0 on"):
                before += [chunk["number"] async for chunk in stream]
            assert before == list(range(1000, 1020))
            await witnessed(run, "nobody reads")

    asyncio.run(test())


def test_the_readers_death_reaches_a_writer_that_waits_for_credits_and_one_that_waits_elsewhere(start_run: Any) -> None:
    async def test() -> None:
        agents = [
            made("Teller", "w1"), made("Waiter", "w1"), made("Witness", "w1"),
            made("Listener", "w2", "of_teller"), made("Listener", "w2", "of_waiter"),
        ]  # fmt: skip
        async with start_run(*agents) as run:
            await run.send("of_teller", {"to": "teller"})
            await run.send("of_waiter", {"to": "waiter"})
            await witnessed(run, "first chunk", 2)
            os.kill(run.pid("w2"), signal.SIGKILL)
            await witnessed(run, "nobody reads")
            await witnessed(run, "cut short: True")

    asyncio.run(test())


def test_agents_of_several_processes_and_plain_functions_read_and_write_streams(start_run: Any) -> None:
    async def test() -> None:
        agents = [made("Teller", "w1"), made("Witness", "w1"), made("Summer", "w2"), made("PlainSummer", "w2")]
        async with start_run(*agents) as run:
            for name in ("summer", "plainsummer"):
                assert await run.ask(name, {"n": 3000}) == {"total": sum(range(3000))}
            chunks = [chunk["number"] async for chunk in stream_of(run, "plainsummer", {"n": 500})]
            assert chunks == list(range(500))

    asyncio.run(test())
