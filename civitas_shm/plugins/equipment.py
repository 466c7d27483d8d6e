"""What an agent sees of plug-ins and traces: `self.llm`, `self.tools`, `self.tracer`, credentials and spans.

    async def handle(self, message):
        response = await self.llm.chat("", [{"role": "user", "content": message.payload["question"]}])
        return self.reply({"answer": response.content})

The first touch of `llm` or `tools` builds what the topology declares and imports the vendor's package, 0.3 to 1 s that
the whole process waits; an agent that minds touches it in `on_start`. Both can be assigned, in tests for example.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from ..observability import names
from ..observability.tracer import Tracer
from .traced import model_of, tools_of

if TYPE_CHECKING:
    from ..observability.spans import Span
    from .installed import Equipment

__all__ = ["Equipped"]

_NOT_ASKED: Final[Any] = object()
_IDLE_TRACER: Final = Tracer()
"""Of agents that no process has taken in yet."""


class Equipped:
    """Base of AgentProcess; holds nothing until something is touched."""

    name: str
    _hand_over: Callable[[Coroutine[Any, Any, Any]], Any] | None = None
    _equipment: Equipment | None = None
    _llm: Any = _NOT_ASKED
    _tools: Any = _NOT_ASKED

    def equip(self, equipment: Equipment) -> None:
        """For runners: before `on_start`."""
        self._equipment = equipment

    @property
    def tracer(self) -> Tracer:
        """Makes spans, which cost nothing while nobody wants them."""
        return _IDLE_TRACER if self._equipment is None else self._equipment.plugins.tracer

    @property
    def llm(self) -> Any:
        """The first of `plugins.models`, a ModelProvider; None when the topology declares none.

        PluginError when it cannot be built. In a plain `def handle` its methods are called without `await`.
        """
        if self._llm is _NOT_ASKED:
            equipment = self._equipment
            if equipment is None:
                return None
            self._llm = equipment.plugins.default_model(equipment.credentials)
        return None if self._llm is None else model_of(self._llm, self.tracer, self.name, self._hand_over)

    @llm.setter
    def llm(self, provider: Any) -> None:
        self._llm = provider

    @property
    def tools(self) -> Any:
        """The ToolRegistry of this agent, with `plugins.tools` in it; None when the topology declares none."""
        if self._tools is _NOT_ASKED:
            if self._equipment is None:
                return None
            self._tools = self._equipment.plugins.tools()
        return None if self._tools is None else tools_of(self._tools, self.tracer, self.name, self._hand_over)

    @tools.setter
    def tools(self, registry: Any) -> None:
        self._tools = registry

    def model_for(self, provider: str) -> Any:
        """The model provider of that name in `plugins.models`, with this agent's credential if it has one."""
        if self._equipment is None:
            raise RuntimeError(f"agent {self.name!r} is not running: model_for works from on_start on")
        found = self._equipment.plugins.model(provider, self._equipment.credentials)
        return model_of(found, self.tracer, self.name, self._hand_over)

    def get_credential(self, provider: str) -> str | None:
        """This agent's own key for a provider, from `credentials:` in the topology, or None."""
        return None if self._equipment is None else self._equipment.credentials.get(provider)

    def llm_span(self, model: str, **attributes: Any) -> Span:
        """A span around a model call, for `with`; a `self.llm.chat` inside fills in tokens and cost."""
        return self.tracer.start_llm_span(model, **{names.AGENT: self.name, **attributes})

    def tool_span(self, name: str, **attributes: Any) -> Span:
        """A span around a tool call, for `with`."""
        return self.tracer.start_tool_span(name, **{names.AGENT: self.name, **attributes})
