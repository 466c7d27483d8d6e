"""Which failures are tried again, how often, and after how long."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from civitas_shm import Retry
from civitas_shm.errors import AgentError, AgentStopped, MailboxFull, TransientError
from civitas_shm.retrying import tried

FULL = MailboxFull("a", 1, 0.1)


async def run(retry: Retry, outcomes: list[Any]) -> tuple[Any, list[float]]:
    waits: list[float] = []

    async def attempt() -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    return await tried(retry, attempt, chance=lambda: 0.5, sleep=sleep), waits


@pytest.mark.parametrize(
    ("backoff", "waits"),
    [("CONSTANT", [1.0, 1.0, 1.0]), ("LINEAR", [1.0, 2.0, 2.5]), ("EXPONENTIAL", [0.5, 1.0, 1.25])],
)
def test_the_first_success_counts_and_the_waits_are_those_of_the_backoff(backoff: Any, waits: list[float]) -> None:
    retry = Retry(attempts=4, backoff=backoff, backoff_base=1.0, backoff_max=2.5)
    assert asyncio.run(run(retry, [FULL, FULL, FULL, "done"])) == ("done", waits)


def test_after_the_last_attempt_its_own_error_is_raised_and_says_how_many_there_were() -> None:
    outcomes: list[Any] = [FULL, TimeoutError("late"), FULL, "never asked"]
    with pytest.raises(MailboxFull) as caught:
        asyncio.run(run(Retry(attempts=3), outcomes))
    assert caught.value.__notes__ == ["after 3 attempts"]
    assert outcomes == ["never asked"]


@pytest.mark.parametrize(
    ("retry", "error", "again"),
    [
        (Retry(), FULL, True),
        (Retry(), TimeoutError(), True),
        (Retry(), TransientError(), True),
        (Retry(), AgentError("a", "TransientError", "", ""), True),
        (Retry(), AgentError("a", "KeyError", "", ""), False),
        (Retry(), AgentStopped("gone"), False),
        (Retry(on=("KeyError",)), AgentError("a", "KeyError", "", ""), True),
        (Retry(on=("KeyError",)), KeyError("here"), False),
        (Retry(on=(AgentError,)), AgentError("a", "anything", "", ""), True),
        (Retry(on=()), FULL, False),
    ],
)
def test_only_what_is_named_is_tried_again(retry: Retry, error: Exception, again: bool) -> None:
    outcomes = [error, "second"]
    if again:
        assert asyncio.run(run(retry, outcomes))[0] == "second"
    else:
        with pytest.raises(type(error)):
            asyncio.run(run(retry, outcomes))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"attempts": 0}, "attempts of a retry is 0"),
        ({"backoff": "exponential"}, "CONSTANT, LINEAR, EXPONENTIAL"),
        ({"backoff_base": -1.0}, "cannot be negative"),
        ({"on": (KeyboardInterrupt,)}, "classes of exceptions"),
    ],
)
def test_an_impossible_policy_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Retry(**fields)
