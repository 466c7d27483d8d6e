"""Retry: which failures of a send or an ask are worth another try, how often, and after how long.

    await self.ask("prices", {"sku": "tea"}, timeout=2.0, retry=Retry(attempts=5, on=(TimeoutError, "ConnectionError")))

Guarantees:
- an error that is not named in `on` is raised at once; after the last attempt its own error is raised, with a note of
  how many there were;
- the waits are those of the supervisors' backoff (`supervision.backoff`): EXPONENTIAL has full jitter;
- each attempt has the whole `timeout` for itself.

Not promised: that the receiver handles a question once. An ask that timed out may have been handled; the next attempt
is a new message with an id of its own. And the attempts are counted in the memory of this process: when it dies between
two of them, its handler begins anew, and so do they.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar, get_args

from .errors import AgentError, ArenaFull, MessageDropped, TransientError
from .supervision.backoff import Backoff, backoff_s

__all__ = ["Retry", "tried", "tried_here"]

T = TypeVar("T")

_WORTH_IT: Final = (TimeoutError, ArenaFull, MessageDropped, TransientError, "TransientError")


@dataclass(frozen=True, slots=True)
class Retry:
    """A policy. ValueError when it is impossible."""

    attempts: int = 3
    """In all, the first included."""
    on: tuple[type[Exception] | str, ...] = _WORTH_IT
    """What is tried again: exceptions that are raised here (MailboxFull is a TimeoutError), and by its name what the
    other handler raised (`AgentError.type_name`)."""
    backoff: Backoff = "EXPONENTIAL"
    backoff_base: float = 0.1
    """Seconds."""
    backoff_max: float = 10.0
    """Seconds."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts of a retry is {self.attempts}; the first one counts too, so at least 1")
        if self.backoff not in get_args(Backoff):
            raise ValueError(f"backoff of a retry is {self.backoff!r}; {', '.join(get_args(Backoff))}")
        if self.backoff_base < 0 or self.backoff_max < 0:
            raise ValueError("backoff_base and backoff_max of a retry are seconds and cannot be negative")
        for each in self.on:
            if not isinstance(each, str) and not (isinstance(each, type) and issubclass(each, Exception)):
                raise ValueError(f"`on` of a retry has {each!r}; it takes classes of exceptions, and names of them")

    def wants(self, error: Exception) -> bool:
        """Whether this failure is one of those."""
        name = error.type_name if isinstance(error, AgentError) else None
        return any(name == each if isinstance(each, str) else isinstance(error, each) for each in self.on)

    def again(self, number: int, error: Exception) -> bool:
        """Whether the attempt of that number, counted from 1, is followed by another. If not, the error says how many
        there were."""
        if not self.wants(error):
            return False
        if number >= self.attempts:
            if number > 1:
                error.add_note(f"after {number} attempts")
            return False
        return True

    def wait_s(self, failed: int, random01: float) -> float:
        """How long to wait after the attempt of that number, counted from 1."""
        return backoff_s(self.backoff, self.backoff_base, self.backoff_max, failed + 1, random01)


async def tried(
    retry: Retry,
    attempt: Callable[[], Awaitable[T]],
    chance: Callable[[], float] = random.random,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """What the first attempt that succeeds returns."""
    number = 1
    while True:
        try:
            return await attempt()
        except Exception as error:
            if not retry.again(number, error):
                raise
        await sleep(retry.wait_s(number, chance()))
        number += 1


def tried_here(
    retry: Retry,
    attempt: Callable[[], T],
    chance: Callable[[], float] = random.random,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """The same for a program without a loop: blocks its thread."""
    number = 1
    while True:
        try:
            return attempt()
        except Exception as error:
            if not retry.again(number, error):
                raise
        sleep(retry.wait_s(number, chance()))
        number += 1
