"""Runtime over the transport of one process: life, messages, what it shows, and what is left when it cannot start."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from civitas_shm.errors import (
    AgentError,
    AgentImportError,
    AgentStopped,
    AgentSuspendedError,
    ConfigurationError,
    ErrorAction,
    MessageRoutingError,
    RunFailed,
    TopologyError,
    TransportClosed,
)
from civitas_shm.host.protocol import Chaos
from civitas_shm.messages import Message
from civitas_shm.process import AgentProcess
from civitas_shm.runtime import Runtime
from civitas_shm.supervisor import Supervisor
from civitas_shm.topology.model import AgentSpec, LoggingSpec, SupervisorSpec, TopologySpec


class Echo(AgentProcess):
    def __init__(self, name: str, greeting: str = "hello", **rest: Any) -> None:
        super().__init__(name, **rest)
        self.greeting = greeting
        self.stopped = False

    async def handle(self, message: Message) -> Message | None:
        match message.type:
            case "crash":
                raise ValueError("told to")
            case "finish":
                raise LookupError("nothing left to do")
            case "end":
                await self.stop_runtime(message.payload["code"])
            case "log":
                self.log.info("seen %s", message.payload)
        return self.reply({"text": self.greeting, "sender": message.sender, "config": self.config})

    async def on_error(self, exc: Exception, message: Message) -> ErrorAction:
        return ErrorAction.STOP if message.type == "finish" else ErrorAction.ESCALATE

    async def on_stop(self) -> None:
        self.stopped = True


class Job(Echo):
    restart = "never"
    significant = True


class Stillborn(AgentProcess):
    async def on_start(self) -> None:
        raise OSError("no such device")


def tree(*agents: AgentProcess, **options: Any) -> Supervisor:
    return Supervisor("root", agents or [Echo("echo")], backoff_base=0.0, **options)


def run(runtime: Runtime, scene: Callable[[Runtime], Any]) -> Any:
    async def play() -> Any:
        async with runtime:
            return await scene(runtime)

    return asyncio.run(play())


# --- life ---------------------------------------------------------------------------------------------------------


def test_a_program_asks_and_sends_as_runtime() -> None:
    async def scene(runtime: Runtime) -> None:
        reply = await runtime.ask("echo", {})
        assert reply.payload["sender"] == "_runtime"
        assert (reply.sender, reply.recipient) == ("echo", "_runtime")
        await runtime.send("echo", {})
        await runtime.broadcast("e*", {})
        with pytest.raises(MessageRoutingError, match="'echo'"):
            await runtime.send("ecko", {})
        with pytest.raises(AgentError):
            await runtime.ask("echo", {}, 5.0, "crash")
        assert (await runtime.ask("echo", {})).payload["text"] == "hello"

    run(Runtime(tree()), scene)


def test_before_its_start_a_runtime_says_what_is_missing() -> None:
    runtime = Runtime(tree())
    for call in (runtime.ask("echo", {}), runtime.send("echo", {}), runtime.wait()):
        with pytest.raises(RuntimeError, match="not started"):
            asyncio.run(call)
    runtime.request_stop()
    runtime.kill()
    assert runtime.waiting() == {}


def test_start_and_stop_are_idempotent() -> None:
    async def play() -> None:
        runtime = Runtime(tree())
        await runtime.stop()
        await runtime.start()
        await runtime.start()
        await runtime.stop()
        await runtime.stop()
        assert await runtime.wait() == 0
        with pytest.raises(TransportClosed, match=r"was stopped and has ended \(exit code 0\)"):
            await runtime.ask("echo", {})

    asyncio.run(play())


def test_an_agent_ends_the_run_with_its_exit_code() -> None:
    async def scene(runtime: Runtime) -> int:
        assert (await runtime.ask("echo", {"code": 7}, 5.0, "end")).payload
        return await runtime.wait()

    agent = Echo("echo")
    assert run(Runtime(tree(agent)), scene) == 7
    assert agent.stopped


def test_the_end_of_the_significant_agents_ends_the_run_with_exit_code_0() -> None:
    async def scene(runtime: Runtime) -> int:
        await runtime.send("one", {}, "finish")
        assert (await runtime.ask("other", {})).payload["text"] == "hello"
        await runtime.send("two", {}, "crash")  # it is not restarted: an end, too
        return await runtime.wait()

    other = Echo("other")
    assert run(Runtime(tree(Job("one"), other, Job("two"), auto_shutdown="all_significant")), scene) == 0
    assert other.stopped


class Teller(AgentProcess):
    async def handle(self, message: Message) -> None:
        for number in range(message.payload["n"]):
            await self.emit({"number": number})
        if message.payload.get("for_ever"):
            await asyncio.Future()


def test_a_program_reads_streams_and_is_told_when_the_run_has_ended() -> None:
    async def scene() -> None:
        async with Runtime(Supervisor("root", [Teller("t")])) as runtime:
            assert [chunk async for chunk in runtime.stream("t", {"n": 2})] == [{"number": 0}, {"number": 1}]
            stream = runtime.stream("t", {"n": 1, "for_ever": True})
            assert await anext(stream) == {"number": 0}
            runtime.kill()
            with pytest.raises(TransportClosed):
                await anext(stream)

    asyncio.run(scene())


def test_a_program_suspends_and_resumes_agents_by_name(tmp_path: Path) -> None:
    async def scene() -> None:
        events = tmp_path / "events"
        async with Runtime(Supervisor("root", [Echo("e")]), events=events) as runtime:
            await runtime.suspend("e", "look")
            with pytest.raises(AgentSuspendedError):
                await runtime.ask("e", {}, fail_if_suspended=True)
            waiting = asyncio.ensure_future(runtime.ask("e", {}))
            with pytest.raises(ValueError, match="needs the name"):
                await runtime.resume("e", "")
            with pytest.raises(ConfigurationError, match="'root' is a supervisor"):
                await runtime.suspend("root")
            with pytest.raises(MessageRoutingError):
                await runtime.suspend("nobody")
            assert not waiting.done()
            await runtime.resume("e", "ada")
            assert (await waiting).payload["text"] == "hello"
        told = [json.loads(line) for line in events.read_text().splitlines()]
        assert [entry.get("approver") for entry in told if entry["event"] == "agent_resumed"] == ["ada"]

    asyncio.run(scene())


def test_a_signal_handler_ends_the_run_by_request_stop() -> None:
    async def scene(runtime: Runtime) -> int:
        asyncio.get_running_loop().call_soon(runtime.request_stop, 3)
        asyncio.get_running_loop().call_soon(runtime.request_stop, 4)
        return await runtime.wait()

    assert run(Runtime(tree()), scene) == 3


def test_kill_ends_the_run_without_waiting_for_a_handler() -> None:
    class Stuck(Echo):
        async def handle(self, message: Message) -> Message | None:
            await asyncio.Event().wait()
            return None

    async def scene(runtime: Runtime) -> int:
        await runtime.send("stuck", {})
        await asyncio.sleep(0)
        runtime.kill()
        return await runtime.wait()

    agent = Stuck("stuck")
    assert run(Runtime(tree(agent)), scene) == 130
    assert not agent.stopped


def test_supervision_that_gives_up_fails_the_run_with_its_report() -> None:
    async def scene(runtime: Runtime) -> None:
        with pytest.raises(AgentError):
            await runtime.ask("echo", {}, 5.0, "crash")
        with pytest.raises(AgentStopped):
            await runtime.ask("echo", {})
        with pytest.raises(RunFailed, match="max_restarts is 0") as caught:
            await runtime.wait()
        assert 'raise ValueError("told to")' in str(caught.value)
        with pytest.raises(RunFailed, match="gave up"):
            await runtime.send("echo", {})

    with pytest.raises(RunFailed, match="gave up"):
        run(Runtime(tree(max_restarts=0)), scene)


def test_an_error_of_the_program_is_not_replaced_by_the_failure_of_the_run() -> None:
    async def scene(runtime: Runtime) -> None:
        with pytest.raises(AgentError):
            await runtime.ask("echo", {}, 5.0, "crash")
        with pytest.raises(RunFailed):
            await runtime.wait()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(Runtime(tree(max_restarts=0)), scene)


def test_defect_41_a_run_that_cannot_start_stops_what_has_started() -> None:
    first = Echo("first")

    async def scene(runtime: Runtime) -> None:
        raise AssertionError("the body must not run")

    with pytest.raises(RunFailed, match="on_start raised OSError: no such device"):
        run(Runtime(tree(first, Stillborn("stillborn"), max_restarts=1)), scene)
    assert first.stopped


def test_a_start_that_is_cancelled_stops_what_has_started() -> None:
    class Sleepy(Echo):
        async def on_start(self) -> None:
            await asyncio.Event().wait()

    async def play() -> None:
        starting = asyncio.create_task(Runtime(tree(first, Sleepy("sleepy"))).start())
        for _ in range(10):
            await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert len(asyncio.all_tasks()) == 1

    first = Echo("first")
    asyncio.run(play())
    assert first.stopped


@pytest.mark.parametrize("options", [{"chaos": Chaos(kill_s=0.5)}, {"resume": True}])
def test_what_needs_worker_processes_is_refused_where_there_are_none(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))} needs worker processes"):
        asyncio.run(Runtime(tree(), **options).start())


def test_what_comes_with_telemetry_is_refused_by_name() -> None:
    Runtime(tree(), metrics=None, exporters=None)  # type: ignore[arg-type]  # the defaults of Civitas
    for name in ("metrics", "exporters"):
        with pytest.raises(ConfigurationError, match=f"Runtime\\({name}=...\\): .* not supported yet"):
            Runtime(tree(), **{name: []})
    with pytest.raises(TypeError, match="no argument 'metric'"):
        Runtime(tree(), metric=None)  # type: ignore[arg-type]


def test_an_unknown_transport_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="carrier-pigeon"):
        asyncio.run(Runtime(tree(), transport="carrier-pigeon").start())


def test_an_agent_that_cannot_start_while_it_is_suspended_uses_up_its_budget() -> None:
    starts: list[bool] = []

    class Waits(AgentProcess):
        async def on_start(self) -> None:
            starts.append(self.suspend_category is not None)
            if starts[-1]:
                raise OSError("no such device")

    async def play() -> None:
        root = Supervisor("root", [Waits("waits")], max_restarts=2, backoff_base=0.0)
        async with Runtime(root) as runtime:
            await runtime.suspend("waits", "for a look at it")
            with pytest.raises((AgentStopped, TransportClosed, RunFailed)):
                await runtime.restart_agent("waits", "to see it")  # which counts against nobody
            await runtime.wait()

    with pytest.raises(RunFailed, match="max_restarts is 2"):
        asyncio.run(play())
    assert starts == [False, True, True, True]


def test_two_runtimes_live_beside_each_other() -> None:
    async def play() -> None:
        async with Runtime(tree(Echo("echo", "one"))) as one, Runtime(tree(Echo("echo", "two"))) as two:
            texts = [(await runtime.ask("echo", {})).payload["text"] for runtime in (one, two)]
            assert texts == ["one", "two"]

    asyncio.run(play())


# --- looking ------------------------------------------------------------------------------------------------------


def test_the_object_of_an_agent_is_the_programs_own_until_a_restart() -> None:
    async def scene(runtime: Runtime) -> None:
        assert runtime.get_agent("echo") is agent
        with pytest.raises(AgentError):
            await runtime.ask("echo", {}, 5.0, "crash")
        await runtime.ask("echo", {})
        assert runtime.get_agent("echo") is not agent
        with pytest.raises(MessageRoutingError):
            runtime.get_agent("nobody")

    agent = Echo("echo")
    runtime = Runtime(tree(agent))
    assert runtime.get_agent("echo") is agent
    assert runtime.agent_names() == ["echo"]
    run(runtime, scene)


def test_the_tree_is_printed_with_the_state_of_each_agent() -> None:
    supervisor = Supervisor("root", [Echo("a"), Supervisor("sub", [Echo("b")], "ONE_FOR_ALL"), Echo("c")])
    runtime = Runtime(supervisor)
    assert "[agent] a (INITIALIZING)" in runtime.print_tree()

    async def scene(runtime: Runtime) -> str:
        return runtime.print_tree()

    assert run(runtime, scene).splitlines() == [
        "[sup] root (ONE_FOR_ONE)",
        "├── [agent] a (RUNNING)",
        "├── [sup] sub (ONE_FOR_ALL)",
        "│   └── [agent] b (RUNNING)",
        "└── [agent] c (RUNNING)",
    ]


def test_a_snapshot_counts_messages_and_restarts_and_stays_after_the_end() -> None:
    async def scene(runtime: Runtime) -> None:
        for _ in range(3):
            await runtime.ask("echo", {})
        with pytest.raises(AgentError):
            await runtime.ask("echo", {}, 5.0, "crash")
        await runtime.ask("echo", {})
        await asyncio.sleep(0)
        (process,) = runtime.snapshot().processes
        assert process.name == "main"
        assert process.rss_bytes

    runtime = Runtime(tree(), name="demo")
    run(runtime, scene)
    (agent,) = runtime.snapshot().agents
    assert (runtime.snapshot().name, agent.name, agent.handled, agent.restarts, agent.queue) == (
        "demo",
        "echo",
        5,
        1,
        0,
    )
    assert agent.handler_p50_us


def test_waiting_messages_are_counted_while_the_run_lasts() -> None:
    class Closed(Echo):
        async def handle(self, message: Message) -> Message | None:
            await gate.wait()
            return None

    gate = asyncio.Event()

    async def scene(runtime: Runtime) -> None:
        for _ in range(3):
            await runtime.send("closed", {})
        assert runtime.waiting() == {"closed": 3}
        gate.set()

    runtime = Runtime(tree(Closed("closed")))
    run(runtime, scene)
    assert runtime.waiting() == {}


def test_lifecycle_events_go_to_a_file(tmp_path: Path) -> None:
    async def scene(runtime: Runtime) -> None:
        with pytest.raises(AgentError):
            await runtime.ask("echo", {}, 5.0, "crash")
        await runtime.ask("echo", {})

    run(Runtime(tree(), events=tmp_path / "events.jsonl"), scene)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["run_started", "agent_failed", "run_stopped"]
    assert (events[1]["agent"], events[1]["cause"]) == ("echo", "ValueError: told to")
    assert all(event["time"] > 0 for event in events)


@pytest.mark.parametrize("form", ["text", "json"])
def test_log_lines_bear_process_and_agent_and_logging_is_left_as_it_was(
    form: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = TopologySpec(
        supervision=SupervisorSpec(children=[AgentSpec("echo", "echo"), AgentSpec("quiet", "echo")]),
        logging=LoggingSpec(level="INFO", agents={"quiet": "ERROR"}),
    )
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    before = (list(logging.getLogger().handlers), logging.getLogger().level)

    async def scene(runtime: Runtime) -> None:
        for name in ("echo", "quiet"):
            await runtime.ask(name, {"n": 1}, 5.0, "log")

    runtime = Runtime.from_spec(spec, log_format=form)
    runtime._classes = {"echo": Echo}
    run(runtime, scene)
    lines = [line for line in screen.getvalue().splitlines() if "seen" in line]
    if form == "json":
        assert [(json.loads(line)["process"], json.loads(line)["agent"]) for line in lines] == [("main", "echo")]
    else:
        assert lines == ["[main echo] seen {'n': 1}"]
    assert (logging.getLogger().handlers, logging.getLogger().level) == before


# --- from a topology ----------------------------------------------------------------------------------------------

TOPOLOGY = """
supervision:
  name: root
  children:
    - agent: {name: one, type: echo, kwargs: {greeting: hi}, config: {depth: 2}}
    - agent: {name: two, type: my_agents.Loud}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "my_agents.py").write_text(
        "from civitas_shm import AgentProcess\n"
        "class Loud(AgentProcess):\n"
        "    async def handle(self, message):\n"
        "        return self.reply({'text': 'HEY'})\n"
    )
    (tmp_path / "topology.yaml").write_text(TOPOLOGY)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_agents", None)


def test_a_topology_runs_with_classes_by_import_path_and_by_word(project: Path) -> None:
    async def scene(runtime: Runtime) -> None:
        reply = (await runtime.ask("one", {})).payload
        assert (reply["text"], reply["config"]) == ("hi", {"depth": 2})
        assert (await runtime.ask("two", {})).payload == {"text": "HEY"}
        with pytest.raises(AgentError):
            await runtime.ask("one", {}, 5.0, "crash")
        assert (await runtime.ask("one", {})).payload["config"] == {"depth": 2}

    run(Runtime.from_config(project / "topology.yaml", {"echo": Echo}), scene)


def test_a_class_that_is_not_there_is_found_before_anything_starts(project: Path) -> None:
    text = TOPOLOGY.replace("my_agents.Loud", "my_agents.Lound")
    (project / "topology.yaml").write_text(text)
    with pytest.raises(AgentImportError, match="has no class 'Lound'; did you mean 'Loud'"):
        asyncio.run(Runtime.from_config(project / "topology.yaml", {"echo": Echo}).start())


def test_an_invalid_topology_is_refused_with_its_place(project: Path) -> None:
    (project / "topology.yaml").write_text(TOPOLOGY.replace("kwargs", "kwarg"))
    with pytest.raises(TopologyError, match=r"topology\.yaml:5:"):
        Runtime.from_config(project / "topology.yaml", {"echo": Echo})


def test_log_level_of_the_environment_goes_before_the_topologys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topology = tmp_path / "topology.yaml"
    topology.write_text(
        "transport: in_process\nlogging: {level: ERROR}\n"
        "supervision:\n  children:\n    - agent: {name: echo, type: civitas_shm.process.AgentProcess}\n"
    )
    monkeypatch.setenv("LOG_LEVEL", "debug")
    assert Runtime.from_config(topology)._given.logging.level == "DEBUG"
    assert Runtime(tree())._given.logging.level == "DEBUG"
    monkeypatch.setenv("LOG_LEVEL", "loud")
    with pytest.raises(ConfigurationError, match="LOG_LEVEL is 'loud'; allowed: DEBUG"):
        Runtime(tree())
    monkeypatch.delenv("LOG_LEVEL")
    assert Runtime.from_config(topology)._given.logging.level == "ERROR"
