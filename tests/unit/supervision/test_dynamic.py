"""Dynamic supervisors: the table in `supervision.dynamic`, clause by clause, and every quota."""

from __future__ import annotations

from typing import Any

import pytest

from civitas_shm.errors import ConfigurationError
from civitas_shm.supervision import (
    Action,
    AddChild,
    ChildExited,
    ChildFailed,
    ChildReady,
    ChildRemoved,
    Event,
    ProcessDied,
    RemoveChild,
    Running,
    SetTimer,
    Start,
    StartChild,
    StopChild,
    Stopped,
    StopRequested,
    Timer,
    Tree,
    nearest_dynamic,
    refusal,
    restart_count,
    step,
)
from civitas_shm.topology.model import AgentSpec, DynamicSpec, Restart, SupervisorSpec


def dynamic(name: str = "pool", quota: DynamicSpec | None = None, **settings: Any) -> SupervisorSpec:
    return SupervisorSpec(name, dynamic=quota or DynamicSpec(), **settings)


def wanted(name: str, supervisor: str = "pool", spawner: str = "a", restart: Restart = "transient") -> AddChild:
    return AddChild(supervisor, AgentSpec(name, "m.A", restart=restart, shutdown_timeout_s=5.0), spawner)


class World:
    """A tree with the agent `a`, and below the root what is given."""

    def __init__(self, *supervisors: SupervisorSpec, start: bool = True) -> None:
        self.tree = Tree.from_spec(SupervisorSpec(children=[AgentSpec("a", "m.A"), *(supervisors or [dynamic()])]))
        self.now_s = 1000.0
        if start:
            self.send(Start())
            self.ready("a")

    def send(self, event: Event) -> list[Action]:
        self.tree, actions = step(self.tree, event, self.now_s)
        return actions

    def spawn(self, name: str, **how: Any) -> list[Action]:
        return self.send(wanted(name, **how))

    def up(self, name: str, incarnation: int = 1, **how: Any) -> None:
        assert self.spawn(name, **how) == [StartChild(name, incarnation)]
        self.ready(name)

    def ready(self, name: str) -> list[Action]:
        return self.send(ChildReady(name, self.tree.children[name].incarnation))

    def fail(self, name: str) -> list[Action]:
        return self.send(ChildFailed(name, self.tree.children[name].incarnation, "boom"))

    def exit(self, name: str, stop_action: bool = False) -> list[Action]:
        return self.send(ChildExited(name, self.tree.children[name].incarnation, stop_action=stop_action))


def removed(actions: list[Action]) -> list[tuple[str, str]]:
    return [(action.child, action.why) for action in actions if isinstance(action, ChildRemoved)]


def test_a_spawned_child_starts_at_once_and_the_tree_knows_who_wanted_it() -> None:
    world = World()
    assert world.spawn("x") == [StartChild("x", 1)]
    child = world.tree.children["x"]
    assert child.dynamic is not None
    assert (child.supervisor, child.dynamic.spawner) == ("pool", "a")
    assert world.ready("x") == []


def test_children_that_are_known_before_the_start_begin_with_the_tree_and_what_comes_after_waits_for_them() -> None:
    world = World(dynamic(), SupervisorSpec("after", children=[AgentSpec("b", "m.A")]), start=False)
    assert world.spawn("x") == []
    world.send(Start())
    assert world.ready("a") == [StartChild("x", 1)]
    assert world.ready("x") == [StartChild("b", 1)]
    assert world.ready("b") == [Running()]


@pytest.mark.parametrize(
    ("restart", "after_failure", "after_clean_end"),
    [("permanent", None, None), ("transient", None, "clean_exit"), ("temporary", "crashed", "clean_exit")],
)
def test_a_child_that_is_not_restarted_leaves_the_tree(
    restart: Restart, after_failure: str | None, after_clean_end: str | None
) -> None:
    for end, why in ((World.fail, after_failure), (World.exit, after_clean_end)):
        world = World()
        world.up("x", restart=restart)
        actions = end(world, "x")
        assert removed(actions) == ([] if why is None else [("x", why)])
        assert ("x" in world.tree.children) == (why is None)


def test_each_child_has_a_window_of_its_own_and_nothing_escalates() -> None:
    world = World(dynamic(max_restarts=1))
    world.up("x")
    world.up("y")
    for name in ("x", "y"):
        assert world.fail(name) == [StartChild(name, 2)]
        world.ready(name)
    [gone] = world.fail("x")
    assert isinstance(gone, ChildRemoved)
    assert (gone.child, gone.why, gone.spawner) == ("x", "restarts_exhausted", "a")
    assert "max_restarts of 'pool' is 1" in gone.reason
    assert world.tree.children["y"].status.value == "ready"


def test_the_second_restart_of_a_child_waits_for_the_backoff() -> None:
    world = World(dynamic(backoff_base_s=2.0))
    world.up("x")
    world.fail("x")
    world.ready("x")
    assert world.fail("x") == [SetTimer(1, 1002.0, ("x",))]
    assert world.send(Timer(1)) == [StartChild("x", 3)]


def test_a_removed_child_is_stopped_and_leaves_the_tree_when_it_has_ended() -> None:
    world = World()
    world.up("x")
    assert world.send(RemoveChild("x", "all", 7.0)) == [StopChild("x", 1, 1007.0, "all")]
    assert world.send(RemoveChild("x")) == [], "it is on its way out"
    assert removed(world.exit("x")) == [("x", "despawned")]


def test_a_child_that_crashes_while_it_is_removed_is_removed() -> None:
    world = World()
    world.up("x", restart="permanent")
    world.send(RemoveChild("x"))
    assert removed(world.fail("x")) == [("x", "despawned")]


def test_a_child_that_waits_for_its_restart_is_removed_at_once() -> None:
    world = World()
    world.up("x")
    world.fail("x")
    world.fail("x")
    actions = world.send(RemoveChild("x"))
    assert removed(actions) == [("x", "despawned")]
    assert world.send(Timer(1)) == []


def test_only_spawned_children_can_be_removed() -> None:
    world = World()
    before = world.tree
    assert world.send(RemoveChild("a")) == []
    assert world.tree is before


def test_a_name_is_free_again_after_the_removal() -> None:
    world = World()
    world.up("x")
    world.send(RemoveChild("x"))
    assert "the name is taken" in str(refusal(world.tree, wanted("x")))
    world.exit("x")
    world.up("x", incarnation=2)


def test_what_is_told_of_an_earlier_bearer_of_a_name_twice_or_late_means_nothing_to_the_new_one() -> None:
    world = World()
    world.up("x", restart="permanent")
    world.fail("x")
    world.ready("x")
    world.send(RemoveChild("x"))
    world.exit("x")
    world.up("x", incarnation=3)
    before = world.tree
    for incarnation in (1, 2):
        for told in (
            ChildReady("x", incarnation),
            ChildFailed("x", incarnation, "boom"),
            ChildExited("x", incarnation, stop_action=False),
            ProcessDied("w1", (("x", incarnation),)),
        ):
            assert world.send(told) == []
            assert world.tree is before, told
    assert restart_count(world.tree, "x") == 0, "restarts are counted for each bearer"
    assert world.fail("x") == [StartChild("x", 4)]
    assert restart_count(world.tree, "x") == 1


def test_a_name_that_comes_back_below_another_supervisor_is_not_taken_for_its_last_bearer() -> None:
    world = World(dynamic("one"), dynamic("two"))
    world.up("x", supervisor="one")
    world.exit("x")
    world.up("x", supervisor="two", incarnation=2)
    assert world.send(ChildFailed("x", 1, "boom")) == []


def test_a_thousand_names_used_once_leave_nothing_behind_but_one_number() -> None:
    world = World()

    def use(name: str) -> int:
        world.spawn(name, restart="temporary", spawner=f"spawner of {name}")
        world.fail(name)
        return len(str(world.tree))

    size = use("x")
    assert max(use(f"x{number}") for number in range(1000)) < size + len("1001") * 3
    assert world.tree.departed == 1001


def test_children_stop_side_by_side_and_the_stop_waits_for_all() -> None:
    world = World()
    world.up("x")
    world.up("y")
    actions = world.send(StopRequested())
    assert [type(action) for action in actions] == [StopChild, StopChild]
    assert world.exit("y") == []
    assert world.exit("x") == [StopChild("a", 1, 1030.0)]
    assert world.exit("a") == [Stopped()]


def test_children_come_back_with_their_supervisor() -> None:
    tree = SupervisorSpec("inner", children=[AgentSpec("b", "m.A"), dynamic()], strategy="ONE_FOR_ALL")
    world = World(tree)
    world.ready("b")
    world.up("x", restart="temporary")
    assert world.fail("b") == [StopChild("x", 1, 1005.0)]
    assert "is clearing" not in str(refusal(world.tree, wanted("y")))
    assert "just now" in str(refusal(world.tree, wanted("y")))
    assert world.exit("x") == [StartChild("b", 2)]
    assert world.ready("b") == [StartChild("x", 2)]


def test_children_of_a_supervisor_that_is_given_up_leave_the_tree() -> None:
    inner = SupervisorSpec("inner", children=[dynamic(), AgentSpec("b", "m.A")], max_restarts=0, restart="temporary")
    world = World(inner)
    world.ready("b")
    world.up("x")
    world.fail("b")
    assert removed(world.exit("x")) == [("x", "given_up")]


def test_the_death_of_a_process_is_counted_once_against_each_of_its_children() -> None:
    world = World(dynamic(max_restarts=1))
    world.up("x")
    world.up("y")
    assert world.send(ProcessDied("w1", (("x", 1), ("y", 1)))) == [StartChild("x", 2), StartChild("y", 2)]


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quota", "text"),
    [
        (DynamicSpec(max_children=2), "max_children of 'pool' is 2, and 2 children live"),
        (DynamicSpec(max_total_spawns=2), "max_total_spawns of 'pool' is 2, and 2 have been spawned"),
        (DynamicSpec(max_children_per_class={"m.A": 2}), "is 2, and 2 children of class m.A live"),
        (DynamicSpec(max_children_per_spawner=2), "is 2, and 2 children of 'a' live"),
        (DynamicSpec(max_total_spawns_per_spawner=2), "is 2, and 2 have been spawned by 'a'"),
    ],
)
def test_a_quota_is_refused_with_limit_and_value_and_changes_nothing(quota: DynamicSpec, text: str) -> None:
    world = World(dynamic(quota=quota))
    world.up("x")
    world.up("y")
    before = world.tree
    assert text in str(refusal(before, wanted("z")))
    assert world.spawn("z") == []
    assert world.tree is before


@pytest.mark.parametrize(
    ("quota", "freed"),
    [
        (DynamicSpec(max_children=1), True),
        (DynamicSpec(max_children_per_class={"m.A": 1}), True),
        (DynamicSpec(max_children_per_spawner=1), True),
        (DynamicSpec(max_total_spawns=1), False),
        (DynamicSpec(max_total_spawns_per_spawner=1), False),
    ],
)
def test_a_removal_makes_room_where_the_living_are_counted(quota: DynamicSpec, freed: bool) -> None:
    world = World(dynamic(quota=quota))
    world.up("x")
    world.send(RemoveChild("x"))
    world.exit("x")
    assert (refusal(world.tree, wanted("y")) is None) is freed


def test_limits_of_a_spawner_and_of_a_class_are_theirs_alone() -> None:
    quota = DynamicSpec(max_children_per_spawner=1, max_total_spawns_per_spawner=1, max_children_per_class={"m.B": 0})
    world = World(dynamic(quota=quota))
    world.up("x")
    assert refusal(world.tree, wanted("y", spawner="b")) is None
    assert refusal(world.tree, wanted("y", spawner="")) is None


def test_who_is_not_on_the_allowlist_is_refused_and_the_program_never() -> None:
    world = World(dynamic(quota=DynamicSpec(spawner_allowlist=["b"])))
    assert "'a' is not in the spawner_allowlist of 'pool' (b)" in str(refusal(world.tree, wanted("x")))
    assert refusal(world.tree, wanted("x", spawner="b")) is None
    assert refusal(world.tree, wanted("x", spawner="")) is None


@pytest.mark.parametrize("name", ["a", "root", "pool"])
def test_a_name_that_is_taken_is_refused(name: str) -> None:
    assert "the name is taken" in str(refusal(World().tree, wanted(name)))


def test_only_dynamic_supervisors_take_children() -> None:
    assert "'root' is no dynamic supervisor; there are 'pool'" in str(refusal(World().tree, wanted("x", "root")))
    without = World(SupervisorSpec("s"))
    assert "this run has none" in str(refusal(without.tree, wanted("x")))


def test_replicas_cannot_be_spawned() -> None:
    want = AddChild("pool", AgentSpec("x", "m.A", replicas=2))
    assert "2 replicas" in str(refusal(World().tree, want))


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (dynamic(strategy="ONE_FOR_ALL"), "ONE_FOR_ONE"),
        (dynamic(auto_shutdown="any_significant"), "no auto_shutdown"),
        (SupervisorSpec("s", children=[AgentSpec("b", "m.A")], dynamic=DynamicSpec()), "none can be declared"),
    ],
)
def test_what_a_dynamic_supervisor_cannot_be_is_refused(spec: SupervisorSpec, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        World(spec)


def test_the_nearest_dynamic_supervisor_is_the_own_one_then_a_sibling_then_an_ancestors_sibling() -> None:
    near = SupervisorSpec("near", children=[AgentSpec("b", "m.A"), dynamic("inner")])
    far = SupervisorSpec("far", children=[SupervisorSpec("deep", children=[AgentSpec("c", "m.A")])])
    world = World(near, far, dynamic("outer"))
    assert [nearest_dynamic(world.tree, name) for name in ("a", "b", "c")] == ["outer", "inner", "outer"]
    world.ready("b")
    world.ready("c")
    world.up("x", supervisor="inner")
    assert nearest_dynamic(world.tree, "x") == "inner"
    assert nearest_dynamic(World(SupervisorSpec("s")).tree, "a") is None
