"""AgentRunner: the agents of one process, over one Port.

It starts and stops them and reports what happens to them; what follows from a crash is not decided here, because in a
worker the host decides and in process the runtime does. One agent's work is in `seat`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from .alone import Alone
from .errors import AgentStopped
from .events import (
    AgentEvent,
    AgentExited,
    AgentFailed,
    AgentStarted,
    DeadLetter,
    EventHandler,
    MessageSummary,
    StopRuntime,
)
from .parked import Park
from .petitions import Supervise
from .plugins.installed import Plugins
from .port_bus import PortBus, nobody_supervises
from .process import AgentProcess
from .seat import BATCH_MESSAGES, Seat
from .state import InMemoryStateStore, StateKind, StateStore
from .suspended import GatheredWaits, direct, gathered
from .topology.model import AgentSpec, Drain
from .tracebacks import format_exception
from .transport import Port

__all__ = [
    "BATCH_MESSAGES",
    "AgentEvent",
    "AgentExited",
    "AgentFailed",
    "AgentRunner",
    "AgentStarted",
    "DeadLetter",
    "EventHandler",
    "MessageSummary",
    "StopRuntime",
]

DRAIN_LOOK_S: Final = 0.01
"""How often `stop_all(drain="all")` looks whether every mailbox is empty; only at the end of a run."""


def _log_event(event: AgentEvent) -> None:
    logging.getLogger(__name__).debug("%s", event)


class AgentRunner:
    """Runs agents. All methods belong to the thread of the loop that the Port was started on."""

    def __init__(
        self,
        port: Port,
        *,
        on_event: EventHandler = _log_event,
        store: StateStore | None = None,
        plugins: Plugins | None = None,
        supervise: Supervise = nobody_supervises,
        expected: int | None = None,
        bus: PortBus | None = None,
    ) -> None:
        """`expected`: how many agents this process will be told to run; None: not known. `bus`: one over this port."""
        self.port = port
        self.store: StateStore = InMemoryStateStore() if store is None else store
        """Of agents with `state: in_memory`: outlives them, not this process. Others use that of `plugins`."""
        self.plugins = plugins or Plugins()
        self.bus = PortBus(port) if bus is None else bus
        self.bus.supervise = supervise
        self.bus.registry.is_local = self._lives_here
        self._on_event = on_event
        self._supervise = supervise
        self._seats: dict[str, Seat] = {}
        self._park = Park()
        self.on_look: Callable[[], None] | None = None
        """Called after each note of who waits for whom, see `_look`."""
        self.bus.waits.on_look = self._look
        self.bus.own_handler = self._own_handler
        self._alone = Alone(expected)
        self._gathered = GatheredWaits()

    @property
    def agents(self) -> dict[str, AgentProcess]:
        """The agents that start, run or stop just now, by name, in start order."""
        return {name: seat.agent for name, seat in self._seats.items()}

    async def start(self, agent: AgentProcess, mailbox: int, spec: AgentSpec) -> bool:
        """Run `on_start`, then take messages from `mailbox`. Whether it runs; an event says the same, and why not.

        ValueError when an agent of that name runs here already. Nothing that the agent's code raises escapes.
        """
        if spec.name in self._seats:
            raise ValueError(f"agent {spec.name!r} runs in this process already")
        loop = asyncio.get_running_loop()
        agent.equip(self.plugins.of(spec))
        try:
            kind, store = self._place_of_state(spec)
        except Exception as error:  # noqa: BLE001 - a plug-in that cannot be had; supervision decides what follows
            text = format_exception(error)
            self._on_event(AgentFailed(spec.name, type(error).__qualname__, str(error), text, "on_start", None))
            return False
        seat = Seat(
            agent, mailbox, spec, self.bus, self._on_event, self._left, loop, threading.get_ident(), self._park,
            kind, store, self._supervise, self._alone,
        )  # fmt: skip
        self._seats[spec.name] = seat
        return await seat.start()

    def _place_of_state(self, spec: AgentSpec) -> tuple[StateKind, StateStore]:
        """What `state: store` comes down to; and the store, if it is one. PluginError when it cannot be built."""
        if spec.state != "store" or spec.replicas > 1:
            return "in_memory" if spec.state == "store" else spec.state, self.store
        store = self.plugins.state_store()
        return ("in_memory", self.store) if store is None else ("store", store)

    async def stop(self, name: str, *, drain: Drain = "current", timeout_s: float = 30.0) -> bool:
        """Let the agent finish the message in hand (`all`: all that wait), then `on_stop`.

        False when its handler did not end within `timeout_s`: it was cancelled and its message stays in hand. True
        for an agent that is not here: it has stopped already.
        """
        seat = self._seats.get(name)
        return True if seat is None else await seat.stop(drain, timeout_s)

    async def steer(self, name: str, what: str, fields: dict[str, Any]) -> None:
        """Suspend or resume an agent; returns when it is done. AgentStopped: it is not here."""
        seat = self._seats.get(name)
        if seat is None:
            raise AgentStopped(f"Agent {name!r} does not run in this process.")
        await seat.steer(what, fields)

    async def crash(self, name: str, reason: str, wanted: bool = False) -> None:
        """End the agent as if it had crashed, at once: its handler is cancelled and its message stays in hand.

        `wanted`: somebody wants it to be restarted, else an agent that it is linked with has crashed.
        """
        seat = self._seats.get(name)
        if seat is not None:
            await seat.crash(reason, wanted)

    async def stop_all(self, drain: Drain = "current", timeout_s: float = 30.0) -> bool:
        """Stop every agent, the last started first, within one deadline. Whether all ended by themselves.

        With `all`, agents go on until every mailbox here is empty and nobody is busy; only then is the first one
        stopped, because a message may still make others.
        """
        deadline = time.monotonic() + timeout_s
        if drain == "all":
            await self.drained(timeout_s)
        in_time = True
        for name in reversed(list(self._seats)):
            in_time &= await self.stop(name, timeout_s=max(0.0, deadline - time.monotonic()))
        return in_time

    async def drained(self, timeout_s: float) -> bool:
        """Return when nothing waits for any agent here and nobody is busy. False when that takes longer."""
        deadline = time.monotonic() + timeout_s
        while not self._empty():
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(DRAIN_LOOK_S)
        return True

    # --- who waits for whom -------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Note what the handlers here wait for. Called every LOOK_S while anything in this process waits."""
        seen_ns = time.monotonic_ns()  # what has come by now is collected, so whoever waits after it did so then
        self.port.collect()
        awaited: dict[asyncio.Future[Any], int] = {}
        several: dict[asyncio.Future[Any], int] = {}
        for seat in self._seats.values():
            future = direct(seat.own_task)
            if future is not None:
                awaited[future] = seat.mailbox
                several.update(dict.fromkeys(gathered(future), seat.mailbox))
        waits = self.bus.waits
        self.port.note_waits(
            [*waits.of(awaited, seen_ns), *self._gathered.of(waits.of(several, seen_ns) if several else (), seen_ns)]
        )
        if self.on_look is not None:
            self.on_look()

    def _lives_here(self, name: str) -> bool:
        return name in self._seats

    def _own_handler(self, mailbox: int) -> bool:
        current = asyncio.current_task()
        return any(seat.mailbox == mailbox and seat.own_task is current for seat in self._seats.values())

    def _empty(self) -> bool:
        readings = [self.port.stats(seat.mailbox) for seat in self._seats.values() if not seat.suspended]
        return all(reading.waiting == 0 and reading.in_hand == 0 for reading in readings)

    def _left(self, seat: Seat) -> None:
        if self._seats.get(seat.spec.name) is seat:
            del self._seats[seat.spec.name]
