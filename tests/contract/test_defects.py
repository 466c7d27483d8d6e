"""What the original of this API gets wrong, and a run here does right, in one process and in many.

Rules of this file: a test is named after the number that its defect has in the list this project was begun with, and
says first what was wrong there; `tests/mutants` brings each of them back and wants its test to fail. Defects that are
shown more closely by a test of one part have their tests beside that part, with the same kind of name.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from civitas_shm import AgentError, AgentStopped, Runtime, Supervisor
from civitas_shm.topology.model import StopSpec
from civitas_shm.transport import load_transport

HERE = Path(__file__).parent

Run = Callable[..., Runtime]


@pytest.fixture
def agents(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module `defect_agents`, under a name that other processes know too."""
    monkeypatch.syspath_prepend(HERE)
    import defect_agents

    return defect_agents


@pytest.fixture(params=["in_process", pytest.param("shm", marks=pytest.mark.process)])
def transport(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its name. Of runs in shared memory the dead letters and what waited stay; here they go with the test."""
    if request.param == "in_process":
        yield "in_process"
        return
    if sys.platform != "linux":
        pytest.skip("transport: shm needs Linux")
    monkeypatch.setenv("CIVITAS_SHM_DIR", str(tmp_path / "runs"))
    yield "shm"
    module = load_transport("shm")
    assert module.stale_runs is not None
    assert module.remove_stale is not None
    for stale in module.stale_runs():
        module.remove_stale(stale)


@pytest.fixture
def run(transport: str) -> Run:
    """`run([agent, …])`: a runtime of a supervisor that has patience."""

    def make(children: list[Any], **options: Any) -> Runtime:
        root = Supervisor("root", children, max_restarts=100, backoff_base=0.0)
        return Runtime(root, transport=transport, **options)

    return make


async def count(runtime: Runtime, name: str) -> int:
    """How many messages that object has handled, this one included."""
    return int((await runtime.ask(name, {})).payload["count"])


def state_of(runtime: Runtime, name: str) -> str:
    return next(agent.state for agent in runtime.snapshot().agents if agent.name == name)


# --- between processes ------------------------------------------------------------------------------------------------


def test_defect_1_an_agent_in_any_process_reaches_those_in_every_other(run: Run, agents: Any, transport: str) -> None:
    """Agents of a worker reached agents of that worker alone; anybody else was MessageRoutingError to them."""

    async def scene() -> None:
        hops = [agents.Hop("a", process="one"), agents.Hop("b", process="two"), agents.Hop("c", process="main")]
        async with run(hops) as runtime:
            for first, *others in ("abc", "cba", "bca"):
                pids = (await runtime.ask(first, {"way": others})).payload["pids"]
                assert len(set(pids)) == (3 if transport == "shm" else 1)

    asyncio.run(scene())


def test_defect_7_a_replica_that_stops_does_not_take_the_name_from_those_that_live(
    run: Run, agents: Any, transport: str
) -> None:
    """The second worker to stop deregistered the name that it shared: 2 -> 1 made it MessageRoutingError for all."""

    async def scene() -> None:
        shared = agents.Fragile("shared")
        shared.replicas = 2
        async with run([shared, agents.Watcher("watcher", config={"watch": "shared"})]) as runtime:
            replicas = 2 if transport == "shm" else 1
            for ended in range(replicas):
                while (await runtime.ask("watcher", {})).payload["downs"] < ended:
                    pass
                pids = set()
                while len(pids) < replicas - ended:  # each that is left answers, and nobody is told otherwise
                    answers = await asyncio.gather(*(runtime.ask("shared", {}) for _ in range(20)))
                    pids |= {answer.payload["pid"] for answer in answers}
                assert runtime.registry.has("shared")
                await runtime.send("shared", {}, "end")

            async def asked_again_and_again() -> None:
                while True:
                    await runtime.ask("shared", {})

            with pytest.raises(AgentStopped):
                await asked_again_and_again()

    asyncio.run(scene())


def test_defect_8_replicas_share_what_comes_and_handle_each_message_once(
    run: Run, agents: Any, tmp_path: Path, transport: str
) -> None:
    """A worker scaled to three was three subscribers: each of them handled every message."""

    async def scene() -> None:
        notes = tmp_path / "notes"
        shared = agents.Notes("shared", config={"notes": str(notes)})
        shared.replicas = 2
        async with run([shared], stop=StopSpec(drain="all")) as runtime:
            for n in range(40):
                await runtime.send("shared", {"n": n}, "note")
        lines = notes.read_text().split()
        assert lines.count("start") == (2 if transport == "shm" else 1)
        assert sorted(int(line) for line in lines if line != "start") == [*range(40)]

    asyncio.run(scene())


TOPOLOGY = """
supervision:
  backoff_base: 0
  children:
    - agent: {name: counter, type: defect_agents.Fragile, process: worker}
"""


@pytest.fixture
def topology(tmp_path: Path, agents: Any) -> Path:
    """A file with one agent in a process of its own."""
    shutil.copy(HERE / "defect_agents.py", tmp_path)
    path = tmp_path / "topology.yaml"
    path.write_text(TOPOLOGY)
    return path


def test_defect_12_an_agent_of_another_process_is_supervised_without_a_word_in_the_topology(
    transport: str, topology: Path
) -> None:
    """Who crashed in a worker stayed crashed, and nobody started a worker that was dead (13)."""

    async def scene() -> None:
        async with Runtime.from_config(topology, transport=transport) as runtime:
            assert await count(runtime, "counter") == 1
            await runtime.send("counter", {}, "crash")
            reply = (await runtime.ask("counter", {})).payload
            assert reply["count"] == 1
            if transport == "shm":
                os.kill(reply["pid"], signal.SIGKILL)
                assert (await runtime.ask("counter", {})).payload["pid"] != reply["pid"]

    asyncio.run(scene())


def test_defect_16_an_agent_of_another_process_is_there_once_and_not_in_this_one_too(
    transport: str, topology: Path
) -> None:
    """`from_config` built the agents of workers in the supervisor as well, and both copies answered."""

    async def scene() -> None:
        async with Runtime.from_config(topology, transport=transport) as runtime:
            replies = [(await runtime.ask("counter", {})).payload for _ in range(10)]
            assert [reply["count"] for reply in replies] == [*range(1, 11)]
            assert {reply["pid"] == os.getpid() for reply in replies} == {transport == "in_process"}
            workers = [process.name for process in runtime.snapshot().processes if process.name.startswith("w")]
            assert workers == (["worker"] if transport == "shm" else []), "an idle copy counts as well"

    asyncio.run(scene())


# --- questions --------------------------------------------------------------------------------------------------------


def test_defect_22_who_asks_an_agent_that_crashes_hears_so_before_its_successor_answers(run: Run, agents: Any) -> None:
    """Nobody answered for the dead: the asker waited out its whole timeout."""

    async def scene() -> None:
        async with run([agents.Fragile("fragile")]) as runtime:
            asking = asyncio.create_task(runtime.ask("fragile", {}, timeout=600, message_type="crash"))
            await asyncio.sleep(0)
            assert await count(runtime, "fragile") == 1
            assert asking.done(), "the successor answers, and who asked before still waits"
            with pytest.raises(AgentError, match="fragile was told to crash"):
                await asking

    asyncio.run(scene())


# --- ends -------------------------------------------------------------------------------------------------------------


def test_defect_24_nobody_waits_for_an_agent_that_is_gone_for_good(run: Run, agents: Any) -> None:
    """Who had stopped stayed registered: 1000 sends were taken, the next one waited for ever, and so did each ask."""

    async def scene() -> None:
        ended, crashed = (agents.Fragile(name, mailbox_size=3) for name in ("ended", "crashed"))
        ended.restart, crashed.restart = "transient", "temporary"
        async with run([ended, crashed, agents.Fragile("there")]) as runtime:
            await runtime.send("ended", {}, "end")
            await runtime.send("crashed", {}, "crash")
            for name in ("ended", "crashed"):
                while state_of(runtime, name) != "gone":
                    await asyncio.sleep(0.01)
                for _ in range(5):
                    with pytest.raises(AgentStopped):
                        await runtime.send(name, {}, timeout=0.01)
                with pytest.raises(AgentStopped):
                    await runtime.ask(name, {}, timeout=0.01)
            assert await count(runtime, "there") == 1

    asyncio.run(scene())


# --- supervision ------------------------------------------------------------------------------------------------------


def test_defect_26_a_supervisor_that_gives_up_is_restarted_with_all_below_it(run: Run, agents: Any) -> None:
    """Escalation to a ONE_FOR_ONE supervisor restarted nothing: the subtree stayed dead."""

    async def scene() -> None:
        below = Supervisor("below", [agents.Fragile("a"), agents.Fragile("b")], max_restarts=0)
        async with run([below, agents.Fragile("beside")]) as runtime:
            assert [await count(runtime, name) for name in ("a", "b", "beside")] == [1, 1, 1]
            await runtime.send("a", {}, "crash")
            # a is started again when b has been stopped, so whoever answers for a is followed by a new b.
            assert [await count(runtime, name) for name in ("a", "b", "beside")] == [1, 1, 2]

    asyncio.run(scene())


def test_defect_27_crashes_at_one_moment_and_a_restart_that_fails_once_are_all_mended(
    run: Run, agents: Any, tmp_path: Path
) -> None:
    """Crashes at one moment raced, and an agent whose `on_start` failed once at a restart was dead, without a word."""

    async def scene() -> None:
        notes = tmp_path / "notes"
        names = [f"a{n}" for n in range(5)]
        late = agents.Notes("late", config={"notes": str(notes), "once_not": 2})
        async with run([*map(agents.Fragile, names), late]) as runtime:
            for name in [*names, "late"]:
                await runtime.send(name, {}, "crash")
            assert [await count(runtime, name) for name in [*names, "late"]] == [1] * 6
            assert notes.read_text().split() == ["start"] * 3
        restarts = {agent.name: agent.restarts for agent in runtime.snapshot().agents}
        assert restarts == dict.fromkeys(names, 1) | {"late": 2}

    asyncio.run(scene())


def test_defect_28_a_restart_makes_a_new_object_and_keeps_only_what_was_saved(run: Run, agents: Any) -> None:
    """The same object went on, with every half-made change in it."""

    async def scene() -> None:
        async with run([agents.Fragile("fragile")]) as runtime:
            for n in (1, 2):
                reply = (await runtime.ask("fragile", {})).payload
                assert (reply["count"], reply["saved"]) == (n, n)
            await runtime.send("fragile", {}, "crash")
            reply = (await runtime.ask("fragile", {})).payload
            assert (reply["count"], reply["saved"]) == (1, 1)

    asyncio.run(scene())


# --- the end ----------------------------------------------------------------------------------------------------------


def test_defect_37_a_stop_that_drains_handles_all_that_waits(run: Run, agents: Any, tmp_path: Path) -> None:
    """The order to stop overtook the messages: of 20 that waited, 2 were handled."""

    async def scene() -> None:
        notes = tmp_path / "notes"
        runtime = run([agents.Notes("notes", config={"notes": str(notes)})], stop=StopSpec(drain="all"))
        async with runtime:
            for n in range(20):
                await runtime.send("notes", {"n": n}, "note")
        assert notes.read_text().split() == ["start", *map(str, range(20))]

    asyncio.run(scene())


def test_defect_37_a_stop_has_one_deadline_however_many_agents_do_not_end(run: Run, agents: Any) -> None:
    """Agents were stopped one after the other, each within its own 30 s, and nothing bounded the sum."""

    async def scene() -> None:
        hanging = [agents.Hangs(f"a{n}", shutdown_timeout=600) for n in range(3)]
        runtime = run(hanging, stop=StopSpec(timeout_s=0.2))
        async with runtime:
            for agent in hanging:
                await runtime.send(agent.name, {})

    asyncio.run(scene())
