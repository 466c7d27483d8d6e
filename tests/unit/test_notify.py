"""What a service manager hears, over a real datagram socket, with a loop whose time is real and its work the test's."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from civitas_shm.notify import ServiceReports, ServiceSettings, take_service_settings

if sys.platform != "linux":
    pytest.skip("sd_notify is Linux's", allow_module_level=True)


class Manager:
    """The other end."""

    def __init__(self, address: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind("\0" + address[1:] if address.startswith("@") else address)
        self.sock.setblocking(False)

    def heard(self) -> list[str]:
        lines = []
        while True:
            try:
                lines += self.sock.recv(4096).decode().split("\n")
            except BlockingIOError:
                return lines


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.sock.close()


def reports(
    address: str, watchdog_s: float | None, progress: Callable[[], int], status: str = "fine"
) -> ServiceReports:
    loop = asyncio.get_running_loop()
    return ServiceReports(loop, ServiceSettings(address, watchdog_s), status=lambda: status, progress=progress)


def test_settings_are_taken_out_of_the_environment_and_only_if_they_are_meant_for_us() -> None:
    environ = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "7", "HOME": "/"}
    assert take_service_settings(environ, 7) == ServiceSettings("/run/notify", 3.0)
    assert environ == {"HOME": "/"}
    assert take_service_settings(environ, 7) is None
    for other in ({"WATCHDOG_PID": "8"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "0"}):
        environ = {"NOTIFY_SOCKET": "@abstract", "WATCHDOG_USEC": "3000000", **other}
        assert take_service_settings(environ, 7) == ServiceSettings("@abstract", None)
    for nothing in ("", "/", "relative/path", "vsock:2:1"):
        assert take_service_settings({"NOTIFY_SOCKET": nothing}, 7) is None


def test_ready_status_and_stopping_are_told_once(manager: Manager) -> None:
    async def test() -> None:
        one = reports(manager.sock.getsockname(), None, lambda: 1)
        one.ready()
        one.ready()
        one.stopping()
        one.stopping()
        one.close()
        assert manager.heard() == ["READY=1", "STATUS=fine", "STOPPING=1"]

    asyncio.run(test())


def test_pings_come_while_there_is_progress_and_end_when_there_is_none(manager: Manager) -> None:
    done = 0

    async def test() -> None:
        nonlocal done
        one = reports(manager.sock.getsockname(), 0.06, lambda: done)
        one.ready()
        heard: list[str] = []
        while heard.count("WATCHDOG=1") < 5:
            done += 1
            await asyncio.sleep(0.01)
            heard += manager.heard()
        await asyncio.sleep(0.1)  # the last progress is told
        manager.heard()
        await asyncio.sleep(0.2)  # the loop turns, but its work stands still
        assert "WATCHDOG=1" not in manager.heard()
        done += 1
        while "WATCHDOG=1" not in manager.heard():
            await asyncio.sleep(0.01)
        one.close()

    asyncio.run(test())


def test_a_blocked_loop_is_silent(manager: Manager) -> None:
    async def test() -> None:
        one = reports(manager.sock.getsockname(), 0.03, lambda: time.monotonic_ns())
        while "WATCHDOG=1" not in manager.heard():
            await asyncio.sleep(0.005)
        time.sleep(0.2)
        assert manager.heard() == []
        one.close()

    asyncio.run(test())


def test_the_deadline_of_start_and_stop_is_put_off_while_there_is_progress(manager: Manager) -> None:
    turns = iter(range(10**6))

    async def test() -> None:
        one = reports(manager.sock.getsockname(), 0.03, lambda: next(turns))

        async def put_off() -> None:
            while not any(word.startswith("EXTEND_TIMEOUT_USEC=") for word in manager.heard()):
                await asyncio.sleep(0.005)

        await put_off()
        one.ready()
        manager.heard()
        await asyncio.sleep(0.1)
        heard = manager.heard()
        assert "WATCHDOG=1" in heard
        assert not any(word.startswith("EXTEND") for word in heard)
        one.stopping()
        await put_off()
        one.close()

    asyncio.run(test())


def test_an_abstract_address_works(tmp_path: Path) -> None:
    manager = Manager(f"@civitas-test-{os.getpid()}")

    async def test() -> None:
        one = reports(f"@civitas-test-{os.getpid()}", None, lambda: 0, status="two\nlines")
        one.ready()
        one.close()

    asyncio.run(test())
    assert manager.heard() == ["READY=1", "STATUS=two lines"]
    manager.sock.close()


def test_a_manager_that_does_not_read_or_is_gone_blocks_nobody(manager: Manager, tmp_path: Path) -> None:
    async def test() -> None:
        one = reports(manager.sock.getsockname(), 0.003, lambda: time.monotonic_ns())
        one.ready()
        await asyncio.sleep(0.3)  # more than its queue takes
        manager.sock.close()
        os.unlink(tmp_path / "notify")
        await asyncio.sleep(0.05)
        one.stopping()
        one.close()

    asyncio.run(test())
