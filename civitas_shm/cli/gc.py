"""`gc`: what runs have left in shared memory and in run directories; with `--yes` it is removed.

Rules of this file:
- what lives is the transport's knowledge (a lock, never a pid) and is never touched;
- what would be removed is shown first; what may hold messages or dead letters goes with `--yes` alone, `--empty`
  removes what surely holds none;
- deciding (`decide`) is apart from doing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import rich_click as click

from .found import choose, state_text, table

if TYPE_CHECKING:
    from ..runs import RunFound

__all__ = ["command"]


@click.command("gc")
@click.argument("names", nargs=-1, metavar="[RUN]...")
@click.option("--yes", is_flag=True, help="Remove all that is marked, with the messages and dead letters in it.")
@click.option("--empty", is_flag=True, help="Remove only what holds no message and no dead letter.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...], yes: bool, empty: bool, as_json: bool) -> None:
    """Show what runs have left behind, and what would be removed; with --yes or --empty, remove it.

    A run that is alive is never touched.
    """
    from ..errors import RunAlive
    from ..host.strays import end_strays, find_strays
    from ..transport import load_transport

    if yes and empty:
        raise click.UsageError("--yes removes all that is marked, --empty only what holds nothing; give one of them")
    transport = load_transport("shm")
    if transport.find_runs is None or transport.remove_stale is None:
        raise AssertionError("the shm transport keeps runs, so it can list them")
    runs = transport.find_runs()
    for name in names:
        choose(runs, name, "run or rest of one")
    doomed = decide(runs, names, empty=empty)
    strays = end_strays() if yes or empty else find_strays()
    removed: list[RunFound] = []
    for run in doomed if yes or empty else []:
        try:
            transport.remove_stale(run)
        except RunAlive as error:
            click.echo(f"{run.name}: kept, because it is alive again ({error})", err=True)
        else:
            removed.append(run)
    if as_json:
        plain = [as_plain(run, run in doomed) for run in runs]
        processes = [asdict(stray) for stray in strays]
        click.echo(json.dumps({"runs": plain, "removed": [run.name for run in removed], "strays": processes}))
    else:
        click.echo(listing(runs, doomed, removed if yes or empty else None))
        verb = "Ended" if yes or empty else "Would end"
        for stray in strays:
            click.echo(f"{verb} process {stray.pid}, left by the dead run {stray.run}: {stray.command}")


def decide(runs: Sequence[RunFound], names: Collection[str], *, empty: bool) -> list[RunFound]:
    """What goes: nothing that lives or is another's; of the rest those named, or all; with `empty`, what is empty."""
    return [
        run
        for run in runs
        if run.state not in ("live", "foreign")
        and (not names or run.name in names)
        and not (empty and run.holds_messages)
    ]


def as_plain(run: RunFound, doomed: bool) -> dict[str, Any]:
    """For `--json`; a stable form."""
    return {**asdict(run), "path": str(run.path), "to_remove": doomed}


def listing(runs: Sequence[RunFound], doomed: Sequence[RunFound], removed: Sequence[RunFound] | None) -> str:
    """For people. `removed` is None when nothing was to be removed."""
    from ..dashboard.words import bytes_text

    if not runs:
        return "Nothing is left of runs, and none is alive."
    rows = []
    for run in runs:
        gone = removed is not None and run in removed
        verb = "removed" if gone else "remove" if run in doomed else "keep"
        rows.append([verb, run.name, bytes_text(run.size_bytes), state_text(run), str(run.path)])
    lines = table(rows)
    if removed is not None:
        freed = bytes_text(sum(run.size_bytes for run in removed))
        lines.append(f"Removed; {freed} are free again." if removed else "Nothing was to be removed.")
    elif doomed:
        lines.append(
            f"{bytes_text(sum(run.size_bytes for run in doomed))} would be free. `civitas-shm gc --yes` removes what "
            "is marked, messages included; `gc --empty` only what holds none; `run --resume` goes on with one."
        )
    return "\n".join(lines)
