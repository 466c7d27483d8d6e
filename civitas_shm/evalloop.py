"""The evaluation loop: agents show what they do, an EvalAgent looks at it, and corrects or halts them.

    class Guard(EvalAgent):
        async def on_eval_event(self, event):
            if "password" in event.payload.get("text", ""):
                return CorrectionSignal("redirect", "it gives secrets away")

    await self.emit_eval("answer", {"text": text}, eval_agent="guard")      # in the agent that is looked at

Rules of this file:
- exporters get each event before it is judged, one after the other; what they raise is logged and changes nothing;
- an agent gets at most `max_corrections_per_window` corrections within `window_seconds` (monotonic time); what is more
  is logged and dropped. A halt is never dropped for that: it is what is left when corrections do not help;
- corrections overtake what waits, and no other agent can send one: they are notices of the runtime (`notices`).
"""

from __future__ import annotations

import inspect
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, get_args, runtime_checkable

from .behaviours import EVAL_EVENT
from .errors import CivitasError
from .messages import Message
from .notices import CORRECTION, HALT, encode_fields
from .plugins.loader import load_plugin
from .process import AgentProcess
from .serializer import encode
from .tracebacks import format_exception

__all__ = ["CorrectionSignal", "EvalAgent", "EvalEvent", "EvalExporter", "Severity", "Window"]

Severity = Literal["nudge", "redirect", "halt"]


@dataclass(frozen=True, slots=True)
class EvalEvent:
    """What an agent has shown."""

    agent_name: str
    """Who did: the sender of the message, which no agent can forge. Only the program may name another one."""
    event_type: str
    payload: dict[str, Any]
    trace_id: str = ""
    message_id: str = ""
    timestamp: float = 0.0
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class CorrectionSignal:
    """What shall be done about it. `payload` goes along to `on_correction`."""

    severity: Severity
    """`nudge` and `redirect` call `on_correction`; `halt` ends the agent in good order, and it is not restarted."""
    reason: str
    payload: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.severity not in get_args(Severity):
            raise ValueError(f"severity is {self.severity!r}; it must be {', '.join(get_args(Severity))}")


@runtime_checkable
class EvalExporter(Protocol):
    """Takes events to where people look at them. `export` may be `async def` or `def`."""

    def export(self, event: EvalEvent) -> Any:
        """Called for each event, in order. What it raises is logged."""
        ...


class Window:
    """At most `most` within any `window_s` seconds, for each key by itself."""

    def __init__(self, most: int, window_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._window_s = window_s
        self._now_s = now_s
        self._times: dict[str, deque[float]] = {}

    def admits(self, key: str) -> bool:
        """Whether one more fits, which it then counts."""
        now_s = self._now_s()
        for known in [*self._times]:  # those that come and go without end leave nothing behind
            times = self._times[known]
            while times and times[0] <= now_s - self._window_s:
                times.popleft()
            if not times:
                del self._times[known]
        times = self._times.setdefault(key, deque())
        if len(times) >= self._most:
            return False
        times.append(now_s)
        return True


class EvalAgent(AgentProcess):
    """Base class; override `on_eval_event`. As it is, it hands events to its exporters and corrects nobody."""

    _kind = "eval"

    def __init__(
        self,
        name: str,
        max_corrections_per_window: int = 10,
        window_seconds: float = 60.0,
        exporters: Iterable[EvalExporter | Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, **kwargs)
        if max_corrections_per_window < 0:
            raise ValueError(
                f"max_corrections_per_window of {name!r} is {max_corrections_per_window}; it must be 0 or more"
            )
        if not window_seconds > 0:
            raise ValueError(f"window_seconds of {name!r} is {window_seconds!r}; it must be more than 0")
        self.max_corrections_per_window = max_corrections_per_window
        self.window_seconds = window_seconds
        self.exporters: list[EvalExporter] = [
            load_plugin("eval_exporter", one["type"], one.get("config")) if isinstance(one, Mapping) else one
            for one in exporters or ()
        ]
        """Objects, or `{"type": "module.Class", "config": {...}}`, which is built here, where the agent runs."""
        self._window: Final = Window(max_corrections_per_window, window_seconds)

    async def on_eval_event(self, event: EvalEvent) -> CorrectionSignal | None:
        """Judge one event; None: all is well. May be `def`."""
        return None

    async def handle(self, message: Message) -> Message | None:
        if message.type != EVAL_EVENT:
            self.log.warning("a message of type %r from %r is no eval event", message.type, message.sender)
            return None
        event = _event(message)
        for exporter in self.exporters:
            try:
                await _awaited(exporter.export(event))
            except Exception as error:  # noqa: BLE001 - the user's code, see the rules
                self.log.error("exporter %s failed:\n%s", type(exporter).__qualname__, format_exception(error))
        signal = await _awaited(self.on_eval_event(event))
        if signal is not None:
            await self._correct(event.agent_name, signal, message)
        return None

    async def _correct(self, target: str, signal: CorrectionSignal, message: Message) -> None:
        if signal.severity != "halt" and not self._window.admits(target):
            self.log.warning(
                "%r has had %d corrections within %g s: a %s is dropped (%s)",
                target, self.max_corrections_per_window, self.window_seconds, signal.severity, signal.reason,
            )  # fmt: skip
            return
        fields = {**signal.payload, "severity": signal.severity, "reason": signal.reason}
        encode(fields)  # what no payload may hold is refused here, as in any send
        kind = HALT if signal.severity == "halt" else CORRECTION
        to = self._attachment()
        try:
            await to.bus.notify(target, encode_fields(fields), kind, to.mailbox, message.header)
        except CivitasError as error:  # it has stopped, or it never was: nobody is left to be corrected
            self.log.warning("%r cannot be corrected: %s", target, error)


def _event(message: Message) -> EvalEvent:
    payload = dict(message.payload)
    named, kind = payload.pop("agent_name", ""), payload.pop("event_type", "")
    return EvalEvent(
        agent_name=str(named) if message.sender == "_runtime" and named else message.sender,
        event_type=str(kind),
        payload=payload,
        trace_id=message.trace_id,
        message_id=message.id,
        timestamp=message.timestamp,
    )


async def _awaited(result: Any) -> Any:
    return (await result) if inspect.isawaitable(result) else result
