"""Messages, tools and prices in our form, and into the vendors' and back."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest

from civitas_shm.plugins.anthropic import PRICES, to_wire
from civitas_shm.plugins.chat_completions import request_messages, request_tools
from civitas_shm.plugins.model import ModelProvider, ModelResponse, ToolCall, cost_of, prices_from, tool_schema

CALL = ToolCall("t1", "search", {"q": "ü"})
TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "look"},
    ModelResponse("let me see", "m", 1, 1, tool_calls=[CALL, ToolCall("t2", "clock", {})]).as_message(),
    CALL.result({"hits": 3}),
    ToolCall("t2", "clock", {}).result("noon"),
]


def test_a_turn_with_tools_in_anthropics_form() -> None:
    system, turns = to_wire(TURNS)
    assert system == "be short"
    assert turns == [
        {"role": "user", "content": "look"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "let me see"},
                {"type": "tool_use", "id": "t1", "name": "search", "input": {"q": "ü"}},
                {"type": "tool_use", "id": "t2", "name": "clock", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": '{"hits": 3}'},
                {"type": "tool_result", "tool_use_id": "t2", "content": "noon"},
            ],
        },
    ]


def test_the_same_turn_in_openais_form() -> None:
    system, user, assistant, first, second = request_messages(TURNS)
    assert (system["role"], user["content"]) == ("system", "look")
    assert [call["function"]["name"] for call in assistant["tool_calls"]] == ["search", "clock"]
    assert json.loads(assistant["tool_calls"][0]["function"]["arguments"]) == {"q": "ü"}
    assert first == {"role": "tool", "tool_call_id": "t1", "content": '{"hits": 3}'}
    assert second["content"] == "noon"


def test_what_is_in_a_vendors_form_is_passed_on_and_not_changed() -> None:
    blocks: list[Any] = [{"type": "image", "source": {}}]
    message = {"role": "user", "content": blocks}
    _, turns = to_wire([message, {"role": "tool", "tool_call_id": "x", "content": "y"}])
    assert turns[0]["content"][0] == blocks[0]
    assert len(blocks) == 1, "the caller's own list grew"
    native = {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]}
    assert request_messages([native]) == [native]


def test_system_blocks_stay_blocks() -> None:
    block = {"type": "text", "text": "long", "cache_control": {"type": "ephemeral"}}
    system, _ = to_wire([{"role": "system", "content": [block]}])
    assert system == [block]


class Search:
    name = "search"
    schema: ClassVar = {
        "description": "Looks.",
        "input_schema": {"type": "object", "properties": {"q": {"type": "string"}}},
    }

    async def execute(self, q: str) -> str:
        return q


@pytest.mark.parametrize(
    "tool",
    [
        Search(),
        {"name": "search", "description": "Looks.", "input_schema": Search.schema["input_schema"]},
        {"name": "search", "description": "Looks.", "parameters": Search.schema["input_schema"]},
        {
            "type": "function",
            "function": {"name": "search", "description": "Looks.", "parameters": Search.schema["input_schema"]},
        },
    ],
)
def test_a_tool_is_the_same_however_it_is_written(tool: Any) -> None:
    assert tool_schema(tool) == {"name": "search"} | Search.schema
    (wire,) = request_tools([tool])
    assert wire["function"] == {
        "name": "search",
        "description": "Looks.",
        "parameters": Search.schema["input_schema"],
    }


def test_a_schema_alone_is_that_of_the_arguments() -> None:
    class Bare(Search):
        schema: ClassVar = {"type": "object", "properties": {"q": {"type": "string"}}}

    assert tool_schema(Bare()) == {"name": "search", "description": "", "input_schema": Bare.schema}


def test_a_vendors_own_tool_is_passed_on() -> None:
    own = {"type": "web_search_20250305", "name": "web_search"}
    assert tool_schema(own) is None
    assert request_tools([own]) == [own]


def test_a_tool_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="a tool needs a name; given are only description"):
        tool_schema({"description": "what"})


def test_cost_is_that_of_the_model_or_of_its_dated_snapshots_and_of_no_other() -> None:
    assert cost_of("claude-sonnet-4-6", 1_000_000, 1_000_000, PRICES) == 18
    assert cost_of("claude-haiku-4-5-20251001", 1_000_000, 0, PRICES) == 1
    assert cost_of("claude-opus-4-10", 1, 1, {"claude-opus-4-1": (15, 75)}) is None
    assert cost_of("gpt-4.1-mini", 1, 1, {"gpt-4.1": (2, 8)}) is None
    assert cost_of("gpt-4.1-2025-04-14", 0, 1_000_000, {"gpt-4.1": (2, 8)}) == 8


def test_prices_say_what_they_need() -> None:
    assert prices_from({"m": {"input": 1, "output": 2.5}}) == {"m": (1, 2.5)}
    with pytest.raises(ValueError, match=r"the price of 'm' is 3; it needs \{input"):
        prices_from({"m": 3})


def test_the_protocol_is_structural() -> None:
    class Mine:
        async def chat(self, model: str, messages: list[Any], tools: Any = None) -> ModelResponse:
            return ModelResponse("", model, 0, 0)

    assert isinstance(Mine(), ModelProvider)
    assert not isinstance(object(), ModelProvider)
