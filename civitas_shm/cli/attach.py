"""Which run is looked into, and how long: shared by `top`, `why` and `mailbox`.

Rules of this file: `--name RUN` is any run, alive or dead; without it the only one that lives. Two readings are
INTERVAL_S apart, because rates, and whether a loop turns, take two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import rich_click as click

from .found import choose

if TYPE_CHECKING:
    from ..inspection import Looker, Scene

__all__ = ["INTERVAL_S", "attached", "name_option", "two_readings", "unknown_agent"]

INTERVAL_S: Final = 1.0

Command = Callable[..., Any]


def name_option(command: Command) -> Command:
    """`--name RUN`."""
    option = click.option("--name", "run", metavar="RUN", help="Which run; not needed when only one is alive.")
    return option(command)


@contextmanager
def attached(run: str | None) -> Iterator[Looker]:
    """Look into a run. RunNotFound: there is none to look into, or it is not clear which."""
    from ..inspection import Looker
    from ..transport import load_transport

    transport = load_transport("shm")
    assert transport.find_runs is not None
    assert transport.look is not None
    found = [
        one for one in transport.find_runs() if one.path.name == one.name and one.state not in ("ended", "foreign")
    ]
    if run is None:
        found = [one for one in found if one.state == "live"]
    reader = transport.look(choose(found, run, "run that is alive" if run is None else "run").path)
    try:
        yield Looker(reader)
    finally:
        reader.close()


def two_readings(looker: Looker, interval_s: float = INTERVAL_S) -> Scene:
    """The run over that time; of a dead one, which does not change, as it is."""
    from ..inspection import Scene

    before = looker.look()
    if not before.alive:
        return Scene(None, before)
    time.sleep(interval_s)
    return Scene(before, looker.look())


def unknown_agent(scene: Scene, agent: str) -> str:
    """A sentence for who has named one that is not there."""
    agents = scene.agents()
    more = f" and {len(agents) - 20:,} more" if len(agents) > 20 else ""
    return f"The run {scene.now.name!r} has no agent {agent!r}; it has {', '.join(agents[:20]) or 'none'}{more}."
