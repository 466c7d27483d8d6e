"""Orders as a process obeys them, over the transport without processes: what is reported, of which life of an agent."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from civitas_shm import AgentProcess, Message
from civitas_shm.host.orders import Orders
from civitas_shm.host.protocol import AgentReport, StartAgent, StopAgent
from civitas_shm.topology.model import AgentSpec
from civitas_shm.transport import MailboxSpec, load_transport


class Idle(AgentProcess):
    async def handle(self, message: Message) -> None: ...


SPEC = AgentSpec("a", f"{__name__}.Idle")


class Process:
    """Obeys, and keeps what it reports."""

    def __init__(self) -> None:
        self.reports: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        port: Any = load_transport("in_process").create()
        port.start(asyncio.get_running_loop())
        self.port = port
        self.mailbox = port.add_mailbox(MailboxSpec("a"))
        self.orders = Orders(port, self._note)

    def _note(self, report: Any) -> None:
        assert isinstance(report, AgentReport)
        self.reports.put_nowait((report.event["event"], report.incarnation))

    def start(self, incarnation: int) -> None:
        self.orders.obey(StartAgent(msgspec.to_builtins(SPEC), self.mailbox, incarnation))

    async def close(self) -> None:
        await self.orders.runner.stop_all()
        await self.orders.close()
        self.port.stop()


def test_a_report_names_the_life_that_it_is_about() -> None:
    async def test() -> None:
        process = Process()
        for incarnation in (3, 8):
            process.start(incarnation)
            assert await process.reports.get() == ("AgentStarted", incarnation)
            process.orders.obey(StopAgent("a", "current", 5.0))
            assert await process.reports.get() == ("AgentExited", incarnation)
        assert not process.orders._lives, "nothing is kept of an agent that is gone"
        await process.close()

    asyncio.run(test())


def test_a_life_that_was_left_behind_is_ended_before_the_next_one_begins() -> None:
    async def test() -> None:
        process = Process()
        process.start(1)  # its on_start blocks for so long that the host declares it failed; then it runs all the same
        assert await process.reports.get() == ("AgentStarted", 1)
        process.start(2)
        assert await process.reports.get() == ("AgentExited", 1)
        assert await process.reports.get() == ("AgentStarted", 2)
        await process.close()

    asyncio.run(test())
