"""The pytest-benchmark suites: one loop and one runtime for each transport, shared by all rounds."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

BENCH = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCH))  # bench/ is no package: its files run as programs

from agents import Driver, Echo, Sink  # noqa: E402

from civitas_shm import Runtime, Supervisor  # noqa: E402

Measure = Callable[..., Any]


@pytest.fixture(scope="session")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner


@pytest.fixture(scope="session", params=["shm", "in_process"])
def driver(request: pytest.FixtureRequest, loop: asyncio.Runner) -> Iterator[Callable[..., Awaitable[Any]]]:
    """`driver(what, to, n)`: let the driver agent do it. `to` is near or far; in_process has no far one."""
    if request.param == "shm":
        if len(os.sched_getaffinity(0)) < 2:
            pytest.skip("two cores are needed, one for each side")
        runtime = Runtime.from_config(str(BENCH / "topology.yaml"))
    else:
        children = [Echo("near_echo"), Sink("near_sink"), Driver("driver")]
        runtime = Runtime(Supervisor("bench", children=children), transport="in_process")
    loop.run(runtime.start())

    def ask(what: str, to: str, n: int) -> Awaitable[Any]:
        if request.param == "in_process" and to.startswith("far"):
            pytest.skip("in_process has one process")
        return runtime.ask("driver", {"to": to, "n": n, "gap_s": 0.0, "width": 64}, timeout=120, message_type=what)

    yield ask
    loop.run(runtime.stop())
