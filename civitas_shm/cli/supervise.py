"""A runtime from its start to its exit code: signals, screen, and what is left to say at the end.

Rules of this file:
- the first SIGTERM or Ctrl-C stops in order, the second at once (130);
- stdout is for the summary of `--json` alone; the screen and what waits go to stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import rich_click as click

from ..errors import CivitasError
from .app import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from ..runtime import Runtime
    from ..snapshot import RuntimeSnapshot

__all__ = ["summary", "supervise", "waiting_text"]

_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

KILL_GRACE_S: Final = 2.0
"""After a second signal: how long our own tasks may take to notice. The processes are dead by then."""


async def supervise(runtime: Runtime, *, with_screen: bool, as_json: bool) -> int:
    """Start, wait, stop; the exit code."""
    interrupted = asyncio.Event()
    signals = _Signals(runtime, interrupted)
    signals.install()
    error: CivitasError | None = None
    code = 0
    # With --json, what agents in this process print must not stand on the stdout of the one object.
    printing = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    try:
        with printing:
            code = await _until_end(runtime, interrupted, with_screen)
    except CivitasError as failure:
        error, code = failure, failure.exit_code
        raise
    finally:
        signals.remove()
        waiting = runtime.waiting()
        if as_json:
            click.echo(json.dumps(summary(runtime.snapshot(), code, waiting, error)))
        if waiting:
            click.echo(waiting_text(waiting), err=True)
    return code


async def _until_end(runtime: Runtime, interrupted: asyncio.Event, with_screen: bool) -> int:
    body = asyncio.ensure_future(_start_and_wait(runtime, with_screen))
    second_signal = asyncio.ensure_future(interrupted.wait())
    await asyncio.wait([body, second_signal], return_when=asyncio.FIRST_COMPLETED)
    second_signal.cancel()
    if not interrupted.is_set():
        return await body
    body.cancel()
    await asyncio.wait([body], timeout=KILL_GRACE_S)
    return EXIT_INTERRUPTED


async def _start_and_wait(runtime: Runtime, with_screen: bool) -> int:
    from rich.console import Console

    from ..dashboard.live import LiveScreen, can_show

    console = Console(stderr=True)
    try:
        await runtime.start()
        if not (with_screen and can_show(console)):
            return await runtime.wait()
        async with LiveScreen(console, runtime.snapshot):
            return await runtime.wait()
    finally:
        await runtime.stop()


class _Signals:
    """First: stop in order. Second: kill."""

    def __init__(self, runtime: Runtime, interrupted: asyncio.Event) -> None:
        self._runtime = runtime
        self._interrupted = interrupted
        self._seen = False

        self._before: dict[int, Any] = {}

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            self._before[number] = signal.getsignal(number)
            try:
                loop.add_signal_handler(number, self._on_signal)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda *_: loop.call_soon_threadsafe(self._on_signal))

    def remove(self) -> None:
        loop = asyncio.get_running_loop()
        for number, handler in self._before.items():
            try:
                loop.remove_signal_handler(number)
            except NotImplementedError:  # Windows
                pass
            if handler is not None:  # None: not set from Python, so not ours to set
                signal.signal(number, handler)

    def _on_signal(self) -> None:
        if not self._seen:
            self._seen = True
            self._runtime.request_stop()
            return
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


def summary(
    snapshot: RuntimeSnapshot, exit_code: int, waiting: Mapping[str, int], error: Exception | None
) -> dict[str, Any]:
    """The `--json` output; a stable form."""
    return {
        "exit_code": exit_code,
        "error": None if error is None else str(error),
        "restarts": sum(process.restarts for process in snapshot.processes),
        "waiting": dict(waiting),
        **asdict(snapshot),
    }
