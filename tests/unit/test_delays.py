"""Delayed messages: when, once or again, by which key; and that no death of the one who keeps them loses or doubles
one.

Deaths are played on the real file: a keeper that dies is one that is never heard of again, at any of its steps.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from civitas_shm import (
    AgentProcess,
    DelayedFull,
    Message,
    MessageRoutingError,
    MessageValidationError,
    Runtime,
    Supervisor,
)
from civitas_shm.clock import ManualClock
from civitas_shm.delay_store import FileDelays, MemoryDelays, Store, count_delayed, list_delayed
from civitas_shm.delays import Delays
from civitas_shm.letters import Note
from civitas_shm.messages import HEADER, new_header
from civitas_shm.sending import ORDER_CANCEL, ORDER_SEND, How
from civitas_shm.serializer import encode
from civitas_shm.transport import FULL, SENT, Buried, Delivery


class Died(BaseException):
    """The keeper is killed here."""


OPENED: list[FileDelays] = []


@pytest.fixture(autouse=True)
def closed_behind() -> Iterator[None]:
    """What keepers that were killed have left open."""
    yield
    while OPENED:
        if (db := OPENED.pop()._db) is not None:
            db.close()


class Loop:
    """Timers that a manual clock moves."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.soon: deque[Callable[[], object]] = deque()
        self.later: list[tuple[float, int, Any]] = []
        self.count = 0

    def call_soon(self, callback: Callable[[], object]) -> None:
        self.soon.append(callback)

    def call_later(self, delay: float, callback: Callable[[], object]) -> Any:
        self.count += 1
        handle = _Handle(callback)
        self.later.append((self.clock.monotonic_s() + delay, self.count, handle))
        return handle

    def run(self) -> None:
        while self.soon:
            self.soon.popleft()()

    def advance(self, seconds: float) -> None:
        """Time passes; what is due is called in order."""
        end = self.clock.monotonic_s() + seconds
        self.run()
        while due := sorted((entry for entry in self.later if entry[0] <= end), key=lambda entry: entry[:2]):
            at, _, handle = due[0]
            self.later.remove(due[0])
            self.clock.advance(max(0.0, at - self.clock.monotonic_s()))
            if handle.callback is not None:
                handle.callback()
            self.run()
        self.clock.advance(max(0.0, end - self.clock.monotonic_s()))


class _Handle:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class World:
    """A mailbox of orders, recipients, and evidence, which outlive the keeper."""

    def __init__(self, directory: Path | None = None) -> None:
        self.clock = ManualClock(1_000.0)
        self.directory = directory
        self.orders: deque[Delivery] = deque()
        self.in_hand: dict[int, Delivery] = {}
        self.recipients: dict[str, list[dict[str, Any]]] = {"a": [], "b": []}
        self.full: set[str] = set()
        self.numbers = 0
        self.sent_numbers: set[int] = set()
        self.letters: list[tuple[Buried, Note]] = []
        self.tokens = 0
        self.steps = 0
        self.die_at: int | None = None
        self.memory = MemoryDelays()
        self.keep()

    def keep(self, resumed: bool = False, most: int = 1000) -> None:
        """A new keeper, over what the last one left."""
        self.loop = Loop(self.clock)
        self.orders.extendleft(reversed(list(self.in_hand.values())))
        self.in_hand.clear()
        self.keeper = Delays(
            self.loop, self, self._store, lambda letter, note: self.letters.append((letter, note)), most=most,
            monotonic_ns=lambda: int(self.clock.monotonic_s() * 1e9), wall_ns=lambda: int(self.clock.wall_s() * 1e9),
        )  # fmt: skip
        self.keeper.start(resumed)
        self.loop.run()

    def _store(self) -> Store:
        if self.directory is None:
            return self.memory
        store = FileDelays(self.directory)
        OPENED.append(store)
        return _Mortal(store, self.step)  # type: ignore[return-value]

    def step(self) -> None:
        self.steps += 1
        if self.steps == self.die_at:
            raise Died

    # --- what senders do ----------------------------------------------------------------------------------------------

    def send(self, payload: dict[str, Any], to: str = "a", sender: str = "s", **how: Any) -> None:
        order = How(**how).order(to, "message", payload, 0)
        assert order is not None
        self._post(ORDER_SEND, {"order": msgspec.msgpack.encode(order)}, sender)

    def cancel(self, key: str, sender: str = "s") -> None:
        self._post(ORDER_CANCEL, {"key": key}, sender)

    def _post(self, kind: str, fields: dict[str, Any], sender: str) -> None:
        header = bytearray(new_header())
        fields_ = list(HEADER.unpack(header))
        fields_[16] = int(self.clock.wall_s() * 1e9)
        self.orders.append((0, HEADER.pack(*fields_), kind, sender, encode(fields), 1))
        self.loop.soon.append(self.on_orders)
        self.loop.run()

    def pass_time(self, seconds: float) -> None:
        self.loop.advance(seconds)

    def got(self, name: str = "a") -> list[Any]:
        return [payload["n"] for payload in self.recipients[name]]

    # --- DelayPort ----------------------------------------------------------------------------------------------------

    def resolve(self, name: str) -> int:
        return sorted(self.recipients).index(name) if name in self.recipients else -1

    def open_delays(self, on_orders: Callable[[], None]) -> None:
        self.on_orders = on_orders
        self.loop.soon.append(on_orders)

    def take_order(self, done: int = -1) -> Delivery | None:
        if done >= 0:
            self.release_order(done)
        if not self.orders:
            return None
        self.tokens += 1
        self.in_hand[self.tokens] = delivery = (self.tokens, *self.orders.popleft()[1:])
        return delivery

    def release_order(self, token: int) -> None:
        self.step()
        del self.in_hand[token]

    def next_number(self) -> int:
        self.numbers += 1
        return self.numbers

    def fire(
        self, mailbox: int, header: bytes, payload: bytes, type: str, sender: str, priority: int, expires_ns: int,
        number: int,
    ) -> int:  # fmt: skip
        self.step()
        name = sorted(self.recipients)[mailbox]
        if name in self.full:
            return FULL
        self.recipients[name].append(msgspec.msgpack.decode(payload))
        self.sent_numbers.add(number)
        self.step()
        return SENT

    def was_sent(self, mailbox: int, number: int) -> bool:
        return number in self.sent_numbers


class _Mortal:
    """A store whose keeper may die before and behind each of its steps."""

    def __init__(self, store: FileDelays, step: Callable[[], None]) -> None:
        self._inner = store
        self._step = step

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        def call(*args: Any) -> Any:
            self._step()
            result = method(*args)
            self._step()
            return result

        return call if name in ("add", "intend", "remove", "cancel") else method


@pytest.fixture(params=["memory", "file"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World(tmp_path if request.param == "file" else None)


def test_a_delay_is_never_early_and_messages_come_in_the_order_of_their_times(world: World) -> None:
    world.send({"n": 3}, delay=3.0)
    world.send({"n": 1}, delay=1.0)
    world.send({"n": 2}, delay=2.0)
    world.pass_time(0.999)
    assert world.got() == []
    assert world.keeper.waiting() == {"a": 3}
    world.pass_time(0.001)
    assert world.got() == [1]
    world.pass_time(5.0)
    assert world.got() == [1, 2, 3]
    assert world.keeper.close() == {}


def test_at_follows_the_wall_clock_and_the_past_is_now(world: World) -> None:
    now_s = world.clock.wall_s()
    world.send({"n": "past"}, at=now_s - 60)
    world.send({"n": "number"}, at=now_s + 10)
    world.send({"n": "datetime"}, at=datetime.fromtimestamp(now_s + 20, UTC))
    world.pass_time(0.01)
    assert world.got() == ["past"]
    world.clock._wall_s += 9  # the clock is set forward
    world.pass_time(1.1)
    assert world.got() == ["past", "number"]
    world.pass_time(10)
    assert world.got() == ["past", "number", "datetime"]


def test_every_repeats_until_it_is_cancelled_and_makes_nothing_up(world: World) -> None:
    world.send({"n": "tick"}, every=10.0)
    world.pass_time(35.0)
    assert len(world.got()) == 3
    world.clock.advance(50.0)  # nobody turned the loop: five were missed
    world.pass_time(0.0)
    assert len(world.got()) == 4
    world.pass_time(5.0)  # 90 s after the order: the rhythm is that of the beginning
    assert len(world.got()) == 5
    assert world.keeper.waiting() == {}  # no reason to keep a run
    world.cancel("a/message")
    world.pass_time(100.0)
    assert len(world.got()) == 5


def test_an_every_that_is_ordered_anew_goes_on_and_another_one_replaces_it(world: World) -> None:
    world.send({"n": 1}, every=10.0, key="k")
    world.pass_time(6.0)
    world.send({"n": 1}, every=10.0, key="k")  # the next life of the sender
    world.pass_time(4.0)
    assert world.got() == [1]
    world.send({"n": 2}, every=10.0, key="k")
    world.pass_time(9.0)
    assert world.got() == [1]
    world.pass_time(1.0)
    assert world.got() == [1, 2]


def test_a_key_replaces_and_cancels_what_its_own_sender_has_ordered(world: World) -> None:
    world.send({"n": 1}, delay=5.0, key="k")
    world.send({"n": "other sender"}, delay=5.0, key="k", sender="t")
    world.send({"n": 2}, delay=7.0, key="k")
    world.pass_time(6.0)
    assert world.got() == ["other sender"]
    world.cancel("k")
    world.cancel("never ordered")
    world.pass_time(60.0)
    assert world.got() == ["other sender"]


def test_a_full_recipient_delays_its_own_messages_and_no_others(world: World) -> None:
    world.full.add("a")
    world.send({"n": 1}, delay=1.0)
    world.send({"n": 1}, to="b", delay=1.0)
    world.pass_time(2.0)
    assert (world.got("a"), world.got("b")) == ([], [1])
    world.full.clear()
    world.pass_time(0.1)
    assert world.got("a") == [1]


def test_what_cannot_be_sent_any_more_is_a_dead_letter(world: World) -> None:
    world.send({"n": 1}, to="gone", delay=1.0)
    world._post(ORDER_SEND, {"order": b"garbage"}, "s")
    world._post("nonsense", {}, "s")
    world.pass_time(2.0)
    causes = [note.cause for _, note in world.letters]
    assert ["no order" in cause for cause in causes] == [True, True, False]
    assert "its recipient 'gone' had stopped" in causes[2]
    assert (world.letters[2][0].recipient, world.letters[2][0].payload) == ("gone", encode({"n": 1}))


def test_beyond_the_bound_orders_wait_in_their_mailbox_and_come_in_when_there_is_room(world: World) -> None:
    world.keeper.close()
    world.keep(most=2)
    for n in range(5):
        world.send({"n": n}, delay=float(1 + n))
    assert len(world.orders) == 3
    world.pass_time(10.0)
    assert world.got() == [0, 1, 2, 3, 4]
    assert not world.orders
    assert not world.in_hand


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path)
    world.send({"n": 0}, delay=1.0)
    real = FileDelays._execute

    def refuse(self: FileDelays, sql: str, *values: object) -> Any:
        raise OSError("no space left")

    monkeypatch.setattr(FileDelays, "_execute", refuse)
    world.send({"n": 1}, delay=1.0)
    world.pass_time(5.0)
    assert world.got() == []
    monkeypatch.setattr(FileDelays, "_execute", real)
    world.pass_time(3.0)
    assert sorted(world.got()) == [0, 1]
    assert not world.in_hand


@pytest.mark.parametrize("what", [{"delay": 1.0}, {"every": 1.0, "key": "k"}])
def test_killed_at_any_step_nothing_is_lost_and_nothing_comes_twice(tmp_path: Path, what: dict[str, Any]) -> None:
    """One order, its storing, its firing: the keeper dies at each step in turn, and its successor goes on."""
    for die_at in range(1, 100):
        directory = tmp_path / str(die_at)
        directory.mkdir()
        world = World(directory)
        world.die_at = die_at
        try:
            world.send({"n": 1}, **what)
            world.pass_time(1.5)
        except Died:
            pass
        else:
            assert die_at > 6, "there were too few steps to die at"
            break
        world.die_at = None
        world.clock.advance(max(0.0, 1_001.5 - world.clock.monotonic_s()))
        world.keep(resumed=True)
        world.pass_time(0.0)
        assert world.got() == [1], f"killed at step {die_at}"
    else:
        pytest.fail("the keeper never came through")


def test_a_resumed_run_keeps_the_times_and_who_looks_counts_them(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.send({"n": 1}, delay=100.0)
    world.send({"n": 2}, delay=1.0)
    world.send({"n": 3}, every=30.0)
    world.keeper.close()
    assert count_delayed(tmp_path) == {"a": 2}
    world.clock.advance(50.0)
    world.keep(resumed=True)
    world.pass_time(0.0)
    assert sorted(world.got()) == [2, 3]
    world.pass_time(50.0)
    assert sorted(world.got()) == [1, 2, 3, 3, 3]


def test_who_looks_from_outside_sees_what_waits_and_takes_it_back(world: World) -> None:
    world.send({"n": 1}, delay=100.0)
    world.send({"n": 2}, to="b", delay=2.0, every=30.0, ttl=5.0, key="k")
    world.send({"n": 3}, at=world.clock.wall_s() + 50)
    first, last = world.keeper.page(0, 2)
    second, end = world.keeper.page(last, 2)
    assert world.keeper.page(end, 2) == ([], end)
    assert world.keeper.total == 3
    now_s = world.clock.wall_s()
    assert [round(one["due_s"] - now_s) for one in first + second] == [100, 2, 50]
    two = first[1]
    assert (two["recipient"], two["sender"], two["type"], two["key"]) == ("b", "s", "message", "k")
    assert (two["every_s"], two["ttl_s"], two["payload_bytes"]) == (30.0, 5.0, len(encode({"n": 2})))
    if world.directory is not None:
        fields = ("id", "recipient", "key", "every_s", "payload_bytes")
        looked = list_delayed(world.directory)
        assert [[one[field] for field in fields] for one in looked] == [
            [one[field] for field in fields] for one in first + second
        ]
    ids = [one["id"] for one in first + second]
    outcomes = world.keeper.take_back([ids[0], ids[1], "no id", ids[0]])
    assert outcomes[ids[1]] is None
    assert "no delayed message has this id" in str(outcomes["no id"])
    world.pass_time(200.0)
    assert (world.got("a"), world.got("b")) == ([3], [])
    world.send({"n": 4}, to="b", delay=1.0, key="k")  # the key is free again
    world.keep(resumed=world.directory is not None)
    world.pass_time(1.0)
    assert world.got("b") == ([4] if world.directory is not None else [])
    world.keeper.close()
    assert "the run is stopping" in str(world.keeper.take_back([ids[2]])[ids[2]])


def test_an_empty_store_leaves_no_file(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.send({"n": 1}, delay=1.0)
    world.pass_time(1.0)
    world.keeper.close()
    assert list(tmp_path.iterdir()) == []
    assert count_delayed(tmp_path) == {}


# --- what senders may ask for -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"delay": -1.0}, "delay is -1"),
        ({"delay": float("nan")}, "delay is nan"),
        ({"every": 0.001}, "every is 0.001"),
        ({"delay": 1.0, "at": 5.0}, "give one of them"),
        ({"at": -5.0}, "no moment"),
        ({"key": "k"}, "key names a message that comes later"),
        ({"delay": 1.0, "key": ""}, "text of 1 to 200"),
        ({"delay": 1.0, "ttl": -1.0}, "ttl is -1"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_sent(how: dict[str, Any], words: str) -> None:
    with pytest.raises(MessageValidationError, match=words):
        How(**how).order("a", "message", {}, 0)


class Ticker(AgentProcess):
    ticks = 0

    async def on_start(self) -> None:
        await self.send(self.name, {}, "tick", every=0.01)

    async def handle(self, message: Message) -> None:
        self.ticks += 1
        if self.ticks == 3:
            await self.cancel(f"{self.name}/tick")
            await self.send(self.name, {}, "last", delay=0.03)
        if message.type == "last":
            await self.stop_runtime()


def test_agents_and_programs_delay_messages_in_process() -> None:
    async def scene() -> None:
        ticker = Ticker("ticker")
        async with Runtime(Supervisor("root", [ticker])) as runtime:
            await runtime.send("ticker", {}, delay=1000.0, key="never")
            await runtime.cancel("never")
            with pytest.raises(MessageRoutingError):
                await runtime.send("nobody", {}, delay=1.0)
            await runtime.wait()
        assert 4 <= ticker.ticks <= 6

    asyncio.run(scene())


def test_who_sends_more_than_the_run_keeps_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with Runtime(Supervisor("root", [AgentProcess("a")])) as runtime:
            monkeypatch.setattr(runtime._run._driver.delays, "_most", 1)

            async def flood() -> None:
                for _ in range(1100):
                    await runtime.send("a", {}, delay=1000.0, timeout=0.01)

            with pytest.raises(DelayedFull, match="keeps as many delayed messages as it may"):
                await flood()

    asyncio.run(scene())
