"""One agent at its mailbox: what each exception does, what is released when, and how it ends."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from civitas_shm import seat as seat_module
from civitas_shm.errors import AgentError, ErrorAction, MessageValidationError
from civitas_shm.events import AgentEvent, AgentExited, AgentFailed, AgentStarted, DeadLetter, StopRuntime
from civitas_shm.messages import LANE_CONTROL, LANE_NORMAL, Message
from civitas_shm.notices import CHILD_TERMINATED, CORRECTION, DOWN, HALT, encode_fields, encode_notice
from civitas_shm.process import AgentProcess, ProcessStatus
from civitas_shm.runner import AgentRunner
from civitas_shm.serializer import encode
from civitas_shm.state import InMemoryStateStore
from civitas_shm.topology.model import AgentSpec
from civitas_shm.transport import SENDER_PROGRAM, TOO_LARGE, MailboxSpec
from civitas_shm_transports.in_process import InProcessPort


@dataclass
class Stage:
    """A runner over an in-process port, and what it has reported."""

    port: InProcessPort
    runner: AgentRunner
    events: list[AgentEvent] = field(default_factory=list)

    async def start(self, agent: AgentProcess, **options: Any) -> bool:
        mailbox = self.port.add_mailbox(MailboxSpec(agent.name))
        return await self.runner.start(agent, mailbox, AgentSpec(agent.name, "tests.Agent", **options))

    async def ask(self, name: str, payload: dict[str, Any] | None = None, kind: str = "message") -> dict[str, Any]:
        return (await self.runner.bus.ask(name, payload or {}, kind)).payload

    async def send(self, name: str, payload: dict[str, Any] | None = None, kind: str = "message") -> None:
        await self.runner.bus.send(name, payload or {}, kind)

    def stats(self, name: str) -> Any:
        return self.port.stats(self.port.resolve(name))

    async def event(self, kind: type[AgentEvent]) -> Any:
        """The first event of that class, now or later."""
        while not any(isinstance(event, kind) for event in self.events):
            await asyncio.sleep(0)
        return next(event for event in self.events if isinstance(event, kind))


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    port = InProcessPort()
    port.start(asyncio.get_running_loop())
    events: list[AgentEvent] = []
    built = Stage(port, AgentRunner(port, on_event=events.append), events)
    try:
        yield built
        await built.runner.stop_all(timeout_s=1)
    finally:
        port.stop()


def play(scene: Callable[[Stage], Any]) -> None:
    async def run() -> None:
        async with stage() as it:
            await scene(it)

    asyncio.run(run())


class Failing(AgentProcess):
    """Raises what it is told to; answers what it is asked otherwise."""

    action: ErrorAction | None = None
    stops = 0

    def __init__(self, name: str = "agent", **rest: Any) -> None:
        super().__init__(name, **rest)
        self.attempts: list[int] = []
        self.seen: list[str] = []

    async def handle(self, message: Message) -> Message | None:
        self.attempts.append(message.attempt)
        self.seen.append(message.type)
        if message.type == "fail":
            raise ValueError("seven")
        if message.type == "fail twice" and message.attempt < 2:
            raise ValueError("again")
        return self.reply({"handled": len(self.seen)})

    async def on_error(self, exc: Exception, message: Message) -> ErrorAction:
        return ErrorAction.ESCALATE if self.action is None else self.action

    async def on_stop(self) -> None:
        self.stops += 1


# --- error actions ------------------------------------------------------------------------------------------------


def test_escalate_crashes_the_agent_and_the_asker_hears_at_once_why() -> None:
    async def scene(it: Stage) -> None:
        agent = Failing()
        await it.start(agent)
        with pytest.raises(AgentError) as caught:
            await it.ask("agent", kind="fail")
        assert (caught.value.type_name, caught.value.text) == ("ValueError", "seven")
        assert 'raise ValueError("seven")' in caught.value.remote_traceback
        failed = await it.event(AgentFailed)
        assert (failed.agent, failed.type, failed.text, failed.during) == ("agent", "ValueError", "seven", "handle")
        assert failed.message.type == "fail"
        assert (agent.status, agent.stops) == (ProcessStatus.CRASHED, 1)
        assert it.runner.agents == {}

    play(scene)


def test_defect_46_a_crash_releases_its_message_to_the_dead_letters_and_leaves_the_others_waiting() -> None:
    async def scene(it: Stage) -> None:
        await it.start(Failing())
        for kind in ("fail", "one", "two"):
            await it.send("agent", kind=kind)
        await it.event(AgentFailed)
        dead = await it.event(DeadLetter)
        assert (dead.message.type, dead.reason) == ("fail", "its handler raised ValueError: seven")
        assert it.events.index(dead) < it.events.index(await it.event(AgentFailed))
        assert (it.stats("agent").waiting, it.stats("agent").in_hand) == (2, 0)
        heir = Failing()
        await it.start(heir)
        await it.ask("agent", kind="three")
        assert heir.seen == ["one", "two", "three"]

    play(scene)


def test_skip_releases_the_message_and_goes_on() -> None:
    async def scene(it: Stage) -> None:
        agent = Failing()
        agent.action = ErrorAction.SKIP
        await it.start(agent)
        with pytest.raises(AgentError):
            await it.ask("agent", kind="fail")
        assert await it.ask("agent") == {"handled": 2}
        assert it.stats("agent").handled == 2

    play(scene)


def test_stop_ends_the_agent_without_a_crash() -> None:
    async def scene(it: Stage) -> None:
        agent = Failing()
        agent.action = ErrorAction.STOP
        await it.start(agent)
        with pytest.raises(AgentError):
            await it.ask("agent", kind="fail")
        assert (await it.event(AgentExited)).reason == "finished"
        assert (agent.status, agent.stops) == (ProcessStatus.STOPPED, 1)
        assert not any(isinstance(event, (AgentFailed, DeadLetter)) for event in it.events)

    play(scene)


def test_defect_30_retry_runs_again_in_place_before_any_other_message() -> None:
    async def scene(it: Stage) -> None:
        agent = Failing()
        agent.action = ErrorAction.RETRY
        await it.start(agent)
        await it.send("agent", kind="fail twice")
        assert await it.ask("agent", kind="next") == {"handled": 4}
        assert agent.seen == ["fail twice"] * 3 + ["next"]
        assert agent.attempts == [0, 1, 2, 0]

    play(scene)


def test_retry_escalates_after_max_retries() -> None:
    async def scene(it: Stage) -> None:
        agent = Failing(max_retries=2)
        agent.action = ErrorAction.RETRY
        await it.start(agent)
        with pytest.raises(AgentError):
            await it.ask("agent", kind="fail")
        await it.event(AgentFailed)
        assert agent.attempts == [0, 1, 2]

    play(scene)


@pytest.mark.parametrize("answer", [None, "RETRY", ZeroDivisionError("in on_error")])
def test_an_on_error_that_fails_itself_escalates_the_first_error(answer: Any) -> None:
    class Confused(Failing):
        async def on_error(self, exc: Exception, message: Message) -> ErrorAction:
            if isinstance(answer, Exception):
                raise answer
            return answer  # type: ignore[no-any-return]

    async def scene(it: Stage) -> None:
        await it.start(Confused())
        with pytest.raises(AgentError, match="seven"):
            await it.ask("agent", kind="fail")
        assert (await it.event(AgentFailed)).type == "ValueError"

    play(scene)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), StopAsyncIteration()])
def test_whatever_handle_raises_ends_the_agent_and_never_the_loop(error: BaseException) -> None:
    class Wild(AgentProcess):
        async def handle(self, message: Message) -> Message | None:
            raise error

    async def scene(it: Stage) -> None:
        await it.start(Wild("wild"))
        await it.start(Failing("neighbour"))
        with pytest.raises(AgentError) as caught:
            await it.ask("wild")
        assert caught.value.type_name == type(error).__name__
        await it.event(AgentFailed)
        assert await it.ask("neighbour") == {"handled": 1}

    play(scene)


def test_a_handler_that_cancels_its_own_task_is_a_crash_and_on_stop_still_runs() -> None:
    class Suicidal(Failing):
        async def handle(self, message: Message) -> Message | None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)
            return None

    async def scene(it: Stage) -> None:
        agent = Suicidal()
        await it.start(agent)
        await it.send("agent")
        assert (await it.event(AgentFailed)).type == "CancelledError"
        assert agent.stops == 1

    play(scene)


@pytest.mark.parametrize(
    ("result", "words"),
    [({"a": 1}, "handle returned dict"), ("text", "handle returned str"), (7, "handle returned int")],
)
def test_a_result_that_is_no_message_is_an_error_of_the_handler(result: Any, words: str) -> None:
    class Sloppy(AgentProcess):
        async def handle(self, message: Message) -> Message | None:
            return result  # type: ignore[no-any-return]

    async def scene(it: Stage) -> None:
        await it.start(Sloppy("agent"))
        with pytest.raises(AgentError, match=words):
            await it.ask("agent")

    play(scene)


def test_a_reply_that_cannot_be_encoded_reaches_the_asker_as_an_error_with_its_path() -> None:
    class Careless(AgentProcess):
        async def handle(self, message: Message) -> Message | None:
            return self.reply({"found": {1, 2}})

    async def scene(it: Stage) -> None:
        await it.start(Careless("agent"))
        with pytest.raises(AgentError, match=r"payload\.found: set cannot be sent") as caught:
            await it.ask("agent")
        assert caught.value.type_name == "MessageValidationError"

    play(scene)


def test_a_handler_that_is_too_slow_fails_with_a_timeout() -> None:
    class Slow(AgentProcess):
        async def handle(self, message: Message) -> Message | None:
            await asyncio.Event().wait()
            return None

    async def scene(it: Stage) -> None:
        await it.start(Slow("agent", handle_timeout=0.02))
        with pytest.raises(AgentError) as caught:
            await it.ask("agent")
        assert caught.value.type_name == "TimeoutError"

    play(scene)


def test_defect_2_an_undecodable_payload_becomes_a_dead_letter_and_nothing_else_is_harmed() -> None:
    async def scene(it: Stage) -> None:
        agent = Failing()
        await it.start(agent)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        mailbox = it.port.resolve("agent")
        it.port.post(mailbox, b"\xc1", "broken", SENDER_PROGRAM, None, LANE_NORMAL)
        it.port.post_ask(mailbox, b"\xc1", "broken ask", SENDER_PROGRAM, future, 0)
        assert await it.ask("agent", kind="good") == {"handled": 1}
        assert agent.seen == ["good"]
        assert (await it.event(DeadLetter)).message.type == "broken"
        assert (await future)[5] is True
        assert it.stats("agent").in_hand == 0

    play(scene)


# --- what people read ---------------------------------------------------------------------------------------------


def test_one_exception_gives_one_traceback_without_our_frames(caplog: pytest.LogCaptureFixture) -> None:
    class Sender(AgentProcess):
        async def handle(self, message: Message) -> Message | None:
            await self.send("agent", {"what": object()})
            return None

    async def scene(it: Stage) -> None:
        await it.start(Sender("agent"))
        await it.send("agent", kind="work")
        await it.event(AgentFailed)

    with caplog.at_level(logging.DEBUG):
        play(scene)
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.name for record in errors] == ["civitas_shm.agent.agent"]
    text = errors[0].getMessage()
    assert text.count("Traceback") == 1
    assert 'await self.send("agent", {"what": object()})' in text
    assert "payload.what: object cannot be sent" in text
    assert "port_bus.py" not in text
    assert "seat.py" not in text
    for part in ("'agent'", "'work'", "'_runtime'", "delivery 1", "attempt 0", "ESCALATE"):
        assert part in text


def test_a_retry_logs_one_line_and_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(it: Stage) -> None:
        agent = Failing()
        agent.action = ErrorAction.RETRY
        await it.start(agent)
        await it.ask("agent", kind="fail twice")

    with caplog.at_level(logging.WARNING):
        play(scene)
    assert [record.getMessage().split(" on ")[0] for record in caplog.records] == [
        "handle raised ValueError: again"
    ] * 2
    assert "Traceback" not in caplog.text


def test_events_become_plain_values() -> None:
    async def scene(it: Stage) -> None:
        await it.start(Failing())
        await it.send("agent", kind="fail")
        plain = (await it.event(AgentFailed)).to_plain()
        assert plain["event"] == "AgentFailed"
        assert plain["agent"] == "agent"
        assert plain["message"]["type"] == "fail"
        assert encode(plain)

    play(scene)


# --- context ------------------------------------------------------------------------------------------------------


def test_what_a_handler_sends_has_its_trace_and_a_task_that_it_spawned_keeps_it() -> None:
    class Spawner(AgentProcess):
        later: asyncio.Task[None]

        async def handle(self, message: Message) -> Message | None:
            if message.type == "first":
                self.later = asyncio.create_task(self.send_later())
                await self.send("sink", {"from": "first"})
            return None

        async def send_later(self) -> None:
            await asyncio.sleep(0.02)
            await self.send("sink", {"from": "task of first"})

    class Sink(AgentProcess):
        async def handle(self, message: Message) -> Message | None:
            arrived[message.payload["from"]] = message
            return None

    arrived: dict[str, Message] = {}

    async def scene(it: Stage) -> None:
        await it.start(Sink("sink"))
        spawner = Spawner("spawner")
        await it.start(spawner)
        await it.send("spawner", kind="first")
        await it.send("spawner", kind="second")
        while len(arrived) < 2:
            await asyncio.sleep(0.005)
        assert arrived["first"].trace_id == arrived["task of first"].trace_id
        assert arrived["first"].parent_span_id == arrived["task of first"].parent_span_id is not None

    play(scene)


def test_context_variables_belong_to_the_agent() -> None:
    mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="nobody's")

    class Marked(AgentProcess):
        async def on_start(self) -> None:
            mark.set(self.name)

        async def handle(self, message: Message) -> Message | None:
            if self.name == "one" and message.payload:
                await self.send("two", {})
            return self.reply({"mark": mark.get()})

    async def scene(it: Stage) -> None:
        mark.set("the program's")
        for name in ("one", "two"):
            await it.start(Marked(name))
        assert await it.ask("one", {"forward": True}) == {"mark": "one"}
        assert await it.ask("two") == {"mark": "two"}
        assert mark.get() == "the program's"

    play(scene)


# --- plain functions ----------------------------------------------------------------------------------------------


def test_a_plain_handle_runs_in_one_thread_of_its_own_and_blocks_nobody() -> None:
    class Plain(AgentProcess):
        threads: set[int]

        async def on_start(self) -> None:
            self.threads = set()
            self.gate = threading.Event()
            await self.send("neighbour", {})

        def handle(self, message: Message) -> Message | None:  # type: ignore[override]
            self.threads.add(threading.get_ident())
            assert self.gate.wait(30)
            return self.reply({"handled": True})

    async def scene(it: Stage) -> None:
        await it.start(Failing("neighbour"))
        plain = Plain("plain")
        await it.start(plain)
        asking = asyncio.create_task(it.ask("plain"))
        assert (await it.ask("neighbour"))["handled"] == 2
        assert not asking.done()
        plain.gate.set()
        assert await asking == {"handled": True}
        await it.ask("plain")
        assert len(plain.threads) == 1
        assert threading.get_ident() not in plain.threads

    play(scene)


@pytest.mark.parametrize("error", [ValueError("seven"), SystemExit(1), StopIteration(7)])
def test_what_a_plain_handle_raises_crashes_its_agent(error: BaseException) -> None:
    class Plain(AgentProcess):
        def handle(self, message: Message) -> Message | None:  # type: ignore[override]
            raise error

    async def scene(it: Stage) -> None:
        await it.start(Plain("plain"))
        with pytest.raises(AgentError):
            await it.ask("plain")
        await it.event(AgentFailed)

    play(scene)


def test_a_wrapped_coroutine_function_is_awaited() -> None:
    class Wrapped(AgentProcess):
        async def _work(self, message: Message) -> Message | None:
            return self.reply({"ok": True})

        def handle(self, message: Message) -> Any:
            return self._work(message)

    async def scene(it: Stage) -> None:
        await it.start(Wrapped("wrapped"))
        assert await it.ask("wrapped") == {"ok": True}

    play(scene)


# --- start and stop -----------------------------------------------------------------------------------------------


def test_messages_wait_until_on_start_has_returned() -> None:
    class Starting(Failing):
        async def on_start(self) -> None:
            await gate.wait()
            self.seen.append("on_start")

    gate = asyncio.Event()

    async def scene(it: Stage) -> None:
        agent = Starting()
        starting = asyncio.create_task(it.start(agent))
        await asyncio.sleep(0)
        await it.send("agent", kind="early")
        gate.set()
        assert await starting
        await it.ask("agent", kind="late")
        assert agent.seen == ["on_start", "early", "late"]

    play(scene)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1), asyncio.CancelledError()])
def test_a_start_that_fails_is_reported_and_escapes_nobody(error: BaseException) -> None:
    class Stillborn(Failing):
        async def on_start(self) -> None:
            raise error

    async def scene(it: Stage) -> None:
        agent = Stillborn()
        assert not await it.start(agent)
        failed = await it.event(AgentFailed)
        assert (failed.during, failed.type) == ("on_start", type(error).__name__)
        assert not any(isinstance(event, AgentStarted) for event in it.events)
        assert it.runner.agents == {}

    play(scene)


def test_a_start_that_takes_too_long_fails() -> None:
    class Sleepy(Failing):
        async def on_start(self) -> None:
            await asyncio.Event().wait()

    async def scene(it: Stage) -> None:
        assert not await it.start(Sleepy(), start_timeout_s=0.02)
        assert (await it.event(AgentFailed)).type == "TimeoutError"

    play(scene)


def test_a_stop_overtakes_a_start() -> None:
    class Sleepy(Failing):
        async def on_start(self) -> None:
            await asyncio.Event().wait()

    async def scene(it: Stage) -> None:
        agent = Sleepy()
        starting = asyncio.create_task(it.start(agent))
        await asyncio.sleep(0)
        await it.runner.stop("agent")
        assert await starting is False
        assert (await it.event(AgentExited)).reason == "stopped"
        assert not any(isinstance(event, AgentFailed) for event in it.events)

    play(scene)


def test_a_second_agent_of_the_same_name_is_refused() -> None:
    async def scene(it: Stage) -> None:
        await it.start(Failing())
        with pytest.raises(ValueError, match="'agent' runs in this process already"):
            await it.start(Failing())

    play(scene)


class Gated(Failing):
    """Each message waits at the gate."""

    async def on_start(self) -> None:
        self.gate = asyncio.Event()
        self.finished: list[str] = []

    async def handle(self, message: Message) -> Message | None:
        self.seen.append(message.type)
        await self.gate.wait()
        self.finished.append(message.type)
        return None


async def with_three(it: Stage) -> Gated:
    agent = Gated()
    await it.start(agent)
    for kind in ("one", "two", "three"):
        await it.send("agent", kind=kind)
    while not agent.seen:
        await asyncio.sleep(0)
    return agent


class Statuses(AgentProcess):
    """Notes its status at every step of its life."""

    def __init__(self) -> None:
        super().__init__("agent")
        self.noted = [self.status]
        self.gate = asyncio.Event()
        self.hooks: list[str] = []

    async def on_start(self) -> None:
        self.noted.append(self.status)

    async def handle(self, message: Message) -> None:
        self.noted.append(self.status)
        if message.type == "wait":
            await self.gate.wait()
            self.noted.append(self.status)
        if message.type == "fail":
            raise ValueError("seven")
        self.hooks.append(message.type)

    async def on_down(self, name: str, reason: str) -> None:
        self.hooks.append(f"on_down({name})")

    async def on_child_terminated(self, name: str, reason: str) -> None:
        self.hooks.append(f"on_child_terminated({name})")

    async def on_correction(self, message: Message) -> None:
        self.hooks.append(f"on_correction({message.payload['severity']})")

    async def on_stop(self) -> None:
        self.noted.append(self.status)


def test_an_agent_has_a_status_at_every_step_of_its_life() -> None:
    async def scene(it: Stage) -> None:
        agent = Statuses()
        await it.start(agent)
        await it.send("agent", kind="wait")
        while len(agent.noted) < 3:
            await asyncio.sleep(0)
        stopping = asyncio.create_task(it.runner.stop("agent"))
        while agent.status is ProcessStatus.RUNNING:
            await asyncio.sleep(0)
        agent.gate.set()
        await stopping
        words = [status.value for status in agent.noted]
        assert words == ["INITIALIZING", "INITIALIZING", "RUNNING", "STOPPING", "STOPPED"]

    play(scene)

    async def crash(it: Stage) -> None:
        agent = Statuses()
        await it.start(agent)
        await it.send("agent", kind="fail")
        await it.event(AgentFailed)
        assert [status.value for status in agent.noted[2:]] == ["RUNNING", "CRASHED"]

    play(crash)


def test_what_the_runtime_says_comes_to_hooks_and_never_to_handle() -> None:
    async def scene(it: Stage) -> None:
        agent = Statuses()
        await it.start(agent)
        mailbox = it.port.resolve("agent")

        def say(kind: str, data: bytes) -> None:
            it.port.post(mailbox, data, kind, SENDER_PROGRAM, None, LANE_CONTROL, 0)

        say(DOWN, encode_notice("x", "crashed"))
        say(CHILD_TERMINATED, encode_notice("y", "restarts_exhausted"))
        say(CORRECTION, encode_fields({"severity": "nudge", "reason": "a little"}))
        await it.send("agent", kind="work")
        while len(agent.hooks) < 4:
            await asyncio.sleep(0)
        say(HALT, encode_fields({"reason": "enough"}))
        assert (await it.event(AgentExited)).reason == "finished"
        assert agent.hooks == ["on_down(x)", "on_child_terminated(y)", "on_correction(nudge)", "work"]

    play(scene)


def test_a_stop_finishes_the_message_in_hand_and_leaves_the_others() -> None:
    async def scene(it: Stage) -> None:
        agent = await with_three(it)
        stopping = asyncio.create_task(it.runner.stop("agent"))
        await asyncio.sleep(0)
        agent.gate.set()
        assert await stopping
        assert (agent.finished, agent.stops, agent.status) == (["one"], 1, ProcessStatus.STOPPED)
        assert (it.stats("agent").waiting, it.stats("agent").in_hand) == (2, 0)
        assert (await it.event(AgentExited)).reason == "stopped"

    play(scene)


def test_a_stop_that_drains_finishes_all_that_wait() -> None:
    async def scene(it: Stage) -> None:
        agent = await with_three(it)
        agent.gate.set()
        assert await it.runner.stop("agent", drain="all")
        assert agent.finished == ["one", "two", "three"]

    play(scene)


def test_a_handler_that_does_not_end_in_time_is_cancelled_and_its_message_comes_again() -> None:
    async def scene(it: Stage) -> None:
        agent = await with_three(it)
        assert not await it.runner.stop("agent", timeout_s=0.02)
        assert (agent.finished, agent.stops) == ([], 1)
        assert not any(isinstance(event, DeadLetter) for event in it.events)
        heir = Gated()
        await it.start(heir)
        heir.gate.set()
        await it.runner.stop("agent", drain="all")
        assert heir.finished == ["one", "two", "three"]

    play(scene)


def test_a_handler_that_ignores_its_cancellation_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seat_module, "CANCEL_GRACE_S", 0.02)

    class Stubborn(Gated):
        async def handle(self, message: Message) -> Message | None:
            self.seen.append(message.type)
            while not self.gate.is_set():
                try:
                    await self.gate.wait()
                except asyncio.CancelledError:
                    pass
            return None

    async def scene(it: Stage) -> None:
        agent = Stubborn()
        await it.start(agent)
        await it.send("agent")
        while not agent.seen:
            await asyncio.sleep(0)
        assert not await it.runner.stop("agent", timeout_s=0.02)
        assert await it.event(AgentExited)
        agent.gate.set()

    play(scene)


def test_a_failing_on_stop_is_logged_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Rude(Failing):
        async def on_stop(self) -> None:
            raise ZeroDivisionError("last words")

    async def scene(it: Stage) -> None:
        await it.start(Rude())
        assert await it.runner.stop("agent")
        assert await it.event(AgentExited)

    play(scene)
    assert "last words" in caplog.text


def test_stop_all_drains_what_messages_make_before_it_stops_the_last_started_first() -> None:
    order: list[str] = []

    class Chain(AgentProcess):
        handled = 0

        async def handle(self, message: Message) -> Message | None:
            self.handled += 1
            if message.payload["left"]:
                await self.send(message.payload["to"], {"left": message.payload["left"] - 1, "to": self.name})
            return None

        async def on_stop(self) -> None:
            order.append(self.name)

    async def scene(it: Stage) -> None:
        one, two = Chain("one"), Chain("two")
        await it.start(one)
        await it.start(two)
        await it.send("one", {"left": 99, "to": "two"})
        assert await it.runner.stop_all("all")
        assert one.handled + two.handled == 100
        assert order == ["two", "one"]

    play(scene)


def test_an_agent_can_ask_for_the_end_of_the_run() -> None:
    class Ender(AgentProcess):
        async def handle(self, message: Message) -> Message | None:
            await self.stop_runtime(exit_code=3)
            return self.reply({"still": "here"})

    async def scene(it: Stage) -> None:
        await it.start(Ender("agent"))
        assert await it.ask("agent") == {"still": "here"}
        assert await it.event(StopRuntime) == StopRuntime("agent", 3)

    play(scene)


def test_an_event_receiver_that_fails_does_not_harm_the_agent(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with stage() as it:

            def broken(event: AgentEvent) -> None:
                raise ZeroDivisionError

            it.runner = AgentRunner(it.port, on_event=broken)
            assert await it.start(Failing())
            assert await it.ask("agent") == {"handled": 1}

    asyncio.run(run())
    assert "ZeroDivisionError" in caplog.text


# --- state --------------------------------------------------------------------------------------------------------


class Tally(AgentProcess):
    async def handle(self, message: Message) -> Message | None:
        if message.type == "fail":
            self.state["n"] = -1
            raise ValueError("seven")
        if message.type == "spoil":
            self.state["bad"] = {1}
        if message.type == "add":
            self.state["n"] = self.state.get("n", 0) + 1
        return self.reply({"n": self.state.get("n", 0)})


def test_state_is_restored_from_the_last_finished_handler() -> None:
    async def scene(it: Stage) -> None:
        await it.start(Tally("tally"), state="shm")
        for _ in range(3):
            await it.ask("tally", kind="add")
        with pytest.raises(AgentError):
            await it.ask("tally", kind="fail")
        await it.event(AgentFailed)
        await it.start(Tally("tally"), state="shm")
        assert await it.ask("tally", kind="look") == {"n": 3}

    play(scene)


def test_without_storage_a_new_incarnation_begins_empty() -> None:
    async def scene(it: Stage) -> None:
        await it.start(Tally("tally"))
        await it.ask("tally", kind="add")
        await it.runner.stop("tally")
        await it.start(Tally("tally"))
        assert await it.ask("tally", kind="look") == {"n": 0}

    play(scene)


def test_a_message_whose_state_was_committed_is_not_handled_again() -> None:
    async def scene(it: Stage) -> None:
        mailbox = it.port.add_mailbox(MailboxSpec("tally"))
        # As if the process had died between the commit and the release.
        it.port.listen(mailbox, lambda: None)
        await it.send("tally", kind="add")
        delivery = it.port.take(mailbox)
        assert delivery is not None
        it.port.commit_state(mailbox, delivery[0], encode({"n": 1}))
        it.port.unlisten(mailbox)
        await it.start(Tally("tally"), state="shm")
        assert await it.ask("tally", kind="look") == {"n": 1}
        assert it.stats("tally").redelivered == 1

    play(scene)


def test_a_message_that_died_before_its_commit_is_handled_again() -> None:
    async def scene(it: Stage) -> None:
        mailbox = it.port.add_mailbox(MailboxSpec("tally"))
        it.port.listen(mailbox, lambda: None)
        await it.send("tally", kind="add")
        assert it.port.take(mailbox) is not None
        it.port.unlisten(mailbox)
        await it.start(Tally("tally"), state="shm")
        assert await it.ask("tally", kind="look") == {"n": 1}

    play(scene)


def test_state_that_did_not_change_is_not_committed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    commits: list[bytes] = []
    commit = InProcessPort.commit_state

    def counted(port: InProcessPort, mailbox: int, token: int, state: bytes) -> int:
        commits.append(state)
        return commit(port, mailbox, token, state)

    monkeypatch.setattr(InProcessPort, "commit_state", counted)

    async def scene(it: Stage) -> None:
        await it.start(Tally("tally"), state="shm")
        for kind in ("add", "look", "look", "add", "look"):
            await it.ask("tally", kind=kind)
        await it.runner.stop("tally", drain="all")

    play(scene)
    assert commits == [encode({"n": 1}), encode({"n": 2})]


def test_state_that_cannot_be_encoded_crashes_the_agent_with_its_path() -> None:
    async def scene(it: Stage) -> None:
        await it.start(Tally("tally"), state="shm")
        await it.ask("tally", kind="add")
        await it.send("tally", kind="spoil")
        failed = await it.event(AgentFailed)
        assert (failed.during, failed.type) == ("state", MessageValidationError.__name__)
        assert "state.bad: set cannot be sent" in failed.text
        await it.start(Tally("tally"), state="shm")
        assert await it.ask("tally", kind="look") == {"n": 1}

    play(scene)


def test_state_that_is_too_large_crashes_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InProcessPort, "commit_state", lambda *_: TOO_LARGE)

    async def scene(it: Stage) -> None:
        await it.start(Tally("tally"), state="shm")
        await it.send("tally", kind="add")
        assert (await it.event(AgentFailed)).type == "StateTooLarge"

    play(scene)


def test_a_store_of_the_users_that_fails_crashes_the_agent_and_says_so() -> None:
    class Broken(InMemoryStateStore):
        async def set(self, agent_name: str, state: dict[str, Any]) -> None:
            raise OSError("the disk is full")

    class Saving(AgentProcess):
        async def handle(self, message: Message) -> Message | None:
            await self.checkpoint()
            return None

    async def scene(it: Stage) -> None:
        it.runner.store = Broken()
        agent = Saving("saving")
        await it.start(agent)
        assert agent.store is it.runner.store
        await it.send("saving")
        failed = await it.event(AgentFailed)
        assert (failed.during, failed.type, failed.text) == ("state", "OSError", "the disk is full")
        assert (await it.event(DeadLetter)).reason == "the state after it could not be saved: OSError: the disk is full"

    play(scene)


def test_the_reply_is_posted_before_the_state_and_the_release() -> None:
    order: list[str] = []

    class Watched(InProcessPort):
        def post_reply(self, *arguments: Any) -> bool:
            order.append("reply")
            return super().post_reply(*arguments)

        def commit_state(self, *arguments: Any) -> int:
            order.append("state")
            return super().commit_state(*arguments)

        def _release(self, *arguments: Any) -> None:
            order.append("release")
            super()._release(*arguments)

    async def run() -> None:
        port = Watched()
        port.start(asyncio.get_running_loop())
        it = Stage(port, AgentRunner(port))
        await it.start(Tally("tally"), state="shm")
        await it.ask("tally", kind="add")
        await it.runner.stop_all()
        port.stop()

    asyncio.run(run())
    assert order == ["reply", "state", "release"]


# --- an end that others decide: a link ----------------------------------------------------------------------------


class Busy(AgentProcess):
    """Waits in its handler; `swallows`: and makes nothing of its cancellation."""

    swallows = False

    def __init__(self) -> None:
        super().__init__("agent")
        self.seen: list[str] = []

    async def handle(self, message: Message) -> None:
        self.seen.append(message.type)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if not self.swallows:
                raise


def test_an_agent_that_is_to_be_restarted_has_not_failed(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(it: Stage) -> None:
        await it.start(Busy())
        await it.runner.crash("agent", "ada wants it to be restarted: a new key", True)
        failed = await it.event(AgentFailed)
        assert (failed.type, failed.during) == ("AgentRestarted", "restart")
        assert failed.text == failed.traceback == "ada wants it to be restarted: a new key"

    with caplog.at_level(logging.DEBUG):
        play(scene)
    assert [record.levelname for record in caplog.records if "ada wants" in record.getMessage()] == ["WARNING"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("swallows", [False, True])
def test_a_crash_by_a_link_cuts_the_handler_and_takes_no_other_message(swallows: bool) -> None:
    async def scene(it: Stage) -> None:
        agent = Busy()
        agent.swallows = swallows
        await it.start(agent)
        for kind in ("one", "two"):
            await it.send("agent", kind=kind)
        while not agent.seen:
            await asyncio.sleep(0)
        await it.runner.crash("agent", "it is linked with 'b', which crashed")
        failed = await it.event(AgentFailed)
        assert (failed.type, failed.during) == ("LinkedAgentDown", "link")
        assert agent.seen == ["one"]
        stats = it.stats("agent")
        assert stats.waiting + stats.in_hand == (1 if swallows else 2), "what was cut comes again"
        await it.runner.crash("agent", "again")
        await it.runner.crash("nobody", "again")
        assert [type(event) for event in it.events].count(AgentFailed) == 1

    play(scene)


def test_who_is_in_its_last_words_is_let_finish_them_and_its_end_is_told_once() -> None:
    """Else nobody would ever hear of its end: the task that was to tell it would have been cancelled."""

    async def scene(it: Stage) -> None:
        handling, go, speaking, spoken = (asyncio.Event() for _ in range(4))

        class Slow(Failing):
            action = ErrorAction.STOP

            async def handle(self, message: Message) -> None:
                handling.set()
                await go.wait()
                raise ValueError("seven")

            async def on_stop(self) -> None:
                speaking.set()
                await spoken.wait()

        await it.start(Slow())
        await it.send("agent")
        await handling.wait()
        stop = asyncio.create_task(it.runner.stop("agent", timeout_s=0.05))
        await asyncio.sleep(0)
        go.set()
        await speaking.wait()
        assert await stop, "the deadline of the stop is over, and its last words have one of their own"
        assert not it.events[1:]
        spoken.set()
        await it.event(AgentExited)
        assert [type(event) for event in it.events] == [AgentStarted, AgentExited]

    play(scene)


def test_a_crash_by_a_link_during_the_start_ends_the_start() -> None:
    class Starts(Busy):
        async def on_start(self) -> None:
            await asyncio.sleep(60)

    async def scene(it: Stage) -> None:
        starting = asyncio.ensure_future(it.start(Starts()))
        while not it.runner.agents:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        await it.runner.crash("agent", "peer")
        assert not await starting
        assert [type(event).__name__ for event in it.events] == ["AgentFailed"]

    play(scene)


@pytest.mark.parametrize("action", [ErrorAction.RETRY, ErrorAction.SKIP, ErrorAction.ESCALATE])
def test_a_hook_that_fails_over_news_is_asked_on_error_like_a_handler(action: ErrorAction) -> None:
    class Fails(Failing):
        news: list[tuple[str, str]]

        async def on_down(self, name: str, reason: str) -> None:
            self.news.append((name, reason))
            if len(self.news) < 3:
                raise OSError("not now")

    async def scene(it: Stage) -> None:
        agent = Fails(max_retries=5)
        agent.action, agent.news = action, []
        await it.start(agent)
        mailbox = it.port.resolve("agent")
        it.port.post(mailbox, encode_notice("x", "crashed"), DOWN, SENDER_PROGRAM, None, LANE_CONTROL, 0)
        if action is ErrorAction.ESCALATE:
            assert (await it.event(AgentFailed)).type == "OSError"
        else:
            assert await it.ask("agent") == {"handled": 1}, "news are no messages"
        assert agent.news == [("x", "crashed")] * (3 if action is ErrorAction.RETRY else 1)

    play(scene)
