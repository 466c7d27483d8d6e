"""Each invariant of the auditor, broken once by hand: a check that cannot fail proves nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from civitas_shm.simulation import INVARIANTS, Violation, simulate
from civitas_shm.simulation.account import Account
from civitas_shm.simulation.audit import Auditor, next_choices
from civitas_shm.supervision import (
    Action,
    AddChild,
    CancelTimer,
    ChildExited,
    ChildFailed,
    ChildReady,
    ChildRemoved,
    Escalated,
    Event,
    GiveUpChild,
    RemoveChild,
    Running,
    SetTimer,
    ShutDown,
    Start,
    StartChild,
    StopChild,
    Stopped,
    StopRequested,
    Tree,
    step,
)
from civitas_shm.topology.model import AgentSpec, DynamicSpec, SupervisorSpec

SPEC = SupervisorSpec(
    max_restarts=2,
    backoff_base_s=1.0,
    auto_shutdown="any_significant",
    children=[
        SupervisorSpec(name="pool", dynamic=DynamicSpec()),
        AgentSpec(name="a", type="m:A", shutdown_timeout_s=5.0),
        AgentSpec(name="b", type="m:A", shutdown_timeout_s=5.0, restart="transient", significant=True),
        AgentSpec(name="c", type="m:A", shutdown_timeout_s=5.0, restart="temporary"),
    ],
)
SPAWN = AddChild("pool", AgentSpec(name="d", type="m:D", restart="temporary"), "a")
UP = [Start(), ChildReady("a", 1), ChildReady("b", 1), ChildReady("c", 1)]
Lie = Callable[[list[Action]], list[Action]]


def add(*actions: Action) -> Lie:
    return lambda said: [*said, *actions]


def say(*actions: Action) -> Lie:
    return lambda said: [*actions]


def silence(said: list[Action]) -> list[Action]:
    return []


FAIL_A = ChildFailed("a", 1, "boom")
LIES: list[tuple[str, list[Event], Lie]] = [
    ("one life", [*UP, FAIL_A], add(StartChild("b", 2))),
    ("incarnations", [*UP, FAIL_A], say(StartChild("a", 3))),
    ("incarnations", [*UP, StopRequested()], say(StopChild("c", 2, 5.0))),
    ("incarnations", [*UP, ChildFailed("c", 1, "boom")], say(GiveUpChild("c", 2, "boom"))),
    ("start order", [Start()], add(StartChild("b", 1))),
    ("stop order", [*UP, StopRequested()], add(StopChild("b", 1, 5.0))),
    ("stop wins", [*UP, StopRequested(), ChildFailed("a", 1, "boom")], add(StartChild("a", 2))),
    ("stop wins", [*UP, StopRequested()], add(SetTimer(1, 1.0, ("a",)))),
    ("told once", [*UP, StopRequested()], say(StopChild("c", 1, 6.0))),
    ("told once", [*UP, StopRequested()], add(StopChild("c", 1, 5.0))),
    ("only what must", [*UP, FAIL_A], add(StopChild("b", 1, 5.0))),
    ("only what must", [*UP, FAIL_A], add(StartChild("a", 2))),
    ("no limbo", [*UP, FAIL_A], silence),
    ("no limbo", [*UP, StopRequested()], silence),
    ("no limbo", [Start(), ChildReady("a", 1)], silence),
    ("intensity", [*UP, FAIL_A], add(Escalated("root", "a", "too many"))),
    ("backoff", [*UP, FAIL_A, ChildFailed("a", 2, "boom")], silence),
    ("backoff", [*UP, FAIL_A, ChildFailed("a", 2, "boom")], say(SetTimer(1, 1.5, ("a",)))),
    ("backoff", [*UP, FAIL_A], add(SetTimer(1, 1.0, ("a",)))),
    ("backoff", [*UP, FAIL_A, ChildFailed("a", 2, "boom")], add(StartChild("a", 3))),
    ("timers", [*UP, FAIL_A], add(CancelTimer(1))),
    ("timers", [*UP, FAIL_A, ChildFailed("a", 2, "boom"), StopRequested()], say(StopChild("c", 1, 5.0))),
    ("given up", [*UP, FAIL_A], add(GiveUpChild("c", 1, "boom"))),
    ("given up", [*UP, ChildFailed("c", 1, "boom")], silence),
    ("given up", [*UP, ChildFailed("c", 1, "boom"), FAIL_A], add(StartChild("c", 2))),
    ("removal", [*UP, SPAWN, ChildFailed("d", 1, "boom")], silence),
    ("removal", [*UP, SPAWN, ChildFailed("d", 1, "boom")], say(ChildRemoved("d", 1, "a", "clean_exit", "boom"))),
    ("removal", [*UP, SPAWN, FAIL_A], add(ChildRemoved("d", 1, "a", "crashed", "boom"))),
    ("no limbo", [*UP, SPAWN, RemoveChild("d")], silence),
    ("auto-shutdown", [*UP, ChildExited("b", 1)], say(GiveUpChild("b", 1, "ended"))),
    ("auto-shutdown", [*UP, FAIL_A], add(ShutDown("root", "a", "it fell"))),
    ("running", UP, silence),
    ("running", UP, add(Running())),
    ("running", [*UP, FAIL_A], add(Running())),
    ("the end", [*UP, StopRequested()], add(Stopped())),
    ("the end", [*UP, StopRequested(), *(ChildExited(name, 1) for name in "cba")], silence),
    ("the end", [StopRequested()], add(Stopped())),
    ("nothing twice", [*UP, ChildReady("a", 1)], add(StartChild("a", 2))),
]


def play(events: list[Event], lie: Lie) -> None:
    auditor = Auditor(Account(SPEC))
    tree = Tree.from_spec(SPEC)
    for event in events:
        before = tree
        tree, actions = step(before, event, 0.0)
        if event is events[-1]:
            actions = lie(actions)
        auditor.check(event, 0.0, before, tree, actions)


@pytest.mark.parametrize(("invariant", "events", "lie"), LIES)
def test_what_is_wrong_is_named(invariant: str, events: list[Event], lie: Lie) -> None:
    play(events, list)  # the truth passes
    with pytest.raises(Violation) as caught:
        play(events, lie)
    assert caught.value.invariant == invariant


def test_an_event_of_no_concern_that_makes_a_new_tree_is_found() -> None:
    auditor = Auditor(Account(SPEC))
    tree, actions = step(Tree.from_spec(SPEC), Start(), 0.0)
    auditor.check(Start(), 0.0, tree, tree, actions)
    with pytest.raises(Violation, match="nothing twice"):
        auditor.check(Start(), 0.0, tree, replace(tree), [])


def test_a_tree_that_says_something_else_at_rest_is_found() -> None:
    auditor = Auditor(Account(SPEC))
    tree = Tree.from_spec(SPEC)
    for event in UP:
        before = tree
        tree, actions = step(before, event, 0.0)
        auditor.check(event, 0.0, before, tree, actions)
    auditor.check_rest(tree)
    for wrong in (replace(tree, outcome="stopped"), replace(tree, timers={1: None}), before):
        with pytest.raises(Violation):
            auditor.check_rest(wrong)


def test_every_invariant_is_broken_here() -> None:
    assert {invariant for invariant, _, _ in LIES} | {"at rest"} == set(INVARIANTS)


def test_every_order_in_which_supervisors_may_be_found_down_is_tried_once() -> None:
    """A walk through a tree of choices, whose later numbers depend on the earlier ones: 3 + 1 + 2 ways."""

    def offered(choices: list[int]) -> list[int]:
        first = choices[0] if choices else 0
        return [3, (3, 1, 2)[first]]

    seen: list[tuple[int, ...]] = []
    choices: list[int] | None = []
    while choices is not None:
        counts = offered(choices)
        seen.append((*choices, *[0] * (len(counts) - len(choices))))
        choices = next_choices(choices, counts)
    assert seen == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)]


@pytest.mark.parametrize("seed", [883, 11007])
def test_a_step_whose_order_is_not_the_likeliest_is_explained(seed: int) -> None:
    """One in ten thousand: a tree that did right was blamed, as long as only five orders were thought of."""
    assert simulate(seed).failure is None
