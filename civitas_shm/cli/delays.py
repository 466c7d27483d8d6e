"""`delays`: messages that wait for their time: list, take back.

Rules of this file: of a live run over its control socket, of a dead one from its file, which is only read; an ID is any
beginning that only one has; each that could not be taken back is named, and exit code 1 says that there was one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import rich_click as click

from .found import choose, count, table

if TYPE_CHECKING:
    from ..control.client import ControlClient

__all__ = ["command", "listing"]

run_option = click.option("--run", "run", metavar="RUN", help="Whose; not needed when only one has any.")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")


@click.group("delays")
def command() -> None:
    """Messages that wait for their time: `send` with a delay, a time, or again and again.

    ID is what `delays list` shows, or any beginning of it that only one has.
    """


@command.command("list")
@run_option
@json_option
def list_(run: str | None, as_json: bool) -> None:
    """List them, the next one first; of a dead run too."""
    with _asking(run) as (name, client, kept):
        delayed = _sorted(kept if client is None else _all(client))
    if as_json:
        click.echo(json.dumps({"run": name, "alive": client is not None, "delayed": delayed}))
    elif delayed:
        click.echo(listing(delayed, time.time()))
    else:
        click.echo(f"{name} has no messages that wait for their time.")


@command.command("cancel")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@run_option
@json_option
@click.pass_context
def cancel(ctx: click.Context, ids: tuple[str, ...], everything: bool, run: str | None, as_json: bool) -> None:
    """Take them back for good, whoever has sent them. Needs a live run."""
    from ..control.protocol import IDS_MAX, DelaysCancel, Outcomes
    from ..errors import RunNotAnswering

    if bool(ids) == everything:
        raise click.UsageError("give one or more IDs, or --all")
    outcomes: dict[str, str | None] = {}
    with _asking(run) as (name, client, _):
        if client is None:
            raise RunNotAnswering(
                f"{name} is not alive, and what a dead run holds is only changed as a whole: "
                f"`civitas-shm run --name {name} --resume ...` goes on with it, then cancel; "
                f"`civitas-shm gc {name} --yes` drops all that it has."
            )
        known = [one["id"] for one in _all(client)]
        wanted = dict.fromkeys(known if everything else ids)
        exact = [id_ for beginning in wanted if (id_ := _exact(beginning, known, outcomes)) is not None]
        for start in range(0, len(exact), IDS_MAX):
            outcomes |= client.ask(DelaysCancel(ids=exact[start : start + IDS_MAX]), Outcomes).outcomes
    problems = {id_: problem for id_, problem in outcomes.items() if problem is not None}
    cancelled = [id_ for id_ in outcomes if id_ not in problems]
    if as_json:
        click.echo(json.dumps({"run": name, "cancelled": cancelled, "problems": problems}))
    else:
        click.echo(f"{count(len(cancelled), 'delayed message')} of {name} cancelled.")
        for id_, problem in problems.items():
            click.echo(f"{id_}: {problem}", err=True)
    ctx.exit(1 if problems else 0)


def _exact(beginning: str, known: Sequence[str], outcomes: dict[str, str | None]) -> str | None:
    """The one id that begins so; else the reason is among the outcomes."""
    found = [id_ for id_ in known if id_.startswith(beginning)] if beginning else []
    if len(found) == 1:
        return found[0]
    outcomes[beginning] = f"{'no' if not found else 'more than one'} delayed message has an id that begins so"
    return None


@contextmanager
def _asking(run: str | None) -> Iterator[tuple[str, ControlClient | None, list[dict[str, Any]]]]:
    """The name of the run that is meant, its host, and, where it has none, what its file holds."""
    from ..control.client import ControlClient
    from ..delay_store import list_delayed
    from ..errors import RunNotAnswering
    from ..transport import load_transport

    transport = load_transport("shm")
    assert transport.find_runs is not None
    assert transport.is_held is not None
    found = [one for one in transport.find_runs() if one.path.name == one.name]
    if run is None:
        found = [one for one in found if one.state == "live" or _any(one.path)]
    chosen = choose(found, run, "run that is alive or has delayed messages" if run is None else "run")
    if chosen.state == "live":
        with ControlClient(chosen.path, transport.is_held) as client:
            yield chosen.name, client, []
        return
    try:
        kept = list_delayed(chosen.path)
    except OSError as error:
        raise RunNotAnswering(f"{chosen.name}: {error}.") from None
    yield chosen.name, None, kept


def _any(directory: Any) -> bool:
    from ..delay_store import list_delayed

    try:
        return bool(list_delayed(directory))
    except OSError:
        return True  # `delays list` says what is wrong with it


def _all(client: ControlClient) -> list[dict[str, Any]]:
    """Every one, page by page."""
    from ..control.protocol import DELAYS_PAGE_MAX, Delays, DelaysList

    found: list[dict[str, Any]] = []
    after = 0
    while True:
        page = client.ask(DelaysList(after=after), Delays)
        found += page.delayed
        after = page.last
        if len(page.delayed) < DELAYS_PAGE_MAX:
            return found


def _sorted(delayed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(delayed, key=lambda one: float(one["due_s"]))


def listing(delayed: Sequence[dict[str, Any]], now_s: float) -> str:
    """For people."""
    rows = [["ID", "DUE", "EVERY", "FROM", "TO", "TYPE", "KEY"]]
    for one in delayed:
        every = f"{one['every_s']:g} s" if one["every_s"] else "-"
        names = [str(one[key] or "-") for key in ("sender", "recipient", "type", "key")]
        rows.append([one["id"], _in(one["due_s"] - now_s), every, *names])
    return "\n".join(table(rows))


def _in(seconds: float) -> str:
    """`in 5 s`, `in 12 min`, `now`."""
    if seconds <= 0:
        return "now"
    for limit, unit_s, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"in {seconds / unit_s:.0f} {unit}"
    return f"in {seconds / 86_400:.0f} days"
