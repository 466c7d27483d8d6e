"""A span: one named piece of work with a beginning, an end, ids and attributes; and those who may receive it.

Guarantees:
- `end` counts once, however often it is called; what is set after it is ignored;
- a receiver that raises or does not read harms nobody: spans are dropped, oldest first, and counted.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from contextvars import Token
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Protocol, Self, runtime_checkable

from .context import OPEN_SPAN

__all__ = ["NO_SPAN", "ExportBackend", "NoSpan", "Span", "SpanData", "SpanQueue"]

QUEUE_SPANS: Final = 10_000
"""Some 10 MB; at 25 µs a recorded span a quarter of a second of nothing but spans."""


@dataclass(frozen=True, slots=True)
class SpanData:
    """A finished span. Times are nanoseconds since 1970; ids are hex text."""

    name: str
    trace_id: str
    span_id: str
    parent_span_id: str | None
    start_ns: int
    end_ns: int
    attributes: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    """What went wrong, one line; empty: it went well."""


@runtime_checkable
class ExportBackend(Protocol):
    """Where finished spans go, in batches. Neither method may raise for a span that it does not like."""

    def export(self, spans: list[SpanData]) -> None:
        """Take a batch; it may block, so it is never called on the loop of agents."""
        ...

    def shutdown(self) -> None:
        """Nothing comes any more; write out what is kept. Idempotent."""
        ...


class SpanQueue:
    """Finished spans on their way to whoever exports them. Never full: the oldest one gives way."""

    def __init__(self, maxsize: int = QUEUE_SPANS) -> None:
        if maxsize < 1:
            raise ValueError(f"a span queue of {maxsize} holds nothing; it needs at least 1")
        self._spans: deque[SpanData] = deque(maxlen=maxsize)
        self.dropped = 0

    def put_nowait(self, span: SpanData) -> None:
        """Add one; what gives way is counted in `dropped`."""
        if len(self._spans) == self._spans.maxlen:
            self.dropped += 1
        self._spans.append(span)

    def get_batch(self, limit: int = 50) -> list[SpanData]:
        """Up to `limit` spans, the oldest first; they are the caller's."""
        return [self._spans.popleft() for _ in range(min(limit, len(self._spans)))]

    def __len__(self) -> int:
        return len(self._spans)


class Span:
    """Work being measured. As a context manager it is the parent of what happens inside, and an exception ends it."""

    __slots__ = (
        "_mirror", "_on_end", "_token", "attributes", "end_ns", "error", "name", "parent_span_id", "span_id",
        "start_ns", "trace_id",
    )  # fmt: skip

    recording = True

    def __init__(
        self,
        name: str,
        trace_id: str,
        span_id: str,
        parent_span_id: str | None = None,
        attributes: dict[str, Any] | None = None,
        *,
        on_end: Callable[[SpanData], None] | None = None,
        mirror: Any = None,
    ) -> None:
        """`on_end` receives the finished span; `mirror` is an OpenTelemetry span that does the same as this one."""
        self.name = name
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent_span_id = parent_span_id
        self.attributes: dict[str, Any] = dict(attributes or {})
        self.start_ns = time.time_ns()
        self.end_ns = 0
        self.error = ""
        self._on_end = on_end
        self._mirror = mirror
        self._token: Token[Span | None] | None = None

    def set_attribute(self, key: str, value: Any) -> None:
        """Text, number or truth; the last value of a key counts."""
        if not self.end_ns:
            self.attributes[key] = value

    def set_error(self, error: BaseException | str) -> None:
        """It went wrong. The first error counts."""
        if not self.end_ns and not self.error:
            self.error = error if isinstance(error, str) else f"{type(error).__qualname__}: {error}"

    def end(self) -> None:
        """The work is done."""
        if self.end_ns:
            return
        self.end_ns = time.time_ns()
        if self._mirror is not None:
            self._end_mirror()
        if self._on_end is not None:
            self._on_end(
                SpanData(
                    self.name,
                    self.trace_id,
                    self.span_id,
                    self.parent_span_id,
                    self.start_ns,
                    self.end_ns,
                    self.attributes,
                    self.error,
                )
            )

    def _end_mirror(self) -> None:
        # Only what OpenTelemetry can carry; it would log a warning for each of the others.
        self._mirror.set_attributes(
            {key: value for key, value in self.attributes.items() if isinstance(value, (str, bool, int, float))}
        )
        if self.error:
            trace = sys.modules["opentelemetry.trace"]  # where the mirror comes from
            self._mirror.set_status(trace.Status(trace.StatusCode.ERROR, self.error))
        self._mirror.end()

    def __enter__(self) -> Self:
        self._token = OPEN_SPAN.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            OPEN_SPAN.reset(self._token)
            self._token = None
        if error is not None:
            self.set_error(error)
        self.end()


class NoSpan(Span):
    """What there is while nobody wants spans: one object for all, which keeps nothing."""

    __slots__ = ()
    recording = False

    def set_attribute(self, key: str, value: Any) -> None:
        pass

    def set_error(self, error: BaseException | str) -> None:
        pass

    def end(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


NO_SPAN: Final = NoSpan("", "", "")
