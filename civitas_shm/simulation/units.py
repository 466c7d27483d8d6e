"""Children and supervisors as the account sees them: what state each is in, and how many live below it.

Rules of this file: plain objects that change in place; no decision is made here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ..topology.model import AgentSpec, SupervisorSpec

__all__ = ["Child", "Supervisor", "Unit", "add_living", "children_below", "forget"]

OFF, STARTING, READY, STOPPING, GONE = range(5)
"""Of a child. OFF: does not live, and will be started when its turn comes or its wait is over."""
DOWN, UP, CLEARING, HOLDING, HALTED, ENDING, OVER = range(7)
"""Of a supervisor. ENDING: its children are being stopped, because it gave up or shuts down, its turn has come, or the
tree is asked to stop. OVER: it has ended and is not restarted for its own sake."""

FAILED: Final = "failed"
FINISHED: Final = "finished"


class Child:
    """One child."""

    __slots__ = (
        "begun", "group", "home", "incarnation", "key", "removing", "restart", "significant", "spawner", "state",
        "timeout_s", "type", "waits", "window",
    )  # fmt: skip

    def __init__(self, key: str, home: Supervisor, group: int, spec: AgentSpec) -> None:
        self.key = key
        self.home = home
        self.group = group
        self.restart = spec.restart
        self.significant = spec.significant
        self.timeout_s = spec.shutdown_timeout_s
        self.state = OFF
        self.incarnation = 0
        """Of its last start; before the first, the highest that any earlier bearer of its name had."""
        self.begun = False
        self.waits = False
        self.type = spec.type
        self.spawner: str | None = None
        """Not None: it was spawned."""
        self.window: list[tuple[float, int]] = []
        """Of a spawned one: (time, cause) of its restarts."""
        self.removing = False

    @property
    def lives(self) -> bool:
        """As far as the tree has been told."""
        return STARTING <= self.state <= STOPPING

    @property
    def is_over(self) -> bool:
        """It does not live, and will not for its own sake."""
        return self.state == GONE

    @property
    def is_up(self) -> bool:
        """What comes after it may start."""
        return self.state in (READY, GONE)


class Supervisor:
    """One supervisor."""

    __slots__ = (
        "fall", "frontier", "group", "groups", "hold_hi_s", "hold_lo_s", "key", "living", "mode", "parent", "ready",
        "restart", "scope", "series", "significant", "spawned", "spec", "timers", "up_since_s", "waits", "window",
    )  # fmt: skip

    def __init__(self, spec: SupervisorSpec, parent: Supervisor | None, group: int) -> None:
        self.key = spec.name
        self.spec = spec
        self.restart = spec.restart
        self.significant = spec.significant
        self.parent = parent
        self.group = group
        self.groups: list[list[Child | Supervisor]] = []
        self.living: list[int] = []
        """How many children live in each group, at any depth."""
        self.mode = DOWN
        self.ready = False
        self.frontier = 0
        """UP: groups before it have been up."""
        self.scope = 0
        self.hold_lo_s = self.hold_hi_s = 0.0
        """CLEARING, HOLDING: bounds of the time from which it may start again."""
        self.window: list[tuple[float, int]] = []
        """(time, cause) of the restarts that were counted."""
        self.series = 0
        """The cause that the series of restarts began with; for the backoff."""
        self.up_since_s: float | None = None
        """When all its children came to be up together; kept where `backoff_reset_s` is set."""
        self.fall: tuple[int, str, bool] | None = None
        """ENDING of its own accord: the cause, and FAILED (it gave up) or FINISHED (it shut down)."""
        self.waits = False
        self.timers: set[int] = set()
        self.spawned: dict[str, int] = {}
        """Of a dynamic one: by spawner."""

    @property
    def is_over(self) -> bool:
        """It does not run, and will not for its own sake."""
        return self.mode == OVER

    @property
    def is_up(self) -> bool:
        """What comes after it may start."""
        return self.ready or self.mode == OVER


Unit = Child | Supervisor


def add_living(child: Child, count: int) -> None:
    """It lives (1), or does so no more (-1)."""
    unit: Unit = child
    home: Supervisor | None = child.home
    while home is not None:
        home.living[unit.group] += count
        unit, home = home, home.parent


def forget(supervisor: Supervisor) -> None:
    """Nothing of it lives: it knows nothing of before, nor does any supervisor below it."""
    supervisor.mode, supervisor.ready, supervisor.fall = DOWN, False, None
    supervisor.window, supervisor.series, supervisor.up_since_s = [], 0, None
    for group in supervisor.groups:
        for unit in group:
            if isinstance(unit, Supervisor):
                forget(unit)


def children_below(unit: Unit) -> Iterable[Child]:
    """All children below it, at any depth; a child itself."""
    if isinstance(unit, Child):
        yield unit
        return
    for group in unit.groups:
        for below in group:
            yield from children_below(below)
