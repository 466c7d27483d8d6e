"""What a standby does while it waits: the start of an agent, once, on nothing.

A process that was just forked shares all pages with the fork server and has run none of its code: its first agent would
pay a page fault for nearly every step, three of the six milliseconds of a restart. A standby has time, so it pays them
before it gets its slot.

Rules of this file:
- it is the workers' own code (`Orders`, `AgentRunner`, bus, serializer) over a transport without shared memory; nothing
  of it is seen outside of this process, and nothing of it stays but warm memory;
- a rehearsal that fails costs time at the next restart and nothing else; it says so on stderr.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Final

import msgspec

from ..messages import Message
from ..process import AgentProcess
from ..topology.model import AgentSpec
from ..transport import MailboxSpec, load_transport
from . import wire
from .orders import Orders
from .protocol import StartAgent, StopAgent, ToWorker

__all__ = ["rehearse"]

TIMEOUT_S: Final = 1.0
"""It takes some 10 ms; a standby that is wanted meanwhile is late by the rest of it."""

NAME: Final = "_rehearsal"


class Extra(AgentProcess):
    """Answers."""

    async def handle(self, message: Message) -> Message:
        return self.reply(message.payload)


def rehearse(loops: asyncio.Runner) -> None:
    """Play it on the loop that the process will use."""
    try:
        loops.run(asyncio.wait_for(_play(), TIMEOUT_S))
    except Exception as error:  # noqa: BLE001 - it only costs time; the real start says what is wrong
        print(f"the rehearsal of a standby failed: {type(error).__name__}: {error}", file=sys.stderr)


async def _play() -> None:
    transport = load_transport("in_process")
    port: Any = transport.create()
    port.start(asyncio.get_running_loop())
    started = asyncio.get_running_loop().create_future()

    def on_report(report: Any) -> None:
        if not started.done():
            started.set_result(report)

    orders = Orders(port, on_report)
    spec = AgentSpec(NAME, f"{__name__}.{Extra.__name__}")
    order = StartAgent(msgspec.to_builtins(spec), port.add_mailbox(MailboxSpec(NAME)), 1)
    [heard] = wire.FrameDecoder[ToWorker](ToWorker).feed(wire.encode_frame(order))
    assert isinstance(heard, StartAgent)
    orders.obey(heard)
    await started
    await orders.runner.bus.ask(NAME, {"n": 1}, timeout=TIMEOUT_S)
    orders.obey(StopAgent(NAME, "current", TIMEOUT_S))
    await orders.runner.stop(NAME)
    await orders.close()
    port.stop()
