"""Clients of a run: the same errors, deadlines and order as inside of it, bounded, and nothing that harms it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import msgspec
import pytest

from civitas_shm import (
    AgentError,
    AgentProcess,
    Client,
    MailboxFull,
    Message,
    MessageRoutingError,
    MessageValidationError,
    PayloadTooLarge,
    RunNotAnswering,
    RunNotFound,
    TransportClosed,
    connect,
    connect_blocking,
)
from civitas_shm.clients import blocking, exchange, server
from civitas_shm.clients import client as client_module
from civitas_shm.testing import Probe, RuntimeUnderTest


class Slow(AgentProcess):
    """Answers when it is let."""

    let = asyncio.Event()

    async def handle(self, message: Message) -> Message:
        await type(self).let.wait()
        return self.reply(message.payload)


@pytest.fixture(autouse=True)
def nobody_is_let(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slow, "let", asyncio.Event())


async def test_a_client_asks_sends_and_broadcasts(runtime: RuntimeUnderTest, switchboard: Any) -> None:
    probe = Probe("probe", lambda message: {"got": message.payload, "of": message.priority})
    other = Probe("prop")
    await runtime.start(probe, other)
    switchboard.serve(runtime)
    async with connect("shop") as client:
        reply = await client.ask("probe", {"n": 1, "bytes": b"\0", "pair": (1, 2)}, message_type="question", priority=3)
        assert reply.payload == {"got": {"n": 1, "bytes": b"\0", "pair": (1, 2)}, "of": 3}
        assert (reply.type, reply.sender, reply.recipient) == ("reply", "probe", "_client")
        question = await probe.expect("question", sender="_runtime")
        assert question.trace_id == reply.trace_id
        assert question.correlation_id == reply.correlation_id
        await client.send("probe", {"n": 2}, "news")
        await probe.expect("news", {"n": 2})
        await client.broadcast("pro*", {"n": 3})
        await other.expect(payload={"n": 3})
    with pytest.raises(TransportClosed, match="closed"):
        await client.ask("probe", {})


class Order(msgspec.Struct):
    sku: str
    count: int


class Shop(AgentProcess):
    """Takes orders, whoever sends them."""

    async def handle(self, message: Message[Order]) -> Message:
        return self.reply({"sku": message.payload.sku, "count": message.payload.count})


async def test_payloads_of_a_type_go_on_as_they_are_and_replies_of_supervision_come_too(
    runtime: RuntimeUnderTest, switchboard: Any
) -> None:
    await runtime.start(Shop("orders"))
    switchboard.serve(runtime)
    async with connect("shop") as client:
        assert (await client.ask("orders", Order("tea", 3))).payload == {"sku": "tea", "count": 3}
        assert (await client.ask("orders", {"sku": "tea", "count": 4})).payload == {"sku": "tea", "count": 4}
        status = await client.ask("root", {}, message_type="civitas.supervision.status")
        assert [child["name"] for child in status.payload["children"]] == ["orders"]
        assert status.recipient == "_client"
        assert status.id


async def test_errors_are_those_of_the_run_with_their_attributes(runtime: RuntimeUnderTest, switchboard: Any) -> None:
    await runtime.start(Probe("fails", ValueError("no")), Slow("slow", mailbox_size=1), max_restarts=10)
    switchboard.serve(runtime)
    async with connect("shop") as client:
        with pytest.raises(AgentError, match="'fails' raised ValueError: no") as failed:
            await client.ask("fails", {})
        assert (failed.value.agent, failed.value.type_name) == ("fails", "ValueError")
        assert "Traceback" in failed.value.remote_traceback
        with pytest.raises(MessageRoutingError, match="'slow'"):
            await client.send("sloww", {})
        with pytest.raises(MessageValidationError, match=r"payload\.x"):
            await client.send("slow", {"x": object()})
        with pytest.raises(MessageValidationError, match="kept for the runtime"):
            await client.send("slow", {}, "_agency.shutdown")
        with pytest.raises(PayloadTooLarge, match="8,388,608"):
            await client.send("slow", {"x": b"x" * (9 << 20)})
        with pytest.raises(TimeoutError, match="did not answer"):
            await client.ask("slow", {}, timeout=0.01)
        await client.send("slow", {})
        with pytest.raises(MailboxFull) as full:
            await client.send("slow", {}, timeout=0.01)
        assert (full.value.name, full.value.capacity) == ("slow", 1)
        with pytest.raises(ExceptionGroup, match="1 of 2 failed") as several:
            await client.broadcast("*", {}, timeout=0.01)
        assert isinstance(several.value.exceptions[0], MailboxFull)
    Slow.let.set()


async def test_messages_of_one_client_keep_their_order_however_many_it_has_under_way(
    runtime: RuntimeUnderTest, switchboard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IN_FLIGHT_MAX", 3)
    probe = Probe("probe", mailbox_size=2)
    await runtime.start(probe)
    switchboard.serve(runtime)
    async with connect("shop") as client:
        await asyncio.gather(*(client.send("probe", {"n": number}) for number in range(50)))
    assert [message.payload["n"] for message in probe.messages] == list(range(50))


async def test_who_has_as_many_requests_as_it_may_is_not_read_and_others_are(
    runtime: RuntimeUnderTest, switchboard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IN_FLIGHT_MAX", 2)
    await runtime.start(Slow("slow"), Probe("probe", {"ok": True}))
    switchboard.serve(runtime)
    async with connect("shop") as greedy, connect("shop") as modest:
        asks = [asyncio.ensure_future(greedy.ask("slow", {"n": number})) for number in range(5)]
        late = asyncio.ensure_future(greedy.ask("probe", {}))
        for _ in range(3):
            assert (await modest.ask("probe", {})).payload == {"ok": True}
        assert not late.done()
        Slow.let.set()
        assert [reply.payload["n"] for reply in await asyncio.gather(*asks)] == list(range(5))
        assert (await late).payload == {"ok": True}


async def test_what_nobody_waits_for_any_more_is_called_off(runtime: RuntimeUnderTest, switchboard: Any) -> None:
    await runtime.start(Slow("slow", mailbox_size=1))
    serving = switchboard.serve(runtime)
    async with connect("shop") as client, connect("shop") as gone:
        await client.send("slow", {"n": 1})  # in hand
        await runtime.until(lambda: runtime.runtime.snapshot().agents[0].queue == 0)
        await client.send("slow", {"n": 2})  # waits; there is room for no more
        sending = [asyncio.ensure_future(one.send("slow", {"n": 3})) for one in (client, gone)]
        await runtime.until(lambda: sum(len(one._works) for one in serving._clients) == 2)
        sending[0].cancel()
        gone.close()
        with pytest.raises(TransportClosed, match="closed"):
            await sending[1]
        await runtime.until(lambda: serving.clients == 1)
        await runtime.until(lambda: not any(one._works for one in serving._clients))
        Slow.let.set()
        assert (await client.ask("slow", {"n": 4})).payload == {"n": 4}
    assert runtime.runtime.snapshot().agents[0].handled == 3


async def test_a_run_that_is_full_says_who_has_its_connections(
    runtime: RuntimeUnderTest, switchboard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CLIENTS_MAX", 2)
    await runtime.start(Probe("probe", {}))
    switchboard.serve(runtime)
    async with connect("shop") as one, connect("shop"):
        with pytest.raises(RunNotFound, match=r"has 2 connections of clients, the most.*\(pid \d+\) 2\. Let"):
            await connect("shop").ask("probe", {})
        assert switchboard.replies[-1].kind == "clients"
        assert (await one.ask("probe", {})).payload == {}


async def test_at_the_end_of_the_run_all_hear_what_has_become_of_it_and_it_takes_nothing_new(
    runtime: RuntimeUnderTest, switchboard: Any
) -> None:
    await runtime.start(Slow("slow"), Probe("probe", {"ok": True}))
    serving = switchboard.serve(runtime)
    async with connect("shop") as client:
        asking = asyncio.ensure_future(client.ask("slow", {}))
        await runtime.until(lambda: any(one._works for one in serving._clients))
        serving.refuse("The run is stopping.")
        with pytest.raises(TransportClosed, match="is stopping"):
            await client.send("probe", {})
        assert not asking.done()
        serving.close("The run 'shop' was stopped in good order.")
        with pytest.raises(TransportClosed, match="stopped in good order"):
            await asking
        assert not client.connected
        switchboard.serve(runtime)  # it was resumed
        assert (await client.ask("probe", {})).payload == {"ok": True}
    Slow.let.set()


async def test_a_client_that_sends_garbage_is_told_so_and_is_gone(runtime: RuntimeUnderTest, switchboard: Any) -> None:
    await runtime.start(Probe("probe", {"ok": True}))
    serving = switchboard.serve(runtime)
    for garbage in (b"\xff\xff\xff\xff", b"\3\0\0\0abc", b"\4\0\0\0\x93\xa3abc"):
        line = await asyncio.to_thread(switchboard.dial)
        line.sock.setblocking(False)
        line.sock.send(garbage)
        heard = b""
        while chunk := await asyncio.get_running_loop().sock_recv(line.sock, 1 << 16):
            heard += chunk
        assert b"is no request" in heard
        line.sock.close()
    async with connect("shop") as client:
        assert (await client.ask("probe", {})).payload == {"ok": True}
        await runtime.until(lambda: serving.clients == 1)


async def test_who_does_not_read_its_answers_is_not_read_either(runtime: RuntimeUnderTest, switchboard: Any) -> None:
    await runtime.start(Probe("probe", {"large": b"x" * 500_000}))
    serving = switchboard.serve(runtime)
    line = await asyncio.to_thread(switchboard.dial)
    asks = [server.Ask(number, "probe", b"\x80", "message", None, {}) for number in range(30)]
    line.sock.setblocking(False)
    sending = asyncio.ensure_future(
        asyncio.get_running_loop().sock_sendall(line.sock, b"".join(map(server.encode_frame, asks)))
    )
    [one] = serving._clients
    await runtime.until(lambda: one._choked)
    async with connect("shop") as client:
        assert len((await client.ask("probe", {})).payload["large"]) == 500_000
    await sending
    decoder = client_module.FrameDecoder[client_module.ToClient](client_module.ToClient)
    answers: list[Any] = []
    while len(answers) < 30:
        answers += decoder.feed(await asyncio.get_running_loop().sock_recv(line.sock, 1 << 20))
    assert {answer.id for answer in answers} == set(range(30))
    line.sock.close()


async def test_a_client_of_another_loop_says_so(runtime: RuntimeUnderTest, switchboard: Any) -> None:
    await runtime.start(Probe("probe", {}))
    switchboard.serve(runtime)

    def elsewhere(client: Client) -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(client.ask("probe", {}))

    async with connect("shop") as client:
        await asyncio.to_thread(elsewhere, client)


# --- the blocking twin --------------------------------------------------------------------------------------------


async def test_threads_share_one_blocking_client_and_its_connections_are_used_again(
    runtime: RuntimeUnderTest, switchboard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "IDLE_KEPT", 2)
    probe = Probe("probe", lambda message: dict(message.payload))
    await runtime.start(probe)
    serving = switchboard.serve(runtime)
    started = threading.Barrier(4)  # as many as the loop's executor has on the smallest machine

    def work(client: Any, number: int) -> list[Any]:
        started.wait()
        client.send("probe", {"n": -1})
        return [client.ask("probe", {"n": number, "i": i}).payload for i in range(20)]

    client = connect_blocking("shop")
    answers = await asyncio.gather(*(asyncio.to_thread(work, client, number) for number in range(4)))
    for number, got in enumerate(answers):
        assert got == [{"n": number, "i": i} for i in range(20)]
    await runtime.until(lambda: serving.clients <= blocking.IDLE_KEPT)
    await asyncio.to_thread(client.broadcast, "pro*", {"n": -2})
    dialled = switchboard.dialled
    await asyncio.to_thread(client.ask, "probe", {})
    assert switchboard.dialled == dialled
    client.close()
    await runtime.until(lambda: serving.clients == 0)
    assert sum(message.payload.get("n") == -1 for message in probe.messages) == 4
    with pytest.raises(TransportClosed, match="closed"):
        client.ask("probe", {})


async def test_the_blocking_twin_has_the_same_errors_and_finds_the_run_again(
    runtime: RuntimeUnderTest, switchboard: Any
) -> None:
    await runtime.start(Slow("slow"), Probe("probe", {"ok": True}))
    serving = switchboard.serve(runtime)

    def work() -> None:
        client = connect_blocking("shop")
        with pytest.raises(TimeoutError, match="did not answer"):
            client.ask("slow", {}, timeout=0.01)
        with pytest.raises(MessageRoutingError):
            client.send("nobody", {})
        assert client.ask("probe", {}).payload == {"ok": True}
        runtime_loop.call_soon_threadsafe(serving.close, "It was stopped.")
        # Said on the connection that the question went over, or on the next one if that was closed before.
        with pytest.raises((TransportClosed, RunNotFound), match="It was stopped"):
            client.ask("slow", {})
        switchboard.server = None
        with pytest.raises(RunNotFound, match="nobody serves"):
            client.ask("probe", {})
        serve_again.set()
        client.close()

    runtime_loop = asyncio.get_running_loop()
    serve_again = threading.Event()
    await asyncio.to_thread(work)
    assert serve_again.is_set()
    switchboard.serve(runtime)
    client = connect_blocking("shop")
    assert (await asyncio.to_thread(client.ask, "probe", {})).payload == {"ok": True}
    client.close()
    Slow.let.set()


async def test_a_program_that_blocks_its_loop_is_told_apart_from_an_agent_that_is_slow(
    runtime: RuntimeUnderTest, switchboard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "GRACE_S", 0.05)
    await runtime.start(Probe("probe", {}))
    switchboard.serve(runtime)
    client = await asyncio.to_thread(connect_blocking("shop").__enter__)
    with pytest.raises(RunNotAnswering, match="blocks its event loop"):
        client.ask("probe", {}, timeout=0.05)  # on the very loop that would have to answer
