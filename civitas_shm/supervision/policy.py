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

**Auto-shutdown** (`shuts_down`): a *significant* child has ended by itself and is not restarted.

| the supervisor's auto_shutdown | it shuts down                                            |
|--------------------------------|----------------------------------------------------------|
| never                          | no                                                       |
| any_significant                | yes                                                      |
| all_significant                | yes, when no other significant child lives or will again |

A child that was taken down, with its group or with the whole, ends nobody. What shut down is FINISHED for the
supervisor above: restarted if permanent, gone if transient or temporary. `significance_problem` refuses what OTP
refuses: a significant child that is permanent, or whose supervisor never shuts down.

**Intensity** (`add_restart`): a supervisor may restart `max_restarts` times within `restart_window_s` seconds; the
next restart inside the window is refused and the supervisor gives up. A restart is inside the window as long as
`now - then <= restart_window_s`: a restart that is exactly as old as the window still counts (OTP's boundary). There
is one window per supervisor, not per child.

**Backoff** (`backoff_number`): the wait grows with the restarts of the *series*: those in the window since the
supervisor was last *stable*, that is, since all its children had been up together for `backoff_reset_s`. Without
that setting a series ends with the window only. The budget is not affected by it.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal, NamedTuple

__all__ = [
    "AutoShutdown",
    "Counted",
    "Ending",
    "Restart",
    "Strategy",
    "add_restart",
    "backoff_number",
    "first_fallen_group",
    "in_window",
    "is_restarted",
    "is_stable",
    "shuts_down",
    "significance_problem",
]

Restart = Literal["permanent", "transient", "temporary"]
Strategy = Literal["ONE_FOR_ONE", "ONE_FOR_ALL", "REST_FOR_ONE"]
AutoShutdown = Literal["never", "any_significant", "all_significant"]


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


def shuts_down(auto_shutdown: AutoShutdown, significant: bool, other_significant_left: bool) -> bool:
    """The table **Auto-shutdown** above, for a child that has ended by itself and is not restarted."""
    if not significant or auto_shutdown == "never":
        return False
    return auto_shutdown == "any_significant" or not other_significant_left


def significance_problem(significant: bool, restart: Restart, auto_shutdown: AutoShutdown) -> str | None:
    """Why a child of a supervisor with this `auto_shutdown` cannot be so, or None when it can: OTP's combinations."""
    if not significant:
        return None
    if restart == "permanent":
        return (
            "significant: true needs restart: transient or temporary; a permanent child is always restarted, so its "
            "end never shuts anything down"
        )
    if auto_shutdown == "never":
        return (
            "significant: true has no effect here: its supervisor has auto_shutdown: never; set any_significant or "
            "all_significant there"
        )
    return None


def is_stable(up_since_s: float | None, now_s: float, backoff_reset_s: float | None) -> bool:
    """Whether all children have been up together for long enough that a backoff begins anew."""
    return backoff_reset_s is not None and up_since_s is not None and now_s - up_since_s >= backoff_reset_s


def backoff_number(counted: tuple[Counted, ...], series: int) -> int:
    """Which restart of its series the last one is, 1 = the first; `series`: the cause that the series began with."""
    return sum(restart.cause >= series for restart in counted)


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
