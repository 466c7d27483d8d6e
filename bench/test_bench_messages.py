"""Whole messages between agents, measured by the driver agent: one round is ASKS asks or SENDS sends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

ASKS = 2_000
SENDS = 20_000
ROUNDS = 7

Driver = Callable[..., Awaitable[Any]]


def rounds(benchmark: Any, loop: asyncio.Runner, driver: Driver, what: str, to: str, n: int) -> None:
    """Let the driver do it ROUNDS times. `benchmark` is pytest-benchmark's fixture, whose methods have no types."""

    async def once() -> None:
        await driver(what, to, n)

    benchmark.extra_info["messages"] = n
    benchmark.pedantic(lambda: loop.run(once()), rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.parametrize("to", ["near_echo", "far_echo"])
def test_bench_ask_one_after_the_other(benchmark: Any, loop: asyncio.Runner, driver: Driver, to: str) -> None:
    rounds(benchmark, loop, driver, "ask", to, ASKS)


@pytest.mark.parametrize("to", ["near_echo", "far_echo"])
def test_bench_ask_64_outstanding(benchmark: Any, loop: asyncio.Runner, driver: Driver, to: str) -> None:
    rounds(benchmark, loop, driver, "outstanding", to, SENDS)


@pytest.mark.parametrize("to", ["near_sink", "far_sink"])
def test_bench_send_one_way(benchmark: Any, loop: asyncio.Runner, driver: Driver, to: str) -> None:
    rounds(benchmark, loop, driver, "one_way", to, SENDS)


@pytest.mark.parametrize("to", ["near_teller", "far_teller"])
def test_bench_chunks_of_one_stream(benchmark: Any, loop: asyncio.Runner, driver: Driver, to: str) -> None:
    rounds(benchmark, loop, driver, "stream", to, SENDS)
