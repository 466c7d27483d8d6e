"""Models of Anthropic, through its own package: `pip install "civitas-shm[anthropic]"`.

    plugins:
      models:
        - type: anthropic
          config: {default_model: claude-sonnet-4-6, max_tokens: 8192, max_retries: 3}

The key: `ANTHROPIC_API_KEY`, or whatever else that package finds by itself; an agent's `credentials: {anthropic: ...}`
goes before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from .calls import Caller, Garbled, explain, import_vendor
from .model import ModelResponse, Price, ToolCall, cost_of, named_model, prices_from, tool_schema
from .retry import RetryPolicy

__all__ = ["PRICES", "AnthropicProvider"]

PRICES: Final[dict[str, Price]] = {
    "claude-opus-4-6": (5.0, 25.0),
    "claude-opus-4-5": (5.0, 25.0),
    "claude-opus-4-1": (15.0, 75.0),
    "claude-sonnet-4-6": (3.0, 15.0),
    "claude-sonnet-4-5": (3.0, 15.0),
    "claude-haiku-4-5": (1.0, 5.0),
}
"""List prices as the vendor's price page (platform.claude.com, about-claude/pricing) had them; read 2026-11-21. Models
that are not here have no cost until `prices:` names one."""

CACHE_WRITE: Final = 1.25
CACHE_READ: Final = 0.1
"""What a token that goes into the prompt cache, or comes from it, costs of one that does neither; same page."""

MAX_TOKENS: Final = 4096
"""The interface demands a limit; every model allows this one."""

TIMEOUT_S: Final = 600.0
"""The vendor's own default."""


class AnthropicProvider:
    """See `ModelProvider`. Keyword arguments of `chat` beyond it go to `messages.create` as they are."""

    requires: ClassVar = ("anthropic", '"civitas-shm[anthropic]"')
    """The package that must be there, and what to install for it."""

    def __init__(
        self,
        *,
        default_model: str = "",
        max_tokens: int = MAX_TOKENS,
        max_retries: int = 3,
        timeout_s: float = TIMEOUT_S,
        api_key: str | None = None,
        base_url: str | None = None,
        prices: Mapping[str, Any] | None = None,
    ) -> None:
        """`timeout_s` covers one `chat` with all its retries. `prices`: {model: {input, output}}, USD for a million."""
        vendor = import_vendor(self.requires[0], "anthropic", self.requires[1])
        self.default_model = default_model
        self.max_tokens = max_tokens
        self._prices = PRICES | prices_from(prices)
        self._client = vendor.AsyncAnthropic(api_key=api_key, base_url=base_url, max_retries=0, timeout=timeout_s)
        self._caller = Caller(
            "anthropic",
            RetryPolicy(max_retries),
            timeout_s,
            lambda error: explain(vendor, error),
            lambda: [self._client.api_key, self._client.auth_token],
        )

    async def chat(
        self,
        model: str = "",
        messages: list[dict[str, Any]] | None = None,
        tools: list[Any] | None = None,
        **options: Any,
    ) -> ModelResponse:
        """One turn; see `ModelProvider.chat`."""
        model = named_model(model, self.default_model)
        system, turns = to_wire(messages or [])
        request: dict[str, Any] = {"model": model, "max_tokens": self.max_tokens, "messages": turns}
        if system:
            request["system"] = system
        if tools:
            request["tools"] = [tool_schema(tool) or tool for tool in tools]
        request |= options

        async def attempt(left_s: float) -> ModelResponse:
            return self._understood(await self._client.messages.create(**request, timeout=left_s))

        return await self._caller.call(model, attempt)

    def _understood(self, answer: Any) -> ModelResponse:
        try:
            blocks, usage = list(answer.content), answer.usage
            text = "".join(block.text for block in blocks if block.type == "text")
            calls = [ToolCall(b.id, b.name, dict(b.input)) for b in blocks if b.type == "tool_use"]
            written, read = usage.cache_creation_input_tokens or 0, usage.cache_read_input_tokens or 0
            weighted = usage.input_tokens + written * CACHE_WRITE + read * CACHE_READ
            return ModelResponse(
                content=text,
                model=answer.model,
                tokens_in=usage.input_tokens + written + read,
                tokens_out=usage.output_tokens,
                cost_usd=cost_of(answer.model, weighted, usage.output_tokens, self._prices),
                tool_calls=calls or None,
                stop_reason=answer.stop_reason or "",
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise Garbled(f"its answer is not understood: {error}") from None

    async def close(self) -> None:
        """Close its connections. Idempotent."""
        await self._client.close()

    def __repr__(self) -> str:
        return f"<AnthropicProvider {self.default_model or 'no default model'} at {self._client.base_url}>"


def to_wire(messages: list[dict[str, Any]]) -> tuple[str | list[Any], list[dict[str, Any]]]:
    """The system prompt apart, and the turns in the vendor's form: results of tools are blocks of one user turn."""
    system: list[Any] = []
    turns: list[dict[str, Any]] = []
    for message in messages:
        role, content = message.get("role"), message.get("content", "")
        if role == "system":
            system += content if isinstance(content, list) else [{"type": "text", "text": content}]
        elif role == "tool":
            block = {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": content}
            if turns and turns[-1]["role"] == "user" and isinstance(turns[-1]["content"], list):
                turns[-1]["content"].append(block)
            else:
                turns.append({"role": "user", "content": [block]})
        elif "tool_calls" in message:
            said = [{"type": "text", "text": content}] if content else []
            calls = [{"type": "tool_use", **call} for call in message["tool_calls"]]
            turns.append({"role": "assistant", "content": [*said, *calls]})
        else:
            turns.append(message if not isinstance(content, list) else {**message, "content": [*content]})
    texts = [block["text"] for block in system if block.keys() == {"type", "text"}]
    return ("\n\n".join(texts) if len(texts) == len(system) else system), turns
