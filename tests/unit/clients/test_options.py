"""How clients send and ask, beside the plain way: later, again, many at once, and with replies of a type."""

from __future__ import annotations

import asyncio
import gc
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest

from civitas_shm import (
    AgentError,
    AgentProcess,
    ConfigurationError,
    DeserializationError,
    ErrorAction,
    MailboxFull,
    Message,
    MessageValidationError,
    Retry,
    connect,
    connect_blocking,
    payload_type,
)
from civitas_shm.clients.server import _checked
from civitas_shm.testing import Probe, RuntimeUnderTest

RETRY = Retry(attempts=3, on=("ValueError", MailboxFull), backoff="CONSTANT", backoff_base=0.0)


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_message_comes_later_again_and_not_if_it_is_cancelled_or_stale(
    runtime: RuntimeUnderTest, switchboard: Any, blocking: bool
) -> None:
    probe = Probe("probe")
    await runtime.start(probe)
    switchboard.serve(runtime)
    a_moment_ago = datetime.now() - timedelta(seconds=1)
    orders: list[tuple[Any, dict[str, Any]]] = [
        ("never", {"delay": 1000.0, "key": "never"}),
        ("delayed", {"delay": 0.01}),
        ("past", {"at": a_moment_ago}),
        ("past, as a number", {"at": a_moment_ago.timestamp()}),
        ("again", {"every": 0.01}),
        ("with a ttl", {"ttl": 100.0}),
    ]
    if blocking:

        def work() -> None:
            with connect_blocking("shop") as client:
                for what, how in orders:
                    client.send("probe", {"what": what}, what, **how)
                client.cancel("never")
                with pytest.raises(MessageValidationError, match="give one of them"):
                    client.send("probe", {}, delay=1.0, at=5.0)

        await asyncio.to_thread(work)
    else:
        async with connect("shop") as client:
            for what, how in orders:
                await client.send("probe", {"what": what}, what, **how)
            await client.cancel("never")
            with pytest.raises(MessageValidationError, match="give one of them"):
                await client.send("probe", {}, delay=1.0, at=5.0)
    # No client is connected from here on.
    for what, _ in orders[1:]:
        await probe.expect(what, sender="_runtime")
    await probe.expect("again")
    delays = runtime.runtime._run._driver.delays
    await runtime.until(lambda: delays.waiting() == {})
    assert "never" not in {message.type for message in probe.messages}
    await runtime.runtime.cancel("probe/again")  # keys are those of the program and its clients together


class Moody(AgentProcess):
    """Answers one ask in three, until it has."""

    asked = 0

    async def handle(self, message: Message) -> Message:
        self.asked += 1
        if self.asked != 3:
            raise ValueError("no")
        return self.reply({"ok": True})

    async def on_error(self, error: Exception, message: Message) -> ErrorAction:
        return ErrorAction.SKIP


class Choosy(AgentProcess):
    """Answers four in five."""

    async def handle(self, message: Message) -> Message:
        if message.payload["n"] % 5 == 4:
            raise ValueError(f"no {message.payload['n']}")
        return self.reply({"who": self.name, **message.payload})

    async def on_error(self, error: Exception, message: Message) -> ErrorAction:
        return ErrorAction.SKIP


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_send_and_an_ask_are_tried_again_from_the_client(
    runtime: RuntimeUnderTest, switchboard: Any, blocking: bool
) -> None:
    await runtime.start(Moody("failing"))
    switchboard.serve(runtime)
    if blocking:

        def work() -> None:
            with connect_blocking("shop") as client:
                assert client.ask("failing", {}, retry=RETRY).payload == {"ok": True}
                with pytest.raises(AgentError) as failed:
                    client.ask("failing", {}, retry=RETRY)
                assert "after 3 attempts" in failed.value.__notes__
                client.send("failing", {}, retry=RETRY)

        await asyncio.to_thread(work)
    else:
        async with connect("shop") as client:
            assert (await client.ask("failing", {}, retry=RETRY)).payload == {"ok": True}
            with pytest.raises(AgentError) as failed:
                await client.ask("failing", {}, retry=RETRY)
            assert "after 3 attempts" in failed.value.__notes__
            await client.send("failing", {}, retry=RETRY)


@pytest.mark.parametrize("blocking", [False, True])
async def test_many_are_asked_over_one_connection_and_answers_come_in_the_order_of_the_payloads(
    runtime: RuntimeUnderTest, switchboard: Any, blocking: bool
) -> None:
    await runtime.start(Choosy("one"), Choosy("two"))
    switchboard.serve(runtime)
    # Of a size at which neither side can say all it has to while the other does not read.
    questions = [{"n": n, "pad": b"x" * 100_000} for n in range(50)]

    def check(got: list[Any]) -> None:
        for n, one in enumerate(got):
            if n % 5 == 4:
                assert isinstance(one, AgentError)
                assert any(f"payload {n} of" in note for note in one.__notes__)
            else:
                assert one.payload["n"] == n
        assert {one.payload["who"] for n, one in enumerate(got) if n % 5 != 4} == {"one", "two"}

    if blocking:

        def work() -> None:
            with connect_blocking("shop") as client:
                check(client.ask_many(["one", "two"], questions, limit=1000, return_exceptions=True))
                retry = Retry(attempts=2, on=("ValueError",), backoff_base=0.001)
                with pytest.raises(ExceptionGroup, match="10 of 50 asks failed") as several:
                    client.ask_many(["one", "two"], iter(questions), limit=7, retry=retry)
                assert all("after 2 attempts" in one.__notes__ for one in several.value.exceptions)
                assert client.ask_many("one", []) == []
                with pytest.raises(ValueError, match="nobody"):
                    client.ask_many([], [{}])
                assert len(client._idle) == 1

        await asyncio.to_thread(work)
        assert switchboard.dialled == 1
    else:
        async with connect("shop") as client:
            check(await client.ask_many(["one", "two"], questions, limit=1000, return_exceptions=True))
            with pytest.raises(ExceptionGroup, match="10 of 50 asks failed"):
                await client.ask_many(["one", "two"], iter(questions), limit=7)


# --- types ------------------------------------------------------------------------------------------------------------


class Agents:
    """Types of the agents' own module, which no program but theirs knows."""

    class Point(msgspec.Struct):
        x: int
        y: int

    class Nothing(msgspec.Struct):
        why: str = ""


class Point(msgspec.Struct):
    """The client's own: another module, the same name, and one more field."""

    x: int
    y: int
    colour: str = "black"


class Pointer(AgentProcess):
    async def handle(self, message: Message) -> Message:
        match message.payload["want"]:
            case "point":
                return self.reply(Agents.Point(1, 2))
            case "nothing":
                return self.reply(Agents.Nothing("none here"))
            case _:
                return self.reply({"x": 1, "y": 2})


async def test_a_reply_of_a_type_needs_no_declaration_in_the_program_that_started_the_run(
    runtime: RuntimeUnderTest, switchboard: Any
) -> None:
    await runtime.start(Pointer("pointer"))
    switchboard.serve(runtime)
    async with connect("shop") as client:
        for want in ("point", "dict"):
            reply = await client.ask("pointer", {"want": want}, reply_type=Point)
            assert reply.payload == Point(1, 2)
            assert type(reply.payload) is Point
        reply = await client.ask("pointer", {"want": "dict"}, reply_type=Point | dict)
        assert reply.payload == {"x": 1, "y": 2}
        with pytest.raises(DeserializationError, match=r"Nothing; reply_type wants Point"):
            await client.ask("pointer", {"want": "nothing"}, reply_type=Point)
        reply = await client.ask("pointer", {"want": "nothing"}, reply_type=Point | Agents.Nothing)
        assert reply.payload == Agents.Nothing("none here")
        with pytest.raises(DeserializationError, match="reply_type="):
            await client.ask("pointer", {"want": "point"})
        payload_type(Agents.Point)
        assert (await client.ask("pointer", {"want": "point"})).payload == Agents.Point(1, 2)
        for impossible in (int, list[int], "Point"):
            with pytest.raises(ConfigurationError):
                await client.ask("pointer", {"want": "point"}, reply_type=impossible)

    def work() -> None:
        with connect_blocking("shop") as client:
            assert client.ask("pointer", {"want": "point"}, reply_type=Point).payload == Point(1, 2)
            [one] = client.ask_many("pointer", [{"want": "point"}], reply_type=Point)
            assert one.payload == Point(1, 2)

    await asyncio.to_thread(work)


def test_an_option_of_a_newer_client_is_refused_in_words() -> None:
    with pytest.raises(MessageValidationError, match=r"of the run knows no option colour"):
        _checked({"priority": 1, "colour": "red"}, {"priority"})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a connection that its loop left open
def test_one_client_serves_one_asyncio_run_after_the_other(runtime: RuntimeUnderTest, switchboard: Any) -> None:
    """As a program does that has it at the top of a module."""

    async def serve() -> None:
        await runtime.start(Probe("probe", {"ok": True}))
        switchboard.serve(runtime)

    async def end() -> None:
        def work() -> None:
            client = connect("shop")
            for _ in range(2):
                assert asyncio.run(client.ask("probe", {})).payload == {"ok": True}

        await asyncio.to_thread(work)
        gc.collect()

    runtime.run(serve())
    runtime.run(end())
