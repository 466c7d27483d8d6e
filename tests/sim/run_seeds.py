"""The simulation for many seeds, in pieces that are kept: a run that is interrupted goes on where it was.

    python tests/sim/run_seeds.py --seeds 1000000 --first 0 [--record docs/reliability.md]
    python tests/sim/run_seeds.py --seconds 60          seeds that nobody has played, as many as there is time for

Each piece is one `civitas-shm sim --json`, whose result lies in build/sim/COMMIT/. What has not been committed could be
anything, so then nothing is kept. Prints one line; exit status 1, the seed and the shortest schedule that shows it at
the first seed that breaks an invariant.

Rules of this file: the file of a piece is whole or not there; a piece that failed is never kept.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from civitas_shm.simulation import CLAUSES, FAULTS, Batch

ROOT: Final = Path(__file__).parent.parent.parent
PIECE: Final = 10_000
"""Seeds: a minute of two cores. That much is played again after an interruption."""
PIECE_IN_A_HURRY: Final = 500
"""A limit by time is overrun by one of these: 3 s."""
HEADING: Final = "## Simulation"
COLUMNS: Final = (
    "date | commit | machine | seeds | events | faults | ends of agents | rarest clause | simulated | broken"
)


class Broken(Exception):
    """A seed that breaks an invariant; the text tells it."""


def pieces(first: int, seeds: int, size: int) -> Iterator[tuple[int, int]]:
    """(first seed, number of seeds) of each."""
    for at in range(first, first + seeds, size):
        yield at, min(size, first + seeds - at)


def play_piece(first: int, seeds: int) -> dict[str, Any]:
    """What `civitas-shm sim --json` says of these. When this process is ended, so are those that play."""
    command = [sys.executable, "-m", "civitas_shm", "sim", "--seed", str(first), "--seeds", str(seeds), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0) as child:
        try:
            text, _ = child.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            raise
    if not text:
        raise SystemExit(f"{' '.join(command)} ended with exit code {child.returncode} and said nothing")
    told: dict[str, Any] = json.loads(text)
    return told


def kept_piece(folder: Path, first: int, seeds: int) -> dict[str, Any]:
    """The piece's result: from its file, or played and written there."""
    file = folder / f"{first}-{seeds}.json"
    with contextlib.suppress(FileNotFoundError):
        kept: dict[str, Any] = json.loads(file.read_text())
        return kept
    told = play_piece(first, seeds)
    if told["failed"]:
        raise Broken("\n".join(_story(failed) for failed in told["failed"]))
    new = file.with_suffix(".new")
    new.write_text(json.dumps(told))
    new.replace(file)
    return told


def _story(failed: dict[str, Any]) -> str:
    again = f"again: civitas-shm sim --seed {failed['seed']} --seeds 1"
    return "\n  ".join([f"seed {failed['seed']}: {failed['violation']}", *failed["tree"], *failed["schedule"], again])


def play(folder: Path, first: int, seeds: int | None, seconds: float | None) -> dict[str, Any]:
    """All pieces, or as many as are begun in time. The sum of them, and `took_s`."""
    total, took_s, begin_s = Batch(), 0.0, time.monotonic()
    size = PIECE if seconds is None else PIECE_IN_A_HURRY
    for at, count in pieces(first, seeds if seeds is not None else sys.maxsize - first, size):
        if seconds is not None and time.monotonic() - begin_s >= seconds:
            break
        told = kept_piece(folder, at, count)
        total.merge(Batch.from_plain(told))
        took_s += told["took_s"]
        if seeds is not None:
            print(f"{at + count - first:,} of {seeds:,} seeds", file=sys.stderr, flush=True)
    return total.to_plain() | {"first_seed": first, "took_s": took_s}


def row(total: dict[str, Any], commit: str, date: str) -> str:
    """The line of result, in the columns of the table."""
    rarest = min(CLAUSES, key=lambda clause: total["fired"].get(clause, 0))
    faults = sum(total["faults"].get(kind, 0) for kind in FAULTS)
    years = total["simulated_s"] / 86400 / 365.25
    return (
        f"{date} | {commit} | {platform.machine()}, {os.cpu_count()} cores | {total['seeds']:,} from "
        f"{total['first_seed']:,} | {total['events']:,} | {faults:,} | {total['faults'].get('end', 0):,} | "
        f"{total['fired'].get(rarest, 0):,} ({rarest}) | {years:,.2f} years in {total['took_s']:,.0f} s | 0"
    )


def with_row(document: str, line: str) -> str:
    """The document with the line behind the last one of the section's table."""
    lines = document.splitlines()
    begin = lines.index(HEADING)
    head = next(number for number in range(begin, len(lines)) if lines[number].startswith("|---"))
    end = next((number for number in range(head, len(lines)) if not lines[number].startswith("|")), len(lines))
    return "\n".join([*lines[:end], f"| {line} |", *lines[end:]]) + "\n"


@contextlib.contextmanager
def results(folder: Path | None) -> Iterator[tuple[Path, str]]:
    """(where pieces are kept, commit)."""

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    commit, changed = git("rev-parse", "--short", "HEAD"), git("status", "--porcelain", "--", "civitas_shm")
    if commit is None or changed != "":
        print("civitas_shm has changes that are not committed: no piece is kept", file=sys.stderr)
        with tempfile.TemporaryDirectory() as name:
            yield Path(name), f"{commit or 'unknown'}, changed"
        return
    place = (folder or ROOT / "build" / "sim") / commit
    place.mkdir(parents=True, exist_ok=True)
    yield place, commit


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, help="how many (100,000 unless --seconds is given)")
    parser.add_argument("--first", type=int, help="the first one; unless given, one that nobody has played")
    parser.add_argument("--seconds", type=float, help="begin no piece after that time")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where pieces are kept; unless given, build/sim")
    parser.add_argument("--record", type=Path, metavar="FILE", help=f"add the line to the table under {HEADING!r}")
    wanted = parser.parse_args(arguments)
    seeds = wanted.seeds if wanted.seeds or wanted.seconds is not None else 100_000
    first = int(time.time() * 1000) if wanted.first is None else wanted.first
    try:
        with results(wanted.results) as (folder, commit):
            total = play(folder, first, seeds, wanted.seconds)
    except Broken as broken:
        print(broken)
        return 1
    line = row(total, commit, f"{datetime.now(UTC):%F}")
    print(f"{COLUMNS}\n{line}" if wanted.seconds is None else f"simulation: {line}")
    if wanted.record is not None:
        wanted.record.write_text(with_row(wanted.record.read_text(), line))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no child is left
    sys.exit(main())
