"""Many asks at once: bounded concurrency over one agent or a pool of them, answers in order.

Rules of this file: no bus and no agent; what asks is given. One task for each place of `limit`, none for a payload.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from operator import length_hint
from typing import Any, Final

from .errors import TransportClosed

__all__ = ["ASKS_AT_ONCE", "answers_or_raise", "ask_many", "names_of"]

ASKS_AT_ONCE: Final = 16
"""Of one `ask_many`, unless told otherwise: fills a pool of this size, and no mailbox."""


async def ask_many(
    ask: Callable[[str, Any], Awaitable[Any]],
    to: str | Sequence[str],
    payloads: Iterable[Any],
    limit: int,
    return_exceptions: bool,
) -> list[Any]:
    """One answer for each payload, in their order; see `AgentProcess.ask_many`."""
    names = names_of(to, limit)
    numbered = enumerate(payloads)
    open_asks = dict.fromkeys(names, 0)
    answers: dict[int, Any] = {}
    failed: list[Exception] = []

    async def one(payload: Any) -> Any:
        name = min(open_asks, key=lambda each: open_asks[each])
        open_asks[name] += 1
        try:
            return await ask(name, payload)
        except Exception as error:
            error.add_note(f"asked of {name!r}")
            raise
        finally:
            # Behind the others, so that equals take turns.
            open_asks[name] = open_asks.pop(name) - 1

    async def work() -> None:
        for number, payload in numbered:
            try:
                answers[number] = await one(payload)
            except TransportClosed:
                raise  # the run has ended: no other ask will do better
            except Exception as error:  # noqa: BLE001 - handed to the caller, below
                error.add_note(f"payload {number} of ask_many")
                answers[number] = error
                failed.append(error)

    # A gather, not a TaskGroup: the deadlock detector sees what its tasks wait for.
    workers = [asyncio.create_task(work()) for _ in range(min(limit, length_hint(payloads, limit)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
    return answers_or_raise([answers[number] for number in sorted(answers)], failed, return_exceptions)


def names_of(to: str | Sequence[str], limit: int) -> list[str]:
    """Who is asked. ValueError: nobody is, or nothing at a time."""
    names = [to] if isinstance(to, str) else list(to)
    if not names:
        raise ValueError("ask_many was given nobody to ask")
    if limit < 1:
        raise ValueError(f"limit of ask_many is {limit}; at least 1 must be asked at a time")
    return names


def answers_or_raise(answers: list[Any], failed: list[Exception], return_exceptions: bool) -> list[Any]:
    """What `ask_many` returns, or raises, when all have been asked."""
    if failed and not return_exceptions:
        raise ExceptionGroup(f"ask_many: {len(failed)} of {len(answers)} asks failed", failed)
    return answers
