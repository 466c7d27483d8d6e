"""A parked task: stepped by who wakes it, its own task all the same; cancelled and let go like any other."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar, copy_context
from typing import Any

import pytest

from civitas_shm.parked import Nap, Park

WHO: ContextVar[str] = ContextVar("WHO", default="")


class Sleeper:
    """A task that notes each time it is woken."""

    def __init__(self, park: Park) -> None:
        self.loop = asyncio.get_running_loop()
        context = copy_context()
        context.run(WHO.set, "sleeper")
        self.nap = Nap(self.loop, context)
        self.seen: list[Any] = []
        self.task = self.loop.create_task(self.work(park), context=context)

    async def work(self, park: Park) -> None:
        while await park.admit(self, self.nap):
            self.seen.append((asyncio.current_task(), WHO.get()))
            await asyncio.sleep(0)
            self.seen.append("later")


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def outside_of_tasks(call: Any) -> asyncio.Future[Any]:
    """Run in a plain callback of the loop, as the poll of a Port runs."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    loop.call_soon(lambda: done.set_result(call()))
    return done


def test_whoever_wakes_it_finds_it_stepped_in_its_own_task_and_context() -> None:
    async def scene() -> None:
        sleeper = Sleeper(Park())
        await turns()
        assert await outside_of_tasks(lambda: (sleeper.nap.end(True), list(sleeper.seen))) == (
            True, [(sleeper.task, "sleeper")],
        )  # fmt: skip
        await turns()
        assert sleeper.seen[1:] == ["later"]
        assert await outside_of_tasks(lambda: sleeper.nap.end(True))
        await turns()
        assert len(sleeper.seen) == 4
        sleeper.task.cancel()

    asyncio.run(scene())


def test_inside_of_another_task_it_is_stepped_in_the_next_turn() -> None:
    async def scene() -> None:
        sleeper = Sleeper(Park())
        await turns()
        assert sleeper.nap.end(True)
        assert sleeper.seen == []
        await turns()
        assert sleeper.seen[0] == (sleeper.task, "sleeper")
        sleeper.task.cancel()

    asyncio.run(scene())


def test_awake_it_cannot_be_woken() -> None:
    async def scene() -> None:
        sleeper = Sleeper(Park())
        assert not sleeper.nap.end(True)  # it has not begun
        await turns()
        assert await outside_of_tasks(lambda: (sleeper.nap.end(True), sleeper.nap.end(True))) == (True, False)
        sleeper.task.cancel()

    asyncio.run(scene())


@pytest.mark.parametrize("woken_too", [False, True])
def test_cancelled_it_ends_as_cancelled_and_nobody_wakes_it_any_more(woken_too: bool) -> None:
    async def scene() -> None:
        sleeper = Sleeper(Park())
        await turns()
        sleeper.task.cancel()
        if woken_too:
            assert not sleeper.nap.end(True)
        with pytest.raises(asyncio.CancelledError):
            await sleeper.task
        assert not sleeper.nap.end(True)
        assert sleeper.seen == []

    asyncio.run(scene())


def test_the_first_that_came_leaves_its_place_and_takes_another_one_when_it_has_worked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("civitas_shm.parked.KEPT", 2)

    async def scene() -> None:
        park = Park()
        first, second = Sleeper(park), Sleeper(park)
        await turns()
        assert not first.task.done()
        third = Sleeper(park)
        await turns()
        assert first.task.done()
        assert first.seen == []
        assert not second.task.done()
        assert await outside_of_tasks(lambda: second.nap.end(True))
        await turns()
        assert not second.task.done()  # it worked and kept its place
        park.leave(second)
        park.leave(third)
        await turns()
        assert second.task.done()
        assert third.task.done()

    asyncio.run(scene())
