"""Any model that LiteLLM knows: `pip install "litellm>=1.100,<2" mcp`, and in the topology the path of this class.

    plugins:
      models:
        - type: civitas_shm.plugins.litellm.LiteLLMProvider
          config: {default_model: gemini/gemini-2.5-pro}

It is no extra of civitas-shm, on purpose: it brings 58 packages, and two of its releases (1.82.7, 1.82.8) stole
credentials. An answer that is not understood it calls a fault 500 of the service, so that is tried again here, unlike
with the other providers. A LiteLLM proxy needs only `type: openai` with `base_url`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from .calls import Caller, explain, import_vendor
from .chat_completions import request_messages, request_tools, response_of
from .model import ModelResponse, named_model, prices_from
from .retry import Failure, RetryPolicy

__all__ = ["LiteLLMProvider"]

TIMEOUT_S: Final = 600.0


class LiteLLMProvider:
    """See `ModelProvider`. Keyword arguments of `chat` beyond it go to `litellm.acompletion` as they are."""

    requires: ClassVar = ("litellm", '"litellm>=1.100,<2" mcp')
    """It imports `mcp` for every call with tools, without requiring it."""

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
        """`timeout_s` covers one `chat` with all its retries. Costs are LiteLLM's unless `prices` has the model."""
        self._vendor = import_vendor(self.requires[0], "litellm", self.requires[1])
        openai = import_vendor("openai", "litellm", self.requires[1])  # its errors are derived from these
        self.default_model = default_model
        self.max_tokens = max_tokens
        self._prices = prices_from(prices)
        self._fixed = {"api_key": api_key, "base_url": base_url}
        self._caller = Caller(
            "litellm", RetryPolicy(max_retries), timeout_s, lambda error: _explained(openai, error), lambda: [api_key]
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
        request: dict[str, Any] = {"model": model, "messages": request_messages(messages or []), "num_retries": 0}
        request |= {name: value for name, value in self._fixed.items() if value is not None}
        if self.max_tokens is not None:
            request["max_tokens"] = self.max_tokens
        if tools:
            request["tools"] = request_tools(tools)
        request |= options

        async def attempt(left_s: float) -> ModelResponse:
            answer = await self._vendor.acompletion(**request, timeout=left_s, max_retries=0)
            counted_usd = (getattr(answer, "_hidden_params", None) or {}).get("response_cost")
            return response_of(answer, model, self._prices, counted_usd)

        return await self._caller.call(model, attempt)

    async def close(self) -> None:
        """Close its connections. They are LiteLLM's own, shared by all that use it in this process. Idempotent."""
        await self._vendor.close_litellm_async_clients()

    def __repr__(self) -> str:
        return f"<LiteLLMProvider {self.default_model or 'no default model'}>"


def _explained(openai: Any, error: Exception) -> Failure | None:
    """In our words. Its errors derive from openai's, but keep status and headers in places of their own."""
    if not isinstance(error, openai.APIError) or isinstance(error, openai.APIResponseValidationError):
        return explain(openai, error)
    headers = getattr(error, "litellm_response_headers", None) or getattr(error, "headers", None) or {}
    return Failure(
        str(error.message),
        type(error).__name__,
        getattr(error, "status_code", None),
        {str(name).lower(): str(value) for name, value in headers.items()},
    )
