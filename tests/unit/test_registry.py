"""A registry of one's own, the roster behind that of a run, and who is told of its changes."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from civitas_shm.errors import ConfigurationError
from civitas_shm.host.heralds import Heralds
from civitas_shm.host.protocol import Known
from civitas_shm.host.seats import Seat
from civitas_shm.loading import build_agent
from civitas_shm.placement import PlannedProcess
from civitas_shm.port_bus import PortBus
from civitas_shm.process import AgentProcess
from civitas_shm.registry import LocalRegistry, Registry, RoutingEntry
from civitas_shm.roster import NO_TRAITS, Roster, Traits
from civitas_shm.runtime import Runtime
from civitas_shm.supervisor import Supervisor
from civitas_shm.topology.model import AgentSpec
from civitas_shm.transport import load_transport


def test_a_registry_of_ones_own_keeps_names_with_what_they_can() -> None:
    registry = LocalRegistry()
    assert isinstance(registry, Registry)
    registry.register("a", capabilities=["x", "y"], capability_metadata={"n": 1})
    registry.register("b", "elsewhere", is_local=False, capabilities=["y"])
    registry.register("_hidden")
    assert registry.lookup("a") == RoutingEntry("a", "a", True, ("x", "y"), {"n": 1})
    assert registry.lookup("b") == RoutingEntry("b", "elsewhere", False, ("y",))
    assert registry.lookup("c") is None
    assert registry.has("a")
    assert "a" in registry
    assert "c" not in registry
    assert registry.all_names() == ["a", "b", "_hidden"]
    assert [entry.name for entry in registry.lookup_all("*")] == ["a", "b"]
    assert [entry.name for entry in registry.lookup_all("_*")] == ["_hidden"]
    assert [entry.name for entry in registry.find_by_capability("y")] == ["a", "b"]
    assert [entry.name for entry in registry.find_by_capabilities(["x", "z"])] == ["a"]
    assert registry.find_by_capabilities(["x", "z"], match="all") == []
    with pytest.raises(ValueError, match="the name 'a' is registered already"):
        registry.register("a")
    registry.deregister("a")
    registry.deregister("a")
    assert not registry.has("a")


def test_an_entry_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        RoutingEntry("a", "a", True).name = "b"  # type: ignore[misc]


def test_remote_agents_may_be_said_twice_and_only_the_last_word_is_taken_back() -> None:
    registry = LocalRegistry()
    registry.register("local")
    assert registry.register_remote("far", ["x"], {}) == 1
    assert registry.register_remote("far", ["z"], {}) == 2
    assert registry.lookup("far") == RoutingEntry("far", "far", False, ("z",), {}, 2)
    assert not registry.deregister_remote("far", 1), "said by a life that has been replaced since"
    assert registry.deregister_remote("far", 2)
    assert not registry.deregister_remote("local")
    with pytest.raises(ValueError, match="belongs to an agent of this process"):
        registry.register_remote("local", [], {})


def test_who_is_suspended_is_noted() -> None:
    registry = LocalRegistry()
    registry.register("a")
    registry.set_suspended("a")
    assert registry.is_suspended("a")
    registry.set_suspended("a", False)
    assert not registry.is_suspended("a")


def test_listeners_are_told_in_order_and_one_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Any] = []

    async def slow(name: str, capabilities: tuple[str, ...], metadata: dict[str, Any], event: str) -> None:
        if event == "register":
            await asyncio.sleep(0.01)
        heard.append((name, event))

    async def broken(*news: Any) -> None:
        raise OSError("no")

    async def run() -> None:
        registry = LocalRegistry()
        registry.register("before")
        registry.add_listener(broken)
        registry.add_listener(slow)
        registry.register("a")
        registry.deregister("a")
        while len(heard) < 2:
            await asyncio.sleep(0)
        registry.remove_listener(slow)
        registry.remove_listener(broken)
        registry.register("b")
        await asyncio.sleep(0)

    registry = LocalRegistry()
    registry.add_listener(broken)
    registry.register("without a loop")
    asyncio.run(run())
    assert heard == [("a", "register"), ("a", "deregister")]
    assert caplog.text.count("a registry listener failed") == 2


# --- the roster ---------------------------------------------------------------------------------------------------


def test_the_registry_of_a_run_is_read_only() -> None:
    async def run() -> None:
        registry = PortBus(load_transport("in_process").create()).registry
        assert isinstance(registry, Registry)
        for refused in (registry.register, registry.deregister):
            with pytest.raises(ConfigurationError, match="'a' cannot be"):
                refused("a")
        await registry.refresh()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("capabilities", "metadata", "said"),
    [
        ("sum", {}, "capabilities of agent 'a' are 'sum'; they must be a list of texts"),
        ([1], {}, "must be a list of texts"),
        ([""], {}, "must be a list of texts"),
        (["x"], {"k": [1, object]}, r"capability_metadata of agent 'a'.k\[1\]: type cannot be told"),
        (["x"], {1: 2}, "the key 1 is int"),
    ],
)
def test_what_cannot_be_told_to_others_is_refused(capabilities: Any, metadata: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Traits.of("a", "agent", capabilities, metadata)


def test_an_agent_whose_capabilities_cannot_be_told_does_not_start(caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(AgentProcess):
        async def on_start(self) -> None:
            self.capability_metadata = {"lock": object()}

    async def run() -> None:
        async with Runtime(Supervisor("root", [Wrong("wrong")], max_restarts=0)):
            raise AssertionError("it started")

    with caplog.at_level(logging.ERROR), pytest.raises(Exception, match="object cannot be told to other processes"):
        asyncio.run(run())


def test_what_is_known_already_is_told_to_nobody() -> None:
    told: list[Any] = []
    roster = Roster()
    roster.listen(lambda *news: told.append(news))
    roster.put("a", NO_TRAITS)
    roster.put("a", Traits())
    roster.put("a", Traits("srv"))
    roster.drop("b")
    roster.put("b", NO_TRAITS)
    roster.keep_only(["b"])
    srv = Traits("srv")
    assert told == [("a", None, NO_TRAITS), ("a", NO_TRAITS, srv), ("b", None, NO_TRAITS), ("a", srv, None)]


def test_a_process_that_has_not_asked_is_told_nothing_and_a_dead_ones_successor_neither() -> None:
    async def run() -> None:
        sent: list[tuple[str, Known]] = []
        main, one = (Seat(PlannedProcess(name, slot)) for name, slot in (("main", 1), ("one", 2)))
        one.worker = object()  # type: ignore[assignment]
        roster = Roster()
        roster.put("a", Traits("agent", ("x",)))
        heralds = Heralds(
            asyncio.get_running_loop(), roster, lambda seat, message: sent.append((seat.name, message)), main
        )
        roster.put("b", NO_TRAITS)
        roster.put("c", NO_TRAITS)
        assert not sent, "not before the turn is over"
        await asyncio.sleep(0)
        assert sent == [("main", Known({"b": NO_TRAITS, "c": NO_TRAITS}))]
        heralds.subscribe(one)
        everybody = {"a": Traits("agent", ("x",)), "b": NO_TRAITS, "c": NO_TRAITS}
        assert sent[1:] == [("one", Known(everybody)), ("one", Known({}, all=["a", "b", "c"]))]
        roster.drop("a")
        heralds.flush()
        assert sent[3:] == [("main", Known({"a": None})), ("one", Known({"a": None}))]
        one.worker = object()  # type: ignore[assignment]
        roster.drop("b")
        heralds.flush()
        one.worker = None
        roster.drop("c")
        heralds.flush()
        assert [name for name, _ in sent[5:]] == ["main", "main"]

    asyncio.run(run())


class Able(AgentProcess):
    capabilities = ["of the class"]  # noqa: RUF012
    capability_metadata = {"of": "the class"}  # noqa: RUF012


def test_the_topology_overrules_what_a_class_says_of_its_capabilities() -> None:
    path = f"{Able.__module__}.Able"
    plain = build_agent(AgentSpec("a", path))
    assert (plain.capabilities, plain.capability_metadata) == (["of the class"], {"of": "the class"})
    other = build_agent(AgentSpec("a", path, capabilities=["x"], capability_metadata={"of": "the topology"}))
    assert (other.capabilities, other.capability_metadata) == (["x"], {"of": "the topology"})
    assert Able.capabilities == ["of the class"]
