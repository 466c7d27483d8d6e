"""The driver with the real tree, and processes, memory and time that the test plays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from civitas_shm.clock import ManualClock
from civitas_shm.errors import SharedMemoryFull
from civitas_shm.host import kernel
from civitas_shm.host.cgroups import Group
from civitas_shm.host.driver import Driver
from civitas_shm.host.events import EventLog
from civitas_shm.host.kernel import Exit
from civitas_shm.host.pool import Worker
from civitas_shm.host.protocol import AgentReport, Answer, Assign, CrashAgent, Ready, Request, StartAgent, StopAgent
from civitas_shm.host.seats import Outcome, WorkerSettings
from civitas_shm.host.spawned import Journal
from civitas_shm.notices import CHILD_TERMINATED, DOWN, decode_notice
from civitas_shm.placement import place
from civitas_shm.supervision import AddChild
from civitas_shm.supervision.state import ChildStatus
from civitas_shm.topology.model import (
    AgentSpec,
    DynamicSpec,
    PoolSpec,
    ProcessSpec,
    StopSpec,
    SupervisorSpec,
    TopologySpec,
)
from civitas_shm.transport import FULL, SENT, Buried, InHand, MailboxSpec, MailboxStats, MemoryPlan

KILLED = Exit(0, 9)


@dataclass
class Memory:
    """What the driver asks of RunMemory, noted."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    mailboxes: list[str] = field(default_factory=list)
    lives: list[tuple[str, int]] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)
    held: list[InHand] = field(default_factory=list)
    notices: list[tuple[int, str, Any]] = field(default_factory=list)
    full: bool = False
    finishing: int = 0
    """So many messages are finished, one before each look."""
    handled: int = 0
    last: int = 0
    """Incarnation of agents in the run that is adopted."""
    run_dir: Path = Path("/nowhere")
    plan: MemoryPlan = field(default_factory=lambda: MemoryPlan(slots=4, arena_bytes=64 << 20))

    def open_delays(self, on_orders: Callable[[], None]) -> None:
        """Nobody orders anything here."""

    def incarnation(self, slot: int) -> int:
        return 5  # as after a resume

    def begin_life(self, mailbox: int, incarnation: int) -> None:
        self.lives.append((self.mailboxes[mailbox - 11], incarnation))

    def last_incarnation(self) -> int:
        return self.last

    def fds(self) -> list[int]:
        return [100, 101]

    def attach_spec(self, slot: int, incarnation: int, spin_ns: int) -> dict[str, Any]:
        return {"slot": slot, "incarnation": incarnation, "spin_ns": spin_ns}

    def add_mailbox(self, spec: MailboxSpec) -> int:
        self.mailboxes.append(spec.name)
        return 10 + len(self.mailboxes)

    def set_readers(self, mailbox: int, slots: list[int]) -> None:
        self.calls.append(("readers", mailbox, tuple(slots)))

    def close_mailbox(self, mailbox: int, keep: Any = None) -> list[InHand]:
        self.calls.append(("close", mailbox))
        return []

    def judge(self, entry: InHand, strikes: int, kills: int, alone: bool) -> None:
        self.calls.append(("judge", entry.mailbox, strikes, kills, alone))

    def buried(self) -> list[Buried]:
        return []

    def slot_died(self, slot: int) -> list[InHand]:
        self.calls.append(("died", slot))
        return self.held

    def post_notice(self, mailbox: int, type: str, data: bytes) -> int:
        if self.full:
            return FULL
        self.notices.append((mailbox, type, tuple((decode_notice(type, data) or {}).values())))
        return SENT

    def waiting(self, *, news: bool = False) -> dict[str, int]:
        return self.left

    def stats(self) -> list[MailboxStats]:
        if self.finishing:
            self.finishing -= 1
            self.handled += 1
        return [MailboxStats("a", 100, 0, 0, self.handled, 0, 0, 0, 0, 0)]


class Pool:
    """Processes that exist only here."""

    def __init__(self) -> None:
        self.assigned: list[tuple[Worker, Assign]] = []
        self.orders: list[tuple[str, Any]] = []
        self.killed: list[tuple[str, str]] = []
        self.limits: list[int] = []

    def assign(self, order: Assign, *, exec_env: dict[str, str] | None = None, memory_max_bytes: int = 0) -> Worker:
        worker = Worker(fresh_exec=exec_env is not None)
        worker.process, worker.slot, worker.pid = order.process, order.slot, 1000 + len(self.assigned)
        worker.output = type("Output", (), {"tail": ["last line"]})()
        worker.connected = True
        self.assigned.append((worker, order))
        self.limits += [memory_max_bytes] if memory_max_bytes else []
        return worker

    def order(self, worker: Worker, message: Any) -> None:
        self.orders.append((worker.process, message))

    def kill(self, worker: Worker, because: str) -> None:
        worker.killed_because = worker.killed_because or because
        self.killed.append((worker.process, because))


class World:
    """A driver and everything around it."""

    def __init__(
        self,
        *agents: AgentSpec,
        size: int = 1,
        supervision: dict[str, Any] | None = None,
        journal: Journal | None = None,
        last: int = 0,
        **topology: Any,
    ):
        spec = TopologySpec(
            supervision=SupervisorSpec(children=list(agents), **(supervision or {})),
            pool=PoolSpec(size=size),
            **topology,
        )
        self.events: list[dict[str, Any]] = []
        self.memory, self.pool, self.to_main, self.ran = Memory(last=last), Pool(), list[Any](), list[int]()
        self.driver = Driver(
            asyncio.get_running_loop(),
            place(spec, [0, 1]),
            self.memory,  # type: ignore[arg-type]
            WorkerSettings("shm", 20_000),
            EventLog(ManualClock(), self.events.append),
            ManualClock(),
            to_main=self.to_main.append,
            on_running=lambda: self.ran.append(1),
            seed=1,
            journal=journal,
        )
        self.driver.processes.pool = self.pool
        self.driver.start()

    def worker(self, process: str = "w1") -> Worker:
        worker = self.driver.seats[process].worker
        assert worker is not None
        return worker

    def ready(self, process: str = "w1") -> None:
        self.driver.heard(self.worker(process), Ready(self.worker(process).slot))

    def says(self, process: str, event: str, agent: str, **fields: Any) -> None:
        plain = {"event": event, "agent": agent, **fields}
        self.driver.heard(self.worker(process), AgentReport(plain, self.incarnation(process, agent)))

    def incarnation(self, process: str, agent: str) -> int:
        """Of the last start that was ordered there; 0: none was."""
        orders = [*self.pool.orders, *(("main", order) for order in self.to_main)]
        starts = [order for where, order in orders if isinstance(order, StartAgent) and where == process]
        return max((order.incarnation for order in starts if order.spec["name"] == agent), default=0)

    def main_says(self, event: str, agent: str, incarnation: int = 0) -> None:
        main = self.driver.processes.main
        self.driver.report(main, {"event": event, "agent": agent}, incarnation or self.incarnation("main", agent))

    def fails(self, process: str, agent: str, kind: str = "ValueError") -> None:
        self.says(process, "AgentFailed", agent, type=kind, text="no", traceback="", during="handle", message=None)

    def names(self) -> list[str]:
        return [event["event"] for event in self.events]

    def started(self) -> list[tuple[str, str]]:
        return [(process, order.spec["name"]) for process, order in self.pool.orders if isinstance(order, StartAgent)]

    def stopped(self) -> list[tuple[str, str, str]]:
        return [(p, order.name, order.drain) for p, order in self.pool.orders if isinstance(order, StopAgent)]


def agent(name: str, **fields: Any) -> AgentSpec:
    return AgentSpec(name, f"module.{name}", **fields)


def run(test: Callable[[], Any]) -> None:
    async def started() -> None:
        result = test()
        if asyncio.iscoroutine(result):
            await result

    asyncio.run(started())


def test_a_process_knows_how_many_agents_are_to_come_those_that_were_given_up_not_counted() -> None:
    def test() -> None:
        world = World(agent("a", restart="temporary"), agent("b"), agent("c", process="other"))
        world.ready()
        assert [(order.process, order.agents) for _, order in world.pool.assigned] == [("other", 1), ("w1", 2)]
        world.says("w1", "AgentStarted", "a")
        world.says("w1", "AgentStarted", "b")
        world.fails("w1", "a")
        world.driver.died(world.worker(), KILLED)
        assert [(order.process, order.agents) for _, order in world.pool.assigned[2:]] == [("w1", 1)]

    run(test)


def test_all_mailboxes_and_readers_are_there_before_the_first_agent_starts() -> None:
    def test() -> None:
        world = World(agent("a"), agent("b", replicas=2), size=2)
        assert world.memory.mailboxes == ["a", "b"]
        assert world.memory.calls == [("readers", 11, (2,)), ("readers", 12, (3, 2))]
        assert [order.process for _, order in world.pool.assigned] == ["w1", "w2"], "processes do not wait for agents"
        assert world.started() == [("w1", "a")], "its order waits in the socket until the process is there"
        world.ready()
        world.says("w1", "AgentStarted", "a")
        assert world.started() == [("w1", "a"), ("w2", "b"), ("w1", "b")]
        world.ready("w2")
        world.says("w2", "AgentStarted", "b")
        assert not world.ran
        world.says("w1", "AgentStarted", "b")
        assert world.ran == [1]

    run(test)


def test_agents_of_main_are_ordered_from_the_caller() -> None:
    def test() -> None:
        world = World(agent("a", process="main"))
        assert [order.spec["name"] for order in world.to_main] == ["a"]
        world.main_says("AgentStarted", "a")
        assert world.ran == [1]
        assert not world.pool.assigned

    run(test)


def test_a_death_repairs_memory_first_then_reports_then_restarts_in_the_same_slot() -> None:
    def test() -> None:
        world = World(agent("a"), agent("b"))
        world.ready()
        world.says("w1", "AgentStarted", "a")
        world.says("w1", "AgentStarted", "b")
        world.memory.held = [InHand(11, 1, 2, 3, bytes(128), "job", "b", 9)]
        world.driver.died(world.worker(), KILLED)
        assert world.memory.calls[-2:] == [("died", 2), ("judge", 11, 0, 1, True)], "one ran, killed from outside"
        died = world.events[-2]
        assert (died["event"], died["cause"], died["process"]) == ("process_died", "SIGKILL", "w1")
        assert died["in_hand"][0] | {"id": ""} == {
            "agent": "a", "type": "job", "sender": "b", "id": "", "delivery": 3, "payload_bytes": 9,
        }  # fmt: skip
        (_, first), (_, second) = world.pool.assigned
        assert (first.slot, second.slot) == (2, 2)
        assert (first.attach["incarnation"], second.attach["incarnation"]) == (6, 7)
        world.ready()
        assert world.started()[2:] == [("w1", "a"), ("w1", "b")]
        world.says("w1", "AgentStarted", "a")
        assert "process_recovered" not in world.names()
        world.says("w1", "AgentStarted", "b")
        assert world.names() == [
            "process_started", "process_died", "process_restarting", "process_started", "process_recovered",
        ]  # fmt: skip
        assert world.driver.counts.restarts == 2
        assert world.driver.counts.deaths == 1

    run(test)


@pytest.mark.parametrize(
    ("oom_kills", "its_limit", "cause", "judged"),
    [
        (1, True, "SIGKILL (out of memory: killed by the kernel, because it and what it has started took 576 MiB; "
                  "memory_limit_mb of its process is 512, the rest was for its messages)", (1, 0)),
        (1, False, "SIGKILL (out of memory: killed by the kernel)", (1, 0)),
        (0, False, "SIGKILL", (0, 1)),
    ],
)  # fmt: skip
def test_what_its_own_cgroup_says_of_a_sigkill_is_believed(
    tmp_path: Path, oom_kills: int, its_limit: bool, cause: str, judged: tuple[int, int]
) -> None:
    def test() -> None:
        world = World(agent("a", process="w1"), processes=[ProcessSpec("w1", memory_limit_mb=512)])
        assert world.pool.limits == [576 << 20], "the limit, and the arena of its messages"
        world.ready()
        world.says("w1", "AgentStarted", "a")
        worker = world.worker()
        worker.group = Group(tmp_path, memory=True)
        worker.memory_max_bytes, worker.oom_kills, worker.reached_its_limit = 576 << 20, oom_kills, its_limit
        world.memory.held = [InHand(11, 1, 2, 1, bytes(128), "job", "b", 9)]
        world.driver.died(worker, KILLED)
        [death] = [event for event in world.events if event["event"] == "process_died"]
        assert death["cause"] == cause
        assert ("judge", 11, *judged, True) in world.memory.calls

    run(test)


def test_a_count_that_could_not_be_read_once_makes_no_later_death_one_for_want_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = iter([5, 0, 5, 6])
    monkeypatch.setattr(kernel, "OomKills", lambda: lambda: next(counts))

    def test() -> None:
        world = World(agent("a"), supervision={"backoff_base_s": 0.0})
        for _ in range(3):
            world.ready()
            world.says("w1", "AgentStarted", "a")
            world.driver.died(world.worker(), KILLED)
        causes = [event["cause"] for event in world.events if event["event"] == "process_died"]
        assert causes == ["SIGKILL", "SIGKILL", "SIGKILL (out of memory: killed by the kernel)"]

    run(test)


def test_one_death_is_counted_once_however_many_agents_it_took() -> None:
    def test() -> None:
        world = World(agent("a"), agent("b"), agent("c"), supervision={"max_restarts": 1})
        for name in ("a", "b", "c"):
            if name == "a":
                world.ready()
            world.says("w1", "AgentStarted", name)
        world.driver.died(world.worker(), KILLED)
        assert not world.driver.ended.done()
        world.driver.died(world.worker(), KILLED)
        outcome = world.driver.ended.result()
        assert (outcome.exit_code, outcome.error) == (1, "RunFailed")
        assert "process w1 (pid 1001) died: SIGKILL" in outcome.report
        assert "last line" in outcome.report

    run(test)


def test_what_an_earlier_process_says_late_changes_nothing() -> None:
    def test() -> None:
        world = World(agent("a"))
        old = world.worker()
        world.driver.died(old, KILLED)
        world.driver.heard(old, Ready(2))
        world.driver.heard(old, AgentReport({"event": "AgentStarted", "agent": "a"}, 1))
        world.driver.died(old, KILLED)
        assert world.names() == ["process_died", "process_restarting"]
        assert not world.ran

    run(test)


@pytest.mark.parametrize("event", ["AgentStarted", "AgentExited"])
def test_what_an_agent_of_main_says_after_it_was_left_behind_is_not_taken_for_its_next_life(
    monkeypatch: pytest.MonkeyPatch, event: str
) -> None:
    monkeypatch.setattr("civitas_shm.host.lives.STOP_GRACE_S", 0.0)

    async def test() -> None:
        world = World(agent("a", process="main", start_timeout_s=0.01))
        while len(world.memory.lives) < 2:
            await asyncio.sleep(0.005)
        world.main_says(event, "a", incarnation=1)
        assert not world.ran
        assert world.driver.tree.children["a"].status is ChildStatus.STARTING
        assert world.driver.processes.main.residents["a"].incarnation == 2
        world.main_says("AgentStarted", "a", incarnation=2)
        assert world.ran == [1]
        world.driver.stop_now()

    run(test)


def test_a_name_that_is_used_again_and_a_run_that_is_resumed_go_on_with_their_incarnations() -> None:
    def test() -> None:
        world = World(agent("a", process="w1"), POOL, last=41)  # type: ignore[arg-type]
        world.ready()
        world.says("w1", "AgentStarted", "a")
        for _ in range(2):
            spawn(world, "x", process="w1")
            world.says("w1", "AgentStarted", "x")
            asks(world, "w1", "despawn", name="x")
            world.says("w1", "AgentExited", "x", reason="stopped")
        assert world.memory.lives == [("a", 42), ("x", 42), ("x", 43)]
        assert world.memory.mailboxes == ["a", "x", "x"]
        assert (world.driver.counts.restarts, world.driver.restarts) == (0, {}), "none of these was restarted"
        world.fails("w1", "a")
        assert world.memory.lives[-1] == ("a", 43)
        assert (world.driver.counts.restarts, world.driver.restarts) == (1, {"a": 1})

    run(test)


def test_chaos_is_forgiven_also_when_no_restart_is_left() -> None:
    def test() -> None:
        world = World(agent("a"), supervision={"max_restarts": 0})
        assert not world.driver.victims()  # nobody is ready yet
        world.ready()
        [victim] = world.driver.victims()
        world.driver.kill_for_chaos(victim)
        assert world.pool.killed == [("w1", "chaos")]
        world.driver.died(world.worker(), KILLED)
        assert not world.driver.ended.done()
        assert world.events[-2]["cause"] == "SIGKILL (chaos)"
        world.ready()
        world.driver.died(world.worker(), KILLED)
        assert world.driver.ended.result().exit_code == 1  # only that one was forgiven

    run(test)


def test_a_failed_agent_is_started_again_beside_its_neighbours() -> None:
    def test() -> None:
        world = World(agent("a"), agent("b"))
        world.ready()
        world.says("w1", "AgentStarted", "a")
        world.says("w1", "AgentStarted", "b")
        world.fails("w1", "a")
        assert world.started()[-1] == ("w1", "a")
        assert len(world.pool.assigned) == 1
        assert world.events[-1]["event"] == "agent_failed"

    run(test)


def test_a_class_that_cannot_be_imported_ends_the_run_only_at_its_first_start() -> None:
    def test() -> None:
        world = World(agent("a"))
        world.ready()
        world.fails("w1", "a", "AgentImportError")
        assert world.driver.ended.result() == Outcome(4, "no", "AgentImportError")
        world = World(agent("a"))
        world.ready()
        world.says("w1", "AgentStarted", "a")
        world.fails("w1", "a")
        world.fails("w1", "a", "AgentImportError")
        assert not world.driver.ended.done()

    run(test)


def test_an_agent_that_has_finished_gives_up_its_mailbox_with_its_last_replica() -> None:
    def test() -> None:
        world = World(agent("a", replicas=2), size=2)
        for process in ("w1", "w2"):
            world.ready(process)
            world.says(process, "AgentStarted", "a")
        world.says("w1", "AgentExited", "a", reason="finished")
        assert world.memory.calls[-1] == ("readers", 11, (3,))
        world.says("w2", "AgentExited", "a", reason="finished")
        assert world.memory.calls[-1] == ("close", 11)

    run(test)


def test_a_stop_ends_agents_in_reverse_and_takes_the_first_exit_code() -> None:
    def test() -> None:
        world = World(agent("a"), agent("b"))
        world.ready()
        world.says("w1", "AgentStarted", "a")
        world.says("w1", "AgentStarted", "b")
        world.says("w1", "StopRuntime", "a", exit_code=3)
        world.driver.stop(9)
        assert world.stopped() == [("w1", "b", "current")]
        world.says("w1", "AgentExited", "b", reason="stopped")
        assert world.stopped()[1:] == [("w1", "a", "current")]
        world.says("w1", "AgentExited", "a", reason="stopped")
        assert world.driver.ended.result() == Outcome(3)

    run(test)


def test_a_death_during_the_stop_is_not_counted_and_nothing_is_started_again() -> None:
    def test() -> None:
        world = World(agent("a"), supervision={"max_restarts": 0})
        world.ready()
        world.says("w1", "AgentStarted", "a")
        world.driver.stop()
        world.driver.died(world.worker(), KILLED)
        assert world.driver.ended.result() == Outcome(0)
        assert len(world.pool.assigned) == 1

    run(test)


def test_a_stop_before_the_process_is_ready_waits_behind_the_start_in_its_socket() -> None:
    def test() -> None:
        world = World(agent("a"))
        world.driver.stop()
        assert world.stopped() == [("w1", "a", "current")]
        world.ready()
        world.says("w1", "AgentExited", "a", reason="stopped")
        assert world.driver.ended.result() == Outcome(0)

    run(test)


def test_a_stop_before_the_process_is_ready_has_its_deadline_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("civitas_shm.host.lives.STOP_GRACE_S", 0.01)

    async def test() -> None:
        world = World(agent("a", shutdown_timeout_s=0.01))
        world.driver.stop()
        while not world.pool.killed:
            await asyncio.sleep(0.002)
        assert world.pool.killed == [("w1", "'a' did not stop in time")]
        world.driver.died(world.worker(), KILLED)
        assert world.driver.ended.result() == Outcome(0)

    run(test)


def test_a_drain_of_all_stops_nobody_while_anything_waits() -> None:
    async def test() -> None:
        world = World(agent("a"), stop=StopSpec(drain="all"))
        world.ready()
        world.says("w1", "AgentStarted", "a")
        world.memory.left = {"a": 2}
        world.driver.stop()
        await asyncio.sleep(0.05)
        assert world.stopped() == []
        world.memory.left = {}
        while not world.stopped():
            await asyncio.sleep(0.005)
        assert world.stopped() == [("w1", "a", "all")]

    run(test)


def test_a_drain_is_not_done_while_agents_finish_messages_between_two_looks_that_see_none() -> None:
    """One that goes from a mailbox not yet looked at to one that was looked at already is seen in neither."""

    async def test() -> None:
        world = World(agent("a"), stop=StopSpec(drain="all"))
        world.ready()
        world.says("w1", "AgentStarted", "a")
        world.memory.finishing = 20
        world.driver.stop()
        while not world.stopped():
            await asyncio.sleep(0.001)
        assert (world.memory.finishing, world.memory.handled) == (0, 20)

    run(test)


def test_the_whole_stop_has_an_end_whatever_agents_do() -> None:
    async def test() -> None:
        world = World(agent("a"), stop=StopSpec(timeout_s=0.02))
        world.ready()
        world.says("w1", "AgentStarted", "a")
        world.driver.stop(4)
        assert await world.driver.ended == Outcome(4, in_order=False)

    run(test)


@pytest.mark.parametrize("process", ["w1", "main"])
def test_an_agent_that_does_not_stop_is_ended_by_force(monkeypatch: pytest.MonkeyPatch, process: str) -> None:
    monkeypatch.setattr("civitas_shm.host.lives.STOP_GRACE_S", 0.0)

    async def test() -> None:
        world = World(agent("a", process=process, shutdown_timeout_s=0.01))
        if process == "w1":
            world.ready()
            world.says("w1", "AgentStarted", "a")
        else:
            world.main_says("AgentStarted", "a")
        world.driver.stop()
        if process == "w1":
            while not world.pool.killed:
                await asyncio.sleep(0.005)
            assert world.pool.killed == [("w1", "'a' did not stop in time")]
            world.driver.died(world.worker(), KILLED)
        assert await world.driver.ended == Outcome(0)

    run(test)


def test_a_process_that_does_not_become_ready_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("civitas_shm.host.processes.PROCESS_START_TIMEOUT_S", 0.01)

    async def test() -> None:
        world = World(agent("a"))
        while not world.pool.killed:
            await asyncio.sleep(0.005)
        assert "was not ready within 0.01 s" in world.pool.killed[0][1]

    run(test)


def test_a_process_with_devices_is_a_fresh_interpreter() -> None:
    def test() -> None:
        world = World(agent("a", process="g"), processes=[ProcessSpec("g", gpu=[1], env={"X": "y"})])
        assert world.worker("g").fresh_exec
        assert world.pool.assigned[0][1].env["CUDA_VISIBLE_DEVICES"] == "1"

    run(test)


# --- what agents ask for ---------------------------------------------------------------------------------------------


POOL = SupervisorSpec("pool", dynamic=DynamicSpec(), max_restarts=0)


def asks(world: World, process: str, what: str, asker: str = "a", **fields: Any) -> None:
    world.driver.heard(world.worker(process), Request(7, asker, what, fields))


def spawn(world: World, name: str, **fields: Any) -> None:
    asks(world, "w1", "spawn", spec=msgspec.to_builtins(agent(name, **fields)))


def answers(world: World) -> list[tuple[str, str]]:
    return [(order.error, order.text) for _, order in world.pool.orders if isinstance(order, Answer)]


def up(*agents: AgentSpec) -> World:
    world = World(agent("a", process="w1"), *agents)
    world.ready()
    world.says("w1", "AgentStarted", "a")
    for each in agents:
        if isinstance(each, AgentSpec):
            world.says("w1", "AgentStarted", each.name)
    return world


def test_a_spawn_is_answered_when_the_agent_is_ready_and_its_mailbox_was_there_before() -> None:
    def test() -> None:
        world = up(POOL)  # type: ignore[arg-type]
        spawn(world, "x")
        assert world.memory.mailboxes == ["a", "x"]
        assert world.pool.assigned[-1][1].process == "w2", "a process of the pool is started for it"
        assert not answers(world)
        world.ready("w2")
        world.says("w2", "AgentStarted", "x")
        assert answers(world) == [("", "")]

    run(test)


def test_the_answer_to_a_process_that_has_died_is_not_given_to_its_successor() -> None:
    def test() -> None:
        world = up(POOL)  # type: ignore[arg-type]
        spawn(world, "x")
        world.driver.died(world.worker(), KILLED)
        world.ready("w2")
        world.says("w2", "AgentStarted", "x")
        assert not answers(world)
        spawn(world, "x")
        assert "the name is taken" in answers(world)[0][1], "it was spawned all the same"

    run(test)


def test_a_spawn_that_finds_no_mailbox_or_no_process_leaves_nothing() -> None:
    def test() -> None:
        world = up(POOL)  # type: ignore[arg-type]

        def full(spec: MailboxSpec) -> int:
            raise SharedMemoryFull("no memory")

        real, world.memory.add_mailbox = world.memory.add_mailbox, full  # type: ignore[method-assign]
        spawn(world, "x")
        world.memory.add_mailbox = real  # type: ignore[method-assign]
        spawn(world, "x", process="nowhere")
        assert [error for error, _ in answers(world)] == ["SharedMemoryFull", "ConfigurationError"]
        assert "x" not in world.driver.tree.children
        spawn(world, "x")
        assert "x" in world.driver.tree.children

    run(test)


def test_a_resume_starts_what_was_spawned_and_forgets_nothing_that_has_no_room_this_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def known(*names: str, **fields: Any) -> None:
        journal = Journal(tmp_path / "spawned", resume=True)
        for name in names:
            journal.added(AddChild("pool", agent(name, **fields)))
        journal.close()

    def names() -> list[str]:
        (tmp_path / "copy").write_bytes((tmp_path / "spawned").read_bytes())
        journal = Journal(tmp_path / "copy", resume=True)
        journal.close()
        return [wanted.agent.name for wanted in journal.known()]

    def test() -> None:
        known("x")
        known("y", process="of_old")
        world = World(agent("a", process="w1"), POOL, journal=Journal(tmp_path / "spawned", resume=True))  # type: ignore[arg-type]
        assert "'y' cannot be spawned into process 'of_old'" in capsys.readouterr().err
        world.ready()
        world.says("w1", "AgentStarted", "a")
        world.ready("w2")
        assert world.started() == [("w1", "a"), ("w2", "x")]
        world.says("w2", "AgentStarted", "x")
        assert names() == ["x", "y"]
        asks(world, "w1", "despawn", name="x")
        world.says("w2", "AgentExited", "x", reason="stopped")
        assert answers(world) == [("", "")]
        assert names() == ["y"]
        world.driver.stop_now()

    run(test)


def test_a_child_that_is_gone_closes_its_mailbox_and_its_spawner_is_told() -> None:
    def test() -> None:
        world = up(POOL)  # type: ignore[arg-type]
        spawn(world, "x", process="w1")
        world.says("w1", "AgentStarted", "x")
        world.fails("w1", "x")
        assert world.memory.calls[-1] == ("close", 12)
        assert world.memory.notices == [(11, CHILD_TERMINATED, ("x", "restarts_exhausted"))]

    run(test)


def test_all_that_died_with_a_process_is_told_to_those_who_monitor_it_and_nothing_while_the_run_stops() -> None:
    def test() -> None:
        world = up(agent("b", process="w2"), agent("c", process="w2"))
        world.ready("w2")
        for name in ("b", "c"):
            world.says("w2", "AgentStarted", name)
            asks(world, "w1", "monitor", name=name)
        world.driver.died(world.worker("w2"), KILLED)
        told = [(mailbox, kind, name) for mailbox, kind, (name, _) in world.memory.notices]
        assert told == [(11, DOWN, "b"), (11, DOWN, "c")]
        assert world.memory.notices[0][2][1] == "killed: its process w2 died: SIGKILL"
        world.driver.stop()
        world.driver.died(world.worker("w2"), KILLED)
        assert len(world.memory.notices) == 2

    run(test)


def linked(max_restarts: int) -> World:
    """`a` in w1 and `b` in w2 run, and are linked."""
    world = World(agent("a", process="w1"), agent("b", process="w2"), supervision={"max_restarts": max_restarts})
    for process, name in (("w1", "a"), ("w2", "b")):
        world.ready(process)
        world.says(process, "AgentStarted", name)
    asks(world, "w1", "link", name="b")
    return world


def test_who_falls_with_a_victim_of_chaos_counts_no_more_than_the_victim() -> None:
    def test() -> None:
        world = linked(max_restarts=0)
        world.driver.kill_for_chaos(world.driver.seats["w2"])
        world.driver.died(world.worker("w2"), KILLED)
        world.fails("w1", "a", "LinkedAgentDown")
        assert world.started()[-1] == ("w1", "a"), "no budget at all, and none was needed"
        assert not world.stopped()

    run(test)


def test_who_falls_with_one_that_was_killed_by_others_counts_as_it_does() -> None:
    def test() -> None:
        world = linked(max_restarts=1)
        world.driver.died(world.worker("w2"), KILLED)
        assert not world.stopped()
        world.fails("w1", "a", "LinkedAgentDown")
        assert world.stopped() == [("w2", "b", "current")], "the run gives up"

    run(test)


def test_an_end_of_its_own_counts_though_a_fall_was_ordered_that_does_not() -> None:
    def test() -> None:
        world = linked(max_restarts=0)
        world.driver.kill_for_chaos(world.driver.seats["w2"])
        world.driver.died(world.worker("w2"), KILLED)
        world.fails("w1", "a", "ValueError")
        assert world.stopped() == [("w2", "b", "current")], "the run gives up"

    run(test)


def test_news_that_find_no_room_are_told_later_in_order() -> None:
    async def test() -> None:
        world = up(agent("b", process="w1"), agent("c", process="w1"))
        for name in ("b", "c"):
            asks(world, "w1", "monitor", name=name)
        world.memory.full = True
        world.fails("w1", "b")
        world.memory.full = False
        world.fails("w1", "c")
        assert not world.memory.notices, "what came later does not overtake"
        while len(world.memory.notices) < 2:
            await asyncio.sleep(0.005)
        assert [name for _, _, (name, _) in world.memory.notices] == ["b", "c"]

    run(test)


def test_a_linked_agent_is_ended_in_its_process_and_by_force_when_it_does_not_answer() -> None:
    async def test() -> None:
        world = up(agent("b", process="w2"))
        world.ready("w2")
        world.says("w2", "AgentStarted", "b")
        asks(world, "w1", "link", name="b")
        world.driver.homes.specs["a"] = agent("a", process="w1", shutdown_timeout_s=0.01)
        world.driver.seats["w1"].residents["a"].spec = world.driver.homes.specs["a"]
        world.fails("w2", "b")
        crash = next(order for _, order in world.pool.orders if isinstance(order, CrashAgent))
        assert (crash.name, crash.reason) == ("a", "it is linked with 'b', which crashed: ValueError: no")
        while not world.pool.killed:
            await asyncio.sleep(0.01)
        assert world.pool.killed == [("w1", crash.reason)]

    run(test)


def test_who_still_waits_at_the_end_of_the_run_is_told_so() -> None:
    def test() -> None:
        world = up(POOL)  # type: ignore[arg-type]
        spawn(world, "x")
        world.driver.stop_now()
        assert answers(world) == [("TransportClosed", "the run has ended")]

    run(test)


def test_an_unknown_request_is_answered() -> None:
    def test() -> None:
        world = up()
        asks(world, "w1", "dance")
        assert answers(world) == [("MessageValidationError", "supervision does not know the request 'dance'")]

    run(test)
