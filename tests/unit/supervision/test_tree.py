"""The supervision tree: the tables in `tree`, clause by clause, on schedules small enough to read."""

from __future__ import annotations

from typing import Any

import pytest

from civitas_shm.errors import ConfigurationError
from civitas_shm.supervision import (
    Action,
    CancelTimer,
    ChildExited,
    ChildFailed,
    ChildReady,
    Escalated,
    Event,
    Failed,
    GiveUpChild,
    ProcessDied,
    Running,
    SetTimer,
    ShutDown,
    Start,
    StartChild,
    StopChild,
    Stopped,
    StopRequested,
    Timer,
    Tree,
    is_settled,
    restarts_in_window,
    step,
)
from civitas_shm.topology.model import AgentSpec, Restart, Strategy, SupervisorSpec


def agent(name: str, restart: Restart = "permanent", replicas: int = 1, significant: bool = False) -> AgentSpec:
    return AgentSpec(
        name=name, type="m:A", restart=restart, replicas=replicas, shutdown_timeout_s=5.0, significant=significant
    )


def supervisor(*children: AgentSpec | SupervisorSpec | str, **settings: Any) -> SupervisorSpec:
    return SupervisorSpec(children=[agent(c) if isinstance(c, str) else c for c in children], **settings)


class Driver:
    """Sends events, keeps the tree, remembers each child's incarnation."""

    def __init__(self, spec: SupervisorSpec, seed: int = 0) -> None:
        self.tree = Tree.from_spec(spec, seed)
        self.now_s = 1000.0

    def send(self, event: Event) -> list[Action]:
        self.tree, actions = step(self.tree, event, self.now_s)
        return actions

    def start(self) -> Driver:
        """All up."""
        starts = self.send(Start())
        while starts:
            starts = [a for start in starts if isinstance(start, StartChild) for a in self.ready(start.child)]
        assert all(child.status.value == "ready" for child in self.tree.children.values())
        return self

    def _life(self, child: str) -> tuple[str, int]:
        return child, self.tree.children[child].incarnation

    def ready(self, child: str) -> list[Action]:
        return self.send(ChildReady(*self._life(child)))

    def fail(self, child: str) -> list[Action]:
        return self.send(ChildFailed(*self._life(child), "boom"))

    def exit(self, child: str, normal: bool = True, stop_action: bool = True) -> list[Action]:
        return self.send(ChildExited(*self._life(child), normal, stop_action))

    def kill(self, *children: str, counts: bool = True) -> list[Action]:
        return self.send(ProcessDied("w1", tuple(map(self._life, children)), counts, "signal 9"))


def started(actions: list[Action]) -> list[str]:
    return [action.child for action in actions if isinstance(action, StartChild)]


def told_to_stop(actions: list[Action]) -> list[str]:
    return [action.child for action in actions if isinstance(action, StopChild)]


def timer_of(actions: list[Action]) -> SetTimer:
    [timer] = [action for action in actions if isinstance(action, SetTimer)]
    return timer


# --- start ---------------------------------------------------------------------------------------------------------


def test_each_child_starts_when_the_one_before_is_ready() -> None:
    driver = Driver(supervisor("a", "b"))
    assert driver.send(Start()) == [StartChild("a", 1)]
    assert driver.ready("a") == [StartChild("b", 1)]
    assert driver.ready("b") == [Running()]


def test_nested_supervisors_start_depth_first() -> None:
    driver = Driver(supervisor("a", supervisor("b", "c", name="inner"), "d"))
    driver.send(Start())
    assert [started(driver.ready(name)) for name in "abcd"] == [["b"], ["c"], ["d"], []]


def test_replicas_start_together_and_the_next_child_waits_for_all() -> None:
    driver = Driver(supervisor(agent("a", replicas=3), "b"))
    assert started(driver.send(Start())) == ["a#0", "a#1", "a#2"]
    assert driver.ready("a#2") == []
    assert driver.ready("a#0") == []
    assert started(driver.ready("a#1")) == ["b"]


def test_an_empty_tree_runs_at_once_and_stops_at_once() -> None:
    driver = Driver(supervisor(supervisor(name="empty")))
    assert driver.send(Start()) == [Running()]
    assert driver.send(StopRequested()) == [Stopped()]


def test_a_start_that_fails_counts_and_is_tried_again_while_the_next_child_waits() -> None:
    driver = Driver(supervisor("a", "b", max_restarts=1))
    driver.send(Start())
    assert driver.fail("a") == [StartChild("a", 2)]
    assert restarts_in_window(driver.tree, driver.now_s) == {"root": 1}
    actions = driver.fail("a")
    assert isinstance(actions[0], Escalated)
    assert isinstance(actions[-1], Failed)


def test_a_child_that_says_stop_while_starting_lets_the_next_one_start() -> None:
    driver = Driver(supervisor("a", "b"))
    driver.send(Start())
    actions = driver.exit("a")
    assert isinstance(actions[0], GiveUpChild)
    assert started(actions) == ["b"]


# --- one for one ---------------------------------------------------------------------------------------------------


def test_one_for_one_restarts_only_the_child_that_failed_and_at_once() -> None:
    driver = Driver(supervisor("a", "b", "c")).start()
    assert driver.fail("b") == [StartChild("b", 2)]


def test_the_second_restart_in_a_window_waits_for_the_backoff() -> None:
    driver = Driver(supervisor("a", "b", backoff_base_s=2.0)).start()
    driver.fail("a")
    timer = timer_of(driver.fail("b"))
    assert timer == SetTimer(1, 1002.0, ("b",))
    driver.now_s = 1002.0
    assert driver.send(Timer(timer.id)) == [StartChild("b", 2)]


def test_defect_39_backoff_begins_anew_when_the_window_has_passed() -> None:
    driver = Driver(supervisor("a", restart_window_s=60.0, backoff_base_s=2.0)).start()
    driver.fail("a")
    driver.ready("a")
    driver.now_s += 60.5
    assert driver.fail("a") == [StartChild("a", 3)]


def test_jitter_comes_from_the_seed_alone() -> None:
    def second_wait_s(seed: int) -> float:
        driver = Driver(supervisor("a", backoff="EXPONENTIAL", backoff_base_s=8.0), seed).start()
        driver.fail("a")
        return timer_of(driver.fail("a")).at_s - driver.now_s

    waits_s = [second_wait_s(seed) for seed in range(50)]
    assert waits_s == [second_wait_s(seed) for seed in range(50)]
    assert len(set(waits_s)) == 50
    assert all(0 <= wait_s < 8 for wait_s in waits_s)
    assert min(waits_s) < 2
    assert max(waits_s) > 6


@pytest.mark.parametrize(
    ("restart", "after_failure", "after_clean_end", "after_stop"),
    [("permanent", True, True, False), ("transient", True, False, False), ("temporary", False, False, False)],
)
def test_restart_modes(restart: Restart, after_failure: bool, after_clean_end: bool, after_stop: bool) -> None:
    def restarted(event: Event) -> bool:
        actions = Driver(supervisor(agent("a", restart))).start().send(event)
        assert started(actions) == ["a"] or isinstance(actions[0], GiveUpChild)
        return bool(started(actions))

    assert restarted(ChildFailed("a", 1, "boom")) is after_failure
    assert restarted(ChildExited("a", 1, normal=False)) is after_failure
    assert restarted(ProcessDied("w1", (("a", 1),))) is after_failure
    assert restarted(ChildExited("a", 1, stop_action=False)) is after_clean_end
    assert restarted(ChildExited("a", 1)) is after_stop


def test_a_child_that_is_gone_uses_no_budget() -> None:
    driver = Driver(supervisor(agent("a", "temporary"), "b", max_restarts=0)).start()
    driver.fail("a")
    assert restarts_in_window(driver.tree, driver.now_s) == {"root": 0}


# --- budgets and escalation ------------------------------------------------------------------------------------------


def test_one_restart_too_many_at_the_root_stops_all_in_reverse_and_fails_with_a_report() -> None:
    driver = Driver(supervisor("a", "b", "c", max_restarts=1)).start()
    driver.fail("b")
    driver.ready("b")
    actions = driver.fail("b")
    assert isinstance(actions[0], Escalated)
    assert actions[1:] == [StopChild("c", 1, 1005.0)]
    assert driver.exit("c") == [StopChild("a", 1, 1005.0)]
    [failed] = driver.exit("a")
    assert isinstance(failed, Failed)
    assert (failed.supervisor, failed.child) == ("root", "b")
    assert "2 restarts needed within 60 s, max_restarts is 1" in failed.reason
    assert "boom" in failed.reason


def test_restarts_spread_over_more_than_the_window_never_escalate() -> None:
    driver = Driver(supervisor("a", max_restarts=1, restart_window_s=10.0)).start()
    for _ in range(20):
        driver.now_s += 10.1
        assert started(driver.fail("a")) == ["a"]
        driver.ready("a")


def test_escalation_stops_the_subtree_and_restarts_it_with_a_fresh_budget() -> None:
    inner = supervisor("b", "c", name="inner", max_restarts=0)
    driver = Driver(supervisor("a", inner, "d")).start()
    actions = driver.fail("b")
    assert isinstance(actions[0], Escalated)
    assert actions[1:] == [StopChild("c", 1, 1005.0)]
    assert driver.exit("c") == [StartChild("b", 2)]
    assert restarts_in_window(driver.tree, driver.now_s) == {"root": 1, "inner": 0}
    assert driver.ready("b") == [StartChild("c", 2)]
    assert driver.ready("c") == []


def test_a_supervisor_that_gave_up_waits_out_its_parents_backoff() -> None:
    inner = supervisor("b", name="inner", max_restarts=0)
    driver = Driver(supervisor("a", inner, backoff_base_s=3.0)).start()
    driver.fail("a")
    timer = timer_of(driver.fail("b"))
    assert (timer.at_s, timer.children) == (1003.0, ("inner",))
    assert driver.send(Timer(timer.id)) == [StartChild("b", 2)]


def test_failures_below_escalate_to_the_root_and_the_report_names_where_it_began() -> None:
    inner = supervisor("b", name="inner", max_restarts=0)
    driver = Driver(supervisor(supervisor(inner, name="middle", max_restarts=0), max_restarts=0)).start()
    actions = driver.fail("b")
    assert [action.supervisor for action in actions if isinstance(action, Escalated)] == ["inner", "middle", "root"]
    failed = actions[-1]
    assert isinstance(failed, Failed)
    assert (failed.supervisor, failed.child) == ("inner", "b")


def test_a_restarted_supervisor_starts_the_children_that_were_gone() -> None:
    inner = supervisor(agent("b", "temporary"), "c", name="inner", max_restarts=0)
    driver = Driver(supervisor(inner)).start()
    assert isinstance(driver.fail("b")[0], GiveUpChild)
    assert driver.fail("c")[-1] == StartChild("b", 2)


# --- the death of a process ------------------------------------------------------------------------------------------


def test_the_death_of_a_process_counts_once_however_many_children_it_held() -> None:
    driver = Driver(supervisor("a", "b", "c", max_restarts=1)).start()
    assert started(driver.kill("a", "b", "c")) == ["a", "b", "c"]
    assert restarts_in_window(driver.tree, driver.now_s) == {"root": 1}


def test_the_death_of_a_process_counts_once_against_each_supervisor_with_a_child_in_it() -> None:
    driver = Driver(supervisor("a", supervisor("b", name="s"), supervisor("c", name="t"))).start()
    assert sorted(started(driver.kill("a", "b"))) == ["a", "b"]
    assert restarts_in_window(driver.tree, driver.now_s) == {"root": 1, "s": 1, "t": 0}


def test_one_death_counts_once_against_a_supervisor_that_it_reaches_on_several_ways() -> None:
    """Its own child died, and two supervisors below gave up, all of one cause."""
    s, t = (supervisor(child, name=name, max_restarts=0) for name, child in (("s", "b"), ("t", "c")))
    driver = Driver(supervisor("a", s, t, max_restarts=1)).start()
    assert sorted(started(driver.kill("a", "b", "c"))) == ["a", "b", "c"]
    assert restarts_in_window(driver.tree, driver.now_s) == {"root": 1, "s": 0, "t": 0}


def test_deaths_that_we_caused_count_against_no_budget_and_have_no_backoff() -> None:
    driver = Driver(supervisor("a", "b", max_restarts=0)).start()
    for _ in range(10):
        assert started(driver.kill("a", "b", counts=False)) == ["a", "b"]
        driver.ready("a")
        driver.ready("b")
    assert restarts_in_window(driver.tree, driver.now_s) == {"root": 0}


def test_children_that_fell_together_wait_together() -> None:
    driver = Driver(supervisor("a", "b", "c", backoff_base_s=1.0)).start()
    driver.fail("c")
    driver.ready("c")
    timer = timer_of(driver.kill("b", "a"))
    assert timer.children == ("a", "b")
    assert started(driver.send(Timer(timer.id))) == ["a", "b"]


def test_a_process_that_dies_with_starting_and_stale_children_concerns_only_the_living() -> None:
    driver = Driver(supervisor("a", "b"))
    driver.send(Start())
    actions = driver.send(ProcessDied("w1", (("b", 1), ("a", 1), ("a", 7), ("x", 1)), reason="exit code 1"))
    assert actions == [StartChild("a", 2)]


# --- one for all, rest for one ---------------------------------------------------------------------------------------


def test_one_for_all_stops_the_others_in_reverse_then_starts_all_in_order() -> None:
    driver = Driver(supervisor("a", "b", "c", strategy="ONE_FOR_ALL")).start()
    assert told_to_stop(driver.fail("b")) == ["c"]
    assert told_to_stop(driver.exit("c")) == ["a"]
    assert driver.exit("a") == [StartChild("a", 2)]
    assert driver.ready("a") == [StartChild("b", 2)]
    assert driver.ready("b") == [StartChild("c", 2)]
    assert driver.ready("c") == []
    assert restarts_in_window(driver.tree, driver.now_s) == {"root": 1}


def test_rest_for_one_leaves_those_before_alone() -> None:
    driver = Driver(supervisor("a", "b", "c", "d", strategy="REST_FOR_ONE")).start()
    assert told_to_stop(driver.fail("b")) == ["d"]
    assert told_to_stop(driver.exit("d")) == ["c"]
    assert driver.exit("c") == [StartChild("b", 2)]
    assert driver.ready("b") == [StartChild("c", 2)]


def test_rest_for_one_leaves_the_other_replicas_alone() -> None:
    driver = Driver(supervisor(agent("a", replicas=2), "b", strategy="REST_FOR_ONE")).start()
    assert told_to_stop(driver.fail("a#0")) == ["b"]
    assert driver.exit("b") == [StartChild("a#0", 2)]


def test_a_group_waits_for_the_backoff_when_it_is_down() -> None:
    driver = Driver(supervisor("a", "b", strategy="ONE_FOR_ALL", backoff_base_s=5.0)).start()
    driver.kill("a", "b")
    driver.ready("a")
    driver.ready("b")
    assert told_to_stop(driver.fail("a")) == ["b"]
    driver.now_s += 2
    timer = timer_of(driver.exit("b"))
    assert timer.at_s == 1005.0
    assert driver.send(Timer(timer.id)) == [StartChild("a", 3)]


def test_a_backoff_that_passed_while_stopping_is_not_waited_for_again() -> None:
    driver = Driver(supervisor("a", "b", strategy="ONE_FOR_ALL", backoff_base_s=5.0)).start()
    driver.kill("a", "b")
    driver.ready("a")
    driver.ready("b")
    driver.fail("a")
    driver.now_s += 5
    assert driver.exit("b") == [StartChild("a", 3)]


def test_children_that_fall_while_their_group_is_taken_down_are_not_counted() -> None:
    driver = Driver(supervisor("a", "b", "c", strategy="ONE_FOR_ALL", max_restarts=1)).start()
    driver.fail("a")
    assert told_to_stop(driver.fail("c")) == ["b"]
    assert driver.fail("b") == [StartChild("a", 2)]


def test_a_fall_before_the_group_widens_it_and_is_counted() -> None:
    driver = Driver(supervisor("a", "b", "c", strategy="REST_FOR_ONE", backoff_base_s=0.0)).start()
    assert told_to_stop(driver.fail("b")) == ["c"]
    assert driver.fail("a") == []
    assert driver.exit("c") == [StartChild("a", 2)]
    assert driver.ready("a") == [StartChild("b", 2)]
    assert restarts_in_window(driver.tree, driver.now_s) == {"root": 2}


def test_a_fall_during_the_backoff_of_the_group_widens_it() -> None:
    driver = Driver(supervisor("a", "b", "c", strategy="REST_FOR_ONE", backoff_base_s=5.0)).start()
    driver.kill("b", "c")
    driver.ready("b")
    driver.ready("c")
    driver.fail("b")
    first = timer_of(driver.exit("c"))
    actions = driver.fail("a")
    assert actions[0] == CancelTimer(first.id)
    assert driver.send(Timer(first.id)) == []
    assert driver.send(Timer(timer_of(actions).id)) == [StartChild("a", 2)]


def test_a_death_that_does_not_count_does_not_cut_short_the_backoff_of_the_group() -> None:
    driver = Driver(supervisor("a", "b", strategy="REST_FOR_ONE", backoff_base_s=5.0)).start()
    driver.fail("b")
    timer_of(driver.fail("b"))
    actions = driver.kill("a", counts=False)
    assert timer_of(actions).at_s == 1005.0
    assert started(actions) == []


def test_a_temporary_child_does_not_return_with_its_group_and_a_transient_one_does() -> None:
    children = (agent("a", "transient"), agent("b", "temporary"), agent("c"))
    driver = Driver(supervisor(*children, strategy="ONE_FOR_ALL")).start()
    assert isinstance(driver.exit("a")[0], GiveUpChild)
    driver.fail("c")
    actions = driver.exit("b")
    assert isinstance(actions[0], GiveUpChild)
    assert started(actions) == ["a"]
    assert started(driver.ready("a")) == ["c"]


def test_a_supervisor_in_the_group_is_stopped_and_started_as_a_whole() -> None:
    inner = supervisor("b", "c", name="inner")
    driver = Driver(supervisor("a", inner, strategy="ONE_FOR_ALL")).start()
    assert told_to_stop(driver.fail("a")) == ["c"]
    assert driver.fail("b") == []  # it waits for its own turn to stop; nothing in there is restarted
    assert driver.exit("c") == [StartChild("a", 2)]
    assert driver.ready("a") == [StartChild("b", 2)]


@pytest.mark.parametrize("strategy", ["ONE_FOR_ALL", "REST_FOR_ONE"])
def test_a_process_death_that_takes_the_whole_group_restarts_it_in_order_and_counts_once(strategy: Strategy) -> None:
    driver = Driver(supervisor("a", "b", "c", strategy=strategy, max_restarts=1)).start()
    assert driver.kill("c", "a", "b") == [StartChild("a", 2)]
    assert driver.ready("a") == [StartChild("b", 2)]
    assert restarts_in_window(driver.tree, driver.now_s) == {"root": 1}


def test_the_death_of_a_process_is_decided_by_the_parent_first() -> None:
    """ONE_FOR_ALL above takes the supervisor below down anyway, so nothing below is started for nothing."""
    inner = supervisor("b", "c", name="inner")
    driver = Driver(supervisor("a", inner, strategy="ONE_FOR_ALL")).start()
    assert driver.kill("b", "a") == [StopChild("c", 1, 1005.0)]


def test_what_goes_down_in_a_step_starts_nobody_in_it() -> None:
    failing = supervisor(supervisor(name="empty"), "a", name="failing", max_restarts=0)
    beside = supervisor(supervisor(agent("b", "temporary"), name="inner"), "c", name="beside")
    driver = Driver(supervisor(failing, beside, strategy="ONE_FOR_ALL"))
    driver.send(Start())
    assert started(driver.ready("a")) == ["b"]
    actions = driver.kill("a", "b")  # `c` would be the next to start, were not all of it about to fall
    assert (started(actions), told_to_stop(actions)) == (["a"], [])


# --- stop ------------------------------------------------------------------------------------------------------------


def test_a_stop_goes_in_reverse_order_depth_first_with_each_childs_deadline() -> None:
    driver = Driver(supervisor("a", supervisor("b", "c", name="inner"), "d")).start()
    assert driver.send(StopRequested()) == [StopChild("d", 1, 1005.0)]
    driver.now_s = 1001.0
    assert driver.exit("d") == [StopChild("c", 1, 1006.0)]
    assert driver.exit("c") == [StopChild("b", 1, 1006.0)]
    assert driver.fail("b") == [StopChild("a", 1, 1006.0)]
    assert driver.kill("a") == [Stopped()]


def test_replicas_stop_together() -> None:
    driver = Driver(supervisor("a", agent("b", replicas=2))).start()
    assert told_to_stop(driver.send(StopRequested())) == ["b#0", "b#1"]
    assert driver.exit("b#1") == []
    assert told_to_stop(driver.exit("b#0")) == ["a"]


def test_a_stop_reaches_a_child_that_is_starting_and_its_readiness_comes_too_late() -> None:
    driver = Driver(supervisor("a", "b"))
    driver.send(Start())
    assert told_to_stop(driver.send(StopRequested())) == ["a"]
    assert driver.ready("a") == []
    assert driver.exit("a") == [Stopped()]


def test_a_stop_beats_a_restart_that_waits() -> None:
    driver = Driver(supervisor("a", "b")).start()
    driver.fail("a")
    timer = timer_of(driver.fail("a"))
    actions = driver.send(StopRequested())
    assert CancelTimer(timer.id) in actions
    assert told_to_stop(actions) == ["b"]
    assert driver.send(Timer(timer.id)) == []
    assert driver.exit("b") == [Stopped()]


def test_a_stop_beats_a_restart_in_a_supervisor_whose_turn_has_not_come() -> None:
    driver = Driver(supervisor(supervisor("a", "b", name="inner"), "c")).start()
    assert told_to_stop(driver.send(StopRequested())) == ["c"]
    assert driver.fail("a") == []
    assert told_to_stop(driver.exit("c")) == ["b"]
    assert driver.exit("b") == [Stopped()]


def test_a_stop_beats_an_escalation_below() -> None:
    driver = Driver(supervisor(supervisor("a", "b", name="inner", max_restarts=0), "c")).start()
    assert told_to_stop(driver.fail("a")) == ["b"]
    assert told_to_stop(driver.send(StopRequested())) == ["c"]
    assert driver.exit("b") == []
    assert driver.exit("c") == [Stopped()]


def test_a_stop_does_not_hide_that_the_root_has_given_up() -> None:
    driver = Driver(supervisor("a", "b", max_restarts=0)).start()
    driver.fail("a")
    assert driver.send(StopRequested()) == []
    assert isinstance(driver.exit("b")[0], Failed)


def test_a_stop_before_the_start_ends_the_tree() -> None:
    driver = Driver(supervisor("a"))
    assert driver.send(StopRequested()) == [Stopped()]
    assert driver.send(Start()) == []


# --- what changes nothing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        Start(),
        ChildReady("a", 1),
        ChildReady("a", 2),
        ChildFailed("a", 1, "late"),
        ChildFailed("a", 3, "from the future"),
        ChildExited("a", 1),
        ChildFailed("nobody", 1, "?"),
        ProcessDied("w1", (("a", 1), ("nobody", 4))),
        ProcessDied("w1", ()),
        Timer(1),
        Timer(99),
    ],
    ids=repr,
)
def test_stale_and_unknown_events_return_the_very_same_tree(event: Event) -> None:
    driver = Driver(supervisor("a", "b", backoff_base_s=0.0)).start()
    driver.fail("a")
    driver.ready("a")
    before = driver.tree
    assert driver.send(event) == []
    assert driver.tree is before


def test_nothing_happens_after_the_end() -> None:
    driver = Driver(supervisor("a")).start()
    driver.send(StopRequested())
    driver.exit("a")
    before = driver.tree
    for event in (Start(), StopRequested(), ChildFailed("a", 1, "boom"), Timer(1)):
        assert driver.send(event) == []
        assert driver.tree is before


def test_a_step_leaves_the_tree_it_was_given_as_it_was() -> None:
    driver = Driver(supervisor("a", "b")).start()
    before = driver.tree
    statuses = {key: child.status for key, child in before.children.items()}
    driver.fail("a")
    driver.fail("b")
    assert {key: child.status for key, child in before.children.items()} == statuses
    assert not before.timers


# --- significant children and auto-shutdown --------------------------------------------------------------------------


def significant(name: str, restart: Restart = "transient", replicas: int = 1) -> AgentSpec:
    return agent(name, restart, replicas, significant=True)


def test_the_end_of_any_significant_child_stops_the_others_in_reverse_and_ends_the_run_well() -> None:
    driver = Driver(supervisor("a", significant("b"), "c", auto_shutdown="any_significant")).start()
    gave_up, shut_down, *rest = driver.exit("b", stop_action=False)
    assert isinstance(gave_up, GiveUpChild)
    assert isinstance(shut_down, ShutDown)
    assert (shut_down.supervisor, shut_down.child) == ("root", "b")
    assert rest == [StopChild("c", 1, 1005.0)]
    assert driver.fail("c") == [StopChild("a", 1, 1005.0)], "a stop beats a restart"
    assert driver.exit("a") == [Stopped()]


def test_all_significant_shuts_down_with_the_last_of_them_only() -> None:
    driver = Driver(
        supervisor(significant("a"), significant("b", "temporary"), "c", auto_shutdown="all_significant")
    ).start()
    assert [type(action) for action in driver.exit("a")] == [GiveUpChild]
    assert [type(action) for action in driver.fail("b")] == [GiveUpChild, ShutDown, StopChild]
    assert driver.exit("c")[-1] == Stopped()


def test_a_significant_child_that_is_restarted_shuts_nothing_down() -> None:
    driver = Driver(supervisor(significant("a"), "b", auto_shutdown="any_significant")).start()
    assert driver.fail("a") == [StartChild("a", 2)]


def test_the_end_of_an_insignificant_child_shuts_nothing_down() -> None:
    driver = Driver(supervisor(significant("a"), agent("b", "temporary"), auto_shutdown="any_significant")).start()
    assert [type(action) for action in driver.fail("b")] == [GiveUpChild]


def test_a_significant_child_that_waits_for_its_restart_still_counts_as_there() -> None:
    spec = supervisor(significant("a"), significant("b"), auto_shutdown="all_significant", max_restarts=5)
    driver = Driver(spec).start()
    driver.fail("a")
    driver.ready("a")
    driver.fail("a")  # waits out its backoff
    assert [type(action) for action in driver.exit("b")] == [GiveUpChild]


def test_a_significant_child_that_is_taken_down_with_its_group_shuts_nothing_down() -> None:
    spec = supervisor(
        "a", significant("b", "temporary"), strategy="ONE_FOR_ALL", auto_shutdown="any_significant", max_restarts=5
    )
    driver = Driver(spec).start()
    assert told_to_stop(driver.fail("a")) == ["b"]
    actions = driver.exit("b")
    assert not [action for action in actions if isinstance(action, ShutDown)]
    assert started(actions) == ["a"]


def test_one_death_that_ends_a_significant_child_and_fells_others_shuts_down_and_restarts_nobody() -> None:
    spec = supervisor("a", significant("b", "temporary"), "c", auto_shutdown="any_significant", max_restarts=0)
    actions = Driver(spec).start().kill("a", "b")
    assert [type(action) for action in actions] == [GiveUpChild, ShutDown, StopChild]


@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
def test_a_supervisor_that_shut_down_is_restarted_if_it_is_permanent(restart: Restart) -> None:
    inner = supervisor(significant("b"), "c", name="inner", auto_shutdown="any_significant", restart=restart)
    driver = Driver(supervisor("a", inner)).start()
    assert told_to_stop(driver.exit("b")) == ["c"]
    actions = driver.exit("c")
    if restart == "permanent":
        assert actions == [StartChild("b", 2)]
        assert restarts_in_window(driver.tree, driver.now_s)["root"] == 1
    else:
        assert [(type(action), action.child) for action in actions if isinstance(action, GiveUpChild)] == [
            (GiveUpChild, "c")
        ]
        assert is_settled(driver.tree)
        assert driver.send(StopRequested()) == [StopChild("a", 1, 1005.0)]
        assert driver.exit("a") == [Stopped()]


@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
def test_a_supervisor_that_gave_up_has_failed_so_it_is_restarted_unless_it_is_temporary(restart: Restart) -> None:
    driver = Driver(supervisor("a", supervisor("b", name="inner", max_restarts=0, restart=restart))).start()
    actions = driver.fail("b")
    assert started(actions) == ([] if restart == "temporary" else ["b"])
    assert bool([action for action in actions if isinstance(action, GiveUpChild)]) == (restart == "temporary")


def test_a_significant_supervisor_that_shuts_down_shuts_down_the_one_above_it() -> None:
    inner = supervisor(
        significant("b"), name="inner", auto_shutdown="any_significant", restart="transient", significant=True
    )
    driver = Driver(supervisor("a", inner, auto_shutdown="all_significant")).start()
    actions = driver.exit("b")
    assert [action.supervisor for action in actions if isinstance(action, ShutDown)] == ["inner", "root"]
    assert told_to_stop(actions) == ["a"]
    assert driver.exit("a") == [Stopped()]


def test_a_group_restart_brings_back_a_transient_supervisor_that_had_ended_and_no_temporary_one() -> None:
    def ended(restart: Restart) -> list[str]:
        inner = supervisor(significant("b"), name="inner", auto_shutdown="any_significant", restart=restart)
        driver = Driver(supervisor("a", inner, strategy="ONE_FOR_ALL")).start()
        driver.exit("b")
        return [name for action in driver.fail("a") for name in started([action])] + started(driver.ready("a"))

    assert ended("transient") == ["a", "b"]
    assert ended("temporary") == ["a"]


def test_what_comes_after_a_supervisor_that_shut_down_at_its_start_is_started() -> None:
    inner = supervisor(significant("b"), name="inner", auto_shutdown="any_significant", restart="temporary")
    driver = Driver(supervisor(inner, "c"))
    driver.send(Start())
    assert started(driver.exit("b")) == ["c"]
    assert driver.ready("c") == [Running()]


@pytest.mark.parametrize(
    ("child", "auto_shutdown", "text"),
    [
        (significant("a", "permanent"), "any_significant", "needs restart: transient or temporary"),
        (significant("a"), "never", "has auto_shutdown: never"),
        (supervisor(name="s", significant=True), "all_significant", "needs restart: transient or temporary"),
    ],
)
def test_combinations_that_otp_refuses_are_refused(
    child: AgentSpec | SupervisorSpec, auto_shutdown: Any, text: str
) -> None:
    with pytest.raises(ConfigurationError, match=text):
        Tree.from_spec(supervisor(child, auto_shutdown=auto_shutdown))


def test_the_root_cannot_be_significant() -> None:
    with pytest.raises(ConfigurationError, match="nothing is above it"):
        Tree.from_spec(supervisor("a", significant=True, restart="transient"))


# --- backoff that begins anew ----------------------------------------------------------------------------------------


def waits_s(driver: Driver, *pauses_s: float) -> list[float]:
    """How long each failure of `a` waits; it is ready at once, then runs for so long before it fails."""
    found = []
    for pause_s in pauses_s:
        driver.now_s += pause_s
        actions = driver.fail("a")
        timers = [action for action in actions if isinstance(action, SetTimer)]
        found.append(timers[0].at_s - driver.now_s if timers else 0.0)
        if timers:
            driver.now_s = timers[0].at_s
            driver.send(Timer(timers[0].id))
        driver.ready("a")
    return found


def test_backoff_begins_anew_after_a_stable_time_and_the_budget_does_not() -> None:
    spec = supervisor("a", backoff="LINEAR", backoff_base_s=1.0, backoff_reset_s=10.0, max_restarts=5)
    driver = Driver(spec).start()
    assert waits_s(driver, 1, 1, 9.9, 10, 1) == [0.0, 1.0, 2.0, 0.0, 1.0]
    assert restarts_in_window(driver.tree, driver.now_s) == {"root": 5}
    assert isinstance(driver.fail("a")[0], Escalated)


def test_without_a_stable_time_only_the_window_ends_the_growth_of_the_backoff() -> None:
    driver = Driver(supervisor("a", backoff="LINEAR", backoff_base_s=1.0, max_restarts=5)).start()
    assert waits_s(driver, 1, 1, 20, 20) == [0.0, 1.0, 2.0, 3.0]


def test_a_supervisor_with_a_child_that_waits_is_not_stable() -> None:
    spec = supervisor("a", "b", backoff="LINEAR", backoff_base_s=20.0, backoff_reset_s=5.0, max_restarts=9)
    driver = Driver(spec).start()
    driver.now_s += 1
    driver.fail("b")
    driver.ready("b")
    first = timer_of(driver.fail("b"))  # 20 s; meanwhile a has run for 19 s
    driver.now_s += 19
    second = timer_of(driver.fail("a"))
    assert first.at_s - 1001.0 == 20.0
    assert second.at_s - driver.now_s == 40.0
