"""`gc`: what dead runs have left in shared memory; with `--yes` it is removed.

Rules of this file: which runs are dead is the transport's knowledge (a lock, never a pid); nothing is removed without
`--yes`, because messages may wait in it.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import rich_click as click

if TYPE_CHECKING:
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
    removed: list[StaleRun] = []
    for run in runs if yes else []:
        try:
            transport.remove_stale(run)
        except RunAlive as error:
            click.echo(f"{run.name}: kept, because it is alive again ({error})", err=True)
        else:
            removed.append(run)
    if as_json:
        click.echo(json.dumps({"runs": [as_plain(run) for run in runs], "removed": [run.run_id for run in removed]}))
    else:
        click.echo(listing(runs, removed if yes else None))


def as_plain(run: StaleRun) -> dict[str, Any]:
    """For `--json`; a stable form."""
    return {**asdict(run), "waiting": run.waiting if run.waiting >= 0 else None, "path": str(run.path)}


def listing(runs: list[StaleRun], removed: list[StaleRun] | None) -> str:
    """For people. `removed` is None when nothing was to be removed."""
    from ..dashboard.model import bytes_text

    if not runs:
        return "Nothing is left of dead runs."
    lines = [f"{run.name}  {bytes_text(run.size_bytes)}  {_waiting(run.waiting)}  {run.path}" for run in runs]
    if removed is None:
        total = bytes_text(sum(run.size_bytes for run in runs))
        lines.append(
            f"{total} in all. `civitas-shm gc --yes` removes them; `run --name NAME --resume` goes on with one."
        )
    else:
        lines.append(f"Removed; {bytes_text(sum(run.size_bytes for run in removed))} are free again.")
    return "\n".join(lines)


def _waiting(count: int) -> str:
    if count < 0:
        return "cannot be read"
    return f"{count:,} message{'' if count == 1 else 's'} wait{'s' if count == 1 else ''}"
