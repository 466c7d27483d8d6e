"""Every transport: agents at their mailboxes, and that none of them delays the others.

Fairness is measured in turns of the loop and in messages, never in time: a machine may be slow, a batch not long.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from civitas_shm.messages import Message
from civitas_shm.process import AgentProcess
from civitas_shm.runner import BATCH_MESSAGES, AgentRunner
from civitas_shm.seat import BATCH_S
from civitas_shm.serializer import encode
from civitas_shm.topology.model import AgentSpec
from civitas_shm.transport import SENDER_PROGRAM, SENT

FLOOD = 20 * BATCH_MESSAGES


class Counter(AgentProcess):
    handled = 0

    async def handle(self, message: Message) -> Message | None:
        self.handled += 1
        return self.reply({"handled": self.handled}) if message.correlation_id else None


async def running(runner: AgentRunner, world: Any, agent: AgentProcess) -> int:
    mailbox: int = world.mailbox(agent.name, capacity=FLOOD + 10)
    assert await runner.start(agent, mailbox, AgentSpec(agent.name, "tests.Agent"))
    return mailbox


def flood(world: Any, mailbox: int) -> None:
    data = encode({})
    assert {world.a.post(mailbox, data, "message", SENDER_PROGRAM) for _ in range(FLOOD)} == {SENT}


async def with_flood(world: Any, scene: Callable[[Counter, AgentRunner], Awaitable[None]]) -> None:
    """Play `scene` while an agent has FLOOD messages before it."""
    runner = AgentRunner(world.b)
    busy = Counter("busy")
    mailbox = await running(runner, world, busy)
    flood(world, mailbox)
    while not busy.handled:
        await asyncio.sleep(0)
    await scene(busy, runner)
    assert busy.handled < FLOOD, "the flood was over too early to show anything"
    await runner.stop_all("all")
    assert busy.handled == FLOOD


def test_a_flooded_agent_handles_at_most_one_batch_in_a_turn_of_the_loop(play: Any) -> None:
    async def scene(world: Any) -> None:
        async def look(busy: Counter, runner: AgentRunner) -> None:
            for _ in range(5):
                before = busy.handled
                await asyncio.sleep(0)
                assert busy.handled - before <= BATCH_MESSAGES

        await with_flood(world, look)

    play(scene)


def test_handlers_that_take_longer_than_a_batch_may_are_one_batch_each(play: Any) -> None:
    class Slow(Counter):
        async def handle(self, message: Message) -> Message | None:
            time.sleep(0.005)
            return await super().handle(message)

    async def scene(world: Any) -> None:
        assert BATCH_S < 0.005
        runner = AgentRunner(world.b)
        slow = Slow("slow")
        await running(runner, world, slow)
        for _ in range(10):
            await world.bus.send("slow", {})
        while slow.handled < 10:
            before = slow.handled
            await asyncio.sleep(0)
            assert slow.handled - before <= 1
        await runner.stop_all()

    play(scene)


def test_defect_3_a_neighbour_of_a_flooded_agent_is_served_after_a_few_batches(play: Any) -> None:
    async def scene(world: Any) -> None:
        async def look(busy: Counter, runner: AgentRunner) -> None:
            neighbour = Counter("neighbour")
            await running(runner, world, neighbour)
            before = busy.handled
            assert (await runner.bus.ask("neighbour", {})).payload == {"handled": 1}
            # The way there, the handler, the way back: each waits for one turn or two, each turn for one batch.
            assert busy.handled - before <= 8 * BATCH_MESSAGES

        await with_flood(world, look)

    play(scene)


def test_timers_and_sockets_are_served_beside_a_flooded_agent(play: Any) -> None:
    async def scene(world: Any) -> None:
        async def look(busy: Counter, runner: AgentRunner) -> None:
            loop = asyncio.get_running_loop()
            ours, theirs = socket.socketpair()
            with ours, theirs:
                timer, data = asyncio.Event(), asyncio.Event()
                loop.add_reader(ours, data.set)
                theirs.send(b"x")
                before = busy.handled
                loop.call_later(0, timer.set)
                await timer.wait()
                await data.wait()
                loop.remove_reader(ours)
                assert busy.handled - before <= 4 * BATCH_MESSAGES

        await with_flood(world, look)

    play(scene)


def test_a_sender_that_never_has_to_wait_lets_the_loop_turn(play: Any) -> None:
    async def scene(world: Any) -> None:
        world.mailbox("sink", capacity=FLOOD)
        turns = 0

        def turn() -> None:
            nonlocal turns
            turns += 1
            loop.call_soon(turn)

        loop = asyncio.get_running_loop()
        loop.call_soon(turn)
        bus = world.bus
        for _ in range(FLOOD):
            await bus.send("sink", {})
        assert turns >= FLOOD // BATCH_MESSAGES - 1

    play(scene)


class Forward(AgentProcess):
    async def handle(self, message: Message) -> Message | None:
        reply = await self.ask("counter", {})
        return self.reply({"heard": reply.payload["handled"], "same trace": reply.trace_id == message.trace_id})


class Plain(AgentProcess):
    def handle(self, message: Message) -> Message | None:  # type: ignore[override]
        reply: Any = self.ask("counter", {})
        self.send("counter", {})  # type: ignore[unused-coroutine]  # in a thread it blocks until it is done
        return self.reply({"heard": reply.payload["handled"], "same trace": reply.trace_id == message.trace_id})


def test_agents_ask_each_other_as_coroutines_and_as_plain_functions(play: Any) -> None:
    async def scene(world: Any) -> None:
        runner = AgentRunner(world.b)
        for agent in (Counter("counter"), Forward("forward"), Plain("plain")):
            await running(runner, world, agent)
        bus = world.bus
        for name in ("forward", "plain"):
            reply = await bus.ask(name, {})
            assert reply.payload["same trace"]
        assert (await bus.ask("counter", {})).payload == {"handled": 4}
        await runner.stop_all()

    play(scene)


def test_idle_agents_need_no_task(play: Any) -> None:
    async def scene(world: Any) -> None:
        runner = AgentRunner(world.b)
        before = len(asyncio.all_tasks())
        for number in range(50):
            await running(runner, world, Counter(f"agent{number}"))
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == before
        replies = await asyncio.gather(*(world.bus.ask(f"agent{number}", {}) for number in range(50)))
        assert [reply.payload["handled"] for reply in replies] == [1] * 50
        await runner.stop_all()
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == before


def test_no_more_tasks_are_kept_for_idle_agents_than_the_limit(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("civitas_shm.parked.KEPT", 10)

    async def scene(world: Any) -> None:
        runner = AgentRunner(world.b)
        before = len(asyncio.all_tasks())
        for number in range(50):
            await running(runner, world, Counter(f"agent{number}"))
        for turn in (1, 2):
            asks = [world.bus.ask(f"agent{number}", {}) for number in range(50)]
            assert [reply.payload["handled"] for reply in await asyncio.gather(*asks)] == [turn] * 50
            for _ in range(5):
                await asyncio.sleep(0)
            assert len(asyncio.all_tasks()) - before <= 10
        await runner.stop_all()

    play(scene)
