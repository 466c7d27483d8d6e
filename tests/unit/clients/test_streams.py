"""Streams of clients: as inside of the run, at the client's pace, ended by whoever leaves, and bounded for all."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import threading
from typing import Any

import msgspec
import pytest

from civitas_shm import (
    AgentError,
    AgentProcess,
    Message,
    MessageRoutingError,
    RunNotAnswering,
    SlowConsumerError,
    StreamError,
    StreamInterrupted,
    StreamTimeout,
    TransportClosed,
    connect,
    connect_blocking,
)
from civitas_shm.clients import protocol, server
from civitas_shm.clients import stream as stream_module
from civitas_shm.clients.server import STREAMS_MAX, _window
from civitas_shm.clients.stream import TAKEN_SAID, Pile
from civitas_shm.streams.places import EXTRA, PLACES
from civitas_shm.testing import RuntimeUnderTest


class Teller(AgentProcess):
    """Says numbers, and what becomes of its streams."""

    said: int
    ends: list[str]
    more: asyncio.Event

    async def on_start(self) -> None:
        Teller.said, Teller.ends, Teller.more = 0, [], asyncio.Event()

    async def handle(self, message: Message) -> Message | None:
        if message.payload.get("plain"):
            return self.reply({"n": -1})
        try:
            for number in range(message.payload["n"]):
                await self.emit({"n": number, "pad": message.payload.get("pad", b"")})
                Teller.said = number + 1
        except StreamInterrupted as gone:
            Teller.ends.append(type(gone).__name__)
            raise
        except SlowConsumerError as slow:
            Teller.ends.append(str(slow))
            raise
        if message.payload.get("fail"):
            raise ValueError("no more")
        if message.payload.get("wait"):
            async with self.stream_reply():
                await Teller.more.wait()
            Teller.ends.append("cut short")
        return None


async def into(got: list[int], stream: Any) -> None:
    async for chunk in stream:
        got.append(chunk["n"])


FOR_EVER = {"n": 10**9}


async def test_chunks_come_in_order_and_once_and_the_stream_ends_with_its_writer(
    runtime: RuntimeUnderTest, switchboard: Any
) -> None:
    await runtime.start(Teller("teller"))
    serving = switchboard.serve(runtime)
    async with connect("shop") as client:
        for n in (1, 500):
            stream = client.stream("teller", {"n": n})
            assert [chunk["n"] async for chunk in stream] == list(range(n))
            assert stream.received == n
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        assert [chunk["n"] async for chunk in client.stream("teller", {"n": 3}, maxsize=1)] == [0, 1, 2]
        assert [chunk["n"] async for chunk in client.stream("teller", {"plain": True})] == [-1]
        one, two = client.stream("teller", {"n": 40}), client.stream("teller", {"n": 40})
        assert (await anext(one))["n"] == 0
        asked = asyncio.ensure_future(client.ask("teller", {"plain": True}))
        assert [chunk["n"] async for chunk in one] == list(range(1, 40))
        assert [chunk["n"] async for chunk in two] == list(range(40))
        assert (await asked).payload == {"n": -1}
        assert serving.streams == 0
    bus = runtime.runtime._run.bus
    assert bus.streams.free == PLACES  # every credit is back


async def test_a_slow_client_slows_the_writer(runtime: RuntimeUnderTest, switchboard: Any) -> None:
    await runtime.start(Teller("teller"))
    switchboard.serve(runtime)
    async with connect("shop") as client:
        async with client.stream("teller", FOR_EVER) as stream:
            assert (await anext(stream))["n"] == 0
            await runtime.until(lambda: stream.received == server._WINDOW_MAX)
            for _ in range(50):  # it would have gone on by now
                await asyncio.sleep(0)
            assert Teller.said == server._WINDOW_MAX
            for number in range(1, 1 + TAKEN_SAID):
                assert (await anext(stream))["n"] == number
                assert stream.received <= server._WINDOW_MAX + number
            for number in range(1 + TAKEN_SAID, 300):
                assert (await anext(stream))["n"] == number
        await runtime.until(lambda: Teller.ends == ["StreamInterrupted"])
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


@pytest.mark.parametrize("how", ["break", "let go", "close the client", "its process dies", "cancel"])
async def test_whoever_leaves_a_stream_ends_it(runtime: RuntimeUnderTest, switchboard: Any, how: str) -> None:
    await runtime.start(Teller("teller"))
    serving = switchboard.serve(runtime)
    client = connect("shop")
    stream = client.stream("teller", {"n": 2, "wait": True})
    assert (await anext(stream))["n"] == 0
    match how:
        case "break":
            async with stream:
                async for chunk in stream:
                    assert chunk["n"] == 1
                    break
        case "let go":
            del stream
            gc.collect()
        case "close the client":
            client.close()
            assert (await anext(stream))["n"] == 1
            with pytest.raises(TransportClosed, match="This client was closed"):
                await anext(stream)
        case "its process dies":
            client._connection._transport.abort()  # type: ignore[union-attr]
        case "cancel":

            async def read() -> None:
                async with stream:
                    async for _ in stream:
                        pass

            reading = asyncio.ensure_future(read())
            await runtime.until(lambda: stream._inbox.waiter is not None)
            reading.cancel()
    await runtime.until(lambda: Teller.ends == ["cut short"])
    await runtime.until(lambda: serving.streams == 0)
    client.close()


async def test_one_step_may_be_called_off_and_the_next_goes_on(runtime: RuntimeUnderTest, switchboard: Any) -> None:
    await runtime.start(Teller("teller"))
    switchboard.serve(runtime)
    async with connect("shop") as client, client.stream("teller", {"n": 1, "wait": True}) as stream:
        await anext(stream)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.001)
        waiting = asyncio.ensure_future(anext(stream))
        await runtime.until(lambda: stream._inbox.waiter is not None)
        with pytest.raises(RuntimeError, match="two tasks wait"):
            await anext(stream)
        Teller.more.set()
        with pytest.raises(StopAsyncIteration):
            await waiting


async def test_the_errors_are_those_of_a_stream_inside_of_the_run(runtime: RuntimeUnderTest, switchboard: Any) -> None:
    await runtime.start(Teller("teller"), max_restarts=10)
    serving = switchboard.serve(runtime)
    async with connect("shop") as client:
        got: list[int] = []
        with pytest.raises(StreamInterrupted, match="after 3 chunks: it raised ValueError: no more") as failed:
            await into(got, client.stream("teller", {"n": 3, "fail": True}))
        assert got == [0, 1, 2]
        assert failed.value.received == 3
        assert isinstance(failed.value.__cause__, AgentError)
        assert failed.value.__cause__.type_name == "ValueError"
        with pytest.raises(MessageRoutingError, match="'teller'"):
            await anext(client.stream("tellerr", {}))
        with pytest.raises(ValueError, match="maxsize of a stream is 0"):
            await anext(client.stream("teller", {}, maxsize=0))
        with pytest.raises(StreamTimeout, match="did not begin to answer"):
            await anext(client.stream("teller", {"n": 0, "wait": True}, timeout=0.01))
        await runtime.until(lambda: serving.streams == 0)
        idle = client.stream("teller", {"n": 1, "wait": True}, idle_timeout=0.01)
        await anext(idle)
        with pytest.raises(StreamTimeout, match=r"has sent nothing for 0\.01 s"):
            await anext(idle)
        long = client.stream("teller", {"n": 1, "wait": True}, max_duration=0.02)
        await anext(long)
        with pytest.raises(StreamTimeout, match=r"max_duration of 0\.02"):
            await anext(long)
        slow = client.stream("teller", FOR_EVER, idle_timeout=0.01, maxsize=8)
        await anext(slow)
        await runtime.until(lambda: isinstance(slow._inbox.end, SlowConsumerError))
        assert [(await anext(slow))["n"] for _ in range(7)] == list(range(1, 8))  # what has come is handed out first
        with pytest.raises(SlowConsumerError, match=r"nothing was taken for 0\.01 s"):
            await anext(slow)
        await runtime.until(lambda: "reads too slowly" in Teller.ends[-1])


def test_who_takes_slowly_but_steadily_is_heard_in_time() -> None:
    """The run gives up who takes nothing between two looks, `idle_s` apart."""
    idle_s = 8.0
    for step_s in (0.1, 1.0, 1.9, 2.1, 5.0, 7.9):
        pile = Pile(idle_s)
        pile.put([b""] * 1000)
        said = [now for number in range(200) for now in [number * step_s] if pile.take(now)[1]]
        assert max(later - earlier for earlier, later in itertools.pairwise(said)) < idle_s
    pile = Pile(None)
    pile.put([b""] * 20)
    assert [pile.take(0.0)[1] for _ in range(20)] == [0] * 7 + [8] + [0] * 7 + [8] + [0] * 3 + [4]


async def test_when_the_run_ends_what_has_come_is_handed_out_before_its_last_word(
    runtime: RuntimeUnderTest, switchboard: Any
) -> None:
    await runtime.start(Teller("teller0"), Teller("teller1"))
    serving = switchboard.serve(runtime)
    goes_on = threading.Event()
    got: list[int] = []

    def read() -> None:
        with connect_blocking("shop") as client:
            stream = client.stream("teller1", {"n": 5, "wait": True})
            got.append(next(stream)["n"])
            goes_on.wait()
            with pytest.raises(TransportClosed, match="was stopped in good order"):
                got.extend(chunk["n"] for chunk in stream)

    reading = asyncio.create_task(asyncio.to_thread(read))
    async with connect("shop") as client:
        stream = client.stream("teller0", {"n": 5, "wait": True})
        has = [(await anext(stream))["n"]]
        await runtime.until(lambda: stream.received == 5)
        await runtime.until(lambda: got == [0])
        serving.refuse("The run is stopping.")
        with pytest.raises(TransportClosed, match="is stopping"):
            await anext(client.stream("teller0", {"n": 1}))
        serving.close("The run 'shop' was stopped in good order.")
        await runtime.until(lambda: not client.connected)
        with pytest.raises(TransportClosed, match="was stopped in good order"):
            await into(has, stream)
        assert has == list(range(5))
    goes_on.set()
    await reading
    assert got == list(range(5))


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_all_streams_of_all_clients_leave_places_for_the_programs_own() -> None:
    assert sum(_window(open_now) + EXTRA for open_now in range(STREAMS_MAX)) < PLACES - 128


async def test_a_client_that_reads_as_many_streams_as_it_may_waits_and_all_together_too(
    runtime: RuntimeUnderTest, switchboard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tellers = [Teller(f"teller{number}") for number in range(4)]
    await runtime.start(*tellers)
    monkeypatch.setattr("civitas_shm.clients.client.STREAMS_OPEN_MAX", 2)
    monkeypatch.setattr(server, "STREAMS_MAX", 3)
    serving = switchboard.serve(runtime)
    async with connect("shop") as one, connect("shop") as two:
        open_ = [one.stream(f"teller{number}", FOR_EVER) for number in range(2)]
        open_.append(two.stream("teller2", FOR_EVER))
        for stream in open_:
            await anext(stream)
        with pytest.raises(StreamTimeout, match="Leave some of them"):
            await anext(one.stream("teller3", FOR_EVER, timeout=0.01))
        with pytest.raises(StreamTimeout, match="clients of this run read 3 streams"):
            await anext(two.stream("teller3", FOR_EVER, timeout=0.01))
        waiting = asyncio.ensure_future(anext(two.stream("teller3", {"n": 1})))
        await open_.pop().aclose()
        assert (await waiting)["n"] == 0
        monkeypatch.setattr(server, "STREAMS_OPEN_MAX", 1)  # of a client that does not keep its own bound
        one._connection._stream_places.release()  # type: ignore[union-attr]
        with pytest.raises(StreamError, match="This client reads"):
            await anext(one.stream("teller3", {"n": 1}))
        for stream in open_:
            await stream.aclose()
    await runtime.until(lambda: serving.streams == 0)


async def test_streams_go_on_beside_as_many_requests_as_there_may_be(
    runtime: RuntimeUnderTest, switchboard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a client has taken is heard also while its requests wait for the very agent that streams to it."""
    await runtime.start(Teller("teller"))
    switchboard.serve(runtime)
    assert server.IN_FLIGHT_MAX == protocol.IN_FLIGHT_MAX
    async with connect("shop") as client:
        stream = client.stream("teller", {"n": 400})
        await anext(stream)
        asks = [asyncio.ensure_future(client.ask("teller", {"plain": True})) for _ in range(3 * server.IN_FLIGHT_MAX)]
        await asyncio.sleep(0)
        assert [chunk["n"] async for chunk in stream] == list(range(1, 400))
        assert len(await asyncio.gather(*asks)) == 3 * server.IN_FLIGHT_MAX


async def test_chunks_of_any_size_go_and_one_that_no_frame_takes_is_named(
    runtime: RuntimeUnderTest, switchboard: Any
) -> None:
    await runtime.start(Teller("teller"), max_restarts=10)
    switchboard.serve(runtime)
    async with connect("shop") as client:
        large = client.stream("teller", {"n": 20, "pad": b"x" * 900_000})
        assert [chunk["n"] async for chunk in large] == list(range(20))
    parts = server._frames([b"a", b"b", b"x" * (9 << 20), b"c"])
    assert next(parts) == [b"a", b"b"]
    with pytest.raises(Exception, match="9,437,184"):
        next(parts)


async def test_a_run_that_is_silent_beyond_its_own_deadlines_is_named(
    runtime: RuntimeUnderTest, switchboard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "GRACE_S", 0.02)
    monkeypatch.setattr("civitas_shm.clients.client.GRACE_S", 0.02)
    monkeypatch.setattr("civitas_shm.clients.exchange.GRACE_S", 0.02)
    await runtime.start(Teller("teller"))
    serving = switchboard.serve(runtime)
    async with connect("shop") as client:
        monkeypatch.setattr(server._Client, "data_received", lambda self, data: None)
        with pytest.raises(RunNotAnswering, match="blocks its event loop"):
            await anext(client.stream("teller", {"n": 1}, timeout=0.01))
        with pytest.raises(RunNotAnswering, match="blocks its event loop"):
            await client.ask("teller", {}, timeout=0.01)

        def work() -> None:
            with connect_blocking("shop") as other, pytest.raises(RunNotAnswering, match="blocks its event loop"):
                next(other.stream("teller", {"n": 1}, timeout=0.01))

        await asyncio.to_thread(work)
    await runtime.until(lambda: serving.clients == 0)


# --- types ------------------------------------------------------------------------------------------------------------


class Point(msgspec.Struct):
    x: int
    y: int


class Pointer(AgentProcess):
    async def handle(self, message: Message) -> None:
        for number in range(3):
            await self.emit(Point(number, -number))


async def test_chunks_of_a_type_that_only_the_client_wants(runtime: RuntimeUnderTest, switchboard: Any) -> None:
    await runtime.start(Pointer("pointer"))
    switchboard.serve(runtime)
    async with connect("shop") as client:
        points = [point async for point in client.stream("pointer", {}, reply_type=Point)]
        assert points == [Point(0, 0), Point(1, -1), Point(2, -2)]

    def read() -> list[Any]:
        with connect_blocking("shop") as client:
            return list(client.stream("pointer", {}, reply_type=Point))

    assert await asyncio.to_thread(read) == points


# --- the blocking twin ------------------------------------------------------------------------------------------------


async def test_the_blocking_twin_reads_streams_each_on_a_connection_of_its_own(
    runtime: RuntimeUnderTest, switchboard: Any
) -> None:
    tellers = [Teller(f"teller{number}") for number in range(2)]
    await runtime.start(*tellers, max_restarts=10)
    serving = switchboard.serve(runtime)

    def work() -> None:
        client = connect_blocking("shop")
        assert [chunk["n"] for chunk in client.stream("teller0", {"n": 300})] == list(range(300))
        dialled = switchboard.dialled
        one, two = client.stream("teller0", {"n": 100}), client.stream("teller1", {"n": 100})
        for number, (first, second) in enumerate(zip(one, two, strict=True)):
            assert first["n"] == second["n"] == number
        assert one.received == 100
        assert switchboard.dialled == dialled + 1  # read to their ends, connections are used again
        with pytest.raises(StreamInterrupted, match="no more") as failed:
            list(client.stream("teller0", {"n": 3, "fail": True}))
        assert isinstance(failed.value.__cause__, AgentError)
        with pytest.raises(StreamTimeout, match="has sent nothing"):
            list(client.stream("teller0", {"n": 1, "wait": True}, idle_timeout=0.01))
        with client.stream("teller0", FOR_EVER) as stream:
            for chunk in stream:
                if chunk["n"] == 100:
                    break
        with pytest.raises(StopIteration):
            next(stream)
        stream = client.stream("teller0", FOR_EVER)
        next(stream)
        del stream  # Flask lets go of an iterator whose browser has gone
        gc.collect()
        inherited = client.stream("teller1", {"n": 3})
        next(inherited)
        inherited._pid = os.getpid() + 1  # what a forked child sees
        with pytest.raises(TransportClosed, match="forked"):
            next(inherited)
        inherited.close()
        assert client.ask("teller1", {"plain": True}).payload == {"n": -1}
        client.close()
        with pytest.raises(TransportClosed, match="closed"):
            next(client.stream("teller0", {"n": 1}))

    await asyncio.to_thread(work)
    await runtime.until(lambda: Teller.ends.count("StreamInterrupted") == 2)
    await runtime.until(lambda: serving.clients == 0)
