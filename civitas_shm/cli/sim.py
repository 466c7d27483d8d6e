"""`sim`: random faults against a supervision tree, in virtual time, from seeds.

Rules of this file: it decides how the seeds are shared out and how the result is told; all else is `simulation`. The
seeds are played by child processes that run this same command with `--jobs 1 --json`, so what comes back is text that
is parsed, never pickled.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import rich_click as click

from .options import cores

if TYPE_CHECKING:
    from ..simulation import Batch, FailedSeed, FaultKind
    from ..topology.model import TopologySpec

__all__ = ["command"]

SEEDS_PER_JOB_MIN = 50
"""Less is played sooner than another interpreter is there (0.3 s)."""

COLLECT_EVERY = 50_000
"""Objects more than were let go of, between two collections while seeds are played; a few megabytes."""


class FaultsType(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click only
    """`kill,pause,slow,full`, or some of them."""

    name = "KINDS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[FaultKind, ...]:
        from ..simulation.schedule import FAULTS

        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in value.split(",") if word.strip()]
        unknown = [word for word in words if word not in FAULTS]
        if unknown or not words:
            what = f"{', '.join(map(repr, unknown))}: there is no such fault" if unknown else "no fault is named"
            self.fail(f"{what}; there are {', '.join(FAULTS)}", param, ctx)
        return tuple(kind for kind in FAULTS if kind in words)


@click.command("sim")
@click.argument("topology", required=False, type=click.Path())
@click.option("--seeds", type=click.IntRange(1), default=1000, show_default=True, metavar="N", help="How many.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="S", help="The first one.")
@click.option("--faults", type=FaultsType(), default="kill,pause,slow,full", show_default=True, help="Which may come.")
@click.option("--jobs", type=click.IntRange(1, 256), metavar="N", help="Processes; one per core unless given.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def command(
    ctx: click.Context,
    topology: str | None,
    seeds: int,
    seed: int,
    faults: tuple[FaultKind, ...],
    jobs: int | None,
    as_json: bool,
) -> None:
    """Simulate supervision under random faults: of a topology with stub agents, else of random trees.

    Nothing is started; time is virtual. Every decision of the supervision tree is checked. Exit code 1 when an
    invariant does not hold: then the seed, the invariant and the shortest fault schedule that shows it are printed.
    """
    begin_s = time.monotonic()
    spec = _load(topology)
    jobs = max(1, min(jobs or len(cores()), seeds // SEEDS_PER_JOB_MIN))
    if jobs == 1:
        from ..simulation import play

        with _few_collections():
            batch = play(range(seed, seed + seeds), topology=spec, faults=faults)
    else:
        batch = _share(topology, seed, seeds, faults, jobs)
    batch.failed.sort(key=lambda failed: failed.seed)
    took_s = time.monotonic() - begin_s
    if as_json:
        plain = batch.to_plain() | {"first_seed": seed, "kinds": list(faults), "took_s": round(took_s, 3)}
        click.echo(json.dumps(plain, indent=2))
    else:
        click.echo(summary(batch, seed, took_s))
        for failed in batch.failed:
            click.echo("\n".join(_failure(failed, topology, faults)))
    ctx.exit(1 if batch.failed else 0)


@contextlib.contextmanager
def _few_collections() -> Iterator[None]:
    """A seed makes thousands of small objects and lets go of them at its end: looking for circles as often as Python
    does by itself is a sixth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(COLLECT_EVERY)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _load(topology: str | None) -> TopologySpec | None:
    """The user's topology; its classes need not be there, because stubs take their place. A wrong one is said here."""
    if topology is None:
        return None
    from ..topology.load import load_topology

    return load_topology(topology)


def _share(topology: str | None, seed: int, seeds: int, faults: tuple[FaultKind, ...], jobs: int) -> Batch:
    from ..simulation import Batch

    parts = [seeds * job // jobs for job in range(jobs + 1)]
    children = []
    try:
        for first, last in itertools.pairwise(parts):
            command = [sys.executable, "-m", "civitas_shm", "sim", *([topology] if topology else [])]
            command += ["--seed", str(seed + first), "--seeds", str(last - first), "--faults", ",".join(faults)]
            command += ["--jobs", "1", "--json"]
            children.append(subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True))
        batch = Batch()
        for child in children:
            text, _ = child.communicate()
            if child.returncode not in (0, 1) or not text:
                raise click.ClickException(f"a process that played seeds ended with exit code {child.returncode}")
            plain = json.loads(text)
            batch.merge(Batch.from_plain(plain))
        return batch
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()


def summary(batch: Batch, seed: int, took_s: float) -> str:
    """The one line of result."""
    from ..simulation.schedule import FAULTS

    faults = ", ".join(f"{batch.faults[kind]:,} {kind}" for kind in FAULTS if batch.faults[kind])
    rarest = min(batch.fired, key=batch.fired.__getitem__, default="")
    return (
        f"{batch.seeds:,} seeds from {seed}, {batch.events:,} events, {batch.faults['end']:,} ends of agents, "
        f"faults: {faults or 'none'}; {len(batch.fired)} clauses, the rarest {batch.fired[rarest]:,} times "
        f"({rarest}); {batch.simulated_s:,.0f} s simulated in {took_s:.1f} s; "
        f"{'every invariant held' if not batch.failed else f'{len(batch.failed)} seeds FAILED'}"
    )


def _failure(failed: FailedSeed, topology: str | None, faults: tuple[FaultKind, ...]) -> list[str]:
    again = f"civitas-shm sim {f'{topology} ' if topology else ''}--seed {failed.seed} --seeds 1"
    return [
        "",
        f"seed {failed.seed}: {failed.violation}",
        *(f"  {line}" for line in failed.tree),
        f"the shortest schedule that shows it ({len(failed.schedule)} of {failed.entries_before} entries; without one "
        "an agent starts and stops at once):",
        *(f"  {line}" for line in failed.schedule),
        f"again: {again} --faults {','.join(faults)}",
    ]
