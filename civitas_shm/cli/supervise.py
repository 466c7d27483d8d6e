"""A runtime from its start to its exit code: signals, screen, and what is left to say at the end.

Rules of this file:
- the first SIGTERM or Ctrl-C stops in order, the second at once (130);
- stdout is for the summary of `--json` alone; the screen and what waits go to stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import rich_click as click

from ..errors import CivitasError
from ..notify import ServiceReports, ServiceSettings
from .app import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from ..runtime import Runtime
    from ..snapshot import RuntimeSnapshot

__all__ = ["letters_text", "summary", "supervise", "waiting_text"]

_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

KILL_GRACE_S: Final = 2.0
"""After a second signal: when this process ends for good, whatever an agent in it does. The others are dead by then."""


async def supervise(
    runtime: Runtime,
    *,
    with_screen: bool,
    as_json: bool,
    on_running: Callable[[], None] | None = None,
    manager: ServiceSettings | None = None,
) -> int:
    """Start, wait, stop; the exit code. `on_running` is called once every agent is ready.

    `manager`: whom this process reports to; where there is a host, the host does.
    """
    reports = None if manager is None else _reports(runtime, manager)
    if reports is not None:
        on_running = reports.ready
    interrupted = asyncio.Event()
    signals = _Signals(runtime, interrupted)
    signals.install()
    error: CivitasError | None = None
    code = 0
    # With --json, what agents in this process print must not stand on the stdout of the one object.
    printing = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    try:
        with printing:
            code = await _until_end(runtime, interrupted, with_screen, on_running)
    except CivitasError as failure:
        error, code = failure, failure.exit_code
        raise
    finally:
        signals.remove()
        if reports is not None:
            reports.stopping()
            reports.close()
        waiting = runtime.waiting()
        letters = len(runtime.dead_letters())
        if as_json:
            click.echo(json.dumps(summary(runtime.snapshot(), code, waiting, error, letters)))
        if waiting:
            click.echo(waiting_text(waiting), err=True)
        if letters:
            click.echo(letters_text(letters, kept=runtime.snapshot().transport != "in_process"), err=True)
    return code


def _reports(runtime: Runtime, manager: ServiceSettings) -> ServiceReports:
    """Of agents in this process: its loop is all that there is to vouch for."""
    turns = itertools.count()

    def status() -> str:
        agents = runtime.snapshot().agents
        return f"{len(agents)} agents in this process, {sum(agent.queue for agent in agents):,} messages wait"

    return ServiceReports(asyncio.get_running_loop(), manager, status=status, progress=lambda: next(turns))


async def _until_end(
    runtime: Runtime, interrupted: asyncio.Event, with_screen: bool, on_running: Callable[[], None] | None
) -> int:
    body = asyncio.ensure_future(_start_and_wait(runtime, with_screen, on_running))
    second_signal = asyncio.ensure_future(interrupted.wait())
    await asyncio.wait([body, second_signal], return_when=asyncio.FIRST_COMPLETED)
    second_signal.cancel()
    if not interrupted.is_set():
        return await body
    body.cancel()
    await asyncio.wait([body], timeout=KILL_GRACE_S / 2)
    return EXIT_INTERRUPTED


async def _start_and_wait(runtime: Runtime, with_screen: bool, on_running: Callable[[], None] | None) -> int:
    from rich.console import Console

    from ..dashboard.live import LiveScreen, can_show

    console = Console(stderr=True)
    try:
        await runtime.start()
        if on_running is not None:
            on_running()
        if not (with_screen and can_show(console)):
            return await runtime.wait()
        async with LiveScreen(console, runtime.snapshot):
            return await runtime.wait()
    finally:
        await runtime.stop()


class _Signals:
    """First: stop in order. Second: kill, and leave however busy the loop is.

    Handlers of `signal` and not of the loop, because an agent of this process may hold the loop; they also work on
    Windows. All they do is to hand over to the loop, or to a thread that needs none.
    """

    def __init__(self, runtime: Runtime, interrupted: asyncio.Event) -> None:
        self._runtime = runtime
        self._interrupted = interrupted
        self._loop = asyncio.get_running_loop()
        self._before: dict[int, Any] = {}
        self._seen = 0

    def install(self) -> None:
        for number in _STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._on_signal)

    def remove(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._seen += 1
        if self._seen == 1:
            self._loop.call_soon_threadsafe(self._runtime.request_stop)
        elif self._seen == 2:
            last_resort = threading.Timer(KILL_GRACE_S, os._exit, [EXIT_INTERRUPTED])
            last_resort.daemon = True
            last_resort.start()
            self._loop.call_soon_threadsafe(self._kill)

    def _kill(self) -> None:
        self._runtime.kill()
        self._interrupted.set()


def waiting_text(waiting: Mapping[str, int]) -> str:
    """What is left in shared memory, by agent, and how to go on with it."""
    total = sum(waiting.values())
    by_agent = ", ".join(f"{name} {count:,}" for name, count in sorted(waiting.items(), key=lambda item: -item[1])[:5])
    more = ", …" if len(waiting) > 5 else ""
    return (
        f"{total:,} message{'s' if total != 1 else ''} wait{'s' if total == 1 else ''}: run --resume ({by_agent}{more})"
    )


def letters_text(count: int, *, kept: bool) -> str:
    """How many messages no handler has finished, and where to read why."""
    letters = f"{count:,} dead letter{'s' if count != 1 else ''}"
    return f"{letters}: civitas-shm dead list" if kept else f"{letters}, gone with this process; the log says why"


def summary(
    snapshot: RuntimeSnapshot, exit_code: int, waiting: Mapping[str, int], error: Exception | None, letters: int = 0
) -> dict[str, Any]:
    """The `--json` output; a stable form."""
    return {
        "exit_code": exit_code,
        "error": None if error is None else str(error),
        "restarts": sum(process.restarts for process in snapshot.processes),
        "waiting": dict(waiting),
        "dead_letters": letters,
        **asdict(snapshot),
    }
