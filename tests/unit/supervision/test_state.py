"""State: how a tree begins, what is refused, and the questions that `top` and `status` ask."""

from __future__ import annotations

import re

import pytest

from civitas_shm.errors import ConfigurationError
from civitas_shm.supervision import (
    ChildFailed,
    ChildReady,
    Start,
    Tree,
    child_keys,
    is_settled,
    report_children,
    report_supervisors,
    restart_count,
    restarts_in_window,
    running_children,
    step,
)
from civitas_shm.topology.model import AgentSpec, SupervisorSpec


def agent(name: str, replicas: int = 1) -> AgentSpec:
    return AgentSpec(name=name, type="m:A", replicas=replicas)


def test_one_replica_keeps_the_name_and_several_are_numbered() -> None:
    assert child_keys(agent("a")) == ("a",)
    assert child_keys(agent("a", replicas=3)) == ("a#0", "a#1", "a#2")


def test_children_stand_in_start_order_depth_first() -> None:
    inner = SupervisorSpec(name="inner", children=[agent("b", replicas=2), agent("c")])
    tree = Tree.from_spec(SupervisorSpec(children=[agent("a"), inner, agent("d")]))
    assert list(tree.children) == ["a", "b#0", "b#1", "c", "d"]
    assert [(child.agent, child.replica) for child in tree.children.values()][1:3] == [("b", 0), ("b", 1)]
    assert list(tree.supervisors) == ["root", "inner"]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (SupervisorSpec(children=[agent("a"), agent("a")]), "'a'"),
        (SupervisorSpec(children=[agent("a", replicas=2), agent("a#1")]), "'a#1'"),
        (SupervisorSpec(children=[agent("root")]), "'root'"),
        (SupervisorSpec(children=[SupervisorSpec(name="s"), SupervisorSpec(name="s")]), "'s'"),
        (SupervisorSpec(children=[agent("a", replicas=0)]), "replicas is 0"),
        (SupervisorSpec(max_restarts=-1), "max_restarts is -1"),
        (SupervisorSpec(restart_window_s=0), "restart_window is 0"),
        (SupervisorSpec(restart_window_s=float("nan")), "restart_window is nan"),
        (SupervisorSpec(backoff_base_s=-1.0), "backoff_base is -1.0"),
        (SupervisorSpec(backoff_max_s=-1.0), "backoff_max -1.0"),
        (SupervisorSpec(strategy="ONE_FOR_NONE"), "ONE_FOR_NONE"),  # type: ignore[arg-type]
        (SupervisorSpec(backoff="NEVER"), "NEVER"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_refused_by_name_and_value(spec: SupervisorSpec, says: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        Tree.from_spec(spec)


def test_a_tree_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Tree.from_spec(SupervisorSpec()).seed = 1  # type: ignore[misc]


def test_reports_tell_who_is_up_how_often_restarted_and_how_much_budget_is_used() -> None:
    inner = SupervisorSpec(name="inner", strategy="REST_FOR_ONE", max_restarts=5, children=[agent("b")])
    tree = Tree.from_spec(SupervisorSpec(children=[agent("a"), inner]))
    for event in (Start(), ChildReady("a", 1), ChildReady("b", 1), ChildFailed("b", 1, "boom")):
        tree, _ = step(tree, event, 100.0)
    assert running_children(tree) == ["a"]
    assert (restart_count(tree, "a"), restart_count(tree, "b")) == (0, 1)
    assert restarts_in_window(tree, 160.0) == {"root": 0, "inner": 1}
    assert restarts_in_window(tree, 160.1) == {"root": 0, "inner": 0}
    assert not is_settled(tree)
    child = report_children(tree)[1]
    assert (child.name, child.supervisor, child.status, child.incarnation) == ("b", "inner", "starting", 2)
    supervisor = report_supervisors(tree, 100.0)[1]
    assert (supervisor.parent, supervisor.phase, supervisor.restarts_in_window) == ("root", "up", 1)
    tree, _ = step(tree, ChildReady("b", 2), 101.0)
    assert is_settled(tree)
