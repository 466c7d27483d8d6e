"""Agents that are spawned while the run lasts, monitors and links: one scene for each transport."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from civitas_shm.errors import AgentError, AgentStopped, MessageRoutingError, SpawnError
from civitas_shm.messages import Message
from civitas_shm.process import AgentProcess, ErrorAction
from civitas_shm.runtime import Runtime
from civitas_shm.supervisor import DynamicSupervisor, Supervisor
from civitas_shm.topology.model import PoolSpec, TransportSpec
from civitas_shm.transport import load_transport


class Child(AgentProcess):
    """Answers who and where it is, or ends as it is told."""

    def __init__(self, name: str, greeting: str = "hello") -> None:
        super().__init__(name)
        self.greeting = greeting

    async def on_start(self) -> None:
        if self.config.get("stillborn"):
            raise OSError("no such device")
        if to := self.config.get("link"):
            await self.link(to)

    async def handle(self, message: Message) -> Message | None:
        match message.type:
            case "crash" | "finish":
                raise LookupError("told to")
            case "slow":
                await asyncio.sleep(message.payload["s"])
            case "die":
                os._exit(3)
        return self.reply({"greeting": self.greeting, "config": self.config, "pid": os.getpid()})

    async def on_error(self, exc: Exception, message: Message) -> ErrorAction:
        return ErrorAction.STOP if message.type == "finish" else ErrorAction.ESCALATE


class Parent(AgentProcess):
    """Does with other agents what it is told, and keeps what it is told of them."""

    async def on_start(self) -> None:
        self.news: list[list[str]] = []
        self.order: list[str] = []

    async def handle(self, message: Message) -> Message:
        fields = dict(message.payload)
        match message.type:
            case "news":
                return self.reply({"news": self.news, "pid": os.getpid()})
            case "pause":
                self.order.append("pause")
                await asyncio.sleep(fields["s"])
                return self.reply({"order": self.order})
            case "spawn":
                return self.reply({"name": await self.spawn(Child, **fields)})
            case what:
                await getattr(self, what)(**fields)
        return self.reply({"pid": os.getpid()})

    async def on_down(self, name: str, reason: str) -> None:
        self.news.append(["down", name, reason])
        self.order.append("down")

    async def on_child_terminated(self, name: str, reason: str) -> None:
        self.news.append(["terminated", name, reason])


Play = Callable[..., None]


@pytest.fixture(params=["in_process", "shm"])
def play(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Play]:
    """Runs a scene beside `parent` and a dynamic supervisor `pool` with these settings."""
    if request.param == "shm" and sys.platform != "linux":
        pytest.skip("shared memory needs Linux")
    monkeypatch.setenv("CIVITAS_SHM_DIR", str(tmp_path / "runs"))

    def run(scene: Callable[[Runtime], Any], *agents: AgentProcess, **quotas: Any) -> None:
        async def begin() -> None:
            tree = [Parent("parent"), *agents, DynamicSupervisor("pool", **{"backoff_base": 0.0} | quotas)]
            transport = TransportSpec(request.param, arena_mb=8, mailboxes=64)
            supervisor = Supervisor("root", tree, max_restarts=100, backoff_base=0.0)
            async with Runtime(supervisor, transport, name=f"s{os.getpid()}", pool=PoolSpec(size=2)) as runtime:
                await scene(runtime)

        asyncio.run(begin())

    yield run
    if request.param == "shm":
        module = load_transport("shm")
        assert module.stale_runs is not None
        assert module.remove_stale is not None
        for stale in module.stale_runs():
            module.remove_stale(stale)


async def news(runtime: Runtime, count: int) -> list[list[str]]:
    """What the parent was told, as soon as it is so much. The watchdog of pytest-timeout is the only limit."""
    while True:
        told: list[list[str]] = (await runtime.ask("parent", {}, message_type="news")).payload["news"]
        if len(told) >= count:
            return told
        await asyncio.sleep(0.005)


async def tell(runtime: Runtime, what: str, **fields: Any) -> dict[str, Any]:
    return (await runtime.ask("parent", fields, message_type=what)).payload


# --- spawn -----------------------------------------------------------------------------------------------------------


def test_an_agent_spawns_another_which_is_reached_by_its_name(play: Play) -> None:
    async def scene(runtime: Runtime) -> None:
        assert await tell(runtime, "spawn", name="x", config={"n": 1}, kwargs={"greeting": "hi"}) == {"name": "x"}
        answer = (await runtime.ask("x", {})).payload
        assert (answer["greeting"], answer["config"]) == ("hi", {"n": 1})
        assert runtime.agent_names() == ["parent", "x"]

    play(scene)


def test_the_tree_shows_what_is_spawned(play: Play) -> None:
    async def scene(runtime: Runtime) -> None:
        lines = runtime.print_tree().splitlines()
        assert lines[-1] == "└── [dyn] pool (ONE_FOR_ONE)"
        for name in ("x", "y"):
            await runtime.spawn("pool", Child, name)
        while not (tree := runtime.print_tree()).endswith("[agent] y (RUNNING)"):
            await asyncio.sleep(0.01)  # the host sends a reading once a second
        assert tree.splitlines()[1:] == [
            "├── [agent] parent (RUNNING)",
            "└── [dyn] pool (ONE_FOR_ONE)",
            "    ├── [agent] x (RUNNING)",
            "    └── [agent] y (RUNNING)",
        ]

    play(scene)


def test_the_program_spawns_and_despawns(play: Play) -> None:
    async def scene(runtime: Runtime) -> None:
        assert await runtime.spawn("pool", Child, "x") == "x"
        await runtime.ask("x", {})
        await runtime.despawn("pool", "x")
        with pytest.raises(AgentStopped):
            await runtime.ask("x", {})
        await runtime.spawn("pool", Child, "x", kwargs={"greeting": "again"})
        assert (await runtime.ask("x", {})).payload["greeting"] == "again"
        assert await runtime.spawn_nowait("pool", Child, "y") == "y"
        await runtime.send("y", {})
        with pytest.raises(SpawnError, match="no spawned agent of that name below 'root'"):
            await runtime.despawn("root", "x")

    play(scene)


def test_a_spawned_agent_spawns_beside_itself_and_may_end_itself(play: Play) -> None:
    async def scene(runtime: Runtime) -> None:
        await runtime.spawn("pool", Parent, "inner")
        await runtime.ask("inner", {"name": "x"}, message_type="spawn")
        await runtime.ask("x", {})
        await runtime.ask("inner", {"name": "inner"}, message_type="despawn")
        while "inner" in runtime.agent_names():
            await asyncio.sleep(0.005)
        with pytest.raises(AgentStopped):
            await runtime.ask("inner", {}, message_type="news")
        await runtime.ask("x", {})

    play(scene)


def test_a_stop_that_drains_handles_what_waits(play: Play) -> None:
    async def scene(runtime: Runtime) -> None:
        await runtime.spawn("pool", Child, "x")
        asks = [asyncio.ensure_future(runtime.ask("x", {"s": 0.02}, message_type="slow")) for _ in range(5)]
        await asyncio.sleep(0.01)
        await runtime.stop_agent("pool", "x", drain="all")
        assert len(await asyncio.gather(*asks)) == 5  # else one of them says AgentStopped

    play(scene)


def test_quotas_and_taken_names_are_errors_with_names_limit_and_value(play: Play) -> None:
    async def scene(runtime: Runtime) -> None:
        await tell(runtime, "spawn", name="x")
        for fields, text in (
            ({"name": "x"}, "'x' cannot be spawned: the name is taken"),
            ({"name": "parent"}, "the name is taken"),
            ({"name": "pool"}, "the name is taken"),
            ({"name": "_x"}, "begins with '_'"),
            ({"name": "y", "config": {"a": {1: 2}}}, "the key 1 is int"),
            ({"name": "y", "restart": "sometimes"}, "restart is 'sometimes'"),
        ):
            with pytest.raises(AgentError, match=text) as caught:
                await tell(runtime, "spawn", **fields)
            assert caught.value.type_name == "SpawnError"
        await runtime.spawn("pool", Child, "y")
        with pytest.raises(SpawnError, match="max_children of 'pool' is 2, and 2 children live"):
            await runtime.spawn("pool", Child, "z")
        with pytest.raises(SpawnError, match="'nowhere' is no dynamic supervisor; there are 'pool'"):
            await runtime.spawn("nowhere", Child, "z")
        with pytest.raises(SpawnError, match="'parent' cannot be despawned"):
            await runtime.despawn("pool", "parent")

    play(scene, max_children=2)


def test_a_limit_for_one_class(play: Play) -> None:
    async def scene(runtime: Runtime) -> None:
        await runtime.spawn("pool", Child, "x")
        with pytest.raises(SpawnError, match=r"max_children_per_class\[.*Child\] of 'pool' is 1"):
            await runtime.spawn("pool", Child, "y")
        await runtime.spawn("pool", Parent, "y")

    play(scene, max_children_per_class={Child: 1})


def test_an_agent_that_cannot_start_is_a_spawn_error_with_the_cause_and_frees_its_name(play: Play) -> None:
    async def scene(runtime: Runtime) -> None:
        with pytest.raises(SpawnError, match=r"gone before it was ready.*no such device"):
            await runtime.spawn("pool", Child, "x", {"stillborn": True})
        await runtime.spawn("pool", Child, "x")

    play(scene, max_restarts=1)


def test_an_agent_that_cannot_be_built_is_a_spawn_error_and_the_run_goes_on(play: Play) -> None:
    async def scene(runtime: Runtime) -> None:
        with pytest.raises(SpawnError, match=r"(?s)'x' was spawned but is gone.*unexpected keyword"):
            await runtime.spawn("pool", Child, "x", kwargs={"nonsense": 1})
        await runtime.spawn("pool", Child, "x")
        await runtime.ask("x", {})

    play(scene, max_restarts=1)


def test_a_crashed_child_is_restarted_by_itself_and_one_that_crashes_too_often_is_reported_to_its_spawner(
    play: Play,
) -> None:
    async def scene(runtime: Runtime) -> None:
        await tell(runtime, "spawn", name="x")
        await tell(runtime, "spawn", name="y")
        for _ in range(2):
            await runtime.send("x", {}, "crash")
        assert await news(runtime, 1) == [["terminated", "x", "restarts_exhausted"]]
        await runtime.send("y", {}, "crash")
        assert (await runtime.ask("y", {})).payload["greeting"] == "hello"
        await runtime.send("y", {}, "finish")
        assert (await news(runtime, 2))[1:] == [["terminated", "y", "clean_exit"]]

    play(scene, max_restarts=1)


# --- monitors --------------------------------------------------------------------------------------------------------


def test_a_monitor_tells_of_every_end_until_it_is_taken_back(play: Play) -> None:
    async def scene(runtime: Runtime) -> None:
        await tell(runtime, "monitor", name="x")
        await tell(runtime, "monitor", name="x")
        for _ in range(2):
            await runtime.send("x", {}, "crash")
        told = await news(runtime, 2)
        assert told == [["down", "x", "crashed: LookupError: told to"]] * 2
        await tell(runtime, "demonitor", name="x")
        await runtime.send("x", {}, "crash")
        await runtime.ask("x", {})
        assert await news(runtime, 2) == told

    play(scene, Child("x"))


def test_a_monitor_tells_finished_despawned_and_gone_apart(play: Play) -> None:
    async def scene(runtime: Runtime) -> None:
        for name in ("x", "y"):
            await runtime.spawn("pool", Child, name)
        for name in ("x", "y", "job"):
            await tell(runtime, "monitor", name=name)
        await runtime.send("x", {}, "finish")
        assert await news(runtime, 1) == [["down", "x", "finished"]]
        await runtime.despawn("pool", "y")
        assert (await news(runtime, 2))[1:] == [["down", "y", "despawned"]]
        await runtime.send("job", {}, "finish")
        assert (await news(runtime, 3))[2:] == [["down", "job", "finished"]]
        await tell(runtime, "monitor", name="job")
        assert (await news(runtime, 4))[3:] == [["down", "job", "gone"]]

    job = Child("job")
    job.restart = "temporary"
    play(scene, job)


def test_a_monitor_of_nobody_is_refused(play: Play) -> None:
    async def scene(runtime: Runtime) -> None:
        for what in ("monitor", "link"):
            with pytest.raises(AgentError, match="There is no agent 'nobody'") as caught:
                await tell(runtime, what, name="nobody")
            assert caught.value.type_name == MessageRoutingError.__name__

    play(scene)


def test_news_overtake_the_messages_that_wait(play: Play) -> None:
    async def scene(runtime: Runtime) -> None:
        await tell(runtime, "monitor", name="x")
        waiting = [asyncio.ensure_future(tell(runtime, "pause", s=0.05)) for _ in range(20)]
        await asyncio.sleep(0.01)
        await runtime.send("x", {}, "crash")
        order = (await waiting[-1])["order"]
        assert order.index("down") < 15, order

    play(scene, Child("x"))


def test_a_restart_that_somebody_wants_is_told_as_one_with_who_and_why(play: Play) -> None:
    async def scene(runtime: Runtime) -> None:
        await tell(runtime, "monitor", name="x")
        await runtime.restart_agent("x", "a new key", "ada")
        [[_, name, reason]] = await news(runtime, 1)
        assert (name, reason) == ("x", "crashed: AgentRestarted: ada wants it to be restarted: a new key")

    play(scene, Child("x"))


# --- links -----------------------------------------------------------------------------------------------------------


def test_a_linked_agent_falls_with_its_peer_and_its_supervisor_decides(play: Play) -> None:
    async def scene(runtime: Runtime) -> None:
        await runtime.spawn("pool", Child, "x", {"link": "y"})
        await tell(runtime, "monitor", name="x")
        await runtime.send("y", {}, "crash")
        [[_, name, reason]] = await news(runtime, 1)
        assert name == "x"
        assert reason.startswith("crashed: LinkedAgentDown: it is linked with 'y', which crashed: LookupError: told to")
        assert (await runtime.ask("x", {})).payload["greeting"] == "hello"
        await runtime.send("x", {}, "crash")  # its new life has linked again: y falls with it
        await runtime.ask("y", {})

    play(scene, Child("y"))


def test_an_agent_that_monitors_its_peer_is_told_and_goes_on(play: Play) -> None:
    async def scene(runtime: Runtime) -> None:
        before = (await tell(runtime, "monitor", name="x"))["pid"]
        await tell(runtime, "link", name="x")
        await runtime.send("x", {}, "crash")
        assert await news(runtime, 1) == [["down", "x", "crashed: LookupError: told to"]]
        assert (await tell(runtime, "unlink", name="x"))["pid"] == before

    play(scene, Child("x"))


def test_a_link_that_was_taken_back_or_whose_peer_ended_well_fells_nobody(play: Play) -> None:
    async def scene(runtime: Runtime) -> None:
        for name in ("x", "y"):
            await tell(runtime, "spawn", name=name)
            await tell(runtime, "link", name=name)
        await tell(runtime, "unlink", name="x")
        for _ in range(2):
            await runtime.send("x", {}, "crash")
        assert await news(runtime, 1) == [["terminated", "x", "restarts_exhausted"]]
        await runtime.send("y", {}, "finish")
        assert await news(runtime, 2) == [["terminated", "x", "restarts_exhausted"], ["terminated", "y", "clean_exit"]]

    play(scene, max_restarts=1)
