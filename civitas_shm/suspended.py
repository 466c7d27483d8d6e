"""What a handler's task is suspended on: one future, or, in an `asyncio.gather`, all that it gathers.

Rules of this file:
- only waits that must all end before the task goes on (but for an error): what a race awaits (`asyncio.wait`,
  `wait_for` of 3.11, a TaskGroup, `shield`) is not looked into, because the task may go on without it;
- asyncio keeps both things under the same private names in all versions that we run on (`_fut_waiter`, `_children`);
  where it does not, nothing is found, and deadlines remain.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

from .transport import Wait

__all__ = ["GatheredWaits", "direct", "gathered"]

LEAVES_MAX: Final = 256
"""Of one handler: a look must not take longer than it takes to handle a message."""

HOLD_NS: Final = 1_000_000_000
"""An agent notes one wait at a time. So long it notes the same one of several: the host compares two readings."""


def direct(task: asyncio.Task[Any] | None) -> asyncio.Future[Any] | None:
    """The future that it awaits itself; None: it is not suspended, or what it awaits is there."""
    future = getattr(task, "_fut_waiter", None)
    return future if isinstance(future, asyncio.Future) and not future.done() else None


def gathered(future: asyncio.Future[Any]) -> list[asyncio.Future[Any]]:
    """What the tasks that it gathers are suspended on, LEAVES_MAX at most; nothing when it is no gather."""
    found: list[asyncio.Future[Any]] = []
    open_ = list(_children(future))
    while open_ and len(found) < LEAVES_MAX:
        child = open_.pop()
        leaf = direct(child) if isinstance(child, asyncio.Task) else child
        if leaf is None or leaf.done():
            continue
        if children := list(_children(leaf)):
            open_.extend(children)
        else:
            found.append(leaf)
    return found


def _children(future: asyncio.Future[Any]) -> Iterator[asyncio.Future[Any]]:
    children = getattr(future, "_children", ())
    yield from (child for child in children if isinstance(child, asyncio.Future))


class GatheredWaits:
    """Waits of handlers that gather several: which one each agent notes, and since when it surely waits for it."""

    def __init__(self) -> None:
        self._since_ns: dict[tuple[str, int], int] = {}
        """First look in which the handler was suspended on it, and in every one since. Its ask may be older than that:
        a task had it before the handler waited for the task."""

    def of(self, waits: Iterable[Wait], seen_ns: int) -> list[Wait]:
        """One for each agent, of all that are found in this look."""
        by_agent: dict[int, list[Wait]] = {}
        since_ns: dict[tuple[str, int], int] = {}
        for wait in waits:
            key = (wait.kind, wait.id)
            since_ns[key] = self._since_ns.get(key, seen_ns)
            by_agent.setdefault(wait.agent, []).append(wait)
        self._since_ns = since_ns
        turn = seen_ns // HOLD_NS  # the same for all processes
        chosen = []
        for agent, its in by_agent.items():
            # By chance: two agents that turned in step would never note the two waits of a circle at once.
            wait = its[zlib.crc32(f"{agent} {turn}".encode()) % len(its)]
            since = since_ns[wait.kind, wait.id]
            chosen.append(Wait(agent, wait.target, wait.kind, wait.id, since, wait.seen_ns, wait.type))
        return chosen
