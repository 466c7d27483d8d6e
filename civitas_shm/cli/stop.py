"""`stop`: end a run in good order, or at once, and wait until it is gone.

Rules of this file: gone means that its host has let go of the lock, so that the next run of that name can begin; a run
that is dead already is no error, one that never was is. With `--now` a host that does not answer is killed: the kernel
kills its processes with it, and what waits stays in shared memory.
"""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import rich_click as click

from .found import choose, state_text, way_out

if TYPE_CHECKING:
    from ..runs import RunFound
    from ..topology.model import Drain
    from ..transport import TransportModule

__all__ = ["command"]


@click.command("stop")
@click.argument("run", required=False)
@click.option("--now", is_flag=True, help="Kill at once; what is in hand stays for run --resume.")
@click.option("--drain", type=click.Choice(["all", "current"]), help="Instead of the topology's stop: {drain}.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0.0), metavar="SECONDS", help="Give up waiting after it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def command(
    ctx: click.Context, run: str | None, now: bool, drain: Drain | None, timeout_s: float | None, as_json: bool
) -> None:
    """Stop a run and wait until it is gone. RUN may be left out when there is exactly one.

    Exit code 0: it is gone. 1: it still stops. 7: there is no such run. 8: its host does not answer.
    """
    from ..transport import load_transport

    if now and drain:
        raise click.UsageError("--now drains nothing; give one of --now and --drain")
    transport = load_transport("shm")
    assert transport.find_runs is not None
    found = transport.find_runs()
    live = [one for one in found if one.state == "live"]
    dead = next((one for one in found if one.name == run and one.state != "live"), None)
    if dead is not None:
        _say(as_json, dead.name, gone=True, left=dead, text=f"{dead.name} is not running: {state_text(dead)}.")
        return
    chosen = choose(live, run, "run that is alive")
    gone = stop(transport, chosen, now=now, drain=drain, timeout_s=timeout_s)
    left = next((one for one in transport.find_runs() if one.name == chosen.name), None)
    text = f"{chosen.name} is gone." if gone else f"{chosen.name} still stops after {timeout_s:g} s."
    _say(as_json, chosen.name, gone=gone, left=left, text=text)
    ctx.exit(0 if gone else 1)


def stop(transport: TransportModule, run: RunFound, *, now: bool, drain: Drain | None, timeout_s: float | None) -> bool:
    """Whether it is gone."""
    from ..control.client import ControlClient
    from ..control.protocol import Stopping, StopRun
    from ..errors import RunNotAnswering, RunNotFound

    assert transport.is_held is not None
    try:
        client = ControlClient(run.path, transport.is_held)
    except RunNotFound:
        return True  # it ended by itself meanwhile
    with client:
        try:
            client.ask(StopRun(now=now, drain=drain), Stopping)
        except RunNotAnswering:
            if not now or not _kill_host(client.host_pid, run, transport):
                raise
        return client.wait_for_end(timeout_s)


def _kill_host(pid: int, run: RunFound, transport: TransportModule) -> bool:
    """Whether it is killed, or gone already.

    Who listens is who holds the lock: the kernel noted its pid when it began to listen, and the pid cannot be another's
    while the lock is held.
    """
    assert transport.is_held is not None
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        if transport.is_held(run.path):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        return True
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    finally:
        os.close(pidfd)


def _say(as_json: bool, name: str, *, gone: bool, left: RunFound | None, text: str) -> None:
    waiting = left.waiting if left is not None and left.state != "live" else None
    if as_json:
        plain: dict[str, Any] = {"name": name, "gone": gone, "waiting": 0 if gone and left is None else waiting}
        click.echo(json.dumps(plain))
        return
    click.echo(text)
    if gone and left is not None and left.state == "dead":
        click.echo(f"{state_text(left)}: {way_out(left)}", err=True)
