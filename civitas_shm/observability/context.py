"""Which trace a piece of work belongs to, and below which span: read from the message in hand.

Rules of this file: nothing is made up while a message is handled: its header has the ids, and the native code has
already put the same ones into whatever the handler sends. A context variable holds the span that is open, so that a
tool called within a model call is its child.
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, NamedTuple

from ..current import HANDLED

if TYPE_CHECKING:
    from .spans import Span

__all__ = ["OPEN_SPAN", "TraceContext", "current_context", "new_span_id", "new_trace_id"]

OPEN_SPAN: Final[ContextVar[Span | None]] = ContextVar("civitas_shm.open_span", default=None)
"""The innermost span that was opened as a context manager and is not closed."""


class TraceContext(NamedTuple):
    """Ids as hex text, as `Message` shows them; both empty where nothing is being traced or handled."""

    trace_id: str
    span_id: str


NOWHERE: Final = TraceContext("", "")


def current_context() -> TraceContext:
    """The open span, else the message being handled, else nothing."""
    span = OPEN_SPAN.get()
    if span is not None:
        return TraceContext(span.trace_id, span.span_id)
    message = HANDLED.get()
    return NOWHERE if message is None else TraceContext(message.trace_id, message.span_id)


def new_trace_id() -> str:
    """32 hex digits."""
    return os.urandom(16).hex()


def new_span_id() -> str:
    """16 hex digits."""
    return os.urandom(8).hex()
