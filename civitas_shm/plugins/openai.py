"""Models of OpenAI and of every service that speaks its `chat/completions`: `pip install "civitas-shm[openai]"`.

    plugins:
      models:
        - type: openai
          config: {default_model: gpt-4.1}
        - name: local                       # vLLM, Ollama, a LiteLLM proxy, ...
          type: openai
          config: {default_model: llama3, base_url: "http://127.0.0.1:11434/v1"}

The key: `api_key` in the config, else `OPENAI_API_KEY`, which is sent to `base_url` too; an agent's credentials go
before both. A service with a `base_url` that wants no key needs none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from ..errors import PluginError
from .calls import Caller, explain, import_vendor
from .chat_completions import request_messages, request_tools, response_of
from .model import ModelResponse, named_model, prices_from
from .retry import RetryPolicy

__all__ = ["OpenAIProvider"]

TIMEOUT_S: Final = 600.0
"""The vendor's own default."""

NO_KEY: Final = "none"
"""What is sent to a service of the user's own when there is no key: the package insists on one."""


class OpenAIProvider:
    """See `ModelProvider`. Keyword arguments of `chat` beyond it go to `chat.completions.create` as they are."""

    requires: ClassVar = ("openai", '"civitas-shm[openai]"')

    def __init__(
        self,
        *,
        default_model: str = "",
        max_tokens: int | None = None,
        max_retries: int = 3,
        timeout_s: float = TIMEOUT_S,
        api_key: str | None = None,
        base_url: str | None = None,
        prices: Mapping[str, Any] | None = None,
    ) -> None:
        """`timeout_s` covers one `chat` with all its retries. `prices`: {model: {input, output}}, USD for a million."""
        vendor = import_vendor(self.requires[0], "openai", self.requires[1])
        self.default_model = default_model
        self.max_tokens = max_tokens
        self._prices = prices_from(prices)
        base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        # The vendor's newer models refuse `max_tokens`; other services do not know its new name.
        self._limit_name = "max_completion_tokens" if base_url is None else "max_tokens"
        key = api_key or os.environ.get("OPENAI_API_KEY") or (None if base_url is None else NO_KEY)
        if key is None:
            raise PluginError(
                "model", "openai", "there is no API key: set OPENAI_API_KEY, or the agent's credentials: {openai: ...}"
            )
        self._client = vendor.AsyncOpenAI(api_key=key, base_url=base_url, max_retries=0, timeout=timeout_s)
        self._caller = Caller(
            "openai", RetryPolicy(max_retries), timeout_s, lambda error: explain(vendor, error), lambda: [key]
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
        request: dict[str, Any] = {"model": model, "messages": request_messages(messages or [])}
        if self.max_tokens is not None:
            request[self._limit_name] = self.max_tokens
        if tools:
            request["tools"] = request_tools(tools)
        request |= options

        async def attempt(left_s: float) -> ModelResponse:
            answer = await self._client.chat.completions.create(**request, timeout=left_s)
            return response_of(answer, model, self._prices)

        return await self._caller.call(model, attempt)

    async def close(self) -> None:
        """Close its connections. Idempotent."""
        await self._client.close()

    def __repr__(self) -> str:
        return f"<OpenAIProvider {self.default_model or 'no default model'} at {self._client.base_url}>"
