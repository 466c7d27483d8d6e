"""What the program hears and decides, where no run is needed: declarations, callbacks, and what the host sends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from civitas_shm import AgentError, AgentProcess, ConfigurationError, DynamicSupervisor, Message, Runtime, Supervisor
from civitas_shm.handles import status_of
from civitas_shm.host.audience import Audience
from civitas_shm.host.client import HostClient, HostOptions
from civitas_shm.host.protocol import Judge, Life
from civitas_shm.process import ProcessStatus
from civitas_shm.program import Program
from civitas_shm.supervision import AddChild, ChildFailed, ChildReady, Start, Tree, step
from civitas_shm.supervisor import HeartbeatTimeout
from civitas_shm.topology.model import AgentSpec, DynamicSpec, SupervisorSpec, TopologySpec


class Echo(AgentProcess):
    async def handle(self, message: Message) -> Message:
        return self.reply({})


# --- declarations -------------------------------------------------------------------------------------------------


def test_a_supervisor_starts_and_stops_the_run_that_it_is_declared_in() -> None:
    root = Supervisor("root", [Echo("echo")])

    async def play() -> None:
        for what in (root.start, root.stop):
            with pytest.raises(RuntimeError, match=r"supervisor 'root' cannot st.* it belongs to no Runtime yet"):
                await what()
        runtime = Runtime(root)
        await root.start()
        assert (await runtime.call("echo", {})) == {}
        await root.stop()
        assert not runtime.alive

    asyncio.run(play())


def test_a_remote_child_is_refused_with_what_to_do_instead() -> None:
    with pytest.raises(ConfigurationError, match="'far' needs no add_remote_child: give the agent itself"):
        Supervisor("root").add_remote_child("far", heartbeat_interval=1.0)


def test_what_civitas_takes_for_the_agent_of_a_dynamic_supervisor_is_taken_and_a_misspelt_word_is_not() -> None:
    DynamicSupervisor("pool", mailbox_size=5, shutdown_timeout=1.0)
    with pytest.raises(TypeError, match="has no argument 'max_child'"):
        DynamicSupervisor("pool", max_child=5)


def test_only_a_supervisor_with_a_hook_of_its_own_is_asked() -> None:
    class Picky(DynamicSupervisor):
        async def on_spawn_requested(self, agent_class: Any, name: str, config: dict[str, Any]) -> bool:
            return False

    assert not DynamicSupervisor("pool").dynamic_spec().asks
    assert Picky("pool").dynamic_spec().asks
    assert asyncio.run(DynamicSupervisor("pool").on_spawn_requested(Echo, "x", {}))


def test_a_run_of_one_process_has_its_agents_and_no_other() -> None:
    topology = {
        "supervision": {
            "children": [
                {"agent": {"name": "here", "type": "Echo"}},
                {"supervisor": {"name": "s", "children": [{"agent": {"name": "w", "type": "Echo", "process": "one"}}]}},
                {"type": "dynamic_supervisor", "name": "pool"},
            ]
        }
    }

    def names(process_filter: str | None) -> tuple[list[str], list[str]]:
        runtime = Runtime.from_config_dict(topology, {"Echo": Echo}, process_filter=process_filter)
        tree = runtime.print_tree()
        return runtime.agent_names(), [word for word in ("] s ", "] pool ") if word in tree]

    assert names("*") == (["here", "w"], ["] s ", "] pool "])
    assert names(None) == (["here"], ["] pool "])
    assert names("one") == (["w"], ["] s "])
    with pytest.raises(ConfigurationError, match="no agent has process 'two'"):
        names("two")


def test_a_topology_in_a_dictionary_runs_as_one_in_a_file() -> None:
    async def play() -> None:
        topology = {"supervision": {"children": [{"agent": {"name": "echo", "type": "Echo"}}]}}
        async with Runtime.from_config_dict(topology, {"Echo": Echo}) as runtime:
            assert await runtime.call("echo", {}) == {}

    asyncio.run(play())


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("running", ProcessStatus.RUNNING),
        ("starting", ProcessStatus.INITIALIZING),
        ("waiting", ProcessStatus.CRASHED),
        ("gone", ProcessStatus.STOPPED),
        ("stopping", ProcessStatus.STOPPING),
        ("no such word", ProcessStatus.INITIALIZING),
    ],
)
def test_states_of_a_reading_are_words_of_civitas(state: str, status: ProcessStatus) -> None:
    assert status_of(state) is status


# --- what the host tells and asks -----------------------------------------------------------------------------------


def tree_of(*events: Any) -> Tree:
    tree = Tree.from_spec(SupervisorSpec(children=[AgentSpec("a", "x.A")], backoff_base_s=0.0))
    for event in (Start(), *events):
        tree, _ = step(tree, event, 0.0)
    return tree


def test_the_host_tells_of_falls_and_new_lives_and_of_no_restart_that_was_asked_for() -> None:
    sent: list[Any] = []
    trees = [tree_of(ChildReady("a", 1))]
    asked: set[str] = set()
    audience = Audience(sent.append, lambda: trees[-1], asked.__contains__)
    audience.runs("a")
    assert not sent, "its first life is no news"
    audience.fell("a", "hung", "ProcessDied", "it did not answer")
    audience.fell("gone", "died", "ProcessDied", "of a child that is not there any more")
    trees.append(tree_of(ChildReady("a", 1), ChildFailed("a", 1, "x"), ChildReady("a", 2)))
    audience.runs("a")
    asked.add("a")
    audience.fell("a", "crashed", "AgentRestarted", "somebody wants it")
    assert sent == [
        Life("a", "root", "hung", "ProcessDied", "it did not answer"),
        Life("a", "root", "replaced"),
    ]


def test_each_judgement_goes_to_who_asked_for_it_once() -> None:
    sent: list[Any] = []
    said: list[Any] = []
    audience = Audience(sent.append, tree_of, lambda agent: False)
    for name in ("x", "y"):
        audience.judge(AddChild("pool", AgentSpec(name, "m.A"), "spawner"), lambda why, n=name: said.append((n, why)))
    first, second = sent
    assert isinstance(first, Judge)
    assert (first.supervisor, first.agent["name"], first.spawner) == ("pool", "x", "spawner")
    audience.judged(second.id, "no")
    audience.judged(second.id, "twice")
    audience.judged(99, "unknown")
    audience.judged(first.id, "")
    assert said == [("y", "no"), ("x", "")]


def test_a_process_that_did_not_answer_is_a_heartbeat_timeout() -> None:
    heard: list[Any] = []
    root = Supervisor("root", [Echo("a")])
    root.add_crash_callback(lambda name, error: heard.append((name, error)))
    program = Program(root.all_supervisors(), lambda name: name)
    client = HostClient(TopologySpec(), HostOptions("x"), program=program)
    client._lived(Life("a", "root", "hung", "ProcessDied", "its process one died: blocked loop"))
    client._lived(Life("a", "root", "died", "ProcessDied", "its process one died: SIGKILL"))
    (name, hung), (_, died) = heard
    assert isinstance(hung, HeartbeatTimeout)
    assert (name, hung.agent_name, hung.missed, str(hung)) == ("a", "a", 1, "its process one died: blocked loop")
    assert str(HeartbeatTimeout("a", 3)) == "'a' has missed 3 heartbeats"
    assert isinstance(died, AgentError)


def test_a_spawn_that_cannot_be_judged_is_refused() -> None:
    class Fails(DynamicSupervisor):
        def on_spawn_requested(self, agent_class: Any, name: str, config: dict[str, Any]) -> bool:  # type: ignore[override]
            raise OSError("no idea")

    async def play() -> None:
        program = Program([Fails("pool"), Supervisor("other")], lambda name: name)
        echo = AgentSpec("x", f"{Echo.__module__}.Echo")
        assert "raised OSError('no idea')" in await program.may_spawn("pool", echo, "a")
        assert "there is no module 'nowhere'" in await program.may_spawn("pool", AgentSpec("x", "nowhere.A"), "a")
        assert await program.may_spawn("other", echo, "a") == ""
        assert await program.may_spawn("declared in a file", echo, "a") == ""

    asyncio.run(play())


def test_the_question_survives_the_way_to_another_process() -> None:
    spec = TopologySpec(supervision=SupervisorSpec(children=[SupervisorSpec("pool", dynamic=DynamicSpec(asks=True))]))
    [pool] = TopologySpec.from_plain(spec.to_plain()).supervision.dynamic_supervisors()
    assert pool.dynamic is not None
    assert pool.dynamic.asks
