"""Spawned agents, monitors and links over real processes, with kills in the middle."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from civitas_shm.errors import AgentStopped, CivitasError, RunFailed, SpawnError
from civitas_shm.topology.model import AgentSpec, DynamicSpec, PoolSpec, SupervisorSpec, TransportSpec
from civitas_shm.transport import load_transport

pytestmark = pytest.mark.process

Agent = Callable[..., Any]
Test = Callable[[], Coroutine[Any, Any, None]]

KILLS = 30
COME_AND_GO = 600
"""On a run with 64 mailboxes, of which most agents are given up when their turn comes again."""
HOST_KILLS = 12


def run_async(test: Test) -> None:
    asyncio.run(test())


def pool(**settings: Any) -> SupervisorSpec:
    return SupervisorSpec("pool", dynamic=DynamicSpec(), **{"max_restarts": 1000, "backoff_base_s": 0.0} | settings)


async def spawn(run: Any, name: str, kind: str = "Echo", **settings: Any) -> None:
    spec = AgentSpec(name, f"run_agents.{kind}", **settings)
    await run.client.orders.supervise("", "spawn", {"spec": msgspec.to_builtins(spec), "supervisor": "pool"})


async def despawn(run: Any, name: str) -> None:
    await run.client.orders.supervise("", "despawn", {"name": name})


def test_spawned_agents_are_spread_over_the_pool_whose_processes_start_when_they_are_needed(
    start_run: Any, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)  # for the agent in this process

    async def test() -> None:
        async with start_run(agent("Echo", process="keeper"), pool(), pool=PoolSpec(size=2)) as run:
            assert not [event for event in run.named("process_started") if event["process"] in ("w1", "w2")]
            for name in ("x", "y"):
                await spawn(run, name)
            pids = {(await run.ask(name, {}))["pid"] for name in ("x", "y")}
            assert pids == {run.pid("w1"), run.pid("w2")}
            await spawn(run, "z", process="w2")
            assert (await run.ask("z", {}))["pid"] == run.pid("w2")
            await spawn(run, "m", process="main")
            assert (await run.ask("m", {}))["pid"] == os.getpid()
            with pytest.raises(CivitasError, match="this run has main, keeper, w1, w2"):
                await spawn(run, "n", process="w3")

    run_async(test)


def test_a_spawned_agent_outlives_its_process_with_its_messages(start_run: Any, agent: Agent, tmp_path: Path) -> None:
    out = tmp_path / "numbers"

    async def test() -> None:
        async with start_run(agent("Echo", process="keeper"), pool()) as run:
            await spawn(run, "sink", "Sink", config={"out": str(out), "pause_s": 0.001})
            for n in range(200):
                await run.send("sink", {"n": n})
                if n % 40 == 20:
                    deaths = len(run.named("process_died"))
                    os.kill(run.pid(), signal.SIGKILL)
                    await run.until(lambda: len(run.named("process_recovered")) > deaths)  # noqa: B023
            await run.until(lambda: out.read_text().endswith("199\n"))
        assert sorted({int(line) for line in out.read_text().split()}) == list(range(200))

    run_async(test)


def test_what_was_acknowledged_holds_whatever_is_killed(start_run: Any, agent: Agent) -> None:
    """Agents are spawned and despawned while workers are killed: each call ends, and what it said is so at the end."""

    async def test() -> None:
        chance = random.Random(7)
        there: set[str] = set()
        transport = TransportSpec("shm", arena_mb=8, mailboxes=256)
        agents = agent("Echo", process="keeper"), pool()
        async with start_run(*agents, pool=PoolSpec(size=2), transport=transport) as run:
            for number in range(KILLS):
                names = [f"n{number}-{i}" for i in range(3)]
                leaving = chance.sample(sorted(there), min(2, len(there)))
                work = [asyncio.ensure_future(spawn(run, name)) for name in names]
                work += [asyncio.ensure_future(despawn(run, name)) for name in leaving]
                await asyncio.sleep(chance.random() * 0.01)
                started = [run.named_process("process_started", name) for name in ("w1", "w2")]
                for pid in [events[-1]["pid"] for events in started if events]:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                await asyncio.gather(*work)
                there = (there | set(names)) - set(leaving)
            answers = [await run.ask(name, {}) for name in sorted(there)]
            assert len(answers) == len(there)
            assert set(run.client.port.names()) == {"echo", *there}
            assert len(run.named("process_died")) >= KILLS // 2
            with pytest.raises(AgentStopped):
                await run.ask("n0-0" if "n0-0" not in there else leaving[0], {})

    run_async(test)


def test_agents_come_and_go_without_end_in_a_run_with_few_mailboxes(start_run: Any, agent: Agent) -> None:
    async def test() -> None:
        async with start_run(agent("Echo", process="keeper"), pool()) as run:

            def used_bytes() -> list[int]:
                pids = (run.client.host_pid, run.pid("keeper"), run.pid("w1"))
                return [psutil.Process(pid).memory_info().rss for pid in pids]

            handles, before = set(), [0]
            for number in range(COME_AND_GO):
                await spawn(run, f"n{number}")
                handles.add(run.client.port.resolve(f"n{number}"))
                if number % 50 == 0:
                    assert (await run.ask(f"n{number}", {"n": number}))["n"] == number
                if number == COME_AND_GO // 2:
                    before = used_bytes()
                await despawn(run, f"n{number}")
            assert len(handles) == COME_AND_GO
            grown = [now - then for now, then in zip(used_bytes(), before, strict=True)]
            assert max(grown) < 2 << 20, "bytes that host, keeper and w1 took for the second half"

    run_async(test)


def test_who_asked_an_agent_that_is_despawned_in_the_middle_of_its_handler_is_told_and_the_message_kept(
    start_run: Any, agent: Agent, tmp_path: Path
) -> None:
    async def test() -> None:
        async with start_run(agent("Echo", process="keeper"), pool()) as run:
            never = {"out": str(tmp_path / "numbers"), "pause_s": 3600.0}
            await spawn(run, "slow", "Sink", config=never, shutdown_timeout_s=0.05)
            mailbox = run.client.port.resolve("slow")
            asking = asyncio.ensure_future(run.ask("slow", {"n": 1}))
            await run.until(lambda: run.client.port.stats(mailbox).in_hand == 1)
            await despawn(run, "slow")
            with pytest.raises(AgentStopped):
                await asking
            assert run.client.port.stats(mailbox).in_hand == 0
            await run.until(lambda: [event["agent"] for event in run.named("dead_letter")] == ["slow"])

    run_async(test)


def test_a_resumed_run_brings_spawned_agents_back_with_their_messages_and_not_those_that_were_despawned(
    start_run: Any, agent: Agent, tmp_path: Path
) -> None:
    out = tmp_path / "numbers"

    async def test() -> None:
        agents = agent("Echo", process="keeper"), pool()
        options = {"name": f"resumes{os.getpid()}"}
        async with start_run(*agents, options=options) as run:
            await spawn(run, "sink", "Sink", config={"out": str(out), "pause_s": 0.005})
            await spawn(run, "echo2")
            await spawn(run, "gone")
            await despawn(run, "gone")
            for n in range(100):
                await run.send("sink", {"n": n})
            os.kill(run.client.host_pid, signal.SIGKILL)
            with pytest.raises(RunFailed, match="host process"):
                await run.client.wait()
        for _ in range(2):
            async with start_run(*agents, options=options | {"resume": True}) as run:
                await run.ask("echo2", {})
                assert sorted(run.client.port.names()) == ["echo", "echo2", "sink"]
                with pytest.raises(SpawnError, match="the name is taken"):
                    await spawn(run, "sink")
                os.kill(run.client.host_pid, signal.SIGKILL)
                with pytest.raises(RunFailed):
                    await run.client.wait()
        async with start_run(*agents, options=options | {"resume": True}) as run:
            await run.until(lambda: out.read_text().endswith("99\n"))
        assert sorted({int(line) for line in out.read_text().split()}) == list(range(100))

    run_async(test)


def test_what_was_acknowledged_holds_when_the_host_is_killed_in_the_middle(start_run: Any, agent: Agent) -> None:
    """Each round resumes, spawns and despawns, and is killed at a random moment: what was answered is so afterwards."""

    async def test() -> None:
        chance = random.Random(11)
        options = {"name": f"middle{os.getpid()}", "resume": True}
        topology = {"transport": TransportSpec("shm", arena_mb=8, mailboxes=256), "pool": PoolSpec(size=2)}
        there: set[str] = set()
        maybe: set[str] = set()
        answered = 0
        for number in range(HOST_KILLS + 1):
            async with start_run(agent("Echo", process="keeper"), pool(), options=options, **topology) as run:
                alive = set(run.client.port.names()) - {"echo"}
                assert there <= alive <= there | maybe, (there - alive, alive - there - maybe)
                for name in alive:
                    await run.ask(name, {})
                if number == HOST_KILLS:
                    break
                leaving = chance.sample(sorted(alive), len(alive) // 2)
                names = [f"n{number}-{i}" for i in range(4)]
                work = {name: asyncio.ensure_future(spawn(run, name)) for name in names}
                work |= {name: asyncio.ensure_future(despawn(run, name)) for name in leaving}
                await asyncio.sleep(chance.random() * 0.03)
                os.kill(run.client.host_pid, signal.SIGKILL)
                with pytest.raises(RunFailed):
                    await run.client.wait()
                done = await asyncio.gather(*work.values(), return_exceptions=True)
                said = {name for name, answer in zip(work, done, strict=True) if answer is None}
                answered += len(said)
                there = (alive - set(leaving)) | (set(names) & said)
                maybe = (set(names) | set(leaving)) - said
        assert answered > HOST_KILLS

    run_async(test)


def test_news_of_a_death_reach_a_watcher_that_was_dead_itself(start_run: Any, agent: Agent, tmp_path: Path) -> None:
    out = tmp_path / "news"

    async def test() -> None:
        agents = (
            agent("Watcher", process="w1", config={"out": str(out)}),
            agent("Echo", process="w2"),
        )
        async with start_run(*agents, supervision={"backoff_base_s": 0.0}) as run:
            client = run.client.orders
            await client.runner.bus.ask("watcher", {"name": "echo"}, "monitor")
            for kills in range(1, 11):
                os.kill(run.pid("w1"), signal.SIGSTOP)  # it cannot be told just now …
                os.kill(run.pid("w2"), signal.SIGKILL)
                await run.until(lambda: len(run.named_process("process_died", "w2")) == kills)  # noqa: B023
                os.kill(run.pid("w1"), signal.SIGKILL)  # … and never will in this life
                await run.until(lambda: len(run.named_process("process_recovered", "w1")) == kills)  # noqa: B023
                await run.until(lambda: len(run.named_process("process_recovered", "w2")) == kills)  # noqa: B023
                await run.until(lambda: out.exists() and len(out.read_text().splitlines()) == kills)  # noqa: B023
        lines = out.read_text().splitlines()
        assert all(line.startswith("echo killed: its process w2 died: ") for line in lines)
        assert len(lines) == 10

    run_async(test)


def test_no_run_is_kept_for_news_that_nobody_has_read(start_run: Any, agent: Agent, tmp_path: Path) -> None:
    async def test() -> None:
        agents = (
            agent("Watcher", process="w1", config={"out": str(tmp_path / "news")}),
            agent("Echo", process="w2"),
        )
        name = f"news-{os.getpid()}"
        async with start_run(*agents, supervision={"backoff_base_s": 0.0}, options={"name": name}) as run:
            await run.client.orders.runner.bus.ask("watcher", {"name": "echo"}, "monitor")
            watcher = run.client.port.resolve("watcher")
            await run.until(lambda: run.client.port.stats(watcher).in_hand == 0)  # the answer comes before the release
            os.kill(run.pid("w1"), signal.SIGSTOP)
            os.kill(run.pid("w2"), signal.SIGKILL)
            await run.until(lambda: run.client.port.stats(watcher).news == 1)
            assert run.client.port.stats(watcher).waiting == 1
            await run.client.stop(now=True)
            assert (await run.client.wait()).waiting == {}
        module = load_transport("shm")
        assert module.find_runs is not None
        assert name not in [found.name for found in module.find_runs()]

    run_async(test)


def test_news_in_hand_of_a_watcher_that_dies_of_them_come_again(start_run: Any, agent: Agent, tmp_path: Path) -> None:
    out = tmp_path / "news"

    async def test() -> None:
        config = {"out": str(out), "dies_of_news": True}
        agents = agent("Watcher", process="w1", config=config), agent("Fails", process="w2")
        async with start_run(*agents, supervision={"backoff_base_s": 0.0}) as run:
            await run.client.orders.runner.bus.ask("watcher", {"name": "fails"}, "monitor")
            await run.send("fails", {})
            await run.until(lambda: out.exists() and len(out.read_text().splitlines()) == 2)
            assert len(run.named_process("process_died", "w1")) == 1
        assert set(out.read_text().splitlines()) == {"fails crashed: LookupError: nothing there"}

    run_async(test)


def test_a_link_fells_the_agent_and_not_its_process(start_run: Any, agent: Agent, tmp_path: Path) -> None:
    async def test() -> None:
        agents = (
            agent("Echo", process="w1"),
            agent("Linked", process="w2", config={"to": "echo"}),
            agent("Echo", name="neighbour", process="w2"),
        )
        async with start_run(*agents, supervision={"backoff_base_s": 0.0}) as run:
            before = (await run.ask("neighbour", {}))["pid"]
            for kills in range(1, 11):
                os.kill(run.pid("w1"), signal.SIGKILL)
                await run.until(lambda: len(run.named("agent_failed")) == kills)  # noqa: B023
                await run.until(lambda: len(run.named_process("process_recovered", "w1")) == kills)  # noqa: B023
                await run.ask("linked", {})
            assert {event["agent"] for event in run.named("agent_failed")} == {"linked"}
            assert "it is linked with 'echo', which killed" in run.named("agent_failed")[0]["cause"]
            assert (await run.ask("neighbour", {}))["pid"] == before

    run_async(test)
