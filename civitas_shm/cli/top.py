"""`top`: a run as it is, looked at from outside, alive or dead; live, once, recorded, or played back.

Rules of this file: everything is read by `inspection`, drawn by `dashboard`; without a terminal it shows one page and
ends.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from .attach import INTERVAL_S, attached, name_option

if TYPE_CHECKING:
    from ..snapshot import RuntimeSnapshot

__all__ = ["command"]

VIEW_NAMES = ("overview", "agents", "tree", "processes", "mailboxes", "events", "letters")


@click.command("top")
@name_option
@click.option(
    "--view", type=click.Choice(VIEW_NAMES), default="overview", show_default=True, help="Page to begin with."
)
@click.option("--filter", "pattern", default="", metavar="TEXT", help="Only rows in which this stands (a pattern).")
@click.option("--once", is_flag=True, help="One page after a second, then end.")
@click.option("--json", "as_json", is_flag=True, help="All of it as one JSON object on stdout; implies --once.")
@click.option("--interval", "interval_s", type=click.FloatRange(0.1), default=INTERVAL_S, help="Seconds; 1.")
@click.option("--record", type=click.Path(dir_okay=False), metavar="FILE", help="Keep every reading, a line each.")
@click.option("--replay", type=click.Path(exists=True, dir_okay=False), metavar="FILE", help="Show a recording.")
def command(
    run: str | None,
    view: str,
    pattern: str,
    once: bool,
    as_json: bool,
    interval_s: float,
    record: str | None,
    replay: str | None,
) -> None:
    """Look at a run: agents, supervision tree, processes, mailboxes, events, dead letters. `?` tells the keys.

    It only reads what lies in shared memory and /proc: no process of the run does anything because of it, and it works
    while the run hangs and when it is dead.
    """
    from ..dashboard.top import Live, Replay, Source, run_top
    from ..dashboard.views import Choice

    if replay is not None and (run is not None or record is not None):
        raise click.UsageError("--replay shows a recording; it goes with neither --name nor --record")
    once = once or as_json or not (sys.stdin.isatty() and sys.stdout.isatty())
    choice = Choice(view=VIEW_NAMES.index(view), filter=pattern)
    source: Source
    with ExitStack() as stack:
        if replay is not None:
            try:
                source = Replay(Path(replay))
            except ValueError as error:
                raise click.BadParameter(f"{replay} is no recording of top: {error}", param_hint="--replay") from None
            if once:
                show(source.last(), choice, as_json=as_json)
                return
        else:
            file = stack.enter_context(open(record, "ab")) if record is not None else None
            source = Live(stack.enter_context(attached(run)), file)
            if once:
                if source.next().state not in ("dead", "removed"):
                    time.sleep(interval_s)
                show(source.next(), choice, as_json=as_json)
                return
        run_top(source, interval_s, choice)


def show(snapshot: RuntimeSnapshot, choice: object, *, as_json: bool) -> None:
    """One page on stdout."""
    from ..dashboard.views import Choice, lines_of

    if as_json:
        click.echo(json.dumps(asdict(snapshot)))
        return
    assert isinstance(choice, Choice)
    width = shutil.get_terminal_size((120, 24)).columns
    for line in lines_of(snapshot, choice, width, 1 << 16, keys=False):
        click.echo(line.text)
