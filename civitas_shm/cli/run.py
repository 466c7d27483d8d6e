"""`run`: a topology as processes, until it ends by itself or is told to.

Rules of this file:
- it translates: options to a `TopologySpec` and arguments of `Runtime`, signals to `request_stop` and `kill`, the end
  to an exit code. What a run is, is the runtime's business;
- the first SIGTERM or Ctrl-C stops in order, the second at once (130);
- stdout is for `--json` alone; the screen, log lines and what is left to say go to stderr.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

import rich_click as click

from .app import EXIT_INTERRUPTED
from .options import ChaosType, RunNameType, topology_options, topology_path

if TYPE_CHECKING:
    from ..runtime import Runtime
    from ..snapshot import RuntimeSnapshot
    from ..topology.model import LoggingSpec

__all__ = ["command"]

KILL_GRACE_S: Final = 2.0
"""After a second signal: how long our own tasks may take to notice. The processes are dead by then."""


@click.command("run")
@topology_options
@click.option("--name", type=RunNameType(), help="Of the run, instead of the topology's.")
@click.option("--resume", is_flag=True, help="Go on with the messages that a dead run of this name left.")
@click.option("--fresh", is_flag=True, help="Drop the messages that a dead run of this name left.")
@click.option("--chaos", type=ChaosType(), help="Kill a random worker at this interval, for example kill=0.5s.")
@click.option(
    "--events",
    type=click.Path(dir_okay=False, writable=True),
    metavar="FILE",
    help="Write one JSON line per start, death and restart of a process.",
)
@click.option("-q", "--quiet", is_flag=True, help="No screen; only warnings and errors are logged.")
@click.option("--json", "as_json", is_flag=True, help="A summary as one JSON object on stdout, at the end.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Of log lines, instead of the topology's.")
@click.pass_context
def command(
    ctx: click.Context,
    topology: str | None,
    topology_option: str | None,
    overrides: tuple[str, ...],
    transport: str | None,
    workers: int | None,
    name: str | None,
    resume: bool,
    fresh: bool,
    chaos: float | None,
    events: str | None,
    quiet: bool,
    as_json: bool,
    log_format: str | None,
) -> None:
    """Run a topology. Ctrl-C or SIGTERM stops it in order, a second one at once."""
    if resume and fresh:
        raise click.UsageError("--resume keeps the messages that wait, --fresh drops them; give one of them")
    from ..runtime import Runtime
    from .prepare import prepare

    spec = prepare(topology_path(topology, topology_option), overrides, transport, name)
    spec = replace(spec, logging=logging_of(spec.logging, quiet, log_format, os.environ))
    runtime = Runtime.from_spec(
        spec,
        name=spec.name,
        workers=workers,
        resume=resume,
        fresh=fresh,
        chaos_s=chaos,
        events=events,
        log_format=spec.logging.format,
    )
    ctx.exit(asyncio.run(_run(runtime, with_screen=not quiet and spec.logging.format == "text", as_json=as_json)))


def logging_of(topology: LoggingSpec, quiet: bool, log_format: str | None, environ: Mapping[str, str]) -> LoggingSpec:
    """What is logged: options before LOG_LEVEL before the topology."""
    from ..errors import ConfigurationError

    level = environ.get("LOG_LEVEL", "").upper() or topology.level
    if level not in LEVELS:
        raise ConfigurationError(f"LOG_LEVEL is {environ['LOG_LEVEL']!r}; allowed: {', '.join(LEVELS)}")
    if quiet and LEVELS.index(level) < LEVELS.index("WARNING"):
        level = "WARNING"
    chosen = replace(topology, level=level)
    return chosen if log_format is None else replace(chosen, format="json" if log_format == "json" else "text")


LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


async def _run(runtime: Runtime, *, with_screen: bool, as_json: bool) -> int:
    """Start, wait, stop; the exit code."""
    interrupted = asyncio.Event()
    signals = _Signals(runtime, interrupted)
    signals.install()
    from ..errors import CivitasError

    error: CivitasError | None = None
    code = 0
    try:
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

    def install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)

    def remove(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)

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
