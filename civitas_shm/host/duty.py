"""A worker's time in its loop: it waits for a slot, takes it, obeys, and leaves.

Rules of this file:
- what a slot means (cores, priority, environment, memory) is in effect before any user code is imported, and nothing of
  the run is changed before there is one;
- the whole way stands here, so that a standby can rehearse it (`rehearsal`): after the slot has come, each step that is
  taken for the first time is felt by whoever waits for the agent;
- whatever goes wrong in taking the slot is raised by `served`, and ends the process.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from ..plugins.installed import Plugins
from ..topology.model import PluginsSpec
from ..transport import Port, TransportModule, load_transport
from . import kernel, wire
from .orders import Orders
from .protocol import Assign, Leave, Ready, ToWorker

__all__ = ["Duty", "Entrance"]

KEEPER_AFTER_S: Final = 0.25
"""What makes the next death short is made when this start is over: it takes 0.1 ms."""


class Entrance:
    """The way into a run's memory; its first part may be gone before there is a slot."""

    def __init__(self, transport: str, memory_fds: Sequence[int]) -> None:
        """`transport`: its name where it is known beforehand; `memory_fds`: those that this process was born with."""
        self._fds = list(memory_fds)
        self._name = transport
        self._module: TransportModule | None = load_transport(transport) if transport else None
        self._ahead: Callable[[dict[str, Any]], Port] | None = None

    def go_ahead(self) -> None:
        """As far as one can without a slot. What does not check out is said when there is one."""
        if self._module is not None and self._module.approach is not None and self._fds:
            try:
                self._ahead = self._module.approach(self._fds)
            except (OSError, ValueError):
                pass

    def enter(self, assign: Assign) -> Port:
        """As the process of the slot. What it raises: see `TransportModule.attach`."""
        if self._module is None or self._name != assign.transport:
            self._module, self._ahead = load_transport(assign.transport), None
        if self._ahead is not None:
            return self._ahead(assign.attach)
        if self._module.attach is None:
            raise RuntimeError(f"transport {assign.transport!r} does not reach other processes")
        return self._module.attach(assign.attach, self._fds or list(assign.memory_fds))

    def keep_memory(self) -> None:
        """See `TransportModule.keep_memory`. Once this process has entered."""
        if self._module is not None and self._module.keep_memory is not None:
            self._module.keep_memory()


class Duty:
    """Of one worker. Made on its running loop."""

    def __init__(
        self,
        control: socket.socket,
        enter: Callable[[Assign], Port],
        set_levels: Callable[[str, dict[str, str]], object],
        keep_memory: Callable[[], object] | None = None,
    ) -> None:
        """`set_levels`: of what is told of the log, in all and by agent."""
        self._loop = asyncio.get_running_loop()
        self._enter = enter
        self._set_levels = set_levels
        self._keep_memory = keep_memory
        self._port: Port | None = None
        self.orders: Orders | None = None
        """There once it has a slot."""
        self._left: asyncio.Future[int] = self._loop.create_future()
        self._channel: wire.Channel[ToWorker] = wire.Channel(self._loop, control, ToWorker, self._heard, self._ended)

    async def served(self) -> int:
        """Return when it is over: 0 if the host has said so or never needed this process, 1 if the host is gone."""
        try:
            return await self._left
        finally:
            if self.orders is not None:
                await self.orders.close()
            if self._port is not None:
                self._port.stop()
            self._channel.close()

    def _heard(self, message: Any, fds: list[int]) -> None:
        if self._left.done():
            return
        if self.orders is None:
            try:
                self.orders = self._take_slot(message)
            except Exception as error:  # noqa: BLE001 - raised by `served`
                self._left.set_exception(error)
        elif isinstance(message, Leave):
            self._left.set_result(0)
        else:
            self.orders.obey(message)

    def _ended(self, error: Exception | None) -> None:
        if not self._left.done():
            self._left.set_result(0 if self.orders is None else 1)

    def _take_slot(self, assign: Any) -> Orders:
        if not isinstance(assign, Assign):
            raise wire.WireError(f"a process without a slot was sent {type(assign).__name__}")
        _settle_in(assign)
        self._set_levels(assign.log_level, assign.log_levels)
        self._port = port = self._enter(assign)
        port.start(self._loop)
        plugins = Plugins(PluginsSpec.from_plain(assign.plugins))
        orders = Orders(port, self._channel.send, plugins=plugins, expected=assign.agents)
        self._channel.send(Ready(assign.slot))
        if self._keep_memory is not None:
            self._loop.call_later(KEEPER_AFTER_S, self._keep_memory)
        return orders


def _settle_in(assign: Assign) -> None:
    """Everything that must hold before user code is imported."""
    kernel.set_name(f"civ-{assign.process}")
    os.environ.update(assign.env)
    sys.path[:0] = [path for path in assign.import_paths if path not in sys.path]
    if assign.cpus:
        os.sched_setaffinity(0, assign.cpus)
    if assign.nice:
        os.setpriority(os.PRIO_PROCESS, 0, assign.nice)
