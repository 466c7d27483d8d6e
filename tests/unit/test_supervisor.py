"""Supervisors as declarations, and the driver that performs the supervision tree in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from civitas_shm.errors import AgentError, AgentImportError, AgentStopped, ConfigurationError
from civitas_shm.events import AgentEvent
from civitas_shm.local_driver import LocalDriver, Outcome
from civitas_shm.messages import Message
from civitas_shm.process import AgentProcess
from civitas_shm.serializer import encode
from civitas_shm.supervisor import BackoffPolicy, DynamicSupervisor, RestartStrategy, Supervisor, spec_of
from civitas_shm.topology.model import AgentSpec, DynamicSpec, SupervisorSpec
from civitas_shm.transport import SENDER_PROGRAM
from civitas_shm_transports.in_process import InProcessPort


class Worker(AgentProcess):
    pass


class Named(AgentProcess):
    """Names itself."""

    def __init__(self, factor: int = 1) -> None:
        super().__init__("named")
        self.factor = factor


# --- declarations -------------------------------------------------------------------------------------------------


def test_a_supervisor_has_what_it_was_given_with_words_as_enums() -> None:
    child = Worker("a")
    plain = Supervisor("s")
    assert (plain.strategy, plain.backoff) == (RestartStrategy.ONE_FOR_ONE, BackoffPolicy.CONSTANT)
    assert (plain.max_restarts, plain.restart_window, plain.backoff_base, plain.backoff_max) == (3, 60.0, 1.0, 60.0)
    given = Supervisor("t", [child], "rest_for_one", 5, 7.0, "Exponential", 0.5, 9.0)
    assert (given.name, list(given.children)) == ("t", [child])
    assert (given.strategy, given.backoff) == (RestartStrategy.REST_FOR_ONE, BackoffPolicy.EXPONENTIAL)
    assert (given.max_restarts, given.restart_window, given.backoff_base, given.backoff_max) == (5, 7.0, 0.5, 9.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": ""}, "name"),
        ({"strategy": "ONE_FOR_NOBODY"}, "strategy of supervisor 's' is 'ONE_FOR_NOBODY'; it must be ONE_FOR_ONE, ONE"),
        ({"backoff": "RANDOM"}, "backoff of supervisor 's' is 'RANDOM'; it must be CONSTANT"),
        ({"max_restarts": -1}, "max_restarts of supervisor 's' is -1"),
        ({"restart_window": 0}, "restart_window of supervisor 's' is 0"),
        ({"restart_window": float("nan")}, "restart_window"),
        ({"backoff_base": -1.0}, "backoff_base"),
        ({"children": [Worker]}, "objects, not classes"),
        ({"children": [Worker("a"), Supervisor("t", [Worker("a")])]}, "more than once: a"),
        ({"children": [Worker("s")]}, "more than once: s"),
    ],
)
def test_an_impossible_supervisor_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Supervisor(**{"name": "s", **arguments})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_children": -1}, "max_children of dynamic supervisor 's' is -1"),
        ({"max_children_per_class": {Worker: -1}}, "max_children_per_class"),
        ({"restart": "sometimes"}, "restart of dynamic supervisor 's' is 'sometimes'"),
        ({"max_restarts": -1}, "max_restarts"),
    ],
)
def test_an_impossible_dynamic_supervisor_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DynamicSupervisor(**{"name": "s", **arguments})


def test_a_dynamic_supervisor_becomes_plain_values() -> None:
    tree = Supervisor("root", [DynamicSupervisor("d", 1, 2, "never", 4, 5.0, max_children_per_class={Worker: 6})])
    dynamic = spec_of(tree, portable=True).children[0]
    assert isinstance(dynamic, SupervisorSpec)
    assert (dynamic.max_restarts, dynamic.restart_window_s, dynamic.restart) == (4, 5.0, "permanent")
    path = f"{Worker.__module__}.Worker"
    assert dynamic.dynamic == DynamicSpec(1, 2, {path: 6}, restart="temporary")


def test_an_agent_without_super_init_is_named() -> None:
    class Forgetful(AgentProcess):
        def __init__(self) -> None:
            pass

    with pytest.raises(ValueError, match=r"Forgetful\.__init__ does not call super\(\)\.__init__\(name\)"):
        Supervisor("s", [Forgetful()])


def test_a_tree_lists_its_agents_in_start_order_and_its_supervisors_parents_first() -> None:
    inner = Supervisor("inner", [Worker("b")], strategy=RestartStrategy.REST_FOR_ONE, backoff=BackoffPolicy.LINEAR)
    tree = Supervisor("root", [Worker("a"), inner, Worker("c")])
    assert [agent.name for agent in tree.all_agents()] == ["a", "b", "c"]
    assert tree.all_supervisors() == [tree, inner]
    spec = spec_of(tree, portable=True)
    assert [agent.name for agent in spec.agents()] == ["a", "b", "c"]
    child = spec.children[1]
    assert isinstance(child, SupervisorSpec)
    assert (child.strategy, child.backoff) == ("REST_FOR_ONE", "LINEAR")


def test_a_constructor_call_becomes_plain_values() -> None:
    by_position = spec_of(Supervisor("s", [Worker("a", 7)]), portable=True).agents()[0]
    assert (by_position.args, by_position.kwargs, by_position.takes_name, by_position.mailbox_size) == (
        [7],
        {},
        True,
        7,
    )
    by_keyword = spec_of(Supervisor("s", [Worker(name="a", max_retries=1)]), portable=True).agents()[0]
    assert (by_keyword.args, by_keyword.takes_name) == ([], False)
    assert by_keyword.kwargs == {"name": "a", "max_retries": 1}
    own_name = spec_of(Supervisor("s", [Named(factor=3)]), portable=True).agents()[0]
    assert (own_name.name, own_name.args, own_name.kwargs, own_name.takes_name) == ("named", [], {"factor": 3}, False)


class Holder(AgentProcess):
    def __init__(self, name: str, thing: Any = None) -> None:
        super().__init__(name)


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (object(), r"args of agent 'h'\[0\]: object cannot be handed to another process"),
        ({"a": [1, (2,)]}, r"args of agent 'h'\[0\]\.a\[1\]: tuple"),
        ({1: 2}, r"args of agent 'h'\[0\]: the key 1 is int"),
        (b"bytes", "bytes"),
    ],
)
def test_an_argument_that_no_other_process_can_have_is_named(thing: Any, words: str) -> None:
    tree = Supervisor("s", [Holder("h", thing)])
    with pytest.raises(ConfigurationError, match=words):
        spec_of(tree, portable=True)
    assert spec_of(tree, portable=False)


def test_an_agent_of_the_program_itself_may_hold_anything() -> None:
    holder = Holder("h", object())
    holder.process = "main"
    spec = spec_of(Supervisor("s", [holder]), portable=True).agents()[0]
    assert (spec.process, spec.args) == ("main", [])


def test_a_class_without_an_import_path_is_refused_for_other_processes_only() -> None:
    class Local(AgentProcess):
        pass

    tree = Supervisor("s", [Local("a")])
    with pytest.raises(AgentImportError, match=r"<locals>\.Local cannot be imported by other processes.*in_process"):
        spec_of(tree, portable=True)
    assert spec_of(tree, portable=False)


# --- the driver ---------------------------------------------------------------------------------------------------


class Play:
    """A driver over an in-process port, agents from objects, and what happened."""

    def __init__(self, tree: Supervisor) -> None:
        self.port = InProcessPort()
        self.port.start(asyncio.get_running_loop())
        self.events: list[AgentEvent] = []
        self.built: list[AgentProcess] = []
        self._originals = {agent.name: agent for agent in tree.all_agents()}
        self.driver = LocalDriver(
            spec_of(tree, portable=False), self.port, self._build, on_event=self.events.append, seed=1
        )

    def _build(self, spec: AgentSpec) -> AgentProcess:
        agent = self._originals[spec.name].reborn()
        self.built.append(agent)
        return agent

    async def start(self) -> None:
        self.driver.start()
        await self.driver.running

    async def ask(self, name: str, kind: str = "message", **payload: Any) -> dict[str, Any]:
        return (await self.driver.runner.bus.ask(name, payload, kind)).payload


def play(tree: Callable[[], Supervisor], scene: Callable[[Play], Any]) -> None:
    async def run() -> None:
        it = Play(tree())
        try:
            await it.start()
            await scene(it)
            if not it.driver.ended.done():
                await it.driver.stop("current", 5.0)
        finally:
            it.driver.close()
            it.port.stop()

    asyncio.run(run())


ORDER: list[str] = []


class Actor(AgentProcess):
    """Counts, crashes when told to, and writes down when it starts and stops."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.count = 0

    async def on_start(self) -> None:
        ORDER.append(f"+{self.name}")

    async def on_stop(self) -> None:
        ORDER.append(f"-{self.name}")

    async def handle(self, message: Message) -> Message | None:
        if message.type == "crash":
            raise ValueError(f"{self.name} was told to")
        self.count += 1
        return self.reply({"count": self.count})


@pytest.fixture(autouse=True)
def empty_order() -> None:
    ORDER.clear()


def three(**options: Any) -> Callable[[], Supervisor]:
    options = {"backoff_base": 0.0, **options}
    return lambda: Supervisor("root", [Actor("a"), Actor("b"), Actor("c")], **options)


async def crash(it: Play, name: str) -> None:
    with pytest.raises(AgentError):
        await it.ask(name, "crash")


def test_agents_start_in_order_and_stop_in_reverse() -> None:
    async def scene(it: Play) -> None:
        assert await it.driver.stop("current", 5.0) == Outcome(failed=False)

    play(three(), scene)
    assert ORDER == ["+a", "+b", "+c", "-c", "-b", "-a"]


def test_a_crashed_agent_is_a_new_object_and_its_waiting_messages_stay() -> None:
    async def scene(it: Play) -> None:
        assert await it.ask("a") == {"count": 1}
        bus = it.driver.runner.bus
        await bus.send("a", {}, "crash")
        replies = await asyncio.gather(*(it.ask("a") for _ in range(3)))
        assert [reply["count"] for reply in replies] == [1, 2, 3]
        assert [agent.name for agent in it.built] == ["a", "b", "c", "a"]
        assert it.built[0] is not it.built[3]

    play(three(), scene)


@pytest.mark.parametrize(
    ("strategy", "restarted"),
    [
        ("ONE_FOR_ONE", ["-b", "+b"]),
        ("REST_FOR_ONE", ["-b", "-c", "+b", "+c"]),
        ("ONE_FOR_ALL", ["-b", "-c", "-a", "+a", "+b", "+c"]),
    ],
)
def test_who_is_restarted_with_a_crashed_agent(strategy: str, restarted: list[str]) -> None:
    async def scene(it: Play) -> None:
        ORDER.clear()
        await crash(it, "b")
        while len(ORDER) < len(restarted):
            await asyncio.sleep(0)
        assert restarted == ORDER
        for name in "abc":
            await it.ask(name)

    play(three(strategy=strategy), scene)


def test_an_exhausted_budget_fails_the_run_with_a_report_and_nobody_waits_for_ever() -> None:
    async def scene(it: Play) -> None:
        for _ in range(3):
            await crash(it, "b")
        outcome = await it.driver.ended
        assert outcome.failed
        for part in ("supervisor 'root' gave up", "max_restarts is 2", "ValueError: b was told to", "Traceback"):
            assert part in outcome.report
        for name in "abc":
            with pytest.raises(AgentStopped):
                await it.ask(name)

    play(three(max_restarts=2), scene)


def test_a_supervisor_that_gives_up_is_restarted_by_its_own() -> None:
    def tree() -> Supervisor:
        inner = Supervisor("inner", [Actor("b"), Actor("c")], max_restarts=0)
        return Supervisor("root", [Actor("a"), inner], max_restarts=5, backoff_base=0.0)

    async def scene(it: Play) -> None:
        ORDER.clear()
        await crash(it, "b")
        while len(ORDER) < 4:
            await asyncio.sleep(0)
        assert ORDER == ["-b", "-c", "+b", "+c"]
        assert await it.ask("b") == {"count": 1}
        assert await it.ask("a") == {"count": 1}

    play(tree, scene)


def test_a_second_restart_waits_for_the_backoff() -> None:
    async def scene(it: Play) -> None:
        loop = asyncio.get_running_loop()
        await crash(it, "a")
        await it.ask("a")
        began = loop.time()
        await crash(it, "a")
        assert await it.ask("a") == {"count": 1}
        assert loop.time() - began >= 0.05

    play(three(backoff_base=0.05), scene)


def test_a_temporary_agent_is_not_restarted_and_who_asks_it_hears_so() -> None:
    def tree() -> Supervisor:
        once = Actor("once")
        once.restart = "temporary"
        return Supervisor("root", [once, Actor("b")])

    async def scene(it: Play) -> None:
        bus = it.driver.runner.bus
        await bus.send("once", {}, "crash")
        with pytest.raises(AgentStopped):
            await bus.ask("once", {}, timeout=None)
        with pytest.raises(AgentStopped):
            await bus.send("once", {})
        assert await it.ask("b") == {"count": 1}

    play(tree, scene)


def test_an_agent_that_cannot_be_built_counts_as_a_crash() -> None:
    class Fragile(Actor):
        built = 0

        def __init__(self, name: str) -> None:
            super().__init__(name)
            type(self).built += 1
            if type(self).built in (2, 3):
                raise OSError("not now")

    async def scene(it: Play) -> None:
        assert Fragile.built == 4
        assert await it.ask("fragile") == {"count": 1}

    play(lambda: Supervisor("root", [Fragile("fragile")], backoff_base=0.0), scene)


def test_a_stop_during_a_start_ends_in_good_order() -> None:
    class Sleepy(Actor):
        async def on_start(self) -> None:
            ORDER.append("sleepy begins")
            await asyncio.Event().wait()

    async def run() -> None:
        it = Play(Supervisor("root", [Actor("a"), Sleepy("sleepy"), Actor("c")]))
        it.driver.start()
        while "sleepy begins" not in ORDER:
            await asyncio.sleep(0)
        assert await it.driver.stop("current", 5.0) == Outcome(failed=False)
        assert it.driver.runner.agents == {}
        it.port.stop()

    asyncio.run(run())
    assert ORDER == ["+a", "sleepy begins", "-sleepy", "-a"]


def test_a_stop_during_a_backoff_starts_nothing_any_more() -> None:
    async def scene(it: Play) -> None:
        await crash(it, "a")
        await it.ask("a")
        await crash(it, "a")
        await it.driver.stop("current", 5.0)
        assert [agent.name for agent in it.built].count("a") == 2

    play(three(backoff_base=60.0), scene)


def test_a_stop_that_drains_handles_what_waits_and_one_that_does_not_says_what_is_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counts: dict[str, int] = {}

    def scene(drain: Any) -> Callable[[Play], Any]:
        async def stop(it: Play) -> None:
            mailbox = it.port.resolve("a")
            for _ in range(900):
                it.port.post(mailbox, encode({}), "message", SENDER_PROGRAM)
            await it.driver.stop(drain, 5.0)
            counts[drain] = it.built[0].count  # type: ignore[attr-defined]

        return stop

    play(three(), scene("all"))
    assert counts["all"] == 900
    assert caplog.text == ""
    play(three(), scene("current"))
    assert counts["current"] < 900
    assert f"{900 - counts['current']} messages that waited for 'a' are gone" in caplog.text


def test_replicas_are_one_agent_where_there_is_one_process() -> None:
    def tree() -> Supervisor:
        agent = Actor("a")
        agent.replicas = 4
        return Supervisor("root", [agent])

    async def scene(it: Play) -> None:
        assert await it.ask("a") == {"count": 1}
        assert len(it.built) == 1

    play(tree, scene)
