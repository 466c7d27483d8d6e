"""What a program sees of its run and wants of it, in one process and in many."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from typing import Any

import pytest

from civitas_shm import (
    AgentError,
    AgentProcess,
    AgentStopped,
    ConfigurationError,
    DynamicSupervisor,
    MessageRoutingError,
    Runtime,
    SpawnError,
    Supervisor,
)
from civitas_shm.handles import AgentHandle
from civitas_shm.process import ProcessStatus
from civitas_shm.supervisor import HeartbeatTimeout

from .anywhere import Anywhere, until
from .anywhere_agents import Able, Configured, Counter, Echo, Guard, Measured, Spawner, Stuck


class Picky(DynamicSupervisor):
    """Allows names of one letter, and remembers who wanted what."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.asked: list[Any] = []

    async def on_spawn_requested(self, agent_class: type[AgentProcess], name: str, config: dict[str, Any]) -> bool:
        self.asked.append((agent_class.__name__, name, config, self.current_spawner))
        await asyncio.sleep(0)
        if config.get("raise"):
            raise OSError("no idea")
        return len(name) == 1


def family(*more: Any) -> Supervisor:
    below = Supervisor("below", [Echo("b", process="two"), Guard("guard", process="two")], strategy="REST_FOR_ONE")
    agents = [Echo("a", process="one"), Counter("counter", process="one"), Spawner("spawner", process="one"), below]
    return Supervisor("root", [*agents, DynamicSupervisor("pool"), *more], backoff_base=0.0)


# --- looking ------------------------------------------------------------------------------------------------------


def test_the_tree_shows_kinds_and_states_in_the_lines_of_civitas(anywhere: Anywhere) -> None:
    async def scene(runtime: Runtime) -> None:
        await runtime.spawn("pool", Able, "x")

        def complete() -> str | None:
            tree = runtime.print_tree()
            return tree if "x" in tree and "INITIALIZING" not in tree else None

        assert (await until(complete)).splitlines() == [
            "[sup] root (ONE_FOR_ONE)",
            "├── [agent] a (RUNNING)",
            "├── [srv] counter (RUNNING)",
            "├── [agent] spawner (RUNNING)",
            "├── [sup] below (REST_FOR_ONE)",
            "│   ├── [agent] b (RUNNING)",
            "│   └── [eval] guard (RUNNING)",
            "└── [dyn] pool (ONE_FOR_ONE)",
            "    └── [agent] x (RUNNING)",
        ]

    anywhere.play(family, scene)


def test_every_agent_can_be_had_by_name_and_tells_its_state_wherever_it_lives(anywhere: Anywhere) -> None:
    pools: list[DynamicSupervisor] = []

    def tree() -> Supervisor:
        pools.append(DynamicSupervisor("other"))
        return family(pools[-1])

    async def scene(runtime: Runtime) -> None:
        agent = runtime.get_agent("a")
        await until(lambda: agent.status is ProcessStatus.RUNNING)
        assert (agent.name, agent.capabilities) == ("a", [])
        names = ["a", "counter", "spawner", "b", "guard"]
        assert [one.name for one in runtime.all_agents()] == runtime.agent_names() == names
        assert pools[-1].all_dynamic_agents() == []
        await runtime.spawn("other", Able, "x")
        assert [one.name for one in pools[-1].all_dynamic_agents()] == ["x"]
        [x] = pools[-1].all_dynamic_agents()
        assert (x.capabilities, x.capability_metadata) == (["sum", "any"], {"version": 2})
        await until(lambda: x.status is ProcessStatus.RUNNING)
        await runtime.despawn("other", "x")
        assert pools[-1].all_dynamic_agents() == []
        await until(lambda: x.status is ProcessStatus.STOPPED)
        with pytest.raises(MessageRoutingError, match="No agent is named 'nobody'; there are a, counter, spawner, b"):
            runtime.get_agent("nobody")

    anywhere.play(tree, scene)


def test_the_object_of_an_agent_can_be_had_where_it_lives(anywhere: Anywhere) -> None:
    async def scene(runtime: Runtime) -> None:
        await runtime.cast("counter", {"by": 4})
        await runtime.call("counter", {})
        counter = runtime.get_agent("counter")
        assert isinstance(counter, Counter)
        assert counter.total == 4

    anywhere.play(family, scene)


def test_a_handle_says_where_the_object_is_that_it_does_not_have() -> None:
    async def scene(runtime: Runtime) -> None:
        handle = runtime._handle("a")
        assert isinstance(handle, AgentHandle)
        with pytest.raises(AttributeError, match="'a' lives in another process, and its 'total' with it"):
            _ = handle.total
        assert (handle.process, handle.restarts, repr(handle)) == ("main", 0, "<AgentHandle 'a' RUNNING>")

    Anywhere("in_process").play(family, scene)


# --- crashes and restarts -----------------------------------------------------------------------------------------


def test_the_program_hears_of_crashes_and_of_agents_that_were_started_again(anywhere: Anywhere) -> None:
    heard: list[Any] = []

    def tree() -> Supervisor:
        root = family()
        below = next(one for one in root.all_supervisors() if one.name == "below")

        async def later(name: str, error: BaseException) -> None:
            await asyncio.sleep(0)
            heard.append(("below", name, str(error)))

        def broken(*news: Any) -> None:
            raise OSError("this one fails")

        for callback in (broken, later):
            below.add_crash_callback(callback)
        below.add_child_replaced_callback(broken)
        below.add_child_replaced_callback(lambda name, agent: heard.append(("again", name, agent.name)))
        return root

    async def scene(runtime: Runtime) -> None:
        runtime.on_crash(lambda name, error: heard.append(("any", name, isinstance(error, Exception))))
        for name in ("a", "b"):
            with pytest.raises(AgentError):
                await runtime.ask(name, {"do": "crash"})
            await runtime.ask(name, {})
        await until(lambda: len(heard) == 5)
        assert sorted(map(str, heard)) == sorted(
            map(
                str,
                [
                    ("any", "a", True),
                    ("any", "b", True),
                    ("below", "b", "told to" if anywhere.in_process else "'b' raised ValueError: told to"),
                    ("again", "b", "b"),
                    ("again", "guard", "guard"),
                ],
            )
        )

    anywhere.play(tree, scene)


def test_a_crash_callback_gets_the_exception_itself(anywhere: Anywhere) -> None:
    async def scene(runtime: Runtime) -> None:
        errors: list[BaseException] = []
        runtime.on_crash(lambda name, error: errors.append(error))
        with pytest.raises(AgentError):
            await runtime.ask("a", {"do": "crash"})
        await until(lambda: errors)
        assert [type(error) for error in errors] == [ValueError]

    anywhere.play(family, scene)


def test_an_agent_is_restarted_on_request_with_what_waits_and_at_no_cost(anywhere: Anywhere) -> None:
    crashes: list[str] = []

    async def scene(runtime: Runtime) -> None:
        runtime.on_crash(lambda name, error: crashes.append(name))
        before = (await runtime.call("m", {}))["id"]
        for number in range(3):
            await runtime.restart_agent("m", f"to see it {number}", "the test")
            seen = await runtime.call("m", {})
            assert seen["id"] != before, "a new object"
            before = seen["id"]
        assert not crashes
        status = (await runtime.ask("root", {}, message_type="civitas.supervision.status")).payload
        assert status["crashes_in_window"] == 0
        assert {"name": "m", "kind": "agent", "status": "RUNNING", "restart_count": 3} in status["children"]
        with pytest.raises(MessageRoutingError):
            await runtime.restart_agent("nobody")
        with pytest.raises(ConfigurationError, match="'once' cannot be restarted: restart: temporary says never"):
            await runtime.restart_agent("once")
        await runtime.send("e", {"do": "finish"})

        async def refused() -> bool:
            try:
                await runtime.restart_agent("e")
            except AgentStopped:
                return True
            return False

        await until(refused)

    def tree() -> Supervisor:
        once = Echo("once", process="one")
        once.restart = "temporary"
        agents = [Measured("m", process="one"), once, Echo("e", process="two")]
        return Supervisor("root", agents, max_restarts=0)

    anywhere.play(tree, scene)


def test_whoever_looks_sees_that_an_agent_is_suspended(anywhere: Anywhere) -> None:
    async def seen(runtime: Runtime) -> list[str]:
        (reading,) = (one for one in runtime.snapshot().agents if one.name == "e")
        status = (await runtime.ask("root", {}, message_type="civitas.supervision.status")).payload
        (child,) = status["children"]
        (line,) = (line for line in runtime.print_tree().splitlines() if " e (" in line)
        return [
            reading.state.upper(),
            runtime.get_agent("e").status.name,
            child["status"],
            line[line.index("(") + 1 : -1],
        ]

    async def scene(runtime: Runtime) -> None:
        await runtime.ask("e", {})

        async def read() -> bool:  # the host's first reading is there
            return (await seen(runtime)) == ["RUNNING"] * 4

        await until(read)
        await runtime.suspend("e", "a look at it")
        assert await seen(runtime) == ["SUSPENDED"] * 4
        await runtime.resume("e", "ada")
        assert await seen(runtime) == ["RUNNING"] * 4

    anywhere.play(lambda: Supervisor("root", [Echo("e", process="one")]), scene)


def test_an_agent_knows_how_long_it_lives_and_how_much_it_has_done(anywhere: Anywhere) -> None:
    async def scene(runtime: Runtime) -> None:
        first = await runtime.call("m", {})
        assert uuid.UUID(first["id"]).version == 7
        assert first["turns"] == 0
        second = await runtime.call("m", {})
        assert (second["turns"], second["id"]) == (1, first["id"])
        assert second["uptime"] >= first["uptime"] >= 0
        with pytest.raises(AgentError):
            await runtime.ask("m", {"do": "crash"})
        third = await runtime.call("m", {})
        assert third["turns"] == 0, "a new life"
        assert third["id"] != first["id"]

    anywhere.play(lambda: Supervisor("root", [Measured("m", process="one")], backoff_base=0.0), scene)


# --- spawning -----------------------------------------------------------------------------------------------------


def test_agents_spawn_into_any_supervisor_and_its_hook_in_the_program_decides(anywhere: Anywhere) -> None:
    picky: list[Picky] = []

    def tree() -> Supervisor:
        picky.append(Picky("picky", max_children=2))
        return family(picky[-1])

    async def scene(runtime: Runtime) -> None:
        one = picky[-1]
        assert await runtime.call("spawner", {"into": "picky", "name": "x", "config": {"n": 1}}) == {"error": ""}
        assert (await runtime.call("x", {}))["name"] == "x"
        refused = await runtime.call("spawner", {"into": "picky", "name": "long"})
        assert refused["error"] == "'long' cannot be spawned: on_spawn_requested of 'picky' refused it."
        with pytest.raises(SpawnError, match=r"on_spawn_requested of 'picky' raised OSError\('no idea'\)"):
            await runtime.spawn("picky", Echo, "r", {"raise": True})
        both = await asyncio.gather(
            *(runtime.spawn_nowait("picky", Echo, name) for name in ("y", "z")), return_exceptions=True
        )
        assert [isinstance(each, SpawnError) for each in both] == [False, True], "the quota holds after the judgement"
        assert (await runtime.call("y", {}))["name"] == "y"
        assert one.asked == [
            ("Echo", "x", {"n": 1}, "spawner"),
            ("Echo", "long", {}, "spawner"),
            ("Echo", "r", {"raise": True}, ""),
            ("Echo", "y", {}, ""),
            ("Echo", "z", {}, ""),
        ]
        assert one.current_spawner is None
        assert await runtime.call("spawner", {"name": "w"}) == {"error": ""}
        assert (await runtime.call("w", {}))["name"] == "w", "into the nearest one"

    anywhere.play(tree, scene)


def test_defect_43_a_spawned_agent_gets_its_config_and_a_name_that_is_taken_is_refused_and_harms_nobody(
    anywhere: Anywhere,
) -> None:
    """The config was ignored, and a name that was taken crashed the dynamic supervisor with all its children."""

    async def scene(runtime: Runtime) -> None:
        await runtime.spawn("pool", Configured, "x", {"n": 1})
        before = await runtime.call("x", {})
        assert before["config"] == {"n": 1}
        for taken in ("x", "a", "pool"):
            with pytest.raises(SpawnError, match="the name is taken"):
                await runtime.spawn("pool", Configured, taken, {"n": 2})
        assert await runtime.call("x", {}) == before, "the same object as before"

    anywhere.play(family, scene)


# --- processes ----------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_the_death_of_a_process_and_one_that_does_not_answer_are_told_as_crashes(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from .anywhere import ROOT

    monkeypatch.setenv("CIVITAS_SHM_DIR", str(tmp_path / "runs"))
    monkeypatch.syspath_prepend(ROOT)
    errors: dict[str, BaseException] = {}

    async def scene(runtime: Runtime) -> None:
        runtime.on_crash(lambda name, error: errors.__setitem__(name, error))
        pid = (await runtime.call("a", {}))["pid"]
        os.kill(pid, signal.SIGKILL)
        await until(lambda: "a" in errors)
        assert isinstance(errors["a"], AgentError)
        assert not isinstance(errors["a"], HeartbeatTimeout)
        assert str(errors["a"]) == "'a' raised ProcessDied: its process one died: SIGKILL"
        await runtime.call("a", {})
        await runtime.send("stuck", {})
        await until(lambda: "stuck" in errors)
        error = errors["stuck"]
        assert isinstance(error, HeartbeatTimeout)
        assert (error.agent_name, error.missed) == ("stuck", 1)
        assert "its handle_timeout_s is 0.05" in str(error)

    Anywhere("shm").play(lambda: family(Stuck("stuck", process="three", handle_timeout=0.05)), scene)
