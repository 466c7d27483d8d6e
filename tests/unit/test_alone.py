"""The gate of one process: a suspect runs alone, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from civitas_shm import alone as alone_module
from civitas_shm.alone import ALONE_MAX_S, Alone, limit_s

FOR_EVER_S = 3600.0


class Agent:
    """A member whose state the test sets."""

    def __init__(self, gate: Alone) -> None:
        self.runs = False
        self.asks = False
        gate.join(self)

    def awaits_reply(self) -> bool:
        return self.asks


def play(scene: Callable[[Alone], Awaitable[None]], expected: int | None = None) -> None:
    asyncio.run(scene(Alone(expected)))  # type: ignore[arg-type]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(alone_module.LOOK_S)


def test_a_suspect_begins_when_nobody_else_runs_and_nobody_begins_beside_it() -> None:
    async def scene(gate: Alone) -> None:
        suspect, other = Agent(gate), Agent(gate)
        other.runs = True
        entering = asyncio.create_task(gate.enter(suspect, FOR_EVER_S))
        await turns()
        assert gate.closed, "new ones wait already"
        assert not entering.done()
        other.runs = False
        await entering
        passing = asyncio.create_task(gate.passage(other))
        await turns()
        assert not passing.done()
        gate.leave(suspect)
        await passing
        assert not gate.closed

    play(scene)


def test_a_suspect_waits_for_the_agents_that_are_still_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone_module, "GATHER_S", FOR_EVER_S)

    async def scene(gate: Alone) -> None:
        suspect = Agent(gate)
        entering = asyncio.create_task(gate.enter(suspect, FOR_EVER_S))
        await turns()
        assert gate.closed
        assert not entering.done()
        Agent(gate)
        await entering

    play(scene, expected=2)


def test_a_suspect_of_whom_all_are_there_waits_for_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(gate: Alone) -> None:
        suspect, _ = Agent(gate), Agent(gate)

        async def no_pause(delay_s: float) -> None:
            raise AssertionError(f"it slept for {delay_s} s")

        monkeypatch.setattr(asyncio, "sleep", no_pause)
        await gate.enter(suspect, FOR_EVER_S)

    play(scene, expected=2)


@pytest.mark.parametrize("expected", [3, None])
def test_who_never_comes_is_not_waited_for_for_ever(expected: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone_module, "GATHER_S", 0.01)

    async def scene(gate: Alone) -> None:
        await gate.enter(Agent(gate), FOR_EVER_S)

    play(scene, expected)


def test_suspects_come_one_after_the_other_and_one_that_waits_is_not_one_that_runs() -> None:
    async def scene(gate: Alone) -> None:
        agents = [Agent(gate) for _ in range(4)]
        running: list[int] = []
        most = 0

        async def be_alone(number: int) -> None:
            nonlocal most
            agents[number].runs = True  # it is busy: it has its message in hand
            await gate.enter(agents[number], FOR_EVER_S)
            running.append(number)
            most = max(most, len(running))
            await turns(2)
            running.remove(number)
            agents[number].runs = False
            gate.leave(agents[number])

        await asyncio.gather(*map(be_alone, range(4)))
        assert most == 1

    play(scene)


def test_a_suspect_is_not_kept_waiting_for_ever_by_who_never_ends() -> None:
    async def scene(gate: Alone) -> None:
        suspect, other = Agent(gate), Agent(gate)
        other.runs = True
        await gate.enter(suspect, 0.03)

    play(scene)


def test_nobody_is_kept_waiting_for_ever_by_a_suspect_that_never_ends() -> None:
    async def scene(gate: Alone) -> None:
        suspect, other, second = Agent(gate), Agent(gate), Agent(gate)
        await gate.enter(suspect, 0.03)
        suspect.runs = True
        await gate.passage(other)
        assert not gate.closed
        await gate.enter(second, 0.03)  # and neither is another suspect

    play(scene)


def test_while_a_suspect_waits_for_a_reply_others_may_give_it() -> None:
    async def scene(gate: Alone) -> None:
        suspect, other = Agent(gate), Agent(gate)
        await gate.enter(suspect, FOR_EVER_S)
        passing = asyncio.create_task(gate.passage(other))
        await turns()
        assert not passing.done()
        suspect.asks = True
        await passing
        assert gate.closed

    play(scene)


def test_a_suspect_that_is_cancelled_before_it_begins_opens_the_gate() -> None:
    async def scene(gate: Alone) -> None:
        suspect, other = Agent(gate), Agent(gate)
        other.runs = True
        entering = asyncio.create_task(gate.enter(suspect, FOR_EVER_S))
        await turns()
        entering.cancel()
        await asyncio.wait([entering])
        assert not gate.closed
        await gate.enter(other, FOR_EVER_S)
        gate.quit(other)
        assert not gate.closed

    play(scene)


def test_the_limit_grows_with_each_hand_over_and_has_an_end() -> None:
    limits = [limit_s(deliveries) for deliveries in range(1, 20)]
    assert limits == sorted(limits)
    assert limits[0] >= 1.0
    assert limits[-1] == ALONE_MAX_S
