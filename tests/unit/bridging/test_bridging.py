"""Bridges over a link that loses what it is told to: several hosts in this process, no broker."""

from __future__ import annotations

import asyncio
import functools
import sys
import types
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from civitas_shm import AgentProcess, Message, Runtime, Supervisor
from civitas_shm.bridge.link import LinkEvents, LinkSettings, LinkState
from civitas_shm.bridge.wire import Answer, Frame, Parcel, decode_frame, encode_frame
from civitas_shm.bridging import outbox
from civitas_shm.errors import AgentError, MailboxFull, MessageRoutingError
from civitas_shm.topology.model import BridgeSpec

MODULE = "civitas_shm_test.air"


class Air:
    """What all links of one test are connected by."""

    def __init__(self) -> None:
        self.links: dict[str, AirLink] = {}
        self.lost: Callable[[Frame], bool] = lambda frame: False
        self.turn = 0

    def link(self, settings: LinkSettings) -> AirLink:
        made = self.links[settings.host] = AirLink(self, settings.host)
        return made

    def of(self, run: str) -> AirLink:
        return next(link for host, link in self.links.items() if host.startswith(f"{run}-"))


class AirLink:
    """The contract is `civitas_shm.bridge.link.Link`."""

    def __init__(self, air: Air, host: str) -> None:
        self.air = air
        self.host = host
        self.state: LinkState = "connecting"
        self.frame_bytes_max = 100_000
        self.names: set[str] = set()
        self.events: LinkEvents | None = None

    async def open(self, events: LinkEvents) -> None:
        self.events = events
        self.up()

    async def close(self) -> None:
        self.state, self.events = "closed", None

    def up(self) -> None:
        self.change("up")

    def down(self) -> None:
        self.change("down")

    def change(self, state: LinkState) -> None:
        self.state = state
        if self.events is not None:
            asyncio.get_running_loop().call_soon(self.events.state_changed, state, "as the test wants it")

    def publish(self, name: str, frame: bytes, key: int) -> bool:
        there = [link for link in self.air.links.values() if name in link.names and link.state == "up"]
        self.air.turn += 1
        return self.give(there[self.air.turn % len(there)] if there else None, frame, key)

    def publish_to_host(self, host: str, frame: bytes, key: int) -> bool:
        link = self.air.links.get(host)
        return self.give(link if link is not None and link.state == "up" else None, frame, key)

    def give(self, link: AirLink | None, frame: bytes, key: int) -> bool:
        assert len(frame) <= self.frame_bytes_max
        if self.state != "up" or self.events is None:
            return False
        loop = asyncio.get_running_loop()
        if link is None:
            if key:
                loop.call_soon(self.events.unroutable, key)
        elif not self.air.lost(decode_frame(frame)):
            loop.call_soon(link.hear, frame)
        return True

    def hear(self, frame: bytes) -> None:
        if self.events is not None:
            self.events.received(frame)

    def subscribe(self, name: str) -> None:
        self.names.add(name)

    def unsubscribe(self, name: str) -> None:
        self.names.discard(name)

    def counts(self) -> dict[str, int]:
        return {}


@pytest.fixture
def air(monkeypatch: pytest.MonkeyPatch) -> Air:
    air, module = Air(), types.ModuleType(MODULE)
    module.link = air.link  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, MODULE, module)
    monkeypatch.setattr(outbox, "REPEAT_S", 0.2)
    monkeypatch.setattr(outbox, "LOOK_S", 0.05)
    monkeypatch.setattr(outbox, "ABSENT_S", 0.01)
    return air


def in_loop(test: Callable[[Air], Coroutine[Any, Any, None]]) -> Callable[[Air], None]:
    @functools.wraps(test)
    def run(air: Air) -> None:
        asyncio.run(test(air))

    return run


class Worker(AgentProcess):
    """Notes what it gets; `wait` makes it wait for `go`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.got: list[Message] = []
        self.go = asyncio.Event()

    async def handle(self, message: Message) -> Message | None:
        if message.type == "wait":
            await self.go.wait()
        if message.type == "fail":
            raise ValueError("as asked")
        self.got.append(message)
        return self.reply({"n": message.payload.get("n"), "from": message.sender})


class Boss(AgentProcess):
    async def handle(self, message: Message) -> Message:
        answer = await self.ask("worker", message.payload)
        return self.reply(
            {"said": answer.payload, "by": answer.sender, "same trace": answer.trace_id == message.trace_id}
        )


@asynccontextmanager
async def host(
    name: str, *agents: AgentProcess, expected: tuple[str, ...] = (), **options: Any
) -> AsyncIterator[Runtime]:
    bridge = BridgeSpec(MODULE, options, expected=list(expected))
    async with Runtime(Supervisor("root", list(agents)), bridge=bridge, name=name) as runtime:
        yield runtime


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(50):
        while not holds():
            await asyncio.sleep(0.001)


def numbers(worker: Worker) -> list[Any]:
    return [message.payload["n"] for message in worker.got]


def reading(runtime: Runtime) -> dict[str, Any]:
    return runtime._run.agent("_bridge").reading()  # type: ignore[no-any-return]


@in_loop
async def test_asks_and_sends_reach_agents_of_another_host_with_sender_trace_and_priority(air: Air) -> None:
    worker = Worker("worker")
    async with host("a", worker), host("b", Boss("boss")) as b:
        said = (await b.ask("boss", {"n": 1})).payload
        assert said == {"said": {"n": 1, "from": "boss"}, "by": "worker", "same trace": True}
        await b.send("worker", {"n": 2}, priority=5)
        await until(lambda: len(worker.got) == 2)
        assert (worker.got[1].sender, worker.got[1].priority, worker.got[1].delivery) == ("_runtime", 5, 1)
        with pytest.raises(AgentError, match="ValueError: as asked"):
            await b.ask("worker", {}, message_type="fail")


@in_loop
async def test_a_name_that_nobody_has_is_an_error_at_once_and_a_send_to_it_a_dead_letter(air: Air) -> None:
    async with host("a"), host("b") as b:
        with pytest.raises(MessageRoutingError, match="No host that the bridge reaches has an agent named 'nobody'"):
            await b.ask("nobody", {}, timeout=3600)
        await b.send("nobody", {"n": 1})
        await until(b.dead_letters)
        assert "has an agent named 'nobody'" in b.dead_letters()[0].cause
        assert reading(b)["on_way"] == 0


@in_loop
async def test_frames_that_get_lost_are_sent_again_and_none_is_handled_twice(air: Air) -> None:
    """Every third frame is lost, whichever way it goes; with receipts, so some come again that were taken."""
    worker, parcels, receipts = Worker("worker"), 0, 0

    def lost(frame: Frame) -> bool:
        nonlocal parcels, receipts
        parcels += bool(frame.parcels)
        receipts += bool(frame.taken)
        return not frame.answers and (parcels % 3 == 0 if frame.parcels else receipts % 3 == 1)

    air.lost = lost
    async with host("a", worker) as a, host("b") as b:
        for n in range(100):
            await b.send("worker", {"n": n})
        answers = await asyncio.gather(*(b.ask("worker", {"n": n}, timeout=50) for n in range(100, 140)))
        await until(lambda: reading(b)["on_way"] == 0 and len(worker.got) >= 140)
        assert sorted(numbers(worker)) == list(range(140))
        assert [answer.payload["n"] for answer in answers] == list(range(100, 140))
        assert reading(a)["doubles"] > 0
        assert reading(b)["repeated"] > 0


@in_loop
async def test_a_link_that_is_down_fills_the_outbox_and_then_senders_wait_with_a_deadline(air: Air) -> None:
    worker = Worker("worker")
    async with host("a", worker), host("b", outbox=3) as b:
        await b.ask("worker", {"n": 0})
        link = air.of("b")
        link.down()
        await until(lambda: reading(b)["state"] == "down")
        for n in range(1, 4):
            await b.send("worker", {"n": n})
        with pytest.raises(MailboxFull, match=r"'_bridge'.* 3 "):
            await b.send("worker", {"n": 99}, timeout=0.01)
        link.up()
        await until(lambda: len(worker.got) == 4)
        assert numbers(worker) == [0, 1, 2, 3], "in their order"


@in_loop
async def test_a_full_mailbox_holds_its_own_messages_and_nobody_elses(air: Air) -> None:
    slow, quick = Worker("slow"), Worker("quick")
    slow.mailbox_size = 1
    async with host("a", slow, quick) as a, host("b") as b:
        await b.send("slow", {"n": 0}, message_type="wait")
        for n in range(1, 10):
            await b.send("slow", {"n": n})
        await until(lambda: reading(a)["held"] >= 5)
        assert (await b.ask("quick", {"n": 1})).payload["n"] == 1
        await until(lambda: reading(b)["repeated"] > 2)
        slow.go.set()
        await until(lambda: len(slow.got) == 10)
        assert numbers(slow) == list(range(10)), "in their order, each once, however often it was asked for"


@in_loop
async def test_three_hosts_share_one_name_and_one_of_them_goes_on_alone(air: Air) -> None:
    outbox.REPEAT_S = 30.0  # what is repeated may go to another one of them; `air` puts it back
    workers = [Worker("worker") for _ in range(3)]
    async with host("b") as b, host("w1", workers[0]):
        async with host("w2", workers[1]), host("w3", workers[2]):
            for n in range(90):
                await b.ask("worker", {"n": n})
            shares = [len(worker.got) for worker in workers]
            assert min(shares) >= 10
        for n in range(90, 120):
            await b.ask("worker", {"n": n})
        assert sorted(n for worker in workers for n in numbers(worker)) == list(range(120))
        assert len(workers[0].got) == shares[0] + 30


@in_loop
async def test_an_expected_agent_may_come_later_than_what_is_sent_to_it(air: Air) -> None:
    worker = Worker("worker")
    async with host("b", expected=("worker",)) as b:
        asked = asyncio.create_task(b.ask("worker", {"n": 1}, timeout=20))
        await until(lambda: reading(b)["unroutable"] >= 2)
        with pytest.raises(TimeoutError):
            await b.ask("worker", {"n": 7}, timeout=0.01)
        async with host("a", worker):
            assert (await asked).payload["n"] == 1
            await until(lambda: reading(b)["on_way"] == 0)
            assert 7 not in numbers(worker), "its asker had given up"


@in_loop
async def test_nothing_that_arrives_harms_the_bridge(air: Air) -> None:
    worker = Worker("worker")
    async with host("a", worker) as a, host("b") as b:
        link = air.of("a")

        def parcel(**fields: Any) -> Parcel:
            known: dict[str, Any] = {
                "to": "worker", "type": "message", "sender": "x", "payload": b"\x80", "id": b"i" * 16,
                "trace": b"t" * 16, "span": b"s" * 8, "seq": 1,
            }  # fmt: skip
            return Parcel(**(known | fields))

        for bad in (b"", b"\x01", b"\x02" + b"x" * 50, b"\x01" + b"\x91" * 10_000, bytes(range(256)) * 40):
            link.hear(bad)
        assert reading(a)["bad_frames"] == 5
        hostile = [
            parcel(type="_agency.shutdown", id=b"1" * 16),
            parcel(to="_bridge", id=b"2" * 16),
            parcel(to="root", id=b"3" * 16),
            parcel(payload=b"\xff\xff", id=b"4" * 16),
        ]
        link.hear(
            encode_frame(Frame("evil", 1, hostile, [Answer(b"x" * 52, "worker", "reply", b"\x80")], 7, [1, 2], [], [3]))
        )
        await until(lambda: len(a.dead_letters()) == 1)  # what cannot be decoded, by its agent
        seen = reading(a)
        assert (seen["refused_here"], seen["forged"]) == (3, 1)
        link.hear(encode_frame(Frame("evil", 0, [parcel(id=b"5" * 16)])))
        assert reading(a)["stale"] == 1, "of an earlier life of that host"
        assert (await b.ask("worker", {"n": 5})).payload["n"] == 5
        assert numbers(worker) == [5]


@in_loop
async def test_what_does_not_fit_into_a_frame_is_an_error_that_names_the_limit(air: Air) -> None:
    async with host("a", Worker("worker")), host("b") as b:
        with pytest.raises(AgentError, match=r"PayloadTooLarge: A payload of 200,.* whose limit is 97,952 bytes"):
            await b.ask("worker", {"n": b"x" * 200_000})
        await b.send("worker", {"n": b"x" * 200_000})
        await until(b.dead_letters)
        assert "does not fit" in b.dead_letters()[0].cause


@in_loop
async def test_local_names_go_before_those_of_other_hosts(air: Air) -> None:
    here, there = Worker("worker"), Worker("worker")
    async with host("a", there), host("b", here) as b:
        await b.ask("worker", {"n": 1})
        assert (numbers(here), numbers(there)) == ([1], [])
