"""What an agent sees: its model, its tools, its own keys, and spans; in one process, with real runs."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import pytest

from civitas_shm import AgentProcess, Message, Runtime, Supervisor
from civitas_shm.errors import ConfigurationError, PluginError
from civitas_shm.observability import names
from civitas_shm.observability.spans import SpanQueue
from civitas_shm.observability.tracer import Tracer
from civitas_shm.plugins.installed import Plugins
from civitas_shm.plugins.model import ModelResponse
from civitas_shm.plugins.tools import ToolRegistry
from civitas_shm.topology.model import AgentSpec, PluginSpec, PluginsSpec

HERE = __name__


class Parrot:
    """Says what it was told, and what it was made with."""

    made = 0
    closed = 0

    def __init__(self, **config: Any) -> None:
        type(self).made += 1
        self.config = config
        self.default_model = "parrot-1"

    async def chat(self, model: str, messages: list[dict[str, Any]], tools: Any = None) -> ModelResponse:
        await asyncio.sleep(0)
        text = f"{self.config.get('api_key', 'no key')}: {messages[-1]['content']}"
        return ModelResponse(text, "parrot-1", 2, 3, 0.25)

    async def close(self) -> None:
        type(self).closed += 1


class Upper:
    name = "upper"
    schema: ClassVar = {"description": "Shouts.", "input_schema": {"type": "object"}}

    async def execute(self, text: str) -> str:
        await asyncio.sleep(0)
        return text.upper()


PARROT, UPPER = f"{HERE}.Parrot", f"{HERE}.Upper"
DECLARED = PluginsSpec(
    models=[PluginSpec(PARROT, {"api_key": "shared"}, "parrot"), PluginSpec(PARROT, name="second")],
    tools=[PluginSpec(UPPER)],
)


class Asker(AgentProcess):
    async def handle(self, message: Message) -> Message:
        provider = self.model_for(message.payload["of"]) if "of" in message.payload else self.llm
        response = await provider.chat("", [{"role": "user", "content": message.payload["say"]}])
        return self.reply({"said": await self.tools.get("upper").execute(text=response.content)})


class PlainAsker(AgentProcess):
    def handle(self, message: Message) -> Message:  # type: ignore[override]
        response = self.llm.chat("", [{"role": "user", "content": message.payload["say"]}])
        said = self.tools.get("upper").execute(text=response.content)
        return self.reply({"said": said, "tools": self.tools.names(), "model": self.llm.default_model})


@pytest.fixture(autouse=True)
def _counted() -> None:
    Parrot.made = Parrot.closed = 0


def ask(agent: AgentProcess, payload: dict[str, Any], **options: Any) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        async with Runtime(Supervisor("root", [agent]), **options) as runtime:
            return dict((await runtime.ask(agent.name, payload)).payload)

    return asyncio.run(run())


@pytest.mark.parametrize("kind", [Asker, PlainAsker])
def test_models_and_tools_of_the_topology(kind: type[AgentProcess]) -> None:
    assert ask(kind("a"), {"say": "hi"}, plugins=DECLARED)["said"] == "SHARED: HI"
    assert (Parrot.made, Parrot.closed) == (1, 1), "built when asked for, once, and closed at the end"


def test_a_plain_handler_sees_the_same_things_without_await() -> None:
    reply = ask(PlainAsker("a"), {"say": "hi"}, plugins=DECLARED)
    assert (reply["tools"], reply["model"]) == (["upper"], "parrot-1")


def test_the_others_are_had_by_name() -> None:
    assert ask(Asker("a"), {"say": "hi", "of": "second"}, plugins=DECLARED)["said"] == "NO KEY: HI"


def test_nothing_is_built_that_nobody_asks_for() -> None:
    class Quiet(AgentProcess):
        async def handle(self, message: Message) -> Message:
            return self.reply({})

    ask(Quiet("a"), {}, plugins=DECLARED)
    assert Parrot.made == 0


def test_without_plug_ins_there_is_none() -> None:
    class Looks(AgentProcess):
        async def handle(self, message: Message) -> Message:
            return self.reply({"llm": self.llm is None, "tools": self.tools is None, "key": self.get_credential("x")})

    assert Looks("x").llm is None
    assert Looks("x").tools is None
    assert ask(Looks("a"), {}) == {"llm": True, "tools": True, "key": None}


def test_objects_of_the_program_are_the_objects() -> None:
    parrot, registry = Parrot(api_key="mine"), ToolRegistry([Upper()])

    class Looks(AgentProcess):
        async def handle(self, message: Message) -> Message:
            return self.reply({"same": self.llm is parrot and self.tools is registry})

    assert ask(Looks("a"), {}, model_provider=parrot, tool_registry=registry) == {"same": True}
    assert Parrot.closed == 0, "it is the program's"


def test_objects_cannot_go_to_other_processes() -> None:
    with pytest.raises(
        ConfigurationError, match=r"model_provider is an object of this process.* Name its class in plugins="
    ):
        ask(Asker("a"), {"say": "x"}, model_provider=Parrot(), transport="shm")


def test_an_agent_without_a_process_may_be_given_what_it_needs() -> None:
    agent = Asker("a")
    agent.llm, agent.tools = Parrot(), ToolRegistry()
    assert agent.llm.default_model == "parrot-1"
    assert agent.tools.names() == []


def test_an_agents_key_goes_before_the_shared_one_and_to_nobody_else() -> None:
    plugins = Plugins(DECLARED)
    with_key = plugins.of(AgentSpec("a", "m.A", credentials={"parrot": "sk-of-a-alone"}))
    without = plugins.of(AgentSpec("b", "m.B"))
    assert plugins.default_model(with_key.credentials).config["api_key"] == "sk-of-a-alone"
    assert plugins.default_model(without.credentials).config["api_key"] == "shared"
    assert plugins.model("second", with_key.credentials).config == {}
    assert plugins.default_model(with_key.credentials) is plugins.default_model(with_key.credentials)
    shown = repr(with_key) + repr(AgentSpec("a", "m.A", credentials={"parrot": "sk-of-a-alone"})) + repr(DECLARED)
    assert "sk-of-a-alone" not in shown
    assert "shared" not in shown


def test_each_agent_has_a_registry_of_its_own() -> None:
    plugins = Plugins(DECLARED)
    first, second = plugins.tools(), plugins.tools()
    assert first is not None
    assert second is not None
    first.deregister("upper")
    assert second.names() == ["upper"]


def test_a_name_that_is_not_declared_is_told() -> None:
    with pytest.raises(PluginError, match="'parot': it is not declared; did you mean 'parrot'"):
        Plugins(DECLARED).model("parot", {})
    with pytest.raises(PluginError, match=r"plugins\.models in the topology declares none"):
        Plugins().model("parrot", {})


# --- spans --------------------------------------------------------------------------------------------------------


def traced(agent: AgentProcess, queue: SpanQueue) -> AgentProcess:
    plugins = Plugins(DECLARED, tracer=Tracer(queue))
    agent.equip(plugins.of(AgentSpec(agent.name, "m.A")))
    return agent


def test_each_call_is_a_span() -> None:
    queue = SpanQueue()
    agent = traced(Asker("a"), queue)

    async def run() -> None:
        await agent.llm.chat("", [{"role": "user", "content": "x"}])
        await agent.tools.get("upper").execute(text="x")
        await agent.tools.list_tools()[0].execute(text="x")
        with pytest.raises(TypeError):
            await agent.tools.get("upper").execute(nonsense=1)

    asyncio.run(run())
    chat, *tools = queue.get_batch()
    assert (chat.name, chat.attributes[names.MODEL], chat.attributes[names.COST_USD]) == (
        names.LLM_CHAT,
        "parrot-1",
        0.25,
    )
    assert [span.attributes[names.TOOL_NAME] for span in tools] == ["upper"] * 3
    assert [bool(span.error) for span in tools] == [False, False, True]
    assert {span.attributes[names.AGENT] for span in [chat, *tools]} == {"a"}
    assert agent.tools.get("nothing") is None
    assert len(agent.tools) == 1
    assert "upper" in agent.tools


def test_a_span_that_the_agent_opened_is_filled_in_and_not_doubled() -> None:
    queue = SpanQueue()
    agent = traced(Asker("a"), queue)

    async def run() -> None:
        with agent.llm_span("mine", purpose="test"):
            await agent.llm.chat("", [{"role": "user", "content": "x"}])
        with agent.tool_span("mine"):
            await agent.tools.get("upper").execute(text="x")

    asyncio.run(run())
    chat, tool = queue.get_batch()
    assert (chat.attributes[names.TOKENS_OUT], chat.attributes["purpose"]) == (3, "test")
    assert tool.attributes[names.TOOL_NAME] == "mine"
