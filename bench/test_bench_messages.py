"""Whole messages between agents, measured by the driver agent: one round is ASKS asks or SENDS sends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

ASKS = 2_000
SENDS = 20_000
ROUNDS = 7

Driver = Callable[..., Awaitable[Any]]


async def _wait(work: Awaitable[Any]) -> Any:
    return await work


@pytest.mark.parametrize("to", ["near_echo", "far_echo"])
def test_bench_ask_one_after_the_other(
    benchmark: BenchmarkFixture, loop: asyncio.Runner, driver: Driver, to: str
) -> None:
    benchmark.extra_info["messages"] = ASKS
    benchmark.pedantic(lambda: loop.run(_wait(driver("ask", to, ASKS))), rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.parametrize("to", ["near_echo", "far_echo"])
def test_bench_ask_64_outstanding(benchmark: BenchmarkFixture, loop: asyncio.Runner, driver: Driver, to: str) -> None:
    benchmark.extra_info["messages"] = SENDS
    benchmark.pedantic(lambda: loop.run(_wait(driver("outstanding", to, SENDS))), rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.parametrize("to", ["near_sink", "far_sink"])
def test_bench_send_one_way(benchmark: BenchmarkFixture, loop: asyncio.Runner, driver: Driver, to: str) -> None:
    benchmark.extra_info["messages"] = SENDS
    benchmark.pedantic(lambda: loop.run(_wait(driver("one_way", to, SENDS))), rounds=ROUNDS, warmup_rounds=1)
