"""No file descriptor is left: in a worker, in the caller, in the host."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from civitas_shm.errors import CivitasError
from civitas_shm.topology.model import AgentSpec

from .load import DRAINED, Load

pytestmark = [pytest.mark.process, pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="prlimit: Linux")]


@pytest.mark.fault("fd exhaustion")
def test_a_worker_without_a_descriptor_sends_receives_and_is_replaced(start_run: Any, fired: Any) -> None:
    async def test() -> None:
        agents = [AgentSpec(name, "fault_agents.TakesFiles", process=f"p-{name}") for name in "ab"]
        async with start_run(*agents) as run:
            bus = run.client.orders.runner.bus
            for name in "ab":
                taken = (await bus.ask(name, {}, "take", timeout=60)).payload
                assert taken["errno"] == errno.EMFILE
                fired(taken["taken"], "descriptors, then EMFILE")
            for n in range(50):
                question = {"to": "b", "n": n, "data": bytes(n * 10_000)}
                answer = (await bus.ask("a", question, "pass on", timeout=60)).payload
                assert (answer["n"], answer["bytes"]) == (n, n * 10_000)
            os.kill(run.pid("p-b"), 9)
            answer = (await bus.ask("a", {"to": "b", "data": b""}, "pass on", timeout=60)).payload
            await run.until(lambda: run.named("process_recovered"))
            assert answer["pid"] == run.pid("p-b")

    asyncio.run(test())


@contextlib.contextmanager
def no_descriptor_left(pid: int) -> Iterator[int]:
    """That process can open nothing more; its limit."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    lowest_free = next(n for n in itertools.count() if not os.path.lexists(f"/proc/{pid}/fd/{n}"))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free, before[1]))  # those above stay open
    try:
        yield lowest_free
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@pytest.mark.fault("fd exhaustion")
def test_a_caller_without_a_descriptor_asks_and_is_told(start_run: Any, fired: Any) -> None:
    async def test() -> None:
        async with start_run(AgentSpec("a", "fault_agents.TakesFiles", process="p")) as run:
            bus = run.client.orders.runner.bus
            with no_descriptor_left(os.getpid()):
                with pytest.raises(OSError, match="Too many open files") as refused:
                    os.dup(0)
                fired(refused.value.errno == errno.EMFILE, "EMFILE in the caller")
                for n in range(50):
                    assert (await bus.ask("a", {"n": n, "data": bytes(10_000)}, timeout=60)).payload["n"] == n
                deaths = len(run.named("process_died"))
                os.kill(run.pid("p"), 9)
                assert (await bus.ask("a", {"n": 7, "data": b""}, timeout=60)).payload["n"] == 7
                await run.until(lambda: len(run.named("process_recovered")) > deaths)

    asyncio.run(test())


@pytest.mark.fault("fd exhaustion")
def test_a_host_that_has_descriptors_again_in_time_makes_the_process_that_it_could_not(
    start_run: Any, tmp_path: Path, fired: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    load = Load(tmp_path, ("s0",), ("k0",))

    async def test() -> None:
        said = ""
        async with start_run(*load.agents(), **DRAINED) as run:
            await load.flows(run)
            with no_descriptor_left(run.client.host_pid):
                os.kill(run.pid("p-k0"), 9)
                await run.until(lambda: run.named("process_died"))
                while "Too many open files" not in said:
                    said += capfd.readouterr().err
                    await asyncio.sleep(0.01)
            fired(said.count("Too many open files"), "refusals (EMFILE) in the host")
            assert "a process could not be made: " in said
            assert "It is tried again." in said
            await run.until(lambda: run.named("process_recovered"))
            await load.flows(run)
            await load.finish(run)

    asyncio.run(test())


@pytest.mark.fault("fd exhaustion")
def test_a_host_that_stays_without_descriptors_ends_the_run_and_keeps_what_waits(
    start_run: Any, tmp_path: Path, fired: Any
) -> None:
    load = Load(tmp_path, ("s0",), ("k0",))

    async def test() -> None:
        options = {"name": f"t{os.getpid()}-files"}
        async with start_run(*load.agents(pause_s={"k0": 0.01}), options=options, **DRAINED) as run:
            await load.flows(run)
            host = psutil.Process(run.client.host_pid)
            with no_descriptor_left(host.pid) as limit:
                os.kill(run.pid("p-k0"), 9)
                with pytest.raises(CivitasError) as ended:
                    await run.client.wait()
            text = str(ended.value)
            fired("Too many open files" in text, "run that EMFILE has ended")
            assert f"the host process may have {limit} file descriptors" in text
            assert "prlimit --pid" in text
        [stopped] = run.named("run_stopped")
        assert stopped["waiting"]["k0"]
        in_hand = sum(len(death["in_hand"] or []) for death in run.named("process_died")) + 1
        async with start_run(*load.agents(), options=options | {"resume": True}, **DRAINED) as again:
            await load.flows(again)
            load.enough()
            await again.client.stop()
            assert (await again.client.wait()).waiting == {}
        load.check(in_hand)

    asyncio.run(test())
