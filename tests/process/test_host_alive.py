"""A run that is alive is never touched, whatever its processes look like; a dead one is never taken for alive."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from civitas_shm.errors import RunAlive
from civitas_shm.host.client import HostClient, HostOptions
from civitas_shm.topology.model import TopologySpec, TransportSpec
from civitas_shm.transport import MemoryPlan

pytestmark = pytest.mark.process

Agent = Callable[..., Any]

RUNS = """
import asyncio, os, sys
from civitas_shm.host.client import HostClient, HostOptions
from civitas_shm.topology.model import AgentSpec, PoolSpec, SupervisorSpec, TopologySpec, TransportSpec

async def main():
    spec = TopologySpec(
        supervision=SupervisorSpec(children=[
            AgentSpec("mark", "run_agents.Sink", config={"out": sys.argv[2]}), AgentSpec("slow", "run_agents.Slow"),
        ]),
        transport=TransportSpec("shm", arena_mb=8, mailboxes=64), pool=PoolSpec(size=2), import_paths=[sys.argv[1]],
    )
    client = HostClient(spec, HostOptions(sys.argv[3]))
    await client.start()
    await client.running()
    for n in range(20):
        await client.orders.runner.bus.send("slow", {"n": n})
    print(client.host_pid, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


class Tree:
    """A caller with its run, as processes; `kill` hits all of them."""

    def __init__(self, mark: Path, name: str) -> None:
        self.caller = subprocess.Popen(
            [sys.executable, "-c", RUNS, str(Path(__file__).parent), str(mark), name], stdout=subprocess.PIPE, text=True
        )
        assert self.caller.stdout is not None
        self.host = psutil.Process(int(self.caller.stdout.readline()))

    def everybody(self) -> list[psutil.Process]:
        return [psutil.Process(self.caller.pid), self.host, *self.host.children(recursive=True)]

    def kill(self, processes: list[psutil.Process]) -> None:
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.caller.wait()
        assert self.caller.stdout is not None
        self.caller.stdout.close()
        psutil.wait_procs(processes)


@pytest.fixture
def tree(start_run: Any, tmp_path: Path) -> Iterator[Callable[[str], Tree]]:
    """`start_run` gives the run directory and removes what is left there."""
    trees: list[Tree] = []

    def make(name: str) -> Tree:
        trees.append(Tree(tmp_path / f"mark-{name}", name))
        return trees[-1]

    yield make
    for one in trees:
        if one.caller.poll() is None:
            one.kill(one.everybody())


def refused(name: str, **options: bool) -> None:
    """Nobody gets at that run."""

    async def begin() -> None:
        client = HostClient(TopologySpec(transport=TransportSpec("shm")), HostOptions(name, **options))
        with pytest.raises(RunAlive, match=name):
            await client.start()

    asyncio.run(begin())


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"fresh": True}], ids=["run", "resume", "fresh"])
def test_a_host_that_is_stopped_is_alive(tree: Any, options: dict[str, bool]) -> None:
    name = f"stopped-{os.getpid()}"
    run = tree(name)
    segments = {entry for entry in os.listdir("/dev/shm") if name in entry}
    run.host.suspend()
    refused(name, **options)
    assert {entry for entry in os.listdir("/dev/shm") if name in entry} == segments != set()
    run.host.resume()
    time.sleep(0.1)
    assert run.host.is_running()
    assert run.caller.poll() is None


def test_a_dead_host_whose_pid_somebody_else_has_now_is_dead(tree: Any) -> None:
    """What is written down of pids is nobody's proof: with this test's own pid in it the run is taken all the same."""
    from civitas_shm_transports.shm import stale_runs
    from civitas_shm_transports.shm.memory import create

    name = f"reused-{os.getpid()}"
    run = tree(name)
    run.kill(run.everybody())
    for slot in range(2):
        _write_pid(name, slot, os.getpid())
    [stale] = [found for found in stale_runs() if found.name == name]
    memory = create(name, MemoryPlan(slots=3, mailboxes=16), resume=True)
    assert memory.adopted
    waiting = memory.waiting()
    assert waiting["slow"] == 20
    assert stale.waiting == sum(waiting.values())  # perhaps one for `mark`, which dies with it in hand
    memory.close(keep=True)


def _write_pid(name: str, slot: int, pid: int) -> None:
    """Into the slot's word in the directory segment, as the kernel's reuse of a pid would look."""
    from civitas_shm_transports.shm import _shm
    from civitas_shm_transports.shm.segments import RunDirectory, Segments, runs_directory
    from civitas_shm_transports.shm.waiting import host_port

    path = runs_directory() / name
    files = RunDirectory(path, -1).files()
    assert files is not None
    segments = Segments.open(files, path)
    doors = [_shm.eventfd() for _ in range(files.slots)]
    native = host_port(segments, doors, 1)
    native.set_slot(slot, native.slot(slot)[0], 1, pid)
    native.close()
    segments.close()
    for fd in doors:
        os.close(fd)


@pytest.mark.timeout(400)
def test_a_whole_tree_killed_from_outside_leaves_no_process_and_after_gc_no_segment() -> None:
    """Twenty trees; a thousand by the same script with --times 1000."""
    played = subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "torture/run_tree.py"), "--times", "20"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert played.returncode == 0, played.stdout + played.stderr
    assert played.stdout.startswith("tree: 20 killed, 0 orphans, 0 segments")
