"""Every transport: streams between agents, their credits, their ends, and what becomes of one when a process dies."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from civitas_shm.errors import (
    AgentError,
    AgentStopped,
    ErrorAction,
    MessageRoutingError,
    MessageValidationError,
    SlowConsumerError,
    StreamError,
    StreamInterrupted,
    StreamTimeout,
)
from civitas_shm.messages import Message
from civitas_shm.port_bus import PortBus
from civitas_shm.process import AgentProcess
from civitas_shm.runner import AgentRunner
from civitas_shm.streams import places
from civitas_shm.streams.reader import Question, Reader, Stream
from civitas_shm.topology.model import AgentSpec

MANY = 1000
"""More chunks than any window."""


class Teller(AgentProcess):
    """Answers in `n` chunks."""

    def __init__(self, name: str, **rest: Any) -> None:
        super().__init__(name, **rest)
        self.emitted = 0
        self.outcome: list[str] = []

    async def handle(self, message: Message) -> Message | None:
        try:
            for number in range(message.payload["n"]):
                await self.emit({"number": number})
                self.emitted += 1
        except BaseException as error:
            self.outcome.append(type(error).__name__)
            raise
        self.outcome.append("done")
        return None


async def started(world: Any, agent: AgentProcess, **spec: Any) -> AgentRunner:
    runner = AgentRunner(world.b)
    assert await runner.start(agent, world.mailbox(agent.name), AgentSpec(agent.name, "tests.Agent", **spec))
    return runner


def stream_of(
    bus: PortBus,
    name: str,
    payload: dict[str, Any],
    *,
    timeout: float | None = 30.0,
    idle_timeout: float | None = 300.0,
    max_duration: float | None = 3600.0,
    maxsize: int = 256,
) -> Stream:
    return Stream(Reader(bus.streams, Question(name, payload, "message", timeout, idle_timeout, max_duration, maxsize)))


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.001)


async def numbers(stream: Stream) -> list[int]:
    return [chunk["number"] async for chunk in stream]


def play_with(play: Any, agent: AgentProcess, scene: Callable[[Any, PortBus], Awaitable[None]], **spec: Any) -> None:
    async def whole(world: Any) -> None:
        runner = await started(world, agent, **spec)
        bus = world.bus
        await scene(world, bus)
        gc.collect()
        await until(lambda: bus.streams.free == places.PLACES)
        assert not bus.streams.readers
        assert await runner.stop_all()
        assert not runner.bus.streams.writers

    play(whole)


@pytest.mark.parametrize("maxsize", [1, 3, 256])
def test_all_chunks_come_in_order_however_small_the_window(play: Any, maxsize: int) -> None:
    async def scene(world: Any, bus: PortBus) -> None:
        assert await numbers(stream_of(bus, "t", {"n": MANY}, maxsize=maxsize)) == list(range(MANY))

    play_with(play, Teller("t"), scene)


def test_a_slow_reader_slows_the_writer_and_nothing_is_dropped(play: Any) -> None:
    teller = Teller("t")

    async def scene(world: Any, bus: PortBus) -> None:
        async with stream_of(bus, "t", {"n": MANY}, maxsize=8) as stream:
            assert (await anext(stream))["number"] == 0
            for expected in range(1, 50):
                for _ in range(20):  # all the time in the world for the writer
                    await asyncio.sleep(0)
                assert teller.emitted <= expected + 8
                assert (await anext(stream))["number"] == expected
            assert await numbers(stream) == list(range(50, MANY))

    play_with(play, teller, scene)


@pytest.mark.parametrize("how", ["break", "aclose", "let go", "cancel"])
def test_a_reader_that_leaves_is_known_to_the_writer_and_the_agent_goes_on(play: Any, how: str) -> None:
    teller = Teller("t")

    async def scene(world: Any, bus: PortBus) -> None:
        if how == "break":
            async for chunk in stream_of(bus, "t", {"n": MANY}):
                if chunk["number"] == 3:
                    break
        elif how == "cancel":
            task = asyncio.create_task(numbers(stream_of(bus, "t", {"n": 10**9}, maxsize=4)))
            await until(lambda: teller.emitted)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        else:
            stream = stream_of(bus, "t", {"n": MANY})
            await anext(stream)
            if how == "aclose":
                await stream.aclose()
            else:
                del stream
        await until(lambda: teller.outcome == ["StreamInterrupted"])
        assert await numbers(stream_of(bus, "t", {"n": 3})) == [0, 1, 2]

    play_with(play, teller, scene)


def test_cancelling_one_step_of_a_stream_does_not_end_it(play: Any) -> None:
    gate: list[asyncio.Event] = []

    class Gated(AgentProcess):
        async def handle(self, message: Message) -> None:
            await self.emit({"number": 0})
            await gate[0].wait()
            await self.emit({"number": 1})

    async def scene(world: Any, bus: PortBus) -> None:
        gate.append(asyncio.Event())
        stream = stream_of(bus, "t", {})
        assert await anext(stream) == {"number": 0}
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)
        gate[0].set()
        assert await numbers(stream) == [1]

    play_with(play, Gated("t"), scene)


def test_the_body_of_stream_reply_is_cancelled_where_it_waits_when_nobody_reads(play: Any) -> None:
    seen: list[Any] = []

    class Model(AgentProcess):
        async def handle(self, message: Message) -> None:
            async with self.stream_reply() as out:
                await out.send({"number": 0})
                await asyncio.Future()  # the model's next token, which takes for ever
            seen.append((out.cancelled, out.frames))

    async def scene(world: Any, bus: PortBus) -> None:
        async for _ in stream_of(bus, "t", {}):
            break
        await until(lambda: seen == [(True, 1)])

    play_with(play, Model("t"), scene)


def test_stream_reply_sends_the_end_where_its_block_ends(play: Any) -> None:
    gate: list[asyncio.Event] = []

    class Model(AgentProcess):
        async def handle(self, message: Message) -> None:
            async with self.stream_reply(max_frames=2) as out:
                await out.send({"number": 0})
                await out.send({"number": 1})
            await gate[0].wait()

    async def scene(world: Any, bus: PortBus) -> None:
        gate.append(asyncio.Event())
        assert await numbers(stream_of(bus, "t", {})) == [0, 1]
        gate[0].set()

    play_with(play, Model("t"), scene)


@pytest.mark.parametrize(
    ("options", "error"), [({"max_frames": 1}, StreamError), ({"max_duration": 0.01}, StreamTimeout)]
)
def test_the_bounds_of_stream_reply_are_errors_of_its_block(play: Any, options: Any, error: type[Exception]) -> None:
    seen: list[BaseException] = []

    class Model(AgentProcess):
        async def handle(self, message: Message) -> None:
            try:
                async with self.stream_reply(**options) as out:
                    await out.send({"number": 0})
                    if "max_frames" in options:
                        await out.send({"number": 1})
                    await asyncio.Future()
            except StreamError as error:
                seen.append(error)
                raise

        async def on_error(self, exc: Exception, message: Message) -> ErrorAction:
            return ErrorAction.SKIP

    async def scene(world: Any, bus: PortBus) -> None:
        with pytest.raises(StreamInterrupted, match=error.__name__):
            await numbers(stream_of(bus, "t", {}))
        assert [type(one) for one in seen] == [error]

    play_with(play, Model("t"), scene)


def test_an_agent_that_just_answers_gives_one_chunk_and_one_that_does_both_ends_with_it(play: Any) -> None:
    class Both(AgentProcess):
        async def handle(self, message: Message) -> Message:
            if message.payload.get("emit"):
                await self.emit({"number": 0})
            assert message.wants_stream
            return self.reply({"number": 7})

    async def scene(world: Any, bus: PortBus) -> None:
        assert await numbers(stream_of(bus, "t", {})) == [7]
        assert await numbers(stream_of(bus, "t", {"emit": True})) == [0, 7]

    play_with(play, Both("t"), scene)


def test_end_stream_ends_it_before_the_handler_and_nothing_can_be_emitted_after_it(play: Any) -> None:
    seen: list[BaseException] = []

    class Early(AgentProcess):
        async def handle(self, message: Message) -> None:
            await self.emit({"number": 0})
            await self.end_stream()
            try:
                await self.emit({"number": 1})
            except StreamError as error:
                seen.append(error)

    async def scene(world: Any, bus: PortBus) -> None:
        assert await numbers(stream_of(bus, "t", {})) == [0]
        await until(lambda: seen)
        assert "at its end" in str(seen[0])

    play_with(play, Early("t"), scene)


def test_a_handler_that_fails_interrupts_the_stream_with_its_error_behind_what_it_has_sent(play: Any) -> None:
    class Failing(AgentProcess):
        async def handle(self, message: Message) -> None:
            await self.emit({"number": 0})
            raise ValueError("the model has gone away")

        async def on_error(self, exc: Exception, message: Message) -> ErrorAction:
            return ErrorAction.SKIP

    async def scene(world: Any, bus: PortBus) -> None:
        stream = stream_of(bus, "t", {})
        assert await anext(stream) == {"number": 0}
        with pytest.raises(StreamInterrupted, match=r"after 1 chunks: it raised ValueError: the model") as caught:
            await anext(stream)
        assert isinstance(caught.value.__cause__, AgentError)
        assert caught.value.received == 1

    play_with(play, Failing("t"), scene)


def test_a_retry_goes_on_with_the_same_stream_and_sends_nothing_twice(play: Any) -> None:
    class Retrying(AgentProcess):
        async def handle(self, message: Message) -> None:
            for number in range(40):
                await self.emit({"number": number})
                if number == 35 and message.attempt == 0:
                    raise ValueError("once")

        async def on_error(self, exc: Exception, message: Message) -> ErrorAction:
            return ErrorAction.RETRY

    async def scene(world: Any, bus: PortBus) -> None:
        assert await numbers(stream_of(bus, "t", {})) == list(range(40))

    play_with(play, Retrying("t"), scene)


def test_emitting_where_nobody_reads_a_stream_is_an_error_that_says_so(play: Any) -> None:
    seen: list[BaseException] = []

    class Careless(AgentProcess):
        async def handle(self, message: Message) -> Message:
            try:
                await self.emit({})
            except StreamError as error:
                seen.append(error)
            return self.reply({})

    async def scene(world: Any, bus: PortBus) -> None:
        await bus.ask("t", {})
        assert "was asked" in str(seen[0])
        assert "wants_stream" in str(seen[0])

    play_with(play, Careless("t"), scene)


def test_the_types_of_streams_are_kept_for_the_runtime(play: Any) -> None:
    async def scene(world: Any, bus: PortBus) -> None:
        for kind in ("chunk", "end", "error", "cancel", "credit", "whatever"):
            with pytest.raises(MessageValidationError, match="kept for the runtime"):
                await bus.send("t", {}, f"civitas.stream.{kind}")

    play_with(play, Teller("t"), scene)


def test_chunks_have_numbers_and_nothing_else_has() -> None:
    from civitas_shm.messages import STREAM_BIT, new_header

    def message(seq: int) -> Message:
        return Message.received(new_header(seq=seq), "x", "a", "b", {}, 1)

    assert [message(seq).seq for seq in (0, 1, 8, STREAM_BIT | 5)] == [None, 0, 7, None]
    assert [message(seq).wants_stream for seq in (0, 1, STREAM_BIT | 5)] == [False, False, True]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timeout": 0.02}, "did not begin to answer"),
        ({"idle_timeout": 0.02}, "has sent nothing for 0.02 s"),
        ({"max_duration": 0.02}, "was not over within its max_duration of 0.02 s"),
    ],
)
def test_each_deadline_of_a_reader_says_which_it_was(play: Any, options: Any, words: str) -> None:
    outcome: list[str] = []

    class Slow(AgentProcess):
        async def handle(self, message: Message) -> None:
            try:
                if "timeout" not in options:
                    await self.emit({"number": 0})
                else:
                    await gate[0].wait()
                for number in range(1, 10**9):
                    await asyncio.sleep(0.001 if "max_duration" in options else 0.1)
                    await self.emit({"number": number})
            except StreamInterrupted:
                outcome.append("told")
                raise

    gate: list[asyncio.Event] = []

    async def scene(world: Any, bus: PortBus) -> None:
        gate.append(asyncio.Event())
        with pytest.raises(StreamTimeout, match=words):
            await numbers(stream_of(bus, "t", {}, **options))
        gate[0].set()
        await until(lambda: outcome == ["told"])

    play_with(play, Slow("t"), scene)


def test_a_reader_that_has_stopped_is_told_apart_from_a_slow_one_and_both_sides_know(play: Any) -> None:
    teller = Teller("t")

    async def scene(world: Any, bus: PortBus) -> None:
        stream = stream_of(bus, "t", {"n": MANY}, idle_timeout=0.02)
        await anext(stream)
        await until(lambda: teller.outcome == ["SlowConsumerError"])
        with pytest.raises(SlowConsumerError, match=r"nothing was taken for 0\.02 s .* chunks lay ready"):
            await anext(stream)

    play_with(play, teller, scene)


def test_an_agent_that_is_not_there_or_has_stopped_is_told_as_with_ask(play: Any) -> None:
    async def scene(world: Any, bus: PortBus) -> None:
        with pytest.raises(MessageRoutingError):
            await anext(stream_of(bus, "nobody", {}))
        world.admin.close_mailbox(world.mailbox("gone"))
        with pytest.raises(AgentStopped):
            await anext(stream_of(bus, "gone", {}))
        waiting = world.mailbox("deaf")
        stream = stream_of(bus, "deaf", {})
        task = asyncio.ensure_future(anext(stream))
        await until(lambda: world.a.stats(waiting).waiting)
        world.admin.close_mailbox(waiting)
        with pytest.raises(StreamInterrupted, match="stopped before it answered"):
            await task

    play_with(play, Teller("t"), scene)


def test_more_streams_than_there_are_places_wait_for_their_turn_and_all_are_read(play: Any) -> None:
    class Parallel(AgentProcess):
        async def handle(self, message: Message) -> None:
            for number in range(20):
                await self.emit({"number": number})

    async def scene(world: Any, bus: PortBus) -> None:
        count = places.PLACES // (places.FEW + places.EXTRA) + 20
        streams = [stream_of(bus, "t", {}) for _ in range(count)]
        results = await asyncio.gather(*map(numbers, streams))
        assert results == [list(range(20))] * count

    play_with(play, Parallel("t"), scene)


def test_without_a_place_a_stream_says_who_has_them(play: Any) -> None:
    async def scene(world: Any, bus: PortBus) -> None:
        bus.streams.free -= places.PLACES
        try:
            with pytest.raises(StreamTimeout, match=r"no place within 0\.01 s"):
                await anext(stream_of(bus, "t", {"n": 1}, timeout=0.01))
        finally:
            bus.streams.give_back(places.PLACES)

    play_with(play, Teller("t"), scene)


# --- deaths: a port is a process -----------------------------------------------------------------------------------


class Lives(AgentProcess):
    """Streams until its gate closes; a later life goes on as it is told to."""

    def __init__(self, name: str, life: int, differs: bool = False) -> None:
        super().__init__(name)
        self.life = life
        self.differs = differs

    async def handle(self, message: Message) -> None:
        for number in range(60):
            if self.life == 1 and number == 50:
                await asyncio.Future()
            await self.emit({"number": number, "by": "other" if self.differs and number == 10 else "one"})


@pytest.mark.parametrize("differs", [False, True])
def test_after_the_death_of_the_writers_process_the_stream_goes_on_or_is_interrupted(play: Any, differs: bool) -> None:
    async def scene(world: Any) -> None:
        world.need("succession")
        first = AgentRunner(world.b)
        mailbox = world.mailbox("t")
        assert await first.start(Lives("t", 1), mailbox, AgentSpec("t", "tests.Lives"))
        stream = stream_of(world.bus, "t", {}, maxsize=32)
        got = [(await anext(stream))["number"] for _ in range(50)]
        second = AgentRunner(world.successor())
        assert await second.start(Lives("t", 2, differs), mailbox, AgentSpec("t", "tests.Lives"))
        if differs:
            with pytest.raises(StreamInterrupted, match="answers otherwise from chunk 10 on"):
                await anext(stream)
        else:
            got += await numbers(stream)
            assert got == list(range(60))
        await second.stop_all()

    play(scene)
