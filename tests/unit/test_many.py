"""Many asks at once: never more than the limit, answers in order, what fails is told at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from civitas_shm.errors import TransportClosed
from civitas_shm.many import ask_many


class Answers:
    """Answers when the test lets it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any, asyncio.Future[Any]]] = []
        self.most = 0

    async def __call__(self, name: str, payload: Any) -> Any:
        future = asyncio.get_running_loop().create_future()
        self.asked.append((name, payload, future))
        self.most = max(self.most, len(self.open))
        return await future

    @property
    def open(self) -> list[tuple[str, Any, asyncio.Future[Any]]]:
        return [entry for entry in self.asked if not entry[2].done()]

    async def until(self, asked: int) -> None:
        while len(self.asked) < asked:
            await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.sleep(0)


def test_answers_are_in_the_order_of_the_payloads_whoever_answers_first() -> None:
    async def scene() -> None:
        ask = Answers()
        asking = asyncio.create_task(ask_many(ask, "a", range(7), 3, False))
        done = 0
        while done < 7:
            await ask.until(min(7, done + 3))
            assert len(ask.open) == min(3, 7 - done)
            _, payload, future = ask.open[-1]
            future.set_result(payload * 10)
            done += 1
        assert await asking == [0, 10, 20, 30, 40, 50, 60]
        assert ask.most == 3

    asyncio.run(scene())


def test_a_generator_is_read_no_further_than_asks_have_begun() -> None:
    read: list[int] = []

    def payloads() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield number

    async def scene() -> None:
        ask = Answers()
        asking = asyncio.create_task(ask_many(ask, "a", payloads(), 2, False))
        await ask.until(2)
        assert read == [0, 1]
        ask.open[0][2].set_result(None)
        await ask.until(3)
        assert read == [0, 1, 2]
        asking.cancel()
        await asyncio.wait([asking])
        for _ in range(3):
            await asyncio.sleep(0)
        assert ask.open == []  # those under way were taken back
        assert asking.cancelled()

    asyncio.run(scene())


def test_each_payload_of_a_pool_goes_to_who_has_the_fewest_before_it() -> None:
    async def scene() -> None:
        ask = Answers()
        asking = asyncio.create_task(ask_many(ask, ["a", "b"], range(6), 4, False))
        await ask.until(4)
        assert sorted(name for name, _, _ in ask.asked) == ["a", "a", "b", "b"]
        for name, _, future in list(ask.open):
            if name == "b":
                future.set_result(name)
        await ask.until(6)
        assert [name for name, _, _ in ask.asked[4:]] == ["b", "b"]  # `a` is slow
        for _, _, future in ask.open:
            future.set_result("late")
        await asking

    asyncio.run(scene())


async def fail_odd(name: str, payload: int) -> int:
    if payload % 2:
        raise ValueError(f"{payload} is odd")
    return payload


def test_all_are_asked_and_what_failed_is_raised_together() -> None:
    with pytest.raises(ExceptionGroup, match="2 of 5 asks failed") as caught:
        asyncio.run(ask_many(fail_odd, "a", range(5), 2, False))
    notes = [error.__notes__ for error in caught.value.exceptions]
    assert notes == [["asked of 'a'", "payload 1 of ask_many"], ["asked of 'a'", "payload 3 of ask_many"]]


def test_with_return_exceptions_an_error_stands_in_the_place_of_its_answer() -> None:
    answers = asyncio.run(ask_many(fail_odd, "a", range(3), 2, True))
    assert (answers[0], str(answers[1]), answers[2]) == (0, "1 is odd", 2)


def test_the_end_of_the_run_ends_it_at_once() -> None:
    asked: list[int] = []

    async def closed(name: str, payload: int) -> None:
        asked.append(payload)
        raise TransportClosed("over")

    with pytest.raises(TransportClosed):
        asyncio.run(ask_many(closed, "a", range(100), 2, True))
    assert len(asked) <= 2


def test_what_the_payloads_raise_is_raised_and_takes_the_asks_back() -> None:
    def payloads() -> Iterator[int]:
        yield 1
        raise RuntimeError("no more")

    async def scene() -> None:
        ask = Answers()
        with pytest.raises(RuntimeError, match="no more"):
            await ask_many(ask, "a", payloads(), 2, False)
        for _ in range(3):
            await asyncio.sleep(0)
        assert ask.open == []

    asyncio.run(scene())


@pytest.mark.parametrize(("to", "limit", "words"), [([], 1, "nobody to ask"), ("a", 0, "limit of ask_many is 0")])
def test_impossible_arguments_are_refused(to: Any, limit: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        asyncio.run(ask_many(fail_odd, to, [], limit, False))


def test_no_payload_is_no_ask() -> None:
    assert asyncio.run(ask_many(fail_odd, "a", [], 4, False)) == []
