"""Capabilities and the registry, in one process and in many."""

from __future__ import annotations

from typing import Any

import pytest

from civitas_shm import AgentError, CapabilityNotFoundError, DynamicSupervisor, RoutingEntry, Runtime, Supervisor

from .anywhere import Anywhere, until
from .anywhere_agents import Able, Echo, Seeker


def tree() -> Supervisor:
    special = Able("special", process="two")
    special.capabilities = ["any", "special"]
    agents = [Able("able", process="one"), special, Seeker("seeker", process="two"), Echo("echo", process="one")]
    return Supervisor("root", [*agents, DynamicSupervisor("pool")], backoff_base=0.0)


async def counts(runtime: Runtime, *names: str) -> list[int]:
    return [(await runtime.ask(name, {}, message_type="count")).payload["got"] for name in names]


def test_a_message_to_a_capability_reaches_one_by_chance_in_whatever_process(anywhere: Anywhere) -> None:
    async def scene(runtime: Runtime) -> None:
        seek = runtime.call
        assert await seek("seeker", {"capability": "sum", "times": 3}) == {"missing": None}
        assert await counts(runtime, "able", "special") == [3, 0]
        assert await seek("seeker", {"capability": "special", "times": 2}) == {"missing": None}
        assert await counts(runtime, "able", "special") == [3, 2]
        await seek("seeker", {"capability": "any", "times": 60})
        able, special = await counts(runtime, "able", "special")
        assert (able + special, able > 3, special > 2) == (65, True, True)
        assert await seek("seeker", {"capability": "none"}) == {"missing": "none"}

    anywhere.play(tree, scene)


def test_defect_29_capabilities_survive_a_restart_and_go_with_their_agent(anywhere: Anywhere) -> None:
    async def scene(runtime: Runtime) -> None:
        assert await runtime.call("seeker", {"capability": "special"}) == {"missing": None}
        with pytest.raises(AgentError):
            await runtime.ask("special", {"do": "crash"})
        assert await runtime.call("seeker", {"capability": "special"}) == {"missing": None}
        assert await counts(runtime, "special") == [1], "a new object, with what the first one was given"
        assert [entry.name for entry in runtime.registry.find_by_capability("special")] == ["special"]
        await runtime.send("special", {"do": "finish"})

        async def gone() -> bool:
            return await runtime.call("seeker", {"capability": "special"}) == {"missing": "special"}

        await until(gone)
        assert await runtime.call("seeker", {"capability": "any"}) == {"missing": None}

    anywhere.play(tree, scene)


def test_spawned_agents_are_found_by_what_they_can_and_listeners_hear_of_them(anywhere: Anywhere) -> None:
    heard: list[Any] = []

    async def listener(name: str, capabilities: tuple[str, ...], metadata: dict[str, Any], event: str) -> None:
        heard.append((name, capabilities, metadata, event))

    async def broken(*news: Any) -> None:
        raise OSError("this one fails")

    async def scene(runtime: Runtime) -> None:
        registry = runtime.registry
        assert await runtime.call("seeker", {"capability": "sum"}) == {"missing": None}
        registry.add_listener(broken)
        registry.add_listener(listener)
        await runtime.spawn("pool", Able, "x")
        await runtime.call("x", {"do": "nothing"})
        await until(lambda: heard)
        assert [entry.name for entry in registry.find_by_capability("sum")] == ["able", "x"]

        async def found() -> bool:
            await runtime.call("seeker", {"capability": "sum", "times": 5})
            return await counts(runtime, "x") > [0]

        await until(found)
        await runtime.despawn("pool", "x")
        await until(lambda: len(heard) == 2)
        assert heard == [
            ("x", ("sum", "any"), {"version": 2}, "register"),
            ("x", ("sum", "any"), {"version": 2}, "deregister"),
        ]
        registry.remove_listener(listener)
        await runtime.spawn("pool", Able, "y")
        assert "y" in registry
        assert len(heard) == 2
        assert [entry.name for entry in registry.find_by_capability("sum")] == ["able", "y"]

    anywhere.play(tree, scene)


def test_the_registry_of_a_run_knows_names_capabilities_and_where_agents_live(anywhere: Anywhere) -> None:
    async def scene(runtime: Runtime) -> None:
        registry = runtime.registry
        here = anywhere.in_process
        assert registry.lookup("able") == RoutingEntry("able", "able", here, ("sum", "any"), {"version": 2})
        assert registry.lookup("nobody") is None
        assert registry.has("echo")
        assert "nobody" not in registry
        assert sorted(registry.all_names()) == ["able", "echo", "seeker", "special"]
        assert [entry.name for entry in registry.lookup_all("s*")] == ["seeker", "special"]
        find = registry.find_by_capabilities
        assert [entry.name for entry in find(["sum", "special"])] == ["able", "special"]
        assert [entry.name for entry in find(["sum", "any"], match="all")] == ["able"]

    anywhere.play(tree, scene)


def test_what_nobody_can_is_an_error_with_its_name() -> None:
    assert CapabilityNotFoundError("dance").capability == "dance"
    assert "'dance'" in str(CapabilityNotFoundError("dance"))
