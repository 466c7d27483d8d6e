"""Deadlocks: agents whose handlers wait for one another in a circle. Pure: from noted waits to who gets an error.

What counts as a wait (`transport.Wait`): what the handler itself awaits, an ask or room in a full mailbox, and each of
those that it awaits together in `asyncio.gather`, because it cannot go on before all of them have ended. What a task
waits for that the handler has started does not count, because the handler may go on and answer meanwhile; such an ask
ends at its deadline. An agent notes one thing at a time (of several one after the other, `suspended`), so the waits
form a graph with one edge out of each agent, and a deadlock is a circle in it.

Guarantees:
- no innocent: a circle is told only if all of its waits overlap in one instant, which is a proof, because an agent that
  waits for another one answers nobody meanwhile; and only if every wait of it was seen again in the next reading, the
  same one by its id, so that one which has just been broken otherwise (deadline, death, stop) is left alone;
- found in the second reading after the last wait of the circle was noted: within a second, but for circles through a
  handler that gathers several, which note the right one by chance, once a second;
- told once; told again only if it is still there AGAIN readings later (its process was stopped, say).

What is not found: circles through an agent with replicas (another replica may answer), through waits for memory (any of
many receivers may give it back), through a writer that waits for the credits of a stream (whatever task holds the
stream may read on, one that has not begun to, too: what its reader's handler waits for proves nothing), or through what
a handler awaits by other means than `await` and `asyncio.gather` (`asyncio.wait`, a TaskGroup, `shield`, threads of its
own: it may be a race, which goes on without the one that is stuck). These end at their deadlines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from .errors import DeadlockError
from .transport import Wait

__all__ = ["AGAIN", "LOOK_S", "Deadlock", "DeadlockWatch", "cycles", "deadlock_error"]

LOOK_S: Final = 0.2
"""How often a process in which somebody waits notes its waits. The host reads every 0.25 s, and needs two readings
with a note of everybody between them: 0.2 + 2 × 0.25 s plus what the way takes is below a second."""

AGAIN: Final = 8
"""Readings, two seconds."""

_Key = tuple[tuple[int, str, int], ...]


@dataclass(frozen=True, slots=True)
class Deadlock:
    """A circle: each waits for the next one's agent, the last for the first one's."""

    waits: tuple[Wait, ...]
    """The longest-waiting first."""

    @property
    def youngest(self) -> Wait:
        """The one that closed the circle: it gets the error."""
        return max(self.waits, key=lambda wait: (wait.since_ns, wait.agent))


def cycles(waits: Iterable[Wait]) -> list[Deadlock]:
    """All circles in which everybody waited at one common instant."""
    edges = {wait.agent: wait for wait in waits}
    state: dict[int, int] = {}  # agent -> number of the walk that came by
    found: list[Deadlock] = []
    for number, start in enumerate(edges):
        path: list[int] = []
        agent = start
        while agent in edges and agent not in state:
            state[agent] = number
            path.append(agent)
            agent = edges[agent].target
        if agent in edges and state[agent] == number:
            circle = [edges[member] for member in path[path.index(agent) :]]
            if max(wait.since_ns for wait in circle) <= min(wait.seen_ns for wait in circle):
                found.append(Deadlock(_oldest_first(circle)))
    return found


def _oldest_first(circle: Sequence[Wait]) -> tuple[Wait, ...]:
    first = min(range(len(circle)), key=lambda index: (circle[index].since_ns, circle[index].agent))
    return (*circle[first:], *circle[:first])


class DeadlockWatch:
    """Remembers the last reading; one for each run."""

    def __init__(self) -> None:
        self._before: dict[_Key, Deadlock] = {}
        self._told: dict[_Key, int] = {}
        """Readings since."""

    def look(self, waits: Iterable[Wait]) -> list[Deadlock]:
        """One reading: the deadlocks that are certain now. `youngest` of each is to be ended with a DeadlockError."""
        now = {_key(deadlock): deadlock for deadlock in cycles(waits)}
        certain = []
        self._told = {key: readings + 1 for key, readings in self._told.items() if key in now and readings + 1 < AGAIN}
        for key, deadlock in list(now.items()):
            before = self._before.get(key)
            if before is None:
                continue
            if not _seen_again(before, deadlock):
                now[key] = before  # a process has not looked in between; compare with the same reading next time
            elif key not in self._told:
                self._told[key] = 0
                certain.append(deadlock)
        self._before = now
        return certain


def _key(deadlock: Deadlock) -> _Key:
    return tuple((wait.agent, wait.kind, wait.id) for wait in deadlock.waits)


def _seen_again(before: Deadlock, now: Deadlock) -> bool:
    return all(new.seen_ns > old.seen_ns for old, new in zip(before.waits, now.waits, strict=True))


def deadlock_error(deadlock: Deadlock, name: Callable[[int], str]) -> DeadlockError:
    """What the youngest gets; `name` of a mailbox. Times are as of the reading."""
    now_ns = max(wait.seen_ns for wait in deadlock.waits)
    return DeadlockError(
        [
            (name(wait.agent), name(wait.target), wait.kind, wait.type, round((now_ns - wait.since_ns) / 1e9, 3))
            for wait in deadlock.waits
        ]
    )
