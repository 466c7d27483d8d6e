"""What a model provider is: messages and tools in, text and tool calls out, with tokens and their price.

Shapes, the same for every provider, so that an agent need not know which one it has:

    messages   [{"role": "system" | "user" | "assistant", "content": text},
                response.as_message(), call.result("what the tool said")]
    tools      ToolProviders, or {"name": ..., "description": ..., "input_schema": JSON schema}

A message or tool in a vendor's own form is passed on as it is; then the agent is tied to that vendor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

if TYPE_CHECKING:
    from .tools import ToolProvider

__all__ = [
    "ModelProvider",
    "ModelResponse",
    "Price",
    "ToolCall",
    "cost_of",
    "named_model",
    "prices_from",
    "tool_schema",
]

Price = tuple[float, float]
"""USD for a million tokens: in, out."""

_DATED: Final = re.compile(r"-(\d{8}|\d{4}-\d{2}-\d{2}|latest)$")
"""The tail of a snapshot's name, `claude-haiku-4-5-20251001`: its price is that of the name before it."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model wants a tool called."""

    id: str
    """The vendor's; its answer bears the same."""
    name: str
    input: dict[str, Any]
    """The arguments, as the model made them up: do not trust them."""

    def result(self, content: Any) -> dict[str, Any]:
        """The message that answers it. What is not text is sent as JSON."""
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        return {"role": "tool", "tool_call_id": self.id, "content": text}


@dataclass(frozen=True, slots=True)
class ModelResponse:
    """What the model said."""

    content: str
    """The text; empty when there are only tool calls."""
    model: str
    """Which one answered, in the vendor's word."""
    tokens_in: int
    """Of all messages and tools, cached ones too."""
    tokens_out: int
    cost_usd: float | None = None
    """None: nobody told the price of this model."""
    tool_calls: list[ToolCall] | None = None
    stop_reason: str = ""
    """In the vendor's word; `max_tokens` and `length` mean that the text was cut off."""

    def as_message(self) -> dict[str, Any]:
        """The assistant's turn, to be put behind the messages before the tools' results."""
        calls = [{"id": call.id, "name": call.name, "input": call.input} for call in self.tool_calls or ()]
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        return message | {"tool_calls": calls} if calls else message


@runtime_checkable
class ModelProvider(Protocol):
    """A language model, or many behind one service. One object serves all agents of a process, concurrently."""

    async def chat(
        self,
        model: str,
        messages: list[dict[str, Any]],
        tools: list[Any] | None = None,
    ) -> ModelResponse:
        """One turn. May take minutes and never blocks the loop. An empty `model` means the provider's default.

        `messages`: dicts with `role` (system, user, assistant, tool) and `content` (a text, or blocks in the vendor's
        form), the oldest first; `ModelResponse.as_message` and `ToolCall.result` make two of them. `tools`: what
        `ToolRegistry.list_tools` gives, or dicts with `name`, `description` and `input_schema` (JSON schema).
        Tokens are the vendor's count.

        What it raises is a ModelError (what the service said), TimeoutError (its deadline), or ValueError (an
        impossible argument). Nothing is kept between calls.
        """
        ...


def tool_schema(tool: ToolProvider | Mapping[str, Any]) -> dict[str, Any] | None:
    """A tool as name, description and input_schema; None when it is in a vendor's own form."""
    given = tool if isinstance(tool, Mapping) else {"name": tool.name} | dict(tool.schema)
    function = given.get("function")
    if given.get("type") == "function" and isinstance(function, Mapping):
        given = function
    elif "type" in given and "properties" not in given:
        return None
    if "name" not in given:
        raise ValueError(f"a tool needs a name; given are only {', '.join(sorted(map(str, given)))}")
    plain = {"name": given["name"], "description": given.get("description", "")}
    for key in ("input_schema", "parameters"):
        if key in given:
            return plain | {"input_schema": given[key]}
    rest = {key: value for key, value in given.items() if key not in plain}
    return plain | {"input_schema": rest or {"type": "object", "properties": {}}}


def cost_of(model: str, tokens_in: float, tokens_out: float, prices: Mapping[str, Price]) -> float | None:
    """US dollars, or None when `prices` has neither `model` nor, if it ends with a date, the name before that."""
    price = prices.get(model) or prices.get(_DATED.sub("", model))
    return None if price is None else (tokens_in * price[0] + tokens_out * price[1]) / 1e6


def named_model(model: str, default: str) -> str:
    """The model that a call means; ValueError when neither names one."""
    if named := model or default:
        return named
    raise ValueError("no model is named: give one to chat(), or set default_model in the topology")


def prices_from(config: Mapping[str, Any] | None) -> dict[str, Price]:
    """`{model: {input: USD, output: USD}}`, for a million tokens, as it stands in a topology."""
    found: dict[str, Price] = {}
    for model, price in (config or {}).items():
        try:
            found[model] = (float(price["input"]), float(price["output"]))
        except (TypeError, KeyError, ValueError):
            raise ValueError(
                f"the price of {model!r} is {price!r}; it needs {{input: 3.0, output: 15.0}}, USD for a million tokens"
            ) from None
    return found
