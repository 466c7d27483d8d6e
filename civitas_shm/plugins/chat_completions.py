"""The wire form `chat/completions`, which OpenAI made and everybody speaks: ours to it and back. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .calls import Garbled
from .model import ModelResponse, Price, ToolCall, cost_of, tool_schema

__all__ = ["request_messages", "request_tools", "response_of"]


def request_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as they are sent; those in the vendor's own form stay what they are."""
    return [_message(message) for message in messages]


def _message(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not calls or "function" in calls[0]:
        return message
    return {
        "role": message["role"],
        "content": message.get("content") or None,
        "tool_calls": [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": json.dumps(call["input"], ensure_ascii=False)},
            }
            for call in calls
        ],
    }


def request_tools(tools: list[Any]) -> list[Any]:
    """Tools as they are sent."""
    return [_tool(tool) for tool in tools]


def _tool(tool: Any) -> Any:
    plain = tool_schema(tool)
    if plain is None:
        return tool
    function = {"name": plain["name"], "description": plain["description"], "parameters": plain["input_schema"]}
    return {"type": "function", "function": function}


def _calls_of(message: Any) -> list[ToolCall]:
    """The tool calls of an answer. Garbled when the model wrote arguments that are no JSON object."""
    found = []
    for call in message.tool_calls or ():
        try:
            arguments = json.loads(call.function.arguments or "{}")
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise Garbled(f"the model wrote arguments for {call.function.name!r} that are no JSON object")
        found.append(ToolCall(call.id, call.function.name, arguments))
    return found


def _tokens_of(answer: Any) -> tuple[int, int]:
    """In and out; zeros from servers that do not count."""
    usage = getattr(answer, "usage", None)
    return (0, 0) if usage is None else (usage.prompt_tokens or 0, usage.completion_tokens or 0)


def response_of(answer: Any, asked: str, prices: Mapping[str, Price], cost_usd: float | None = None) -> ModelResponse:
    """An answer in our form; `asked` is the model's name in the request, `cost_usd` counts where `prices` is silent."""
    try:
        choice = answer.choices[0]
        tokens_in, tokens_out = _tokens_of(answer)
        named = answer.model or asked
        for name in (asked, named):
            listed_usd = cost_of(name, tokens_in, tokens_out, prices)
            cost_usd = cost_usd if listed_usd is None else listed_usd
        return ModelResponse(
            content=choice.message.content or "",
            model=named,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            cost_usd=cost_usd,
            tool_calls=_calls_of(choice.message) or None,
            stop_reason=choice.finish_reason or "",
        )
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        raise Garbled(f"its answer is not understood: {error}") from None
