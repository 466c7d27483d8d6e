"""Workers in cgroups of the real kernel: what they start dies with them, whatever it hides from.

For the machine that these tests run on: a group of their own below the cgroup v2 that is mounted, which takes root.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from civitas_shm.errors import RunFailed
from civitas_shm.host import cgroups, strays
from civitas_shm.topology.model import AgentSpec, PoolSpec, ProcessSpec

pytestmark = pytest.mark.process


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    mounted = cgroups._mounted(Path("/proc"))
    if mounted is None:
        pytest.skip("no cgroup v2 is mounted here")
    path = mounted[1] / f"civitas-test-{os.getpid()}-{time.monotonic_ns()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"{path} cannot be made: {error.strerror}; run as root")
    monkeypatch.setenv(cgroups.PLACE_VARIABLE, str(path))
    yield path
    left = sorted(str(below.relative_to(path)) for below in path.rglob("*") if below.is_dir())
    with contextlib.suppress(OSError):
        (path / "cgroup.kill").write_text("1")
    for folder in [*sorted((below for below in path.rglob("*") if below.is_dir()), reverse=True), path]:
        while folder.exists():
            with contextlib.suppress(OSError):
                folder.rmdir()
    assert not left, "groups were left behind"


def members(place: Path) -> set[int]:
    """Of all groups below."""
    return {int(pid) for procs in place.rglob("cgroup.procs") for pid in procs.read_text().split()}


def lives(pid: int) -> bool:
    return strays._start_ticks(pid) != 0


def test_what_hides_from_its_worker_dies_with_it_and_the_groups_go_with_the_run(start_run: Any, place: Path) -> None:
    async def test() -> None:
        agents = [AgentSpec(name, "fault_agents.Hides", process=f"p-{name}") for name in ("a", "b")]
        async with start_run(*agents, pool=PoolSpec(size=1, standby=1)) as run:
            of_a, of_b = await run.ask("a", {}), await run.ask("b", {})
            assert {of_a["pid"], of_a["hidden"], of_b["pid"], of_b["hidden"]} <= members(place)
            assert os.getpid() not in members(place)
            assert run.client.host_pid not in members(place)
            os.kill(of_a["pid"], signal.SIGKILL)
            await run.until(lambda: not lives(of_a["hidden"]))
            await run.until(lambda: run.named("process_recovered"))
            assert lives(of_b["hidden"])
            again = await run.ask("a", {})  # its successor, which was a standby, has a group as well
            assert {again["pid"], again["hidden"]} <= members(place)
        assert not lives(of_b["hidden"]), "it outlived the run"

    asyncio.run(test())


def test_what_a_killed_host_leaves_without_a_mark_is_ended_by_the_next_run(start_run: Any, place: Path) -> None:
    async def test() -> None:
        agent = AgentSpec("a", "fault_agents.Hides", process="p")
        async with start_run(agent) as run:
            hidden = (await run.ask("a", {}))["hidden"]
            os.kill(run.client.host_pid, signal.SIGKILL)
            with pytest.raises(RunFailed):
                await run.client.wait()
            assert lives(hidden), "nobody is left who could know of it"
        async with start_run(agent, options={"resume": True}) as run:
            await run.until(lambda: not lives(hidden))

    asyncio.run(test())


def test_a_memory_limit_holds_with_groups_as_without(start_run: Any, place: Path) -> None:
    """Where the kernel keeps none (no memory controller), by a look once a second; else whichever is faster."""

    async def test() -> None:
        processes = [ProcessSpec("w1", memory_limit_mb=150)]
        async with start_run(AgentSpec("g", "watch_agents.Grows", process="w1"), processes=processes) as run:
            await run.send("g", {})
            await run.until(lambda: run.named("process_died"))
            assert "memory_limit_mb" in run.named("process_died")[0]["cause"]

    asyncio.run(test())
