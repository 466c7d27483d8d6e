"""What a standby does while it waits: the start of an agent, once, on nothing.

A process that was just forked shares all pages with the fork server and has run none of its code: its first agent would
pay a page fault for nearly every step, three of the six milliseconds of a restart. A standby has time, so it pays them
before it gets its slot.

Rules of this file:
- it is the workers' own code (`Duty`, `Orders`, `AgentRunner`, bus, serializer, the port of their transport) over
  memory of this process alone; nothing of it is seen outside, and nothing of it stays but warm memory;
- a rehearsal that fails costs time at the next restart and nothing else; it says so on stderr.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any, Final

import msgspec

from ..messages import Message
from ..process import AgentProcess
from ..topology.model import AgentSpec
from ..transport import MailboxSpec, Port, load_transport
from . import wire
from .duty import Duty, Entrance
from .protocol import AgentReport, Assign, FromWorker, Leave, StartAgent, StopAgent

__all__ = ["rehearse"]

TIMEOUT_S: Final = 1.0
"""It takes some 10 ms; a standby that is wanted meanwhile is late by the rest of it."""

NAME: Final = "_rehearsal"


class Extra(AgentProcess):
    """Answers."""

    async def handle(self, message: Message) -> Message:
        return self.reply(message.payload)


def rehearse(
    loops: asyncio.Runner,
    transport: str = "in_process",
    set_levels: Callable[[str, dict[str, str]], object] = lambda level, levels: None,
) -> None:
    """Play it on the loop that the process will use, over a private run of the transport that it will use."""
    try:
        loops.run(asyncio.wait_for(_play(transport, set_levels), TIMEOUT_S))
    except Exception as error:  # noqa: BLE001 - it only costs time; the real start says what is wrong
        print(f"the rehearsal of a standby failed: {type(error).__name__}: {error}", file=sys.stderr)


async def _play(transport: str, set_levels: Callable[[str, dict[str, str]], object]) -> None:
    module = load_transport(transport)
    if module.stage is not None:
        with module.stage(NAME) as (fds, attach, mailbox):
            entrance = Entrance(transport, fds)
            entrance.go_ahead()
            await _act(entrance.enter, set_levels, transport, attach, mailbox)
    else:
        port: Any = load_transport("in_process").create()
        await _act(lambda assign: port, set_levels, transport, {}, port.add_mailbox(MailboxSpec(NAME)))


async def _act(
    enter: Callable[[Assign], Port],
    set_levels: Callable[[str, dict[str, str]], object],
    transport: str,
    attach: dict[str, Any],
    mailbox: int,
) -> None:
    loop = asyncio.get_running_loop()
    mine, its = wire.socket_pair()
    duty = Duty(its, enter, set_levels)
    served = loop.create_task(duty.served())
    started = loop.create_future()

    def on_report(message: FromWorker, fds: list[int]) -> None:
        if isinstance(message, AgentReport) and not started.done():
            started.set_result(None)

    host: wire.Channel[FromWorker] = wire.Channel(loop, mine, FromWorker, on_report, lambda error: None)
    try:
        plugins: dict[str, Any] = {"models": [], "tools": []}
        cpus, paths = sorted(os.sched_getaffinity(0)), sys.path[:1]  # so that nothing changes
        host.send(Assign("standby", 0, transport, attach, [], {}, cpus, 0, paths, "INFO", {}, plugins, 1))
        spec = AgentSpec(NAME, f"{__name__}.{Extra.__name__}")
        host.send(StartAgent(msgspec.to_builtins(spec), mailbox, 1))
        await started
        assert duty.orders is not None
        await duty.orders.runner.bus.ask(NAME, {"n": 1}, timeout=TIMEOUT_S)
        host.send(StopAgent(NAME, "current", TIMEOUT_S))
        await duty.orders.runner.stop(NAME)
        host.send(Leave())
        await served
    finally:
        host.close()
