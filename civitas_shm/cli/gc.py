"""`gc`: what dead runs have left in shared memory; with `--yes` it is removed.

Rules of this file: which runs are dead is the transport's knowledge (a lock, never a pid); nothing is removed without
`--yes`, because messages may wait in it.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import rich_click as click

from ..transport import StaleRun

__all__ = ["command"]


@click.command("gc")
@click.option("--yes", is_flag=True, help="Remove them, with the messages that wait in them.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def command(ctx: click.Context, yes: bool, as_json: bool) -> None:
    """List what dead runs have left behind; with --yes, remove it."""
    from ..errors import RunAlive
    from ..transport import load_transport

    transport = load_transport("shm")
    if transport.stale_runs is None or transport.remove_stale is None:
        raise AssertionError("the shm transport keeps runs, so it can list them")
    runs = transport.stale_runs()
    kept: list[str] = []
    if yes:
        for run in runs:
            try:
                transport.remove_stale(run)
            except RunAlive as error:
                kept.append(f"{run.name}: kept, because it is alive again ({error})")
    if as_json:
        click.echo(json.dumps({"removed": yes, "runs": [asdict(run) for run in runs], "kept": kept}))
        return
    click.echo(listing(runs, removed=yes))
    for line in kept:
        click.echo(line, err=True)


def listing(runs: list[StaleRun], *, removed: bool) -> str:
    """For people."""
    from ..dashboard.model import bytes_text

    if not runs:
        return "Nothing is left of dead runs."
    lines = [f"{run.name}  {run.run_id}  {bytes_text(run.bytes)}  {run.waiting:,} waiting  {run.path}" for run in runs]
    total = bytes_text(sum(run.bytes for run in runs))
    if removed:
        lines.append(f"Removed; {total} are free again.")
    else:
        lines.append(
            f"{total} in all. `civitas-shm gc --yes` removes them; `run --name NAME --resume` goes on with one."
        )
    return "\n".join(lines)
