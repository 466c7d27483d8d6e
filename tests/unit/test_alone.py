"""The gate of one process: a suspect runs alone, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

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


def play(scene: Callable[[Alone], Awaitable[None]]) -> None:
    asyncio.run(scene(Alone()))  # type: ignore[arg-type]


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
