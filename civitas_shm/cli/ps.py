"""`ps`: every run of this user.

Rules of this file: whether a run lives is said by its lock, the rest of a live one by its host over the control socket,
of a dead one by its memory. A host that does not answer is shown as such, never left out.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import rich_click as click

from .found import count, state_text, table

if TYPE_CHECKING:
    from ..control.protocol import RunStatus
    from ..runs import RunFound

__all__ = ["Listed", "ago", "command", "look"]

ANSWER_S: Final = 2.0
"""How long one host may keep the whole list waiting."""

_TITLES: Final = ("NAME", "PID", "SINCE", "PROCESSES", "AGENTS", "WAITING", "DEAD LETTERS", "STATE")


@dataclass(frozen=True, slots=True)
class Listed:
    """One line."""

    found: RunFound
    status: RunStatus | None = None
    """Of a live one whose host answers."""
    problem: str = ""
    """Why it does not."""


@click.command("ps")
@click.option("-a", "--all", "everything", is_flag=True, help="Empty, ended and other users' ones too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(everything: bool, as_json: bool) -> None:
    """List the runs of this user: those that are alive, and dead ones with messages or dead letters."""
    listed = look()
    if not everything:
        hidden = [one for one in listed if one.found.elsewhere]
        listed = [
            one for one in listed if one.found.state in ("live", "dead", "unreadable") and not one.found.elsewhere
        ]
        if hidden:
            text = f"{count(len(hidden), 'run')} under another CIVITAS_SHM_DIR: `civitas-shm ps --all`"
            click.echo(text, err=True)
    if as_json:
        click.echo(json.dumps({"runs": [as_plain(one) for one in listed]}))
    else:
        click.echo(listing(listed, time.time()))


def look() -> list[Listed]:
    """All runs; live ones are asked, one after the other."""
    from ..transport import load_transport

    transport = load_transport("shm")
    assert transport.find_runs is not None
    return [_ask(run) if run.state == "live" else Listed(run) for run in transport.find_runs()]


def _ask(run: RunFound) -> Listed:
    from ..control.client import ControlClient
    from ..control.protocol import RunStatus, Status
    from ..errors import RunNotAnswering, RunNotFound
    from ..transport import load_transport

    is_held = load_transport("shm").is_held
    assert is_held is not None
    try:
        with ControlClient(run.path, is_held, ANSWER_S) as client:
            return Listed(run, client.ask(Status(), RunStatus))
    except RunNotFound:  # it has ended since
        return Listed(run, problem="it has just ended")
    except RunNotAnswering as error:
        return Listed(run, problem=str(error))


def as_plain(one: Listed) -> dict[str, Any]:
    """For `--json`; a stable form. Null is what is not known."""
    found, status = one.found, one.status
    return {
        "name": found.name,
        "state": status.state if status else found.state,
        "answers": status is not None,
        "problem": one.problem or found.problem,
        "pid": status.pid if status else None,
        "host_pid": status.host_pid if status else None,
        "since": status.since_s if status else found.made_s,
        "processes": status.processes if status else None,
        "agents": status.agents if status else None,
        "waiting": status.waiting if status else found.waiting,
        "dead_letters": status.dead_letters if status else found.dead_letters,
        "restarts": status.restarts if status else None,
        "suspended": status.suspended if status else None,
        "run_id": found.run_id,
        "version": status.version if status else None,
        "size_bytes": found.size_bytes,
        "has_log": found.has_log,
        "elsewhere": found.elsewhere,
        "path": str(found.path),
    }


def listing(listed: list[Listed], now_s: float) -> str:
    """For people."""
    if not listed:
        return "There is no run. `civitas-shm ps --all` shows what is left of ended ones too."
    rows = []
    for one in listed:
        plain = as_plain(one)
        state = one.status.state if one.status else state_text(one.found)
        if one.found.elsewhere:
            state += f" ({one.found.path.parent})"
        since = "" if plain["since"] is None else ago(now_s - plain["since"])
        numbers = [_number(plain[key]) for key in ("processes", "agents", "waiting", "dead_letters")]
        problem = f": {one.problem}" if one.problem else ""
        if one.status and one.status.suspended:
            problem += f", suspended: {', '.join(one.status.suspended)}"
        rows.append([plain["name"], _number(plain["pid"]), since, *numbers, state + problem])
    return "\n".join(table([list(_TITLES), *rows]))


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def ago(seconds: float) -> str:
    """`5 s`, `12 min`, `3 h`, `4 days`."""
    seconds = max(0.0, seconds)
    for limit, unit_s, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit_s:.0f} {unit} ago"
    return f"{seconds / 86_400:.0f} days ago"
