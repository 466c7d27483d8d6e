"""A run that a test starts, asks, kills and sees off: what the `runtime` fixture gives.

    async def test_squares_survive_a_kill(runtime):
        await runtime.start(Squarer("squarer"))
        await runtime.kill("squarer")
        reply = await runtime.ask("squarer", {"number": 7})

Rules of this file: nothing here needs pytest; everything runs on one loop, which lives as long as the test; whatever
the test does, `close` leaves neither run nor process nor segment, and raises what the run failed of.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import Awaitable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from ..errors import ConfigurationError
from ..messages import Message
from ..placement import MAIN
from ..port_bus import ASK_TIMEOUT_S, SEND_TIMEOUT_S
from ..process import AgentProcess
from ..runtime import Runtime
from ..supervisor import Supervisor
from ..topology.model import PoolSpec, TransportSpec
from ..transport import load_transport
from ..typed import Payload
from .manual_time import ManualTime

__all__ = ["RuntimeUnderTest"]

T = TypeVar("T")

_LOOK_S: Final = 0.002
"""How often `until` looks. Nothing is measured by it."""

RUNS_VARIABLE: Final = "CIVITAS_SHM_DIR"

_numbers: Final = itertools.count(1)


class RuntimeUnderTest:
    """At most one run at a time, on a loop of its own."""

    def __init__(self, transport: str = "in_process", *, runs: Path, manual_clock: bool = False) -> None:
        """`transport`: of runs whose topology names none; `runs`: where run directories are."""
        if manual_clock and load_transport(transport).multi_process:
            raise ConfigurationError(
                f'clock="manual" is the clock of one process; with transport {transport!r} agents have others\' clocks.'
            )
        self.transport = transport
        self._runs = runs
        self._time = ManualTime() if manual_clock else None
        self._effects = contextlib.ExitStack()
        self._runtime: Runtime | None = None
        self._told = False
        """The test has asked how the run ended."""
        self._stopped: set[int] = set()
        if self._time is not None:
            self._effects.enter_context(self._time.in_effect())
        factory = asyncio.new_event_loop if self._time is None else self._time.new_loop
        self._runner = self._effects.enter_context(asyncio.Runner(loop_factory=factory))

    # --- the loop -----------------------------------------------------------------------------------------------------

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, for a test that is a plain function. Agents of this process run meanwhile only."""
        return self._runner.run(work)

    @property
    def clock(self) -> ManualTime:
        """With `clock="manual"`: time, which passes by `await clock.advance(seconds)` only."""
        if self._time is None:
            raise ConfigurationError('this test has the machine\'s clock; mark it with civitas(clock="manual")')
        return self._time

    async def until(self, condition: Any) -> None:
        """Return when `condition()` is true, or an awaitable one gives something true. No limit: tests have a watchdog,
        and a limit would be a guess about the machine."""
        while True:
            found = condition()
            if found if not isinstance(found, Awaitable) else await found:
                return
            await asyncio.sleep(_LOOK_S)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self, *children: AgentProcess | Supervisor | str | os.PathLike[str], **options: Any) -> Runtime:
        """Start agents, below one supervisor; or a supervisor with all below it; or the topology in a file.

        `options`: of `Runtime`, or of `Runtime.from_config`; for agents also those of `Supervisor` (`max_restarts` and
        so on). With processes the pool has one worker unless `pool` says more. Gives the started Runtime.
        """
        if asyncio.get_running_loop() is not self._runner.get_loop():
            raise RuntimeError(
                "the runtime of a test runs on a loop of its own, which runs `async def` tests itself: take the mark "
                "of pytest-asyncio or anyio away, or call runtime.run(...) from a plain test"
            )
        if self._runtime is not None and self._runtime.alive:
            raise RuntimeError("a run is under way already: `await runtime.stop()` comes first")
        self._runtime = runtime = self._made(children, options)
        self._told = False
        try:
            await self._in_time(runtime.start())
        except BaseException:
            self._runtime = None  # nothing is left of it, and the error says why
            raise
        return runtime

    def _made(self, children: tuple[Any, ...], options: dict[str, Any]) -> Runtime:
        options.setdefault("name", f"test-{os.getpid()}-{next(_numbers)}")
        first = children[0] if len(children) == 1 else None
        if isinstance(first, str | os.PathLike):
            return Runtime.from_config(first, **{"transport": self.transport, **options})
        if isinstance(first, Supervisor):
            root = first
        else:
            of_root = {key: options.pop(key) for key in list(options) if key in _OF_SUPERVISOR}
            root = Supervisor("root", list(children), **of_root)
        transport = options.pop("transport", self.transport)
        if transport == "shm":
            # As small as most tests need; several of them run beside one another.
            transport = TransportSpec("shm", arena_mb=_ARENA_MB, mailboxes=_MAILBOXES)
            options.setdefault("pool", PoolSpec(size=1, standby=0))
        return Runtime(root, transport, **options)

    async def stop(self) -> None:
        """End the run in good order. RunFailed if supervision has given up. Idempotent."""
        if self._runtime is not None:
            await self._in_time(self._runtime.stop())
            await self.wait()

    async def wait(self) -> int:
        """The end of the run, as `Runtime.wait`. What is raised here, the end of the test does not raise again."""
        runtime = self.runtime
        self._told = True
        return await runtime.wait()

    def close(self) -> None:
        """End whatever is left. Raises what the run failed of, unless the test has waited for that itself."""
        try:
            self.run(self._end())
        finally:
            self._effects.close()
            self._remove_stale()

    async def _end(self) -> None:
        runtime = self._runtime
        if runtime is None:
            return
        for pid in self._stopped:  # by a test that failed before it let them go on
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        await self._in_time(runtime.stop())
        if not self._told:
            await runtime.wait()

    async def _in_time(self, work: Coroutine[Any, Any, T]) -> T:
        return await (work if self._time is None else self._time.as_needed(work))

    def _remove_stale(self) -> None:
        """A run that failed keeps its messages, for --resume: here nobody resumes."""
        module = load_transport(self.transport)
        if module.stale_runs is not None and module.remove_stale is not None:
            for stale in module.stale_runs():
                if stale.path.parent == self._runs:
                    module.remove_stale(stale)

    @property
    def runtime(self) -> Runtime:
        """The Runtime itself, for everything that is not here."""
        if self._runtime is None:
            raise RuntimeError("no run is under way: `await runtime.start(...)` comes first")
        return self._runtime

    # --- messages -----------------------------------------------------------------------------------------------------

    async def ask(
        self,
        name: str,
        payload: Payload,
        timeout: float | None = ASK_TIMEOUT_S,
        message_type: str = "message",
        **options: Any,
    ) -> Message:
        """As `Runtime.ask`."""
        return await self.runtime.ask(name, payload, timeout, message_type, **options)

    async def send(
        self,
        name: str,
        payload: Payload,
        message_type: str = "message",
        *,
        timeout: float | None = SEND_TIMEOUT_S,
        **options: Any,
    ) -> None:
        """As `Runtime.send`."""
        await self.runtime.send(name, payload, message_type, timeout=timeout, **options)

    async def broadcast(self, pattern: str, payload: Payload, message_type: str = "message") -> None:
        """As `Runtime.broadcast`."""
        await self.runtime.broadcast(pattern, payload, message_type)

    # --- processes ----------------------------------------------------------------------------------------------------

    async def pid(self, name: str) -> int:
        """Of the process that runs the agent of that name, or of the process of that name, once there is one."""
        process = await self._process_of(name)
        await self.until(lambda: self._pid(process) is not None)
        pid = self._pid(process)
        assert pid is not None
        return pid

    async def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """Kill the process that runs the agent of that name, or the process of that name; its pid.

        Returns when its death is known and its messages are repaired; what is asked then waits for its successor. Of
        an agent with replicas: the first one's process.
        """
        pid = await self.pid(name)
        if pid == os.getpid():
            raise ConfigurationError(f"{name!r} lives in the process of the test, which kills others, not itself.")
        process = await self._process_of(name)
        os.kill(pid, number)
        await self.until(lambda: self._pid(process) != pid)
        return pid

    async def pause(self, name: str) -> int:
        """Stop that process (SIGSTOP), as a debugger or a frozen container does; its pid, for `resume`."""
        pid = await self.pid(name)
        if pid == os.getpid():
            raise ConfigurationError(f"{name!r} lives in the process of the test, which would stop itself for ever.")
        os.kill(pid, signal.SIGSTOP)
        self._stopped.add(pid)
        return pid

    def resume(self, pid: int) -> None:
        """Let a paused process go on."""
        os.kill(pid, signal.SIGCONT)
        self._stopped.discard(pid)

    async def _process_of(self, name: str) -> str:
        if not load_transport(self._transport_of_run()).multi_process:
            raise ConfigurationError(
                f"{name!r} lives in the process of the test: there is none to kill or to look for. Mark the test with "
                'civitas(transport="shm").'
            )
        pids = self._pids()
        if name in pids:
            return name
        agents = self.runtime.agent_names()
        if name not in agents:
            raise ConfigurationError(
                f"there is no agent and no process {name!r}; there are {', '.join([*agents, *pids])}."
            )
        await self.until(lambda: self._homes().get(name))  # the host's first reading is on its way
        return self._homes()[name].split(",")[0]

    def _homes(self) -> Mapping[str, str]:
        return {agent.name: agent.process for agent in self.runtime.snapshot().agents}

    def _pids(self) -> Mapping[str, int | None]:
        return {process.name: process.pid for process in self.runtime.snapshot().processes}

    def _pid(self, process: str) -> int | None:
        return os.getpid() if process == MAIN else self._pids().get(process)

    def _transport_of_run(self) -> str:
        return self.runtime.snapshot().transport


_OF_SUPERVISOR: Final = ("strategy", "max_restarts", "restart_window", "backoff", "backoff_base", "backoff_max")

_ARENA_MB: Final = 8
_MAILBOXES: Final = 64


@contextlib.contextmanager
def run_directory(folder: Path) -> Iterator[Path]:
    """Inside of this, run directories are made in `folder`."""
    before = os.environ.get(RUNS_VARIABLE)
    os.environ[RUNS_VARIABLE] = str(folder)
    try:
        yield folder
    finally:
        if before is None:
            del os.environ[RUNS_VARIABLE]
        else:
            os.environ[RUNS_VARIABLE] = before
