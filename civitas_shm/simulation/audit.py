"""The auditor: compares what a supervision tree does, step by step, with the account of what is due.

Rules of this file: it reads events and actions and looks into a Tree only through its public questions; a difference is
a Violation that names the invariant; whatever the account did not take was not due, and is named for what it breaks.

Invariants, checked after every step:

| invariant      | what must hold                                                                                |
|----------------|-----------------------------------------------------------------------------------------------|
| one life       | no child is started while an incarnation of it runs, in truth or as far as the tree was told  |
| incarnations   | a start has the last incarnation plus one, the first of a spawned child one that its name     |
|                | never had; stops, give-ups and removals name the last one                                     |
| start order    | a group starts only when all of the one before are ready or gone, on every level              |
| stop order     | a group is told to stop only when all later ones are down, on every level                     |
| stop wins      | from StopRequested, or when the root gives up or shuts down, nothing starts, no timer is set  |
| told once      | a child is told to stop once a life, with its own deadline                                    |
| only what must | nothing else is started, stopped or set                                                       |
| no limbo       | what is due to start or stop is told so in the step that makes it due                         |
| intensity      | a supervisor gives up exactly at the restart that is one too many for its window; one death   |
|                | counts once, however it reaches it                                                            |
| backoff        | a wait is as long as kind, base, cap and number say; the first in a window is none            |
| timers         | a timer's number is new; it is cancelled when nobody waits any more, and never otherwise      |
| given up       | GiveUpChild exactly for those whose restart type says so, once                                |
| removal        | ChildRemoved exactly for spawned children that were removed, ended for good, fell too often,  |
|                | or whose supervisor is given up: once, with the right reason                                  |
| auto-shutdown  | a supervisor shuts down exactly when a significant child has ended for good and its kind says |
|                | so (any, or the last one)                                                                     |
| running        | Running once, when the last group of the root is up for the first time                        |
| the end        | Stopped or Failed once, when nothing lives; Failed exactly when the root gave up              |
| nothing twice  | an event that concerns nothing any more leaves the very same tree and asks for nothing; what  |
|                | has been told once concerns nothing any more                                                  |
| at rest        | when nothing is under way all children run or are gone, or the tree is at its end, with no    |
|                | timer left; the tree's own reports say the same                                               |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..supervision.events import (
    Action,
    AddChild,
    ChildExited,
    ChildFailed,
    ChildReady,
    Event,
    ProcessDied,
    RemoveChild,
    Start,
    StopRequested,
    Timer,
)
from ..supervision.state import Tree, is_settled, running_children
from .account import Account
from .asked import Violation
from .units import CLEARING, DOWN, ENDING, FAILED, GONE, HALTED, HOLDING, READY, STOPPING, UP, Child, Supervisor, Unit

__all__ = ["INVARIANTS", "Auditor", "Violation", "next_choices"]

INVARIANTS: Final = (
    "one life", "incarnations", "start order", "stop order", "stop wins", "told once", "only what must", "no limbo",
    "intensity", "backoff", "timers", "given up", "removal", "auto-shutdown", "running", "the end", "nothing twice",
    "at rest",
)  # fmt: skip
"""The first column of the table above."""


ORDERS_MAX: Final = 100
"""A step in which that many orders are possible, and none of them explains what the tree did, is wrong."""


def next_choices(choices: Sequence[int], offered: Sequence[int]) -> list[int] | None:
    """The choices that come after these, in an order that has all of them; None: these were the last."""
    padded = [*choices, *[0] * (len(offered) - len(choices))]
    while padded:
        if padded[-1] + 1 < offered[len(padded) - 1]:
            return [*padded[:-1], padded[-1] + 1]
        padded.pop()
    return None


class Auditor:
    """Of one tree, from its Start to its end."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self._log: list[tuple[Event, float, Sequence[Action], bool]] = []
        """(event, time, actions, whether the tree stayed the very same) of all steps."""
        self._choices: dict[int, list[int]] = {}
        """Of steps that needed another order than the first guess."""

    def check(self, event: Event, now_s: float, before: Tree, after: Tree, actions: Sequence[Action]) -> None:
        """One step. Violation at the first thing that is wrong, whatever the order of what does not depend on it."""
        told = (event, now_s, actions, after is before)
        self._log.append(told)
        try:
            self._compare(self.account, *told)
        except Violation:
            if not self._in_another_order():
                raise

    def _in_another_order(self) -> bool:
        """The order in which supervisors are found to be down within one step is the tree's choice, and seldom matters.
        Where it does, and the first guess was wrong, the account is made anew with another one for this step.
        """
        last = len(self._log) - 1
        account, choices = self.account, next_choices([], self.account.offered)
        for _ in range(ORDERS_MAX):
            if choices is None:
                break
            account = Account(self.account.root.spec)
            try:
                for number, told in enumerate(self._log):
                    account.choices = choices if number == last else self._choices.get(number, ())
                    self._compare(account, *told)
            except Violation:
                choices = next_choices(choices, account.offered)
                continue
            account.fired, account.choices = self.account.fired, ()
            self._choices[last] = choices
            self.account = account
            return True
        return False

    def _compare(self, account: Account, event: Event, now_s: float, actions: Sequence[Action], same: bool) -> None:
        account.now_s, account.offered = now_s, []
        if actions:
            account.asked.put(actions)
        if not self._take(account, event):
            if actions or not same:
                raise Violation("nothing twice", f"{event} concerns nothing, and {actions or 'the tree'} came of it")
        elif actions:
            self._nothing_left(account)

    def _take(self, account: Account, event: Event) -> bool:
        if account.outcome is not None:
            account.fired["nothing: at its end"] += 1
            return False
        match event:
            case ChildReady(child, incarnation):
                return account.ready(child, incarnation)
            case ProcessDied(_, children, counts):
                return account.ended(children, FAILED, counts, process=True)
            case ChildFailed(child, incarnation, _, counts):
                return account.ended(((child, incarnation),), FAILED, counts)
            case ChildExited(child, incarnation, normal, stop_action):
                how = FAILED if not normal else "stopped" if stop_action else "finished"
                return account.ended(((child, incarnation),), how, True)
            case Timer(id):
                return account.time(id)
            case Start():
                return account.start()
            case StopRequested():
                return account.stop()
            case AddChild():
                return account.add(event)
            case RemoveChild(child, _, timeout_s):
                return account.remove(child, timeout_s)

    # --- what was not due ---------------------------------------------------------------------------------------------

    def _nothing_left(self, account: Account) -> None:
        asked = account.asked
        if asked.starts:
            self._undue_start(account, *asked.starts.popitem())
        if asked.stops:
            self._undue_stop(account.children[asked.stops.popitem()[0]])
        if asked.timers:
            if account.going_down:
                raise Violation("stop wins", f"{asked.timers[0]} after the stop, or when the root is going down")
            raise Violation("backoff", f"{asked.timers[0]}: nobody has to wait")
        if asked.cancels:
            raise Violation("timers", f"{sorted(asked.cancels)} are cancelled: not set, or still waited for")
        if asked.give_ups:
            raise Violation("given up", f"{sorted(asked.give_ups)} are given up, and should not be")
        if asked.removals:
            raise Violation("removal", f"{sorted(asked.removals)} are removed, and should not be")
        if asked.escalations:
            raise Violation("intensity", f"{asked.escalations} give up with restarts left")
        if asked.shutdowns:
            raise Violation("auto-shutdown", f"{asked.shutdowns} shut down, and should not")
        if asked.running:
            raise Violation("running", "Running is said a second time, or before all is up")
        if asked.ends:
            raise Violation("the end", f"{asked.ends[0]} is said, and is not due")

    def _undue_start(self, account: Account, key: str, incarnation: int) -> None:
        child = account.children[key]
        home = child.home
        text = f"{key} is started as {incarnation}"
        if child.lives:
            raise Violation("one life", f"{text} while {child.incarnation} lives")
        if account.going_down:
            raise Violation("stop wins", f"{text} after the stop, or when the root is going down")
        if child.state == GONE:
            raise Violation("given up", f"{text}, and was given up")
        if child.waits or home.waits or home.mode == HOLDING:
            raise Violation("backoff", f"{text} before its wait is over")
        unit: Unit = child
        while home.mode == DOWN and home.parent is not None:
            unit, home = home, home.parent
        if home.mode == UP and unit.group > home.frontier:
            raise Violation("start order", f"{text} while group {home.frontier} of {home.key} is not up")
        raise Violation("only what must", f"{text}, and is not due")

    def _undue_stop(self, child: Child) -> None:
        if child.state == STOPPING:
            raise Violation("told once", f"{child.key} is told to stop a second time")
        unit: Unit = child
        home: Supervisor | None = child.home
        while home is not None and home.mode in (CLEARING, ENDING, HALTED):
            if any(home.living[unit.group + 1 :]):
                raise Violation("stop order", f"{child.key} is told to stop while a later group of {home.key} lives")
            unit, home = home, home.parent
        raise Violation("only what must", f"{child.key} is told to stop, and is not due")

    # --- at rest ------------------------------------------------------------------------------------------------------

    def check_rest(self, tree: Tree) -> None:
        """Nothing is under way: one of the three ends, and the tree says the same as the account."""
        account = self.account
        if not is_settled(tree):
            raise Violation("at rest", "nothing is under way, and the tree is not settled")
        if tree.outcome != account.outcome:
            raise Violation("at rest", f"the tree's end is {tree.outcome}, due was {account.outcome}")
        ready = [key for key, child in account.children.items() if child.state == READY]
        if running_children(tree) != ready:
            raise Violation("at rest", f"the tree says that {running_children(tree)} run; these do: {ready}")
        if account.timers or tree.timers:
            raise Violation("timers", f"{sorted(account.timers)} are set, the tree says {sorted(tree.timers)}")
        lost = [key for key, child in account.children.items() if child.state not in (READY, GONE)]
        if lost and account.outcome is None:
            raise Violation("at rest", f"neither running nor gone: {lost}")
