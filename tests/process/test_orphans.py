"""Whoever is killed, in whatever state the others are: nobody stays behind, and committed messages do."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from civitas_shm.errors import RunFailed, TransportClosed
from civitas_shm.topology.model import PoolSpec

pytestmark = pytest.mark.process

Agent = Callable[..., Any]


@pytest.mark.parametrize("stopped", [(), ("civ-fork",), ("civ-w1",), ("civ-fork", "civ-w1", "civ-w2", "civ-standby")])
@pytest.mark.parametrize("gil_held", [False, True])
def test_nothing_survives_kill_9_of_the_host(
    start_run: Any, agent: Agent, tmp_path: Path, stopped: tuple[str, ...], gil_held: bool
) -> None:
    mark = tmp_path / "mark"

    async def test() -> None:
        agents = [agent("Sink", "mark", config={"out": str(mark)}), agent("HoldsTheGil", "gil")]
        async with start_run(*agents, pool=PoolSpec(size=2, standby=1)) as run:
            await run.until(lambda: len(run.processes()) == 5)  # host, fork server, w1, w2, standby
            if gil_held:
                await run.send("gil", {})
                await run.until(mark.exists)
                await run.until(lambda: not run.client.port.stats(run.client.port.resolve("mark")).in_hand)
            everybody = [psutil.Process(pid) for pid in run.processes()]
            for process in everybody:
                if process.name() in stopped:
                    process.suspend()
            os.kill(run.client.host_pid, signal.SIGKILL)
            with pytest.raises(RunFailed) as failed:
                await run.client.wait()
            for process in everybody:
                await run.until(lambda: not process.is_running())  # noqa: B023
        text = str(failed.value)
        assert "died: SIGKILL" in text
        assert ("1 message waits (gil 1): `run --resume`" in text) == gil_held

    asyncio.run(test())


def test_pending_asks_fail_when_the_host_dies(start_run: Any, agent: Agent, tmp_path: Path) -> None:
    async def test() -> None:
        agents = [agent("Sink", "mark", config={"out": str(tmp_path / "mark")}), agent("Slow")]
        async with start_run(*agents) as run:
            asked = asyncio.ensure_future(run.ask("slow", {"n": 1}))
            await run.until((tmp_path / "mark").exists)
            os.kill(run.client.host_pid, signal.SIGKILL)
            with pytest.raises(RunFailed):
                await run.client.wait()
            with pytest.raises(TransportClosed, match=r"The host process .* died: SIGKILL.*slow 1\): `run --resume`"):
                await asked
            with pytest.raises(TransportClosed, match="run --resume"):  # whoever comes later is told the same
                await run.ask("slow", {"n": 1})

    asyncio.run(test())


def test_an_ask_that_waits_when_the_run_is_stopped_is_told_so_and_what_is_left_for_a_resume(
    start_run: Any, agent: Agent, tmp_path: Path
) -> None:
    async def test() -> None:
        agents = [
            agent("Sink", "mark", config={"out": str(tmp_path / "mark")}),
            agent("Slow", shutdown_timeout_s=0.01),
        ]
        async with start_run(*agents) as run:
            asked = asyncio.ensure_future(run.ask("slow", {"n": 1}))
            await run.until((tmp_path / "mark").exists)
            await run.client.stop(exit_code=3)
            await run.client.wait()
            text = r"was stopped and has ended \(exit code 3\)\. 1 message waits \(slow 1\): `run --resume`"
            with pytest.raises(TransportClosed, match=text):
                await asked

    asyncio.run(test())


def test_an_ask_that_waits_when_supervision_gives_up_gets_the_report(
    start_run: Any, agent: Agent, tmp_path: Path
) -> None:
    async def test() -> None:
        agents = [agent("Sink", "mark", config={"out": str(tmp_path / "mark")}), agent("Slow")]
        async with start_run(*agents, supervision={"max_restarts": 0}) as run:
            asked = asyncio.ensure_future(run.ask("slow", {"n": 1}))
            await run.until((tmp_path / "mark").exists)
            os.kill(run.pid(), signal.SIGKILL)
            with pytest.raises(RunFailed) as failed:
                await run.client.wait()
            assert "slow 1" in failed.value.__notes__[0]
            with pytest.raises(TransportClosed, match=r"(?s)has failed: .*SIGKILL.*slow 1\): `run --resume`"):
                await asked

    asyncio.run(test())


def test_a_run_goes_on_after_the_death_of_its_fork_server(start_run: Any, agent: Agent) -> None:
    async def test() -> None:
        async with start_run(agent("Echo"), pool=PoolSpec(size=1, standby=0)) as run:
            (fork_server,) = run.children("civ-fork")
            fork_server.kill()
            os.kill(run.pid(), signal.SIGKILL)
            assert (await run.ask("echo", {"n": 1}))["n"] == 1
            assert len(run.named("process_died")) == 1

    asyncio.run(test())


def test_a_standby_is_replaced_and_its_death_is_nobodys(start_run: Any, agent: Agent) -> None:
    async def test() -> None:
        async with start_run(agent("Echo"), supervision={"max_restarts": 0}) as run:
            await run.until(lambda: run.children("civ-standby"))
            (old,) = run.children("civ-standby")
            old.kill()
            await run.until(lambda: [child for child in run.children("civ-standby") if child.pid != old.pid])
            assert (await run.ask("echo", {"n": 1}))["n"] == 1
            assert not run.named("process_died")

    asyncio.run(test())


def test_a_stopped_worker_can_be_killed_and_its_messages_go_on(start_run: Any, agent: Agent) -> None:
    async def test() -> None:
        async with start_run(agent("Echo")) as run:
            os.kill(run.pid(), signal.SIGSTOP)
            asked = asyncio.ensure_future(run.ask("echo", {"n": 1}))
            await asyncio.sleep(0.1)
            assert not asked.done()
            os.kill(run.pid(), signal.SIGKILL)
            assert (await asked)["n"] == 1

    asyncio.run(test())


CALLER = """
import asyncio, os, sys, time
from civitas_shm.host.client import HostClient, HostOptions
from civitas_shm.topology.model import AgentSpec, PoolSpec, SupervisorSpec, TopologySpec, TransportSpec

async def main():
    spec = TopologySpec(
        supervision=SupervisorSpec(children=[
            AgentSpec("mark", "run_agents.Sink", config={"out": sys.argv[2]}),
            AgentSpec("slow", "run_agents.Slow"),
        ]),
        transport=TransportSpec("shm", arena_mb=8, mailboxes=64), pool=PoolSpec(size=1), import_paths=[sys.argv[1]],
    )
    client = HostClient(spec, HostOptions("orphans"))
    await client.start()
    await client.running()
    await client.orders.runner.bus.send("slow", {"n": 1})
    if os.fork() == 0:  # a child that holds every descriptor of its parent
        time.sleep(1000)
    print(client.host_pid, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


def test_the_run_ends_with_its_caller_even_if_a_child_holds_its_sockets(start_run: Any, tmp_path: Path) -> None:
    here = Path(__file__).parent
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER, str(here), str(tmp_path / "mark")], stdout=subprocess.PIPE, text=True
    )
    assert caller.stdout is not None
    host = psutil.Process(int(caller.stdout.readline()))
    child = next(process for process in psutil.Process(caller.pid).children() if process.pid != host.pid)
    everybody = [host, *host.children(recursive=True)]
    caller.kill()
    caller.wait()
    caller.stdout.close()
    psutil.wait_procs(everybody)
    child.kill()
    from civitas_shm_transports.shm import stale_runs

    assert [(run.name, run.waiting) for run in stale_runs()] == [("orphans", 1)]  # kept; the fixture removes it


def test_host_and_workers_know_neither_pydantic_nor_rich_nor_the_command_line() -> None:
    code = (
        "import sys, civitas_shm.host.main, civitas_shm.host.worker, civitas_shm.host.forkserver\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'pydantic', 'rich', 'rich_click', 'yaml'}),"
        " 'civitas_shm.cli' in sys.modules)"
    )
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout == "[] False\n"
