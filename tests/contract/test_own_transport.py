"""A transport of one's own, as the seed's recipe has it: on a real Redis server, and in process."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from civitas_shm import (
    AgentError,
    AgentProcess,
    AgentStopped,
    ConfigurationError,
    Message,
    MessageRoutingError,
    Runtime,
    Supervisor,
)
from civitas_shm.bus import MessageBus
from civitas_shm.components import ComponentSet, build_component_set
from civitas_shm.formats import JsonSerializer, MsgpackSerializer, Serializer
from civitas_shm.registry import LocalRegistry
from civitas_shm.testing import TransportContract, transport_contract
from civitas_shm.testing.probe import Probe
from civitas_shm.transport import Transport
from civitas_shm_transports.addresses import InProcessTransport


class TestInProcessTransport(TransportContract):
    """The reference."""

    def new_transport(self, serializer: Serializer) -> Transport:
        return InProcessTransport(serializer)


class TestRedisTransport(TransportContract):
    """The recipe's."""

    @pytest.fixture(autouse=True)
    def server(self, redis_server: Any) -> None:
        self._url = redis_server.url

    def new_transport(self, serializer: Serializer) -> Transport:
        from .redis_transport import RedisTransport

        return RedisTransport(serializer, self._url)


class OneAfterAnother(InProcessTransport):
    """A handler that waits delays every address, as a transport does that has one loop for all that comes."""

    async def start(self) -> None:
        await super().start()
        self._turn = asyncio.Lock()

    async def subscribe(self, address: str, handler: Any) -> None:
        async def in_turn(data: bytes) -> None:
            async with self._turn:
                await handler(data)

        await super().subscribe(address, in_turn)


class Shortens(InProcessTransport):
    """Large messages do not arrive whole."""

    async def publish(self, address: str, data: bytes) -> None:
        await super().publish(address, data[:65536])


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (OneAfterAnother, "test_a_handler_that_waits_delays_no_other_address"),
        (Shortens, "test_a_large_message_and_an_empty_one_arrive_whole"),
    ],
)
def test_the_contract_finds_a_transport_that_breaks_it(
    broken: type[InProcessTransport], test: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Contract(TransportContract):
        def new_transport(self, serializer: Serializer) -> Transport:
            return broken(serializer)

    monkeypatch.setattr(transport_contract, "COMES_S", 0.2)  # what does not come need not be waited for
    with pytest.raises((AssertionError, TimeoutError)):
        getattr(Contract(), test)()


# --- a run over it ------------------------------------------------------------------------------------------------


class Greeter(AgentProcess):
    """Asks the one that knows the greetings."""

    async def handle(self, message: Message) -> Message:
        greeting = await self.ask("greetings", {"of": message.payload["in"]})
        await self.send("log", {"greeted": message.payload["name"]}, "greeted")
        return self.reply({"text": f"{greeting.payload['word']}, {message.payload['name']}", "pair": (1, b"\0")})


class Fails(AgentProcess):
    """Cannot."""

    async def handle(self, message: Message) -> Message:
        raise ValueError("no")


@pytest.fixture(params=["in_process-msgpack", "in_process-json", "redis-msgpack", "redis-json"])
def new_components(request: pytest.FixtureRequest) -> Any:
    """`new_components()`: a set with a transport of its own; those of redis reach one another."""
    kind, _, form = request.param.partition("-")
    serializer: Serializer = MsgpackSerializer() if form == "msgpack" else JsonSerializer()
    if kind == "in_process":
        return lambda **given: build_component_set(serializer=serializer, **given)
    from .redis_transport import RedisTransport

    url = request.getfixturevalue("redis_server").url
    return lambda **given: build_component_set(
        transport=RedisTransport(serializer, url), serializer=serializer, **given
    )


def test_agents_ask_and_send_over_it_with_the_errors_of_the_run(new_components: Any) -> None:
    async def scene() -> None:
        log = Probe("log")
        greetings = Probe("greetings", {"word": "hello"})
        agents = [Greeter("greeter"), greetings, log, Fails("fails")]
        async with Runtime(Supervisor("root", agents, max_restarts=5), components=new_components()) as runtime:
            reply = await runtime.ask("greeter", {"name": "Ada", "in": "en"})
            assert reply.payload == {"text": "hello, Ada", "pair": (1, b"\0")}
            assert (reply.sender, reply.recipient) == ("greeter", "_runtime")
            assert (await log.expect("greeted", sender="greeter")).payload == {"greeted": "Ada"}
            assert greetings.messages[0].trace_id == reply.trace_id
            for number in range(50):
                await runtime.send("log", {"n": number})
            for number in range(50):
                assert (await log.expect("message")).payload == {"n": number}
            await runtime.broadcast("l*", {"all": True})
            await log.expect(payload={"all": True})
            with pytest.raises(AgentError, match="'fails' raised ValueError: no") as failed:
                await runtime.ask("fails", {})
            assert failed.value.type_name == "ValueError"
            with pytest.raises(MessageRoutingError, match="'greeter'"):
                await runtime.ask("greeterr", {})
            with pytest.raises(TimeoutError, match="'log' did not answer"):
                await runtime.ask("log", {}, timeout=0.05)

    asyncio.run(scene())


def test_runs_that_share_a_server_reach_one_anothers_agents_by_register_remote(redis_server: Any) -> None:
    from .redis_transport import RedisTransport

    def components() -> ComponentSet:
        return build_component_set(transport=RedisTransport(MsgpackSerializer(), redis_server.url))

    async def scene() -> None:
        here = components()
        for name in ("greetings", "log", "fails"):
            here.registry.register_remote(name)
        log = Probe("log")
        there = Supervisor("root", [Probe("greetings", {"word": "bonjour"}), log, Fails("fails")], max_restarts=5)
        async with (
            Runtime(there, components=components()),
            Runtime(Supervisor("root", [Greeter("greeter")]), components=here) as runtime,
        ):
            assert (await runtime.ask("greeter", {"name": "Ada", "in": "fr"})).payload["text"] == "bonjour, Ada"
            await log.expect("greeted")
            with pytest.raises(AgentError, match="ValueError: no"):
                await runtime.ask("fails", {})

    asyncio.run(scene())


def test_what_is_no_message_and_what_is_reserved_is_dropped_and_the_agent_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Defects 2 and 25, over a transport of one's own."""

    async def scene() -> None:
        components = build_component_set()
        probe = Probe("probe", {"ok": True})
        async with Runtime(Supervisor("root", [probe]), components=components) as runtime:
            with caplog.at_level(logging.WARNING, "civitas_shm.transport"):
                await components.transport.publish("probe", b"\xc1 no message")
                shutdown = Message(type="_agency.shutdown", sender="x", recipient="probe", payload={})
                await components.transport.publish("probe", MsgpackSerializer().serialize(shutdown))
                assert (await runtime.ask("probe", {})).payload == {"ok": True}
        assert [message.type for message in probe.messages] == ["message"]
        assert "are no message" in caplog.text
        assert "reserved type '_agency.shutdown'" in caplog.text

    asyncio.run(scene())


def test_the_bus_of_a_set_routes_requests_and_looks_names_up() -> None:
    async def scene() -> None:
        components = build_component_set(registry=LocalRegistry())
        bus = components.bus
        assert isinstance(bus, MessageBus)
        probe = Probe("probe", {"ok": True})
        async with Runtime(Supervisor("root", [probe, Probe("other")]), components=components):
            reply = await bus.request(
                Message(type="ask", sender="me", recipient="probe", payload={"n": 1}), timeout=30.0
            )
            assert reply.payload == {"ok": True}
            await bus.route(Message(type="tell", sender="me", recipient="probe", payload={"n": 2}))
            assert (await probe.expect("tell")).payload == {"n": 2}
            assert [entry.name for entry in bus.lookup_all("pro*")] == ["probe"]
            with pytest.raises(MessageRoutingError):
                await bus.route(Message(recipient="nobody", payload={}))
            await bus.teardown_agent("other")
            assert bus.lookup_all("*") == [components.registry.lookup("probe")]
        assert components.registry.all_names() == []

    asyncio.run(scene())


def test_who_was_stopped_is_no_address_any_more() -> None:
    async def scene() -> None:
        components = build_component_set()
        from civitas_shm import DynamicSupervisor

        async with Runtime(Supervisor("root", [DynamicSupervisor("pool")]), components=components) as runtime:
            await runtime.spawn("pool", Greeter, "late")
            await runtime.send("late", {"name": "Ada", "in": "en"}, "message")
            await runtime.despawn("pool", "late")
            with pytest.raises((AgentStopped, MessageRoutingError)):
                await runtime.ask("late", {}, timeout=30)

    asyncio.run(scene())


def test_a_set_says_what_its_transport_lacks_and_what_cannot_be_had() -> None:
    class Half:
        async def start(self) -> None: ...

    with pytest.raises(ConfigurationError, match="Half is no transport: it has no stop, subscribe"):
        build_component_set(transport=Half())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"Runtime\(transport='shm'\)"):
        build_component_set("shm")
    with pytest.raises(ConfigurationError, match="objects of this process"):
        Runtime(transport="shm", components=build_component_set())
    with pytest.raises(ConfigurationError, match="two serializers"):
        Runtime(components=build_component_set(), serializer=JsonSerializer())


def test_a_set_gives_agents_their_store_models_and_tools() -> None:
    from civitas_shm.plugins.state import InMemoryStateStore

    store, model = InMemoryStateStore(), object()
    components = build_component_set(store=store, model_provider=model)
    agent = Greeter("greeter")
    components.inject(agent)
    assert (agent.store, agent.llm) == (store, model)
    runtime = Runtime(Supervisor("root", [agent]), components=components)
    assert runtime._objects["model_provider"] is model
    assert runtime._objects["state_store"] is store


def test_the_environment_names_the_serializer_of_a_set_that_is_given_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(build_component_set().serializer, MsgpackSerializer)
    monkeypatch.setenv("AGENCY_SERIALIZER", "json")
    components = build_component_set()
    assert isinstance(components.serializer, JsonSerializer)
    assert isinstance(ComponentSet(components.transport).serializer, JsonSerializer)
    assert isinstance(build_component_set(serializer=MsgpackSerializer()).serializer, MsgpackSerializer)
    seen: list[bytes] = []
    publish = components.transport.publish

    async def looked_at(address: str, data: bytes) -> None:
        seen.append(data)
        await publish(address, data)

    components.transport.publish = looked_at  # type: ignore[method-assign]

    async def scene() -> None:
        probe = Probe("probe")
        async with Runtime(Supervisor("root", [probe]), components=components) as runtime:
            await runtime.send("probe", {"raw": b"\x00"})
            assert (await probe.expect()).payload == {"raw": b"\x00"}

    asyncio.run(scene())
    assert [json.loads(data)["payload"] for data in seen] == [{"raw": {"$bytes": "AA=="}}]
    monkeypatch.setenv("AGENCY_SERIALIZER", "yaml")
    with pytest.raises(ConfigurationError, match="AGENCY_SERIALIZER is 'yaml'"):
        build_component_set()


def test_a_run_with_a_serializer_of_its_own_uses_it() -> None:
    class Counting(JsonSerializer):
        count = 0

        def serialize(self, message: Message) -> bytes:
            type(self).count += 1
            return super().serialize(message)

    async def scene() -> None:
        async with Runtime(Supervisor("root", [Probe("probe", {"ok": True})]), serializer=Counting()) as runtime:
            assert (await runtime.ask("probe", {})).payload == {"ok": True}

    asyncio.run(scene())
    assert Counting.count >= 2
