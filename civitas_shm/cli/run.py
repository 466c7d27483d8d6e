"""`run`: a topology as processes, until it ends by itself or is told to.

Rules of this file:
- it translates options to a `TopologySpec` and to arguments of `Runtime`; `supervise` does the rest;
- what is wrong with the options or the topology is said before anything is imported that takes time.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from .options import ChaosType, RunNameType, topology_options, topology_path

if TYPE_CHECKING:
    from ..host.protocol import Chaos
    from ..topology.model import LoggingSpec

__all__ = ["command"]


@click.command("run")
@topology_options
@click.option("--name", type=RunNameType(), help="Of the run, instead of the topology's.")
@click.option("--resume", is_flag=True, help="Go on with the messages that a dead run of this name left.")
@click.option("--fresh", is_flag=True, help="Drop the messages that a dead run of this name left.")
@click.option(
    "--chaos", type=ChaosType(), help="Kill (kill=0.5s) or stop (stop=0.3s/0.2s: every 0.3 s for 0.2 s) random workers."
)
@click.option(
    "--events",
    type=click.Path(dir_okay=False, writable=True),
    metavar="FILE",
    help="Write one JSON line per start, death and restart of a process.",
)
@click.option("-q", "--quiet", is_flag=True, help="No screen; only warnings and errors are logged.")
@click.option("--json", "as_json", is_flag=True, help="A summary as one JSON object on stdout, at the end.")
@click.option(
    "-d", "--detach", "detached", is_flag=True, help="Return once it runs; its output goes to a log (`logs`)."
)
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Of log lines, instead of the topology's.")
@click.option(
    "-p",
    "--process",
    metavar="NAME",
    help="Of a system over nats or zmq: only the group of this name; `supervisor`: only what names none.",
)
@click.option("--all", "everything", is_flag=True, help="Of a system over nats or zmq: all groups, in this one run.")
@click.option("--nats-url", metavar="URL", help="Instead of the topology's servers, and of NATS_URL.")
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
    chaos: Chaos | None,
    events: str | None,
    quiet: bool,
    as_json: bool,
    detached: bool,
    log_format: str | None,
    process: str | None,
    everything: bool,
    nats_url: str | None,
) -> None:
    """Run a topology. Ctrl-C or SIGTERM stops it in order, a second one at once."""
    if events is not None and not Path(events).absolute().parent.is_dir():
        raise click.BadParameter(f"the directory of {events!r} does not exist", param_hint="--events")
    if resume and fresh:
        raise click.UsageError("--resume keeps the messages that wait, --fresh drops them; give one of them")
    from ..config import workers_of
    from .prepare import prepare

    if process is not None and everything:
        raise click.UsageError("--process starts one group, --all all of them; give one of them")
    path = topology_path(topology, topology_option)
    spec = prepare(path, overrides, transport, name, nats_url, process, everything=everything)
    spec = replace(spec, logging=logging_of(spec.logging, quiet, log_format))
    workers = workers_of(os.environ) if workers is None else workers
    service = None
    if detached:
        from .detach import detach

        service = detach(spec.name, spec.transport.type, stamped=spec.logging.format == "text", as_json=as_json)
        as_json = False  # said by the starter, which ends there
    # Only now what costs time: a wrong topology is said at once.
    import asyncio

    from ..host.loop import new_loop
    from ..notify import take_service_settings
    from ..runtime import Runtime
    from ..transport import load_transport
    from .supervise import supervise

    manager = take_service_settings(os.environ, os.getpid())
    runtime = Runtime.from_spec(
        spec,
        name=spec.name,
        workers=workers,
        resume=resume,
        fresh=fresh,
        chaos=chaos,
        events=events,
        log_format=spec.logging.format,
        log_path=None if service is None else service.log_path,
        service=manager if service is None else None,
    )
    with_screen = not quiet and spec.logging.format == "text" and service is None
    on_running = None if service is None else service.running
    here = manager if service is None and not load_transport(spec.transport.type).multi_process else None
    with asyncio.Runner(loop_factory=new_loop) as runner:
        code = runner.run(
            supervise(runtime, with_screen=with_screen, as_json=as_json, on_running=on_running, manager=here)
        )
    if service is not None:
        service.finish(code)
    ctx.exit(code)


def logging_of(chosen: LoggingSpec, quiet: bool, log_format: str | None) -> LoggingSpec:
    """What is logged: options before what environment and topology say."""
    from ..topology.model import LOG_LEVELS

    if quiet and LOG_LEVELS.index(chosen.level) < LOG_LEVELS.index("WARNING"):
        chosen = replace(chosen, level="WARNING")
    return chosen if log_format is None else replace(chosen, format="json" if log_format == "json" else "text")
