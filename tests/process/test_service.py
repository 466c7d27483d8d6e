"""A run under a service manager: a real datagram socket hears what systemd would, and restarts as its unit says."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator

import pytest

if sys.platform != "linux":
    pytest.skip("shared memory needs Linux", allow_module_level=True)

from .cli import Shell, until

pytestmark = pytest.mark.process


class Manager:
    """What systemd is to a service of Type=notify with NotifyAccess=all."""

    def __init__(self, shell: Shell) -> None:
        path = str(shell.folder / "n")
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(path)
        self.sock.setblocking(False)
        shell.env |= {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "600000"}
        self.all: list[str] = []

    def heard(self) -> list[str]:
        new = []
        while True:
            try:
                new += self.sock.recv(4096).decode().split("\n")
            except BlockingIOError:
                self.all += new
                return new

    def until(self, word: str) -> None:
        while word not in self.heard():
            time.sleep(0.01)


@pytest.fixture
def manager(shell: Shell) -> Iterator[Manager]:
    manager = Manager(shell)
    yield manager
    manager.sock.close()


def test_ready_pings_while_the_host_works_silence_when_it_hangs_and_stopping(shell: Shell, manager: Manager) -> None:
    run = shell.popen("run", "-q", shell.topology("web", "SlowAtStart"))
    manager.until("READY=1")
    assert shell.ps()["web"]["state"] == "running"
    assert any(word.startswith("EXTEND_TIMEOUT_USEC=") for word in manager.all)  # while it started
    for _ in range(3):
        manager.until("WATCHDOG=1")
    host = shell.ps()["web"]["host_pid"]
    os.kill(host, signal.SIGSTOP)
    time.sleep(0.3)
    manager.heard()
    time.sleep(0.7)  # longer than WATCHDOG_USEC: here systemd would end it
    assert manager.heard() == []
    os.kill(host, signal.SIGCONT)
    manager.until("WATCHDOG=1")
    assert any(word.startswith("STATUS=running: 2 agents in 1 processes") for word in manager.all)
    run.send_signal(signal.SIGTERM)
    manager.until("STOPPING=1")
    assert run.wait() == 0


def test_restart_on_failure_with_resume_begins_with_nothing_and_goes_on_with_what_waits(
    shell: Shell, manager: Manager
) -> None:
    command = ["run", "-q", "--resume", shell.topology("job", "SendsItself", config="{n: 5}")]
    first = shell.popen(*command)  # there is nothing to resume yet
    manager.until("READY=1")
    until(lambda: shell.ps()["job"]["waiting"] == 5)
    for generation in range(1, 3):
        os.kill(shell.ps()["job"]["host_pid"], signal.SIGKILL)
        assert first.wait() == 1  # Restart=on-failure
        manager.heard()
        first = shell.popen(*command)
        manager.until("READY=1")
        sent = 5 * (generation + 1)  # the agent sends five at each start; a host counts once in a while
        until(lambda sent=sent: shell.ps()["job"]["waiting"] >= sent)
    first.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    shell.do("stop", "job", "--now", code=None)
    first.wait()


def test_agents_and_what_they_start_do_not_speak_for_the_service(shell: Shell, manager: Manager) -> None:
    run = shell.popen("run", shell.topology("env", "SaysEnvironment"), "--log-format", "json")
    manager.until("READY=1")
    shell.do("stop", "env")
    _, err = run.communicate()
    assert '"text":"NOTIFY_SOCKET=None WATCHDOG_USEC=None"' in err.replace(" :", ":").replace('": "', '":"')


def test_agents_in_one_process_are_vouched_for_by_its_loop(shell: Shell, manager: Manager) -> None:
    run = shell.popen("run", "-q", shell.topology("local", "BlocksLater"), "--transport", "in_process")
    manager.until("READY=1")
    manager.until("WATCHDOG=1")
    time.sleep(1.5)  # the agent blocks the loop from its first second on
    manager.heard()
    time.sleep(0.7)
    assert manager.heard() == []
    run.kill()
    run.wait()
    stopped = shell.popen("run", "-q", shell.topology("local2"), "--transport", "in_process")
    manager.until("READY=1")
    stopped.send_signal(signal.SIGTERM)
    manager.until("STOPPING=1")
    assert stopped.wait() == 0
