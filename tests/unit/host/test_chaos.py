"""Faults on purpose hit who may be hit, and nobody stays stopped."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from civitas_shm.host.chaos import ChaosMaker
from civitas_shm.host.protocol import Chaos

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs pidfds")


@dataclass(eq=False)
class Worker:
    pid: int
    pidfd: int


class Seats:
    """A driver with one process that may be hit."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.worker = Worker(pidfd=os.pidfd_open(process.pid), pid=process.pid)
        self.seats: list[Any] = [SimpleNamespace(name="w1", worker=self.worker)]
        self.killed: list[Any] = []
        self.stopped: list[Any] = []

    def victims(self) -> list[Any]:
        return self.seats

    def kill_for_chaos(self, seat: Any) -> None:
        self.killed.append(seat)

    def note_stop(self, seat: Any, for_s: float) -> None:
        self.stopped.append((seat, for_s))


@pytest.fixture
def driver() -> Iterator[Seats]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        seats = Seats(process)
        yield seats
        os.close(seats.worker.pidfd)
        process.kill()


def status(driver: Seats) -> str:
    return str(psutil.Process(driver.worker.pid).status())


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def test_a_stopped_process_goes_on_after_its_time_and_is_stopped_again(driver: Seats) -> None:
    async def test() -> None:
        chaos = ChaosMaker(asyncio.get_running_loop(), Chaos(stop_s=0.02, stop_for_s=0.05), driver)
        for stops in (1, 2):
            await until(lambda: len(driver.stopped) == stops and status(driver) == psutil.STATUS_STOPPED)  # noqa: B023
            await until(lambda: status(driver) != psutil.STATUS_STOPPED)
        chaos.close()
        assert not driver.killed

    asyncio.run(test())


def test_who_is_stopped_goes_on_at_the_end_of_the_chaos(driver: Seats) -> None:
    async def test() -> None:
        chaos = ChaosMaker(asyncio.get_running_loop(), Chaos(stop_s=0.01, stop_for_s=3600), driver)
        await until(lambda: status(driver) == psutil.STATUS_STOPPED)
        await asyncio.sleep(0.05)
        assert len(driver.stopped) == 1, "nobody is stopped twice"
        chaos.close()
        await until(lambda: status(driver) != psutil.STATUS_STOPPED)

    asyncio.run(test())


def test_a_process_that_died_while_it_was_stopped_is_left_alone(driver: Seats) -> None:
    async def test() -> None:
        chaos = ChaosMaker(asyncio.get_running_loop(), Chaos(stop_s=0.01, stop_for_s=0.05), driver)
        await until(lambda: driver.stopped)
        fd, driver.worker.pidfd = driver.worker.pidfd, -1  # as the pool does when it has reaped it
        driver.seats.clear()
        await asyncio.sleep(0.1)
        chaos.close()
        driver.worker.pidfd = fd

    asyncio.run(test())


def test_kills_come_at_their_interval_and_only_while_there_is_a_victim(driver: Seats) -> None:
    async def test() -> None:
        chaos = ChaosMaker(asyncio.get_running_loop(), Chaos(kill_s=0.01), driver)
        await until(lambda: len(driver.killed) == 3)
        driver.seats.clear()
        await asyncio.sleep(0.05)
        assert len(driver.killed) == 3
        chaos.close()

    asyncio.run(test())
