"""Which supervisor may be found to be down next, and the tree's evident choice among them.

Rules of this file: pure questions. All that may be found is offered, because within one step the order of what does not
depend on each other is the tree's own choice; what the tree has asked for only says which is the likeliest.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from .asked import Asked
from .units import CLEARING, DOWN, ENDING, OVER, Supervisor, children_below

__all__ = ["Found", "found_down"]


class Found(Enum):
    """What is found of a supervisor."""

    DOWN = "nothing of it lives, and it was to end"
    CLEARED = "nothing lives of the groups that had to fall"


Next = tuple[Found | Supervisor, Supervisor]
"""What, of whom; a supervisor: one below that has ended, and does not come back with its group."""


def found_down(supervisors: Sequence[Supervisor], queue: list[Supervisor], asked: Asked, now_s: float) -> list[Next]:
    """What may be found next, the likeliest first: that with which the tree has evidently gone on, then what came up
    first (`queue`), then those deep down; last who would have to wait, which is right only if one above goes down.
    """
    evident: list[Next] = []
    others: list[Next] = []
    waiting: list[Next] = []
    for supervisor in supervisors:
        if supervisor.mode == ENDING:
            if not any(supervisor.living):
                others.append((Found.DOWN, supervisor))
        elif supervisor.mode == CLEARING:
            if (unit := _given_up(supervisor, asked)) is not None:
                evident.append((unit, supervisor))
            if any(supervisor.living[supervisor.scope :]):
                continue
            if _goes_on(supervisor, asked, now_s):
                evident.append((Found.CLEARED, supervisor))
            elif now_s < supervisor.hold_lo_s:
                waiting.append((Found.CLEARED, supervisor))
            else:
                others.append((Found.CLEARED, supervisor))
    if len(others) > 1:
        others.reverse()  # parents stand before their children
        others.sort(key=lambda found: queue.index(found[1]) if found[1] in queue else len(queue))
    return [*evident, *others, *waiting]


def _goes_on(supervisor: Supervisor, asked: Asked, now_s: float) -> bool:
    """Whether the tree has set its timer, or starts what it starts next."""
    lo_s, hi_s = supervisor.hold_lo_s, supervisor.hold_hi_s
    if any(timer.children == (supervisor.key,) and lo_s <= timer.at_s <= hi_s for timer in asked.timers):
        return True
    if now_s < lo_s:
        return False
    return any(unit.key in asked.starts for unit in supervisor.groups[max(supervisor.scope - 1, 0)])


def _given_up(supervisor: Supervisor, asked: Asked) -> Supervisor | None:
    """One below that is temporary, whose turn to stop has come, of which nothing lives, and that the tree has given up:
    which it would not have if it had found one above going down before.
    """
    for index in range(len(supervisor.groups) - 1, supervisor.scope - 1, -1):
        if supervisor.living[index]:
            return None
        for unit in supervisor.groups[index]:
            if not isinstance(unit, Supervisor) or unit.mode in (DOWN, OVER) or unit.restart != "temporary":
                continue
            if any(child.key in asked.give_ups or child.key in asked.removals for child in children_below(unit)):
                return unit
    return None
