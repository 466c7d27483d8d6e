"""Tracer: makes spans if somebody wants them, and hands out one that does nothing if not.

Somebody wants them when the tracer has a queue, or when the program has set an OpenTelemetry provider in this process
(`opentelemetry.trace.set_tracer_provider`); then each span is mirrored by one of OpenTelemetry's, in the same trace.

Rules of this file:
- OpenTelemetry is used through its API only, and only if somebody else has imported it: a program that does not trace
  does not pay 50 ms of import, and no exporter is ever started here;
- off means one call and one comparison. It is never called on a message's way; the ids that messages carry are made
  in native code.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import names
from .context import current_context, new_span_id, new_trace_id
from .spans import NO_SPAN, Span, SpanQueue

if TYPE_CHECKING:
    from ..messages import Message

__all__ = ["Span", "Tracer"]


class Tracer:
    """Of one process. All methods may be called from any thread."""

    def __init__(self, span_queue: SpanQueue | None = None) -> None:
        self._queue = span_queue

    @property
    def recording(self) -> bool:
        """Whether spans go anywhere."""
        return self._queue is not None or _opentelemetry() is not None

    def start_span(
        self,
        name: str,
        trace_id: str = "",
        parent_span_id: str | None = None,
        attributes: dict[str, Any] | None = None,
    ) -> Span:
        """A span; without `trace_id`, below the open one or the message in hand, else the first of a new trace."""
        opentelemetry = _opentelemetry()
        if self._queue is None and opentelemetry is None:
            return NO_SPAN
        if not trace_id:
            here = current_context()
            trace_id = here.trace_id or new_trace_id()
            parent_span_id = parent_span_id or here.span_id or None
        on_end = None if self._queue is None else self._queue.put_nowait
        if opentelemetry is None:
            return Span(name, trace_id, new_span_id(), parent_span_id, attributes, on_end=on_end)
        mirror = _mirror(opentelemetry, name, trace_id, parent_span_id)
        own = mirror.get_span_context()
        if not own.is_valid:  # the provider samples this one out without an id
            return Span(name, trace_id, new_span_id(), parent_span_id, attributes, on_end=on_end)
        return Span(
            name, f"{own.trace_id:032x}", f"{own.span_id:016x}", parent_span_id, attributes,
            on_end=on_end, mirror=mirror,
        )  # fmt: skip

    # --- kinds of spans -------------------------------------------------------------------------------------------

    def start_send_span(self, message: Message) -> Span:
        """`send {type}`, beside the ids that the message carries."""
        return self.start_span(f"send {message.type}", message.trace_id, message.parent_span_id)

    def start_receive_span(self, message: Message) -> Span:
        """`recv {type}`, below the span that the message carries."""
        return self.start_span(f"recv {message.type}", message.trace_id, message.span_id)

    def start_llm_span(self, model: str, **attributes: Any) -> Span:
        """One call of a model."""
        return self.start_span(names.LLM_CHAT, attributes={names.OPERATION: "chat", names.MODEL: model, **attributes})

    def end_llm_span(self, span: Span, *, tokens_in: int, tokens_out: int, cost_usd: float | None = None) -> None:
        """It is done, and took so many tokens; `cost_usd` None: the price is not known."""
        span.set_attribute(names.TOKENS_IN, tokens_in)
        span.set_attribute(names.TOKENS_OUT, tokens_out)
        if cost_usd is not None:
            span.set_attribute(names.COST_USD, cost_usd)
        span.end()

    def start_tool_span(self, name: str, **attributes: Any) -> Span:
        """One call of a tool."""
        return self.start_span(
            names.TOOL_CALL, attributes={names.OPERATION: "execute_tool", names.TOOL_NAME: name, **attributes}
        )

    def end_tool_span(self, span: Span, *, status: str = "ok") -> None:
        """It is done; any other status than `ok` is an error."""
        span.set_attribute(names.STATUS, status)
        if status != "ok":
            span.set_error(status)
        span.end()

    # --- ids ------------------------------------------------------------------------------------------------------

    @staticmethod
    def new_trace_id() -> str:
        """32 hex digits."""
        return new_trace_id()

    @staticmethod
    def new_span_id() -> str:
        """16 hex digits."""
        return new_span_id()

    def flush(self) -> None:
        """Nothing is kept back here: a span is in the queue, or with OpenTelemetry's provider, when it has ended."""


def _opentelemetry() -> ModuleType | None:
    """The API, if a provider that records was set in this process."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    provider = trace.get_tracer_provider()
    return None if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)) else trace


def _mirror(trace: ModuleType, name: str, trace_id: str, parent_span_id: str | None) -> Any:
    """OpenTelemetry's span, started now, below a remote parent that has the message's ids; without one, a new trace."""
    context = trace.Context()
    if parent_span_id:
        flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
        parent = trace.SpanContext(int(trace_id, 16), int(parent_span_id, 16), is_remote=True, trace_flags=flags)
        context = trace.set_span_in_context(trace.NonRecordingSpan(parent), context)
    return trace.get_tracer("civitas_shm").start_span(name, context=context)
