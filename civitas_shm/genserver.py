"""GenServer: an agent that answers calls and keeps state, as Erlang's.

    class Counter(GenServer):
        async def init(self):
            self.state.setdefault("total", 0)

        async def handle_call(self, payload, from_):
            return {"total": self.state["total"]}

        async def handle_cast(self, payload):
            self.state["total"] += payload["by"]

    total = (await self.call("counter", {}))["total"]      # from another agent; `runtime.call` from the program

Rules of this file: who asked is answered by `handle_call`, a payload with `__cast__` goes to `handle_cast` without it,
everything else to `handle_info`. A server that answers something else than a dictionary, or does not implement what it
is asked for, crashes: its supervisor decides.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from .behaviours import CAST
from .errors import CivitasError
from .messages import Message
from .observability.names import AGENT
from .process import AgentProcess

__all__ = ["GenServer"]


class GenServer(AgentProcess):
    """Base class. Override `init`, `handle_call`, `handle_cast` and `handle_info`; each may be `async def` or `def`."""

    _kind = "srv"
    _timers: set[asyncio.Handle | asyncio.Task[None]] | None = None

    # --- hooks ----------------------------------------------------------------------------------------------------

    async def init(self) -> None:
        """Once per start and restart, before the first message; `state` is restored already."""

    async def handle_call(self, payload: dict[str, Any], from_: str) -> dict[str, Any]:
        """Somebody waits for what this returns. `from_`: the name of who asks; `_runtime` is the program."""
        raise NotImplementedError(f"{type(self).__name__} has no handle_call, and {from_!r} asked {self.name!r}")

    async def handle_cast(self, payload: dict[str, Any]) -> None:
        """Somebody tells something and does not wait."""
        raise NotImplementedError(f"{type(self).__name__} has no handle_cast, which {self.name!r} was sent")

    async def handle_info(self, payload: dict[str, Any]) -> None:
        """Any other message: an ordinary `send`, or what `send_after` has sent."""
        raise NotImplementedError(f"{type(self).__name__} has no handle_info, which {self.name!r} was sent")

    # --- timers ---------------------------------------------------------------------------------------------------

    def send_after(self, delay_ms: float, payload: dict[str, Any]) -> None:
        """Send this agent a message that goes to `handle_info`, in so many milliseconds.

        It is a timer of this life: when the agent stops or crashes it never comes. To be called on the loop.
        """
        if not delay_ms >= 0:
            raise ValueError(f"delay_ms of send_after is {delay_ms!r}; it must be 0 or more")
        to = self._attachment()
        timers = self._timers = set() if self._timers is None else self._timers

        def due() -> None:
            timers.discard(handle)
            sending = to.loop.create_task(self._send_itself(payload))
            timers.add(sending)
            sending.add_done_callback(timers.discard)

        handle = to.loop.call_later(delay_ms / 1000, due)
        timers.add(handle)

    async def _send_itself(self, payload: dict[str, Any]) -> None:
        to = self._attachment()
        try:
            await to.bus.send(self.name, payload, sender=to.mailbox)
        except CivitasError as error:
            self.log.error("what send_after was to send is lost: %s", error)

    def _life_ends(self) -> None:
        for timer in self._timers or ():
            timer.cancel()
        self._timers = None
        super()._life_ends()

    # --- dispatch -------------------------------------------------------------------------------------------------

    async def on_start(self) -> None:
        await _awaited(self.init())

    async def handle(self, message: Message) -> Message | None:
        payload = message.payload
        if message.reply_to is not None:
            with self._span("civitas.genserver.call"):
                answer = await _awaited(self.handle_call(payload, message.sender))
            if not isinstance(answer, dict):
                raise TypeError(
                    f"handle_call of {type(self).__name__} returned {type(answer).__name__}; it must return a dict"
                )
            return self.reply(answer)
        if CAST in payload:
            with self._span("civitas.genserver.cast"):
                await _awaited(self.handle_cast({key: value for key, value in payload.items() if key != CAST}))
        else:
            with self._span("civitas.genserver.info"):
                await _awaited(self.handle_info(payload))
        return None

    def _span(self, name: str) -> Any:
        return self.tracer.start_span(name, attributes={AGENT: self.name})


async def _awaited(result: Any) -> Any:
    """What a hook returned, awaited if it was `async def`."""
    return (await result) if inspect.isawaitable(result) else result
