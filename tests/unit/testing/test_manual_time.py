"""Time that a test moves: timers, backoff and deadlines come when they are due, in their order, at once."""

from __future__ import annotations

import asyncio
import time

import pytest

from civitas_shm import AgentProcess, ConfigurationError, Message
from civitas_shm.testing import Probe, RuntimeUnderTest

manual = pytest.mark.civitas(clock="manual")


class Sleeper(AgentProcess):
    """Tells the sink when it wakes."""

    async def handle(self, message: Message) -> Message | None:
        await asyncio.sleep(message.payload["for_s"])
        await self.send("sink", {"slept_s": message.payload["for_s"]})
        return self.reply({"ok": True})


class Fragile(AgentProcess):
    """Says when it starts; falls when told."""

    async def on_start(self) -> None:
        await self.send("sink", {"started": True})

    async def handle(self, message: Message) -> Message | None:
        raise ValueError("told so")


@manual
async def test_an_hour_passes_at_once_and_each_timer_at_its_time(runtime: RuntimeUnderTest) -> None:
    sink = Probe("sink")
    await runtime.start(Sleeper("long"), Sleeper("short"), sink)
    await runtime.send("long", {"for_s": 3600})
    await runtime.send("short", {"for_s": 1800})
    began_s = time.monotonic()
    await runtime.clock.advance(1799)
    assert sink.messages == []
    await runtime.clock.advance(1)
    assert [message.payload["slept_s"] for message in sink.messages] == [1800]
    await runtime.clock.advance(10_000)
    assert [message.payload["slept_s"] for message in sink.messages] == [1800, 3600]
    assert runtime.clock.elapsed_s == pytest.approx(11_800)
    assert time.monotonic() - began_s < 1800  # the machine's clock is not touched for others, and nobody waited


@manual
async def test_backoff_is_waited_for_by_hand(runtime: RuntimeUnderTest) -> None:
    sink = Probe("sink")
    await runtime.start(
        sink, Fragile("fragile"), max_restarts=5, backoff="CONSTANT", backoff_base=30.0, restart_window=1000.0
    )
    for _ in range(2):  # the first restart does not wait
        await runtime.send("fragile", {})
        await runtime.clock.settle()
    starts = len(sink.messages)
    assert starts == 2
    await runtime.clock.advance(29)
    assert len(sink.messages) == starts
    await runtime.clock.advance(1)
    assert len(sink.messages) == starts + 1


@manual
async def test_the_deadline_of_an_ask_is_on_the_same_clock(runtime: RuntimeUnderTest) -> None:
    await runtime.start(Sleeper("sleeper"), Probe("sink"))
    asking = asyncio.ensure_future(runtime.ask("sleeper", {"for_s": 3600}, timeout=60))
    await runtime.clock.advance(59)
    assert not asking.done()
    await runtime.clock.advance(1.1)
    with pytest.raises(TimeoutError):
        await asking


@manual
async def test_agents_that_never_come_to_rest_are_an_error_not_a_hang(
    runtime: RuntimeUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("civitas_shm.testing.manual_time.TURNS_MAX", 500)
    await runtime.start(Probe("sink"))

    async def restless() -> None:
        while True:
            await asyncio.sleep(0)

    task = asyncio.ensure_future(restless())
    with pytest.raises(RuntimeError, match="without end"):
        await runtime.clock.advance(1)
    task.cancel()


async def test_a_test_without_the_mark_has_no_clock_to_move(runtime: RuntimeUnderTest) -> None:
    with pytest.raises(ConfigurationError, match='clock="manual"'):
        _ = runtime.clock
