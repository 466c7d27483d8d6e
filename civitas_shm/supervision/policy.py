"""The clauses of supervision: who is restarted, who falls with it, and how often that may happen.

Rules of this file: pure functions over plain values, one clause per case; `tree` applies them and decides nothing
of its own about policy. The words are OTP's (`supervisor` of Erlang/OTP 27), and so are the boundaries.

**Restart** (`is_restarted`): what becomes of a child that ended by itself.

| the child …                                              | permanent | transient | temporary |
|----------------------------------------------------------|-----------|-----------|-----------|
| FAILED: crashed, failed to start, or its process died    | restarted | restarted | gone      |
| FINISHED: ended cleanly, but did not say STOP            | restarted | gone      | gone      |
| STOPPED: its `on_error` returned ErrorAction.STOP        | gone      | gone      | gone      |

The last row is not OTP's: there, `permanent` is restarted after every end. Here STOP is the agent's own word that it
is not wanted any more, and `permanent` is the default.

**Scope** (`first_fallen_group`): who is taken down with a child that is restarted. Children are kept in start order,
replicas of one agent side by side in one *group*; groups start one after the other and stop in reverse.

| strategy     | taken down, then started again in start order                        |
|--------------|----------------------------------------------------------------------|
| ONE_FOR_ONE  | nobody else                                                          |
| ONE_FOR_ALL  | all children of the supervisor                                       |
| REST_FOR_ONE | the children of every later group (not the other replicas of its own) |

A child that falls while it is being taken down is not counted. A temporary child that is taken down does not return;
a transient child that had ended before does, both as in OTP.

**Intensity** (`add_restart`): a supervisor may restart `max_restarts` times within `restart_window_s` seconds; the
next restart inside the window is refused and the supervisor gives up. A restart is inside the window as long as
`now - then <= restart_window_s`: a restart that is exactly as old as the window still counts (OTP's boundary). There
is one window per supervisor, not per child.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal, NamedTuple

__all__ = ["Counted", "Ending", "Restart", "Strategy", "add_restart", "first_fallen_group", "in_window", "is_restarted"]

Restart = Literal["permanent", "transient", "temporary"]
Strategy = Literal["ONE_FOR_ONE", "ONE_FOR_ALL", "REST_FOR_ONE"]


class Ending(Enum):
    """How a child came to its end when nobody had told it to."""

    FAILED = "failed"
    FINISHED = "finished"
    STOPPED = "stopped"


class Counted(NamedTuple):
    """One restart in a supervisor's window."""

    at_s: float
    cause: int
    """Number of the event that made it necessary: one death is counted once, however it reaches this supervisor."""


def is_restarted(restart: Restart, ending: Ending) -> bool:
    """The table **Restart** above."""
    if ending is Ending.STOPPED:
        return False
    if restart == "permanent":
        return True
    if restart == "transient":
        return ending is Ending.FAILED
    return False


def first_fallen_group(strategy: Strategy, group: int, groups: int) -> int:
    """The table **Scope** above: groups from this one on are taken down when a child of `group` is restarted."""
    if strategy == "ONE_FOR_ALL":
        return 0
    if strategy == "REST_FOR_ONE":
        return group + 1
    return groups


def in_window(counted: tuple[Counted, ...], now_s: float, restart_window_s: float) -> tuple[Counted, ...]:
    """The restarts that still count."""
    return tuple(restart for restart in counted if now_s - restart.at_s <= restart_window_s)


def add_restart(
    counted: tuple[Counted, ...], now_s: float, cause: int, max_restarts: int, restart_window_s: float
) -> tuple[tuple[Counted, ...], bool]:
    """(the window with this restart, whether it is allowed). A cause that is in the window already adds nothing."""
    kept = in_window(counted, now_s, restart_window_s)
    if not any(restart.cause == cause for restart in kept):
        kept = (*kept, Counted(now_s, cause))
    return kept, len(kept) <= max_restarts
