"""Models and tools as an agent gets them: each call a span, and called without `await` from a plain `def handle`.

Rules of this file: while nobody wants spans and the handler is `async def`, agents get the plug-in itself; a call that
is made within a span of the same kind that the agent opened (`self.llm_span`) fills in that one instead of another.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from ..observability import names
from ..observability.context import OPEN_SPAN
from ..observability.spans import Span
from ..observability.tracer import Tracer
from .model import ModelResponse

__all__ = ["Model", "Tool", "Tools", "model_of", "tools_of"]

HandOver = Callable[[Coroutine[Any, Any, Any]], Any]


def model_of(provider: Any, tracer: Tracer, agent: str, hand_over: HandOver | None) -> Any:
    """The provider, or what stands in front of it."""
    return provider if hand_over is None and not tracer.recording else Model(provider, tracer, agent, hand_over)


def tools_of(registry: Any, tracer: Tracer, agent: str, hand_over: HandOver | None) -> Any:
    """The registry, or what stands in front of it."""
    return registry if hand_over is None and not tracer.recording else Tools(registry, tracer, agent, hand_over)


class _Front:
    """Passes everything on; coroutine functions are handed over to the loop where the handler has none."""

    def __init__(self, behind: Any, tracer: Tracer, agent: str, hand_over: HandOver | None) -> None:
        self._behind = behind
        self._tracer = tracer
        self._agent = agent
        self._hand_over = hand_over

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return work if self._hand_over is None else self._hand_over(work)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._behind, name)
        if self._hand_over is None or not inspect.iscoroutinefunction(value):
            return value
        return lambda *args, **kwargs: self._run(value(*args, **kwargs))

    def __repr__(self) -> str:
        return repr(self._behind)


class Model(_Front):
    """A model provider."""

    def chat(self, *args: Any, **kwargs: Any) -> Any:
        """As the provider's."""
        return self._run(self._chat(args, kwargs))

    async def _chat(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        outer = OPEN_SPAN.get()
        if outer is not None and outer.name == names.LLM_CHAT:
            response = await self._behind.chat(*args, **kwargs)
            _describe(outer, self._behind, response)
            return response
        asked = kwargs.get("model") or (args[0] if args else "") or getattr(self._behind, "default_model", "")
        with self._tracer.start_llm_span(str(asked), **{names.AGENT: self._agent}) as span:
            response = await self._behind.chat(*args, **kwargs)
            _describe(span, self._behind, response)
            return response


def _describe(span: Span, provider: Any, response: Any) -> None:
    """Tokens and cost; of a provider that returns something of its own, what can be seen."""
    if not isinstance(response, ModelResponse):
        return
    span.set_attribute(names.PROVIDER, getattr(provider, "requires", (type(provider).__name__,))[0])
    span.set_attribute(names.MODEL, response.model)
    span.set_attribute(names.TOKENS_IN, response.tokens_in)
    span.set_attribute(names.TOKENS_OUT, response.tokens_out)
    if response.cost_usd is not None:
        span.set_attribute(names.COST_USD, response.cost_usd)


class Tool(_Front):
    """One tool."""

    def execute(self, **arguments: Any) -> Any:
        """As the tool's."""
        return self._run(self._execute(arguments))

    async def _execute(self, arguments: dict[str, Any]) -> Any:
        outer = OPEN_SPAN.get()
        if outer is not None and outer.name == names.TOOL_CALL:
            return await self._behind.execute(**arguments)
        with self._tracer.start_tool_span(self._behind.name, **{names.AGENT: self._agent}) as span:
            result = await self._behind.execute(**arguments)
            span.set_attribute(names.STATUS, "ok")
            return result


class Tools(_Front):
    """A registry."""

    def get(self, name: str) -> Tool | None:
        """The tool, or None."""
        tool = self._behind.get(name)
        return None if tool is None else self._tool(tool)

    def list_tools(self) -> list[Tool]:
        """All of them."""
        return [self._tool(tool) for tool in self._behind.list_tools()]

    def _tool(self, tool: Any) -> Tool:
        return Tool(tool, self._tracer, self._agent, self._hand_over)

    def __contains__(self, name: object) -> bool:
        return name in self._behind

    def __len__(self) -> int:
        return len(self._behind)
