"""Placement: what `plan` shows is what `run` does, and what cannot be is refused with its numbers."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from civitas_shm.errors import ConfigurationError
from civitas_shm.placement import MAX_SLOTS, Placement, place, plan_bytes
from civitas_shm.supervision import Tree, child_of
from civitas_shm.topology.model import (
    AgentSpec,
    DynamicSpec,
    PoolSpec,
    ProcessSpec,
    SupervisorSpec,
    TopologySpec,
    TransportSpec,
)

NO_STANDBY = PoolSpec(standby=0)


def agent(name: str, process: str | None = None, replicas: int = 1, mailbox_size: int = 1000) -> AgentSpec:
    return AgentSpec(name=name, type="m:A", process=process, replicas=replicas, mailbox_size=mailbox_size)


def topology(*agents: AgentSpec | str, **settings: Any) -> TopologySpec:
    children: list[AgentSpec | SupervisorSpec] = [agent(a) if isinstance(a, str) else a for a in agents]
    return TopologySpec(supervision=SupervisorSpec(children=children), **settings)


def agents_of(placement: Placement) -> dict[str, tuple[str, ...]]:
    return {process.name: process.agents for process in placement.processes}


def cpus_of(placement: Placement) -> dict[str, tuple[int, ...]]:
    return {process.name: process.cpus for process in placement.workers}


def spinning(placement: Placement) -> set[str]:
    return {process.name for process in placement.processes if process.spin}


# --- which processes, which agents -------------------------------------------------------------------------------


def test_the_pool_has_one_process_per_core_and_balances_by_count() -> None:
    placement = place(topology("a", "b", "c", "d", "e"), [0, 1])
    assert agents_of(placement) == {"main": (), "w1": ("a", "c", "e"), "w2": ("b", "d")}


def test_agents_of_nested_supervisors_are_placed_too() -> None:
    inner = SupervisorSpec(name="inner", children=[agent("b")])
    spec = TopologySpec(supervision=SupervisorSpec(children=[agent("a"), inner]))
    assert agents_of(place(spec, [0, 1])) == {"main": (), "w1": ("a",), "w2": ("b",)}


def test_named_processes_exist_by_being_named_and_come_before_the_pool() -> None:
    placement = place(topology(agent("a", "x"), agent("b", "main"), "c", agent("d", "x")), [0, 1])
    assert agents_of(placement) == {"main": ("b",), "x": ("a", "d"), "w1": ("c",)}


def test_slots_are_host_main_workers_standbys() -> None:
    placement = place(topology("a", "b", pool=PoolSpec(standby=3)), [0, 1])
    assert [process.slot for process in placement.processes] == [1, 2, 3]
    assert placement.slots_needed == 2 + 2 + 3


def test_no_process_is_started_without_agents() -> None:
    placement = place(topology("a", processes=[ProcessSpec("idle")]), list(range(8)), workers=4)
    assert agents_of(placement) == {"main": (), "w1": ("a",)}
    assert "--workers is 4, but 1 processes hold all agents" in placement.notes[0]
    assert "'idle' is declared, but no agent runs in it" in placement.notes[1]


def test_workers_overrides_the_size_of_the_pool() -> None:
    spec = topology(*"abcd", pool=PoolSpec(size=2))
    assert len(place(spec, [0]).workers) == 2
    assert len(place(spec, [0], workers=3).workers) == 3


def test_a_pool_process_passes_over_names_that_agents_use() -> None:
    placement = place(topology(agent("a", "w1"), "b", "c"), [0, 1])
    assert agents_of(placement) == {"main": (), "w1": ("a",), "w2": ("b",), "w3": ("c",)}


def test_an_entry_that_bears_the_name_of_a_pool_process_describes_it() -> None:
    entry = ProcessSpec("w2", cpus=[3], nice=5, gpu=[1], env={"A": "1"}, memory_limit_mb=100)
    placement = place(topology("a", "b", processes=[entry]), [0, 1, 2, 3], workers=2)
    w2 = placement.process_of("b")
    assert (w2.name, w2.cpus, w2.nice, w2.gpu, w2.memory_limit_mb, w2.env["A"]) == ("w2", (3,), 5, (1,), 100, "1")
    assert placement.notes == ()


def test_nothing_for_the_pool_means_no_pool() -> None:
    placement = place(topology(agent("a", "main")), [0, 1], workers=4)
    assert placement.workers == ()
    assert placement.notes == ("--workers has no effect: every agent names its process.",)


# --- replicas ------------------------------------------------------------------------------------------------------


def test_replicas_run_in_different_processes() -> None:
    placement = place(topology("a", agent("b", replicas=2), "c"), [0, 1])
    assert agents_of(placement) == {"main": (), "w1": ("a", "b#1"), "w2": ("b#0", "c")}


def test_an_automatic_pool_grows_to_the_replicas() -> None:
    placement = place(topology(agent("a", replicas=4)), [0, 1])
    assert agents_of(placement) == {"main": (), "w1": ("a#0",), "w2": ("a#1",), "w3": ("a#2",), "w4": ("a#3",)}
    assert cpus_of(placement) == {"w1": (0,), "w2": (1,), "w3": (0,), "w4": (1,)}


def test_more_replicas_than_the_size_of_the_pool_are_refused_with_ways_out() -> None:
    spec = topology(agent("a", replicas=3), pool=PoolSpec(size=2))
    with pytest.raises(ConfigurationError, match=r"'a' has 3 replicas.* pool\.size is 2\. .*`--workers 2`"):
        place(spec, [0, 1])


def test_workers_lowers_replicas_and_says_so_and_the_tree_follows() -> None:
    placement = place(topology("a", agent("b", replicas=3)), [0, 1, 2], workers=2)
    assert agents_of(placement) == {"main": (), "w1": ("a", "b#1"), "w2": ("b#0",)}
    assert placement.notes == ("agent 'b': 2 of 3 replicas run, one per process (--workers).",)
    assert set(Tree.from_spec(placement.spec.supervision).children) == {"a", "b#0", "b#1"}


def test_one_worker_leaves_one_replica_under_its_own_name() -> None:
    placement = place(topology(agent("b", replicas=3)), [0, 1], workers=1)
    assert agents_of(placement) == {"main": (), "w1": ("b",)}


@pytest.mark.parametrize("process", ["x", "main"])
def test_replicas_in_one_named_process_are_refused(process: str) -> None:
    with pytest.raises(ConfigurationError, match="2 replicas in the one process"):
        place(topology(agent("a", process, replicas=2)), [0, 1])


@given(
    replicas=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    cores=st.integers(1, 8),
    workers=st.none() | st.integers(1, 8),
)
def test_every_child_has_one_place_replicas_are_apart_and_loads_differ_by_one_at_most(
    replicas: list[int], cores: int, workers: int | None
) -> None:
    spec = topology(*(agent(f"a{i}", replicas=count) for i, count in enumerate(replicas)))
    placement = place(spec, list(range(cores)), workers)
    placed = [key for process in placement.processes for key in process.agents]
    assert sorted(placed) == sorted(Tree.from_spec(placement.spec.supervision).children)
    loads = [len(process.agents) for process in placement.workers]
    assert max(loads) - min(loads) <= 1
    for process in placement.workers:
        agents = [key.split("#")[0] for key in process.agents]
        assert len(agents) == len(set(agents))
    if workers is not None:
        assert len(placement.workers) <= workers


# --- cores ---------------------------------------------------------------------------------------------------------


def test_processes_are_pinned_round_robin() -> None:
    assert cpus_of(place(topology(*"abc"), [4, 6], workers=3)) == {"w1": (4,), "w2": (6,), "w3": (4,)}


def test_cores_that_a_process_asked_for_are_left_to_it() -> None:
    spec = topology(agent("a", "x"), "b", "c", "d", processes=[ProcessSpec("x", cpus=[0])])
    assert cpus_of(place(spec, [0, 1, 2], workers=3)) == {"x": (0,), "w1": (1,), "w2": (2,), "w3": (1,)}


def test_when_all_cores_were_asked_for_the_least_used_are_shared() -> None:
    spec = topology(agent("a", "x"), agent("b", "y"), "c", processes=[ProcessSpec("x", [0, 1]), ProcessSpec("y", [0])])
    assert cpus_of(place(spec, [0, 1], workers=1))["w1"] == (1,)


def test_pin_false_pins_only_what_asked_for_cores() -> None:
    spec = topology(agent("a", "x"), "b", processes=[ProcessSpec("x", cpus=[1])], pool=PoolSpec(pin=False))
    assert cpus_of(place(spec, [0, 1])) == {"x": (1,), "w1": ()}


def test_a_numa_node_gives_its_cores() -> None:
    spec = topology(agent("a", "x"), processes=[ProcessSpec("x", numa=1)])
    x = place(spec, [0, 2, 3], numa_nodes={0: [0, 1], 1: [2, 3]}).process_of("a")
    assert (x.cpus, x.numa) == ((2, 3), 1)


def test_threads_of_numeric_libraries_match_the_cores() -> None:
    spec = topology(agent("a", "x"), "b", processes=[ProcessSpec("x", cpus=[0, 1, 2])])
    placement = place(spec, [0, 1, 2, 3])
    x, w1 = placement.workers
    assert x.threads == 3
    assert set(x.env) == {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TORCH_NUM_THREADS"}
    assert set(x.env.values()) == {"3"}
    assert w1.env["OMP_NUM_THREADS"] == "1"


def test_processes_that_are_not_pinned_share_the_threads() -> None:
    placement = place(topology("a", "b", pool=PoolSpec(pin=False)), list(range(8)))
    assert [process.threads for process in placement.workers] == [4, 4]


def test_thread_limits_that_the_user_set_are_left_alone() -> None:
    spec = topology(agent("a", "x"), processes=[ProcessSpec("x", env={"OMP_NUM_THREADS": "7"})])
    x = place(spec, [0, 1], environ={"MKL_NUM_THREADS": "5"}).process_of("a")
    assert x.env["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in x.env


def test_gpus_are_made_visible_by_the_numbers_that_tools_show() -> None:
    spec = topology(agent("a", "x"), "b", processes=[ProcessSpec("x", gpu=[2, 0])])
    placement = place(spec, [0, 1])
    env = placement.process_of("a").env
    assert (env["CUDA_VISIBLE_DEVICES"], env["CUDA_DEVICE_ORDER"]) == ("2,0", "PCI_BUS_ID")
    assert "CUDA_VISIBLE_DEVICES" not in placement.process_of("b").env


# --- spinning --------------------------------------------------------------------------------------------------------


def test_processes_with_a_core_each_spin() -> None:
    assert spinning(place(topology("a", "b"), [0, 1])) == {"w1", "w2"}


def test_processes_that_share_a_core_do_not_spin() -> None:
    assert spinning(place(topology("a", "b", "c"), [0, 1], workers=3)) == {"w2"}


def test_main_needs_a_core_only_if_it_has_agents() -> None:
    assert spinning(place(topology("a", "b", agent("m", "main")), [0, 1])) == set()
    assert spinning(place(topology("a", "b", agent("m", "main")), [0, 1, 2])) == {"main", "w1", "w2"}


def test_a_process_with_a_choice_of_cores_takes_the_free_one() -> None:
    processes = [ProcessSpec("x", cpus=[0]), ProcessSpec("y", cpus=[0, 1])]
    spec = topology(agent("a", "x"), agent("b", "y"), processes=processes)
    assert spinning(place(spec, [0, 1])) == {"x", "y"}
    spec = topology(agent("a", "x"), agent("b", "y"), agent("c", "z"), processes=[*processes, ProcessSpec("z", [1])])
    assert spinning(place(spec, [0, 1])) == set()


def test_two_on_one_core_do_not_spin_however_many_are_free_elsewhere() -> None:
    processes = [ProcessSpec("x", cpus=[0]), ProcessSpec("y", cpus=[0]), ProcessSpec("z", cpus=[0, 1, 2, 3])]
    spec = topology(agent("a", "x"), agent("b", "y"), agent("c", "z"), processes=processes)
    assert spinning(place(spec, [0, 1, 2, 3])) == set()


def test_unpinned_processes_spin_while_there_are_enough_cores() -> None:
    pool = PoolSpec(size=2, pin=False)
    assert spinning(place(topology("a", "b", pool=pool), [0, 1])) == {"w1", "w2"}
    assert spinning(place(topology("a", "b", pool=pool), [0])) == set()


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (topology(agent("a", "x"), processes=[ProcessSpec("x", [0, 9])]), "cpus asks for 9; this run may use 0, 1"),
        (topology("a", processes=[ProcessSpec("x"), ProcessSpec("x")]), "processes.x is declared twice"),
        (topology("a", processes=[ProcessSpec("main", [0])]), "processes.main: 'main' is the caller's own process"),
        (topology(agent("a", "host")), "process 'host' runs no agents"),
        (topology("a", pool=PoolSpec(size=0)), "pool.size is 0"),
        (topology(agent("a", "x"), processes=[ProcessSpec("x", numa=7)]), "numa is 7; this machine has the nodes 0, 1"),
    ],
)
def test_what_the_machine_cannot_give_is_refused_with_what_it_has(spec: TopologySpec, says: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        place(spec, [0, 1], numa_nodes={0: [0], 1: [1]})


def test_workers_0_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="--workers is 0"):
        place(topology("a"), [0], workers=0)


def test_126_workers_are_allowed_and_with_a_standby_125() -> None:
    agents = [agent(f"a{i}", process=f"p{i}") for i in range(126)]
    assert place(topology(*agents, pool=NO_STANDBY), [0]).slots_needed == MAX_SLOTS
    with pytest.raises(ConfigurationError, match=r"needs 129 processes at once .*at most 128, so at most 125 workers"):
        place(topology(*agents, pool=PoolSpec(standby=1)), [0])
    assert place(topology(*agents[1:], pool=PoolSpec(standby=1)), [0]).slots_needed == MAX_SLOTS


# --- shared memory ---------------------------------------------------------------------------------------------------


def test_expected_memory_counts_agents_answers_of_each_process_and_room_for_agents_to_come() -> None:
    def expected(*agents: AgentSpec, mailboxes: int = 100, standby: int = 0) -> int:
        spec = topology(*agents, pool=PoolSpec(standby=standby), transport=TransportSpec(mailboxes=mailboxes))
        return plan_bytes(spec, place(spec, [0])).expected_bytes

    few = expected(agent("a", mailbox_size=5))
    rings = 8 * (65536 - 64)
    assert few + rings <= expected(agent("a", mailbox_size=65_000)) <= few + rings + (256 << 10)
    record_and_cell = 10_000 * (256 + 512)
    assert (
        few + record_and_cell <= expected(agent("a", mailbox_size=5), mailboxes=10_100) < few + 1.01 * record_and_cell
    )
    answers = 64 << 10
    assert few + 4 * answers <= expected(agent("a", mailbox_size=5), standby=4) <= few + 4 * answers + (384 << 10)
    in_two = expected(agent("a", mailbox_size=5, process="p"), agent("b", mailbox_size=5, process="q"))
    assert few + (1 << 20) <= in_two <= few + (1 << 20) + (512 << 10), "one extent of an arena more"


def test_replicas_share_one_mailbox() -> None:
    spec = topology(agent("a", replicas=3))
    assert plan_bytes(spec, place(spec, [0])).mailboxes == 1


def test_reserved_memory_is_an_arena_for_each_slot_and_the_mailbox_area() -> None:
    spec = topology("a", pool=PoolSpec(standby=1), transport=TransportSpec(arena_mb=8))
    reserved = plan_bytes(spec, place(spec, [0])).reserved_bytes
    assert 4 * (8 << 20) + (1 << 30) < reserved < 4 * (8 << 20) + (1 << 30) + (4 << 20)


def test_the_process_that_a_dynamic_supervisor_names_is_there_for_its_children() -> None:
    dynamic = SupervisorSpec("d", dynamic=DynamicSpec(process="crew"))
    placement = place(TopologySpec(supervision=SupervisorSpec(children=[dynamic]), pool=PoolSpec(size=1)), [0, 1])
    assert placement.process_for(AgentSpec("a", "m.A", process="crew"), {}).name == "crew"
    assert "process 'crew' is started when an agent is spawned into it." in placement.notes
    agent = child_of(DynamicSpec(process="crew"), AgentSpec("a", "m.A"), restart_given=False)
    assert (agent.process, agent.restart) == ("crew", "transient")
    assert (
        child_of(DynamicSpec(process="crew"), AgentSpec("a", "m.A", process="own"), restart_given=False).process
        == "own"
    )
