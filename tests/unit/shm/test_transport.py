"""ShmPort on stock asyncio and on uvloop: waking up, replies, room, leaving, forks, many mailboxes.

Two or three ports of different slots play in one process and one loop. What every transport promises is in
tests/contract; here is what only shared memory can get wrong.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from civitas_shm.errors import SharedMemoryFull, TransportClosed
from civitas_shm.transport import FULL, NO_MEMORY, SENT, MailboxSpec, MemoryPlan
from civitas_shm_transports.shm import _shm
from civitas_shm_transports.shm.transport import ShmPort, attach

uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed")

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
PLAN = MemoryPlan(slots=4, mailboxes=64, arena_bytes=4 << 20, mailbox_bytes=64 << 20, kind="memfd")

Scene = Callable[["World"], Awaitable[None]]


class World:
    def __init__(self, run: Any) -> None:
        self.memory = run.memory
        self.ports: list[ShmPort] = []

    def join(self, slot: int, spin_ns: int = 0) -> ShmPort:
        port = attach(self.memory.attach_spec(slot, self.memory.incarnation(slot) + 1, spin_ns), self.memory.fds())
        port.start(asyncio.get_running_loop())
        self.ports.append(port)
        return port

    def mailbox(self, name: str, capacity: int = 1000, reader: int = 2) -> int:
        mailbox: int = self.memory.add_mailbox(MailboxSpec(name, capacity))
        self.memory.set_readers(mailbox, [reader])
        return mailbox

    def parked(self, slot: int) -> bool:
        return bool(self.memory._native.slot(slot)[3])

    async def until_parked(self, *slots: int) -> None:
        while not all(map(self.parked, slots)):
            await asyncio.sleep(0.001)

    def lost_wakeups(self) -> int:
        return sum(self.memory._native.slot(slot)[4] for slot in range(PLAN.slots))


@pytest.fixture(params=LOOPS)
def play(request: pytest.FixtureRequest, tmp_path: Path, make_run: Any) -> Callable[..., None]:
    def play(scene: Scene, plan: MemoryPlan = PLAN) -> None:
        run = make_run(tmp_path, 65534, plan)
        world = World(run)

        async def whole() -> None:
            try:
                await scene(world)
            finally:
                for port in world.ports:
                    port.stop()

        try:
            with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
                runner.run(whole())
        finally:
            run.end()

    return play


def drain_into(port: ShmPort, mailbox: int, got: list[bytes], arrived: asyncio.Event) -> Callable[[], None]:
    def on_ready() -> None:
        token = -1
        while (delivery := port.take(mailbox, token)) is not None:
            token = delivery[0]
            got.append(delivery[4])
            arrived.set()

    return on_ready


# --- waking up --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spin_ns", [0, 20_000])
def test_a_parked_process_wakes_for_every_message_and_parks_again(play: Any, spin_ns: int) -> None:
    async def scene(world: World) -> None:
        mailbox = world.mailbox("box")
        a, b = world.join(1, spin_ns), world.join(2, spin_ns)
        got: list[bytes] = []
        arrived = asyncio.Event()
        b.listen(mailbox, drain_into(b, mailbox, got, arrived))
        for number in range(50):
            if number % 3:
                await world.until_parked(1, 2)
            arrived.clear()
            assert a.post(mailbox, bytes([number]), "t", mailbox) == SENT
            await arrived.wait()
        assert got == [bytes([number]) for number in range(50)]
        await world.until_parked(1, 2)
        assert world.memory.safety_poll() + world.memory.safety_poll() == 0
        assert world.lost_wakeups() == 0

    play(scene)


def test_messages_from_before_the_reader_listened_are_announced(play: Any) -> None:
    async def scene(world: World) -> None:
        mailbox = world.mailbox("box")
        a = world.join(1)
        assert a.post(mailbox, b"early", "t", mailbox) == SENT
        b = world.join(2)
        await world.until_parked(2)
        got: list[bytes] = []
        arrived = asyncio.Event()
        b.listen(mailbox, drain_into(b, mailbox, got, arrived))
        await arrived.wait()
        assert got == [b"early"]

    play(scene)


def test_a_death_makes_every_process_look_at_all_its_mailboxes(play: Any) -> None:
    async def scene(world: World) -> None:
        mailboxes = [world.mailbox(f"box{i}") for i in range(5)]
        b, c = world.join(2), world.join(3)
        looked: set[int] = set()
        for mailbox in mailboxes:
            b.listen(mailbox, lambda mailbox=mailbox: looked.add(mailbox))
        await world.until_parked(2, 3)
        looked.clear()
        c.stop()
        world.memory.slot_died(3)
        while len(looked) < 5:
            await asyncio.sleep(0)
        assert looked == set(mailboxes)

    play(scene)


def test_four_thousand_mailboxes_are_all_announced(play: Any) -> None:
    async def scene(world: World) -> None:
        mailboxes = [world.mailbox(f"box{i}", 10) for i in range(4000)]
        a, b = world.join(1), world.join(2)
        waiting = set(mailboxes)
        for mailbox in mailboxes:
            b.listen(mailbox, lambda mailbox=mailbox: b.take(mailbox) and waiting.discard(mailbox))
        await world.until_parked(2)
        assert len(waiting) == 4000
        for mailbox in mailboxes:
            assert a.post(mailbox, b"", "t", mailbox) == SENT
        while waiting:
            await asyncio.sleep(0)
        assert world.lost_wakeups() == 0

    play(scene, MemoryPlan(slots=4, mailboxes=4100, arena_bytes=8 << 20, mailbox_bytes=256 << 20, kind="memfd"))


def test_a_callback_that_raises_makes_neither_itself_nor_its_neighbours_deaf(play: Any) -> None:
    async def scene(world: World) -> None:
        bad, good = world.mailbox("bad"), world.mailbox("good")
        told: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(str(context["exception"])))
        a, b = world.join(1), world.join(2)
        got: list[bytes] = []
        arrived = asyncio.Event()

        def broken() -> None:
            if b.take(bad):
                raise RuntimeError("a bug")

        b.listen(bad, broken)
        b.listen(good, drain_into(b, good, got, arrived))
        await world.until_parked(2)
        for _ in range(3):
            arrived.clear()
            assert a.post(bad, b"", "t", bad) == SENT
            assert a.post(good, b"fine", "t", good) == SENT
            await arrived.wait()
        while len(told) < 3:
            await asyncio.sleep(0)
        assert told == ["a bug"] * 3
        assert got == [b"fine"] * 3

    play(scene)


# --- replies ----------------------------------------------------------------------------------------------------------


def ask(port: ShmPort, mailbox: int) -> tuple[int, asyncio.Future[Any]]:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    deadline_ns = time.monotonic_ns() + 100_000_000_000
    return port.post_ask(mailbox, b"?", "question", mailbox, future, deadline_ns), future


def test_a_reply_reaches_the_future_of_its_ask_whether_the_asker_sleeps_or_not(play: Any) -> None:
    async def scene(world: World) -> None:
        mailbox = world.mailbox("box")
        a, b = world.join(1), world.join(2)
        for number in range(20):
            correlation, future = ask(a, mailbox)
            assert correlation > 0
            if number % 2:
                await world.until_parked(1)
            token, header, *_ = b.take(mailbox)
            b.release(mailbox, token)
            assert b.post_reply(header, bytes([number]), "answer", mailbox, number == 7)
            assert (await future)[-4:] == ("answer", "box", bytes([number]), number == 7)
        assert world.lost_wakeups() == 0

    play(scene)


def test_a_late_reply_is_dropped_and_the_next_one_is_not_confused_with_it(play: Any) -> None:
    async def scene(world: World) -> None:
        mailbox = world.mailbox("box")
        a, b = world.join(1), world.join(2)
        correlation, forgotten = ask(a, mailbox)
        a.forget(correlation)
        a.forget(correlation)
        _, waited_for = ask(a, mailbox)
        for answer in (b"late", b"right"):
            token, header, *_ = b.take(mailbox)
            b.release(mailbox, token)
            b.post_reply(header, answer, "answer", mailbox)
        assert (await waited_for)[-2] == b"right"
        assert not forgotten.done()

    play(scene)


def test_asks_have_as_many_places_as_replies_and_a_forgotten_one_frees_its_own(play: Any) -> None:
    async def scene(world: World) -> None:
        mailbox = world.mailbox("box", 10_000)
        a, b = world.join(1), world.join(2)
        correlations = [ask(a, mailbox)[0] for _ in range(_shm.REPLY_PLACES)]
        assert min(correlations) > 0
        assert len(set(correlations)) == _shm.REPLY_PLACES
        assert ask(a, mailbox)[0] in (FULL, NO_MEMORY)
        room = a.room(mailbox)
        assert not room.done(), "the mailbox has room; what is wanted is a place"
        a.forget(correlations[0])
        await room
        assert ask(a, mailbox)[0] > 0
        assert ask(a, mailbox)[0] in (FULL, NO_MEMORY)
        room = a.room(mailbox)
        b.take(mailbox)  # the forgotten one
        token, header, *_ = b.take(mailbox)
        b.release(mailbox, token)
        assert b.post_reply(header, b"", "answer", mailbox)
        await room
        assert ask(a, mailbox)[0] > 0

    play(scene, MemoryPlan(slots=4, mailboxes=64, arena_bytes=16 << 20, mailbox_bytes=64 << 20, kind="memfd"))


# --- room -------------------------------------------------------------------------------------------------------------


def test_room_resolves_when_a_place_is_free_and_at_once_when_it_is_already(play: Any) -> None:
    async def scene(world: World) -> None:
        mailbox = world.mailbox("box", 1)
        a, b = world.join(1), world.join(2)
        await world.until_parked(1)  # whoever joins is told once to look at everything, room too
        for _ in range(10):
            assert a.post(mailbox, b"", "t", mailbox) == SENT
            assert a.post(mailbox, b"", "t", mailbox) == FULL
            room = a.room(mailbox)
            await world.until_parked(1)
            assert not room.done()
            b.release(mailbox, b.take(mailbox)[0])
            await room
        assert a.room(mailbox).done()

    play(scene)


def test_room_for_memory_resolves_when_a_large_message_is_finished(play: Any) -> None:
    async def scene(world: World) -> None:
        mailbox = world.mailbox("box")
        a, b = world.join(1), world.join(2)
        while (outcome := a.post(mailbox, bytes(300_000), "t", mailbox)) == SENT:
            pass
        assert outcome == NO_MEMORY
        room = a.room(mailbox)
        token = b.take(mailbox)[0]
        await world.until_parked(1)
        assert a.post(mailbox, bytes(300_000), "t", mailbox) == NO_MEMORY, "in hand is not finished"
        room = a.room(mailbox)
        assert not room.done()
        b.release(mailbox, token)
        await room
        assert a.post(mailbox, bytes(300_000), "t", mailbox) == SENT

    play(scene)


def test_room_says_at_once_when_no_memory_can_ever_come_back(play: Any) -> None:
    async def scene(world: World) -> None:
        a = world.join(1)
        mailboxes = [world.mailbox(f"box{i}", reader=1) for i in range(4)]
        for mailbox in mailboxes:
            assert a.commit_state(mailbox, -1, bytes(850_000)) == SENT
        assert a.post(mailboxes[0], bytes(1_000_000), "t", mailboxes[0]) == NO_MEMORY
        with pytest.raises(SharedMemoryFull, match="arena_mb"):
            await a.room(mailboxes[0])

    play(scene)


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_name_that_was_closed_and_added_again_is_the_new_mailbox(play: Any) -> None:
    async def scene(world: World) -> None:
        first = world.mailbox("agent")
        a = world.join(1)
        assert a.resolve("agent") == first
        assert a.resolve("nobody") == -1
        world.memory.close_mailbox(first)
        assert a.names() == []
        second = world.mailbox("agent")
        assert a.resolve("agent") == second != first
        assert a.names() == ["agent"]

    play(scene)


# --- leaving ----------------------------------------------------------------------------------------------------------


def test_stop_ends_every_wait_and_leaves_what_is_in_hand_to_the_successor(play: Any) -> None:
    async def scene(world: World) -> None:
        mailbox = world.mailbox("box", 1)
        a, b = world.join(1), world.join(2)
        _, future = ask(a, mailbox)
        assert a.post(mailbox, b"", "t", mailbox) == FULL
        room = a.room(mailbox)
        assert b.take(mailbox) is not None
        a.stop()
        a.stop()
        b.stop()
        for waiting in (future, room):
            with pytest.raises(TransportClosed):
                await waiting
        with pytest.raises(TransportClosed):
            a.post(mailbox, b"", "t", mailbox)
        world.memory.slot_died(2)
        b = world.join(2)
        got: list[bytes] = []
        arrived = asyncio.Event()
        b.listen(mailbox, drain_into(b, mailbox, got, arrived))
        await arrived.wait()
        assert got == [b"?"]

    play(scene)


def test_a_stopped_port_leaves_nothing_in_the_loop_and_nothing_in_memory(play: Any) -> None:
    async def scene(world: World) -> None:
        world.mailbox("box")
        fds = len(os.listdir("/proc/self/fd"))
        maps = len(Path("/proc/self/maps").read_text().splitlines())
        for _ in range(20):
            world.join(1).stop()
            world.ports.clear()
            await asyncio.sleep(0)
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == fds
        assert len(Path("/proc/self/maps").read_text().splitlines()) <= maps + 5

    play(scene)


def test_a_forked_child_can_neither_send_nor_receive_and_harms_nobody(play: Any) -> None:
    async def scene(world: World) -> None:
        mailbox = world.mailbox("box")
        a, b = world.join(1), world.join(2)
        _, waiting = ask(a, mailbox)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork of a process that may have threads
            pid = os.fork()
        if pid == 0:
            try:
                os._exit(0 if _all_refused(a, b, mailbox, waiting) else 1)
            finally:
                os._exit(2)  # whatever was raised: the child must not go on as this test
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        token, header, *_ = b.take(mailbox)
        assert b.take(mailbox, token) is None, "nothing of the child arrived"
        assert b.post_reply(header, b"parent", "answer", mailbox)
        assert (await waiting)[-2] == b"parent"

    play(scene)


def _all_refused(a: ShmPort, b: ShmPort, mailbox: int, future: asyncio.Future[Any]) -> bool:
    calls: list[Callable[[], Any]] = [
        lambda: a.post(mailbox, b"child", "t", mailbox), lambda: b.take(mailbox), lambda: a.stats(mailbox),
        lambda: a.room(mailbox), lambda: b.release(mailbox, 0),
        lambda: a.post_ask(mailbox, b"", "t", mailbox, future, 0),
    ]  # fmt: skip
    refused = 0
    for call in calls:
        try:
            call()
        except TransportClosed:
            refused += 1
    return refused == len(calls)
