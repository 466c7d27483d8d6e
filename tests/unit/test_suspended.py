"""What a task is suspended on, as asyncio has it: this fails when a new Python keeps it elsewhere."""

from __future__ import annotations

import asyncio
from typing import Any

from civitas_shm.suspended import HOLD_NS, LEAVES_MAX, GatheredWaits, direct, gathered
from civitas_shm.transport import Wait


def test_one_future_or_all_that_are_gathered_also_in_gathers_of_gathers_and_nothing_of_a_race() -> None:
    async def play() -> None:
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Any]] = [loop.create_future() for _ in range(4)]

        async def one(future: asyncio.Future[Any]) -> None:
            await future

        async def all_of() -> None:
            await asyncio.gather(one(futures[0]), asyncio.gather(one(futures[1]), futures[2]), return_exceptions=True)

        async def race() -> None:
            await asyncio.wait([asyncio.ensure_future(one(futures[3]))], return_when=asyncio.FIRST_COMPLETED)

        tasks = [asyncio.ensure_future(work()) for work in (lambda: one(futures[0]), all_of, race)]
        for _ in range(3):
            await asyncio.sleep(0)
        assert direct(tasks[0]) is futures[0]
        together = direct(tasks[1])
        assert together is not None
        assert set(gathered(together)) == set(futures[:3])
        futures[1].set_result(None)
        assert set(gathered(together)) == {futures[0], futures[2]}
        raced = direct(tasks[2])
        assert raced is not None
        assert gathered(raced) == []
        assert direct(None) is None
        for future in futures:
            future.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(play())


def test_a_look_is_bounded() -> None:
    async def play() -> None:
        futures = [asyncio.get_running_loop().create_future() for _ in range(2 * LEAVES_MAX)]
        together = asyncio.gather(*futures)
        assert len(gathered(together)) == LEAVES_MAX
        for future in futures:
            future.set_result(None)
        await together

    asyncio.run(play())


def wait(agent: int, number: int, since: int, seen: int) -> Wait:
    return Wait(agent, 100 + number, "ask", number, since, seen, "question")


def test_of_several_one_is_noted_for_a_second_and_each_has_its_turn() -> None:
    noted = GatheredWaits()
    turns = [
        noted.of([wait(1, number, 0, at) for number in range(3)], at) for at in range(0, 40 * HOLD_NS, HOLD_NS // 4)
    ]
    chosen = [one.id for (one,) in turns]
    assert set(chosen) == {0, 1, 2}
    assert all(len(set(chosen[first : first + 4])) == 1 for first in range(0, len(chosen), 4))


def test_a_wait_begins_with_the_first_look_that_found_the_handler_in_it() -> None:
    noted = GatheredWaits()
    assert [one.since_ns for one in noted.of([wait(1, 5, since=3, seen=10)], 10)] == [10]
    assert [one.since_ns for one in noted.of([wait(1, 5, since=3, seen=20)], 20)] == [10]
    assert noted.of([], 30) == []
    assert [one.since_ns for one in noted.of([wait(1, 5, since=3, seen=40)], 40)] == [40]
