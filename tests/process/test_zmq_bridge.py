"""Bridges over a ZeroMQ proxy: hosts on this machine, with real processes and a real proxy that is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from civitas_shm import AgentProcess, Message, Runtime, Supervisor
from civitas_shm.errors import MessageRoutingError

from ..test_seed_snippets import SEEDS

pytest.importorskip("zmq")

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.process

HOW_LONG_S = 90.0
"""A watchdog."""


class Counter(AgentProcess):
    """Keeps the numbers that it gets, in their order."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.numbers: list[int] = []

    async def handle(self, message: Message) -> Message | None:
        if message.type == "seen":
            return self.reply({"numbers": self.numbers})
        self.numbers.append(message.payload["n"])
        return self.reply({"n": message.payload["n"]})


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@pytest.fixture
def addresses() -> dict[str, str]:
    first, second = free_ports(2)
    return {"zmq_pub_addr": f"tcp://127.0.0.1:{first}", "zmq_sub_addr": f"tcp://127.0.0.1:{second}"}


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIVITAS_SHM_DIR", str(tmp_path / "runs"))


def host(name: str, addresses: dict[str, str], *agents: AgentProcess, **more: Any) -> Runtime:
    return Runtime(Supervisor("root", children=list(agents)), transport="zmq", name=name, **addresses, **more)


def proxy_pid(addresses: dict[str, str]) -> int:
    """Whoever of this test's processes was started as the proxy of these addresses."""
    for process in psutil.Process().children(recursive=True):
        try:
            if (
                "civitas_shm_transports.zmq.proxy" in process.cmdline()
                and addresses["zmq_pub_addr"] in process.cmdline()
            ):
                return process.pid
        except psutil.Error:
            continue
    raise LookupError("there is no proxy")


async def reached(runtime: Runtime, name: str) -> None:
    async with asyncio.timeout(HOW_LONG_S):
        while True:
            try:
                await runtime.ask(name, {}, message_type="seen")
                return
            except MessageRoutingError:
                await asyncio.sleep(0.01)


def test_asks_and_bursts_between_two_runs_lose_nothing_with_the_proxy_killed_in_the_middle(
    addresses: dict[str, str],
) -> None:
    async def main() -> None:
        async with (
            host("near", addresses, zmq_start_proxy=True) as near,
            host("distant", addresses, Counter("counter"), zmq_start_proxy=False),
        ):
            await reached(near, "counter")
            for number in range(0, 5000, 50):
                if number == 2500:
                    os.kill(proxy_pid(addresses), signal.SIGKILL)
                asked = [near.ask("counter", {"n": n}, timeout=HOW_LONG_S) for n in range(number, number + 50)]
                replies = await asyncio.gather(*asked)
                assert [reply.payload["n"] for reply in replies] == list(range(number, number + 50))
            for number in range(5000, 9000):
                await near.send("counter", {"n": number})
            async with asyncio.timeout(HOW_LONG_S):
                while len(numbers := (await near.ask("counter", {}, message_type="seen")).payload["numbers"]) < 9000:
                    await asyncio.sleep(0.01)
            assert sorted(numbers) == list(range(9000))
            assert numbers[5000:] == list(range(5000, 9000))

    asyncio.run(main())


def test_a_name_that_no_host_has_is_an_error_at_once(addresses: dict[str, str]) -> None:
    async def main() -> None:
        async with host("near", addresses) as near, host("distant", addresses, Counter("counter")):
            await reached(near, "counter")
            with pytest.raises(MessageRoutingError):
                await near.ask("nobody", {}, timeout=HOW_LONG_S)

    asyncio.run(asyncio.wait_for(main(), HOW_LONG_S - 1))


MYAPP = '''
"""What the snippet calls `myapp`."""

from civitas_shm import AgentProcess


class Orchestrator(AgentProcess):
    async def on_start(self):
        await self.send(self.name, {"topic": "actors"}, message_type="begin")

    async def handle(self, message):
        if message.type == "begin":
            await self.send("researcher", message.payload)
        else:
            print("summary:", message.payload["summary"], flush=True)
            await self.stop_runtime(0)


class WebResearcher(AgentProcess):
    async def handle(self, message):
        await self.send("summarizer", {"text": "all about " + message.payload["topic"]})


class Summarizer(AgentProcess):
    async def handle(self, message):
        await self.send("orchestrator", {"summary": message.payload["text"] + " is simple"}, message_type="done")
'''


def test_the_seeds_level_2_runs_in_two_terminals(tmp_path: Path) -> None:
    """`run --topology topology.yaml`, and `run --topology topology.yaml --process worker`."""
    topology = (SEEDS / "000_level_2.yaml").read_text()
    for port, free in zip(("5559", "5560"), free_ports(2), strict=True):
        topology = topology.replace(f"127.0.0.1:{port}", f"127.0.0.1:{free}")
    (tmp_path / "topology.yaml").write_text(topology)
    (tmp_path / "myapp.py").write_text(MYAPP)
    roots = [str(ROOT), str(ROOT / "transports"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, roots))}
    command = [sys.executable, "-m", "civitas_shm", "run", "--topology", "topology.yaml"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": tmp_path}
    first = subprocess.Popen(command, env=environment, **pipes)
    second = subprocess.Popen([*command, "--process", "worker"], env=environment, **pipes)
    try:
        output = first.communicate()[0]
        assert (first.returncode, "summary: all about actors is simple" in output) == (0, True), output
        assert "waits for worker" in output
    finally:
        for one in (first, second):
            if one.poll() is None:
                one.send_signal(signal.SIGTERM)
        there = second.communicate()[0]
    assert second.returncode == 0, there
