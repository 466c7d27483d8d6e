"""What is found of runs, in words: shared by `ps`, `gc` and `doctor`, so that all three say the same.

Rules of this file: pure; one sentence says the state, one what can be done about it; what is not known is said so.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import RunNotFound
from ..runs import RunFound

__all__ = ["choose", "count", "state_text", "table", "way_out"]


def count(number: int, one: str, several: str = "") -> str:
    """`1 message`, `17 messages`."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def state_text(run: RunFound) -> str:
    """The state of a run, from outside."""
    match run.state:
        case "live":
            return "running"
        case "dead":
            held = [f"{count(run.waiting, 'message')} waiting"] if run.waiting else []
            if run.dead_letters is None:
                held.append("dead letters that cannot be read")
            elif run.dead_letters:
                held.append(count(run.dead_letters, "dead letter"))
            return f"dead, with {' and '.join(held)}" if held else "dead"
        case "empty":
            return "dead, empty"
        case "ended":
            return "ended, its log is left"
        case "unreadable":
            return f"dead, cannot be read: {run.problem}"
        case "orphan":
            return f"left over: {run.problem}"
        case "foreign":
            return f"of user {run.uid}"


def way_out(run: RunFound) -> str:
    """The line to paste; empty where there is nothing to do."""
    match run.state:
        case "dead":
            return (
                f"civitas-shm run --name {run.name} --resume ...    (or, to drop them: civitas-shm gc {run.name} --yes)"
            )
        case "empty" | "ended":
            return f"civitas-shm gc {run.name} --empty"
        case "unreadable" | "orphan":
            return f"civitas-shm gc {run.name} --yes    (messages may wait there; the version that made it can tell)"
        case _:
            return ""


def choose(runs: Sequence[RunFound], name: str | None, what: str) -> RunFound:
    """The run that is meant: the one of that name, or the only one here. RunNotFound says which there are."""
    if name is not None:
        for run in sorted(runs, key=lambda run: run.elsewhere):
            if run.name == name:
                return run
        known = f"; there is {', '.join(run.name for run in runs)}" if runs else ""
        raise RunNotFound(f"There is no {what} named {name!r}{known}. `civitas-shm ps --all` lists what there is.")
    here = [run for run in runs if not run.elsewhere]
    if len(here) == 1:
        return here[0]
    if not here:
        raise RunNotFound(f"There is no {what}. `civitas-shm ps --all` lists what there is.")
    raise RunNotFound(f"Which {what} is meant? There are {len(here)}: {', '.join(run.name for run in here)}.")


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns, the first row their titles; the last column is as long as it is."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)] if rows else []
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
