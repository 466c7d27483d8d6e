"""Runs with a real host and real workers, for the tests of this directory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest

from civitas_shm.errors import CivitasError
from civitas_shm.host.client import HostClient, HostOptions
from civitas_shm.host.protocol import Line
from civitas_shm.messages import Message
from civitas_shm.topology.model import AgentSpec, PoolSpec, SupervisorSpec, TopologySpec, TransportSpec
from civitas_shm.transport import load_transport

HERE = Path(__file__).parent


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Any]:
    """The command line in a directory of its own; what a failed test has left there is ended."""
    from .cli import Shell  # shared memory: Linux only

    shell = Shell(tmp_path)
    yield shell
    shell.end()


class Run:
    """A run and what it has said."""

    def __init__(self, spec: TopologySpec, options: HostOptions) -> None:
        self.events: list[dict[str, Any]] = []
        self.lines: list[Line] = []
        self.client = HostClient(
            spec, options, on_line=self.lines.append, on_event=self.events.append, on_snapshot=lambda _: None
        )

    async def ask(self, name: str, payload: dict[str, Any]) -> dict[str, Any]:
        reply: Message = await self.client.orders.runner.bus.ask(name, payload, timeout=60)
        return reply.payload

    async def send(self, name: str, payload: dict[str, Any]) -> None:
        await self.client.orders.runner.bus.send(name, payload)

    def named(self, event: str) -> list[dict[str, Any]]:
        return [entry for entry in self.events if entry["event"] == event]

    def processes(self) -> list[int]:
        """Host, fork server, workers and standbys; and whoever they have started, but for keepers of memory."""
        host, found = psutil.Process(self.client.host_pid), [self.client.host_pid]
        for child in host.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [child.pid] if child.name() != "civ-keeper" else []
        return found

    def children(self, name: str) -> list[psutil.Process]:
        """Children of the host with the name that the system shows (`civ-fork`, `civ-standby`, `civ-w1`)."""
        found = []
        for child in psutil.Process(self.client.host_pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # reaped meanwhile
                found += [child] if child.name() == name else []
        return found

    def pid(self, process: str = "w1") -> int:
        return int(self.named_process("process_started", process)[-1]["pid"])

    def named_process(self, event: str, process: str) -> list[dict[str, Any]]:
        return [entry for entry in self.named(event) if entry.get("process") == process]

    async def until(self, condition: Callable[[], object]) -> None:
        """The watchdog of pytest-timeout is the only limit."""
        while not condition():
            await asyncio.sleep(0.002)


class StartRun(Protocol):
    def __call__(
        self, *agents: AgentSpec, supervision: dict[str, Any] | None = None, options: Any = None, **topology: Any
    ) -> contextlib.AbstractAsyncContextManager[Run]: ...


@pytest.fixture
def start_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartRun]:
    """`async with start_run(agent(...), …) as run`: ready on entry; ended, however it ended, on exit."""
    if sys.platform != "linux":
        pytest.skip("shared memory needs Linux")
    monkeypatch.setenv("CIVITAS_SHM_DIR", str(tmp_path / "runs"))

    @contextlib.asynccontextmanager
    async def start(
        *agents: AgentSpec, supervision: dict[str, Any] | None = None, options: Any = None, **topology: Any
    ) -> AsyncIterator[Run]:
        spec = TopologySpec(
            supervision=SupervisorSpec(children=list(agents), **({"max_restarts": 1000} | (supervision or {}))),
            import_paths=[str(HERE), str(HERE.parent / "torture"), str(HERE.parent / "faults")],
            **({"pool": PoolSpec(size=1), "transport": TransportSpec("shm", arena_mb=8, mailboxes=64)} | topology),
        )
        run = Run(spec, HostOptions(**({"name": f"t{os.getpid()}-{tmp_path.name[-20:]}"} | (options or {}))))
        await run.client.start()
        try:
            await run.client.running()
            yield run
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(run.client.host_pid, signal.SIGCONT)  # of a test that failed while its host was stopped
            await run.client.stop(now=True)
            with contextlib.suppress(CivitasError):
                await run.client.wait()

    yield start
    # A run that failed keeps the message that killed it, for --resume: here nobody resumes.
    module = load_transport("shm")
    assert module.stale_runs is not None
    assert module.remove_stale is not None
    for stale in module.stale_runs():
        module.remove_stale(stale)


@pytest.fixture
def agent() -> Callable[..., AgentSpec]:
    """`agent("Echo", process="w1")`: a class of run_agents under its own name in lower case."""

    def make(kind: str, name: str = "", **fields: Any) -> AgentSpec:
        return AgentSpec(name or kind.lower(), f"run_agents.{kind}", **fields)

    return make
