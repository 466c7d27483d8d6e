"""Mailboxes of agents that are gone, for agents to come: a run may spawn without end and not grow.

The protocol is in LAYOUT.md, "A mailbox changes hands". Rules of this file:
- the host's alone; nothing waits: what cannot be had now is looked for again at the next call;
- no mailbox is given up while there is plenty: until then its name says that its agent has stopped;
- one that was given up is used again only when every process that lived then has been seen outside of a post since
  (its loop has taken a probe), or is dead. One that is stopped, or whose loop is blocked, holds all of them up.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from . import _shm

__all__ = ["SLOT_DEAD", "SLOT_LIVE", "Recycler"]

SLOT_LIVE: Final = 1
SLOT_DEAD: Final = 2

RESERVE_SHARE: Final = 2
"""Half of all mailboxes are kept ready: agents may come faster than loops turn on a busy machine."""


class Recycler:
    """Of one run. `closed` mailboxes go in, indices of others come out."""

    def __init__(self, native: _shm.Port, mailboxes: int, slots: int, first: int) -> None:
        """`first`: of the mailboxes of agents. What an earlier host has left is found; all its processes are dead."""
        self._native = native
        self._most = mailboxes
        self._slots = range(1, slots)
        self._closed: dict[int, None] = {}
        """Handles, the first closed first."""
        self._retired: list[int] = []
        """Indices whose old names are refused, while processes are waited for."""
        self._awaited: dict[int, int] = {}
        """Incarnation by slot: processes that have not been seen since."""
        self._ready: deque[int] = deque()
        """Indices."""
        for handle in native.mailboxes(first, True):
            native.retire(handle)  # again: its host may have died before the old name was refused
            self._ready.append(handle & _shm.INDEX_MASK)
        self._closed.update((handle, None) for handle in native.mailboxes(first) if not native.record(handle)[1])

    def closed(self, handle: int) -> None:
        """Its agent is gone for good, and what waited there has been taken care of."""
        self._closed[handle] = None
        self.tend()

    def tend(self) -> None:
        """See who has been seen; give up what has been closed longest when little is left."""
        native = self._native
        for slot, incarnation in list(self._awaited.items()):
            if native.slot(slot)[:2] != (incarnation, SLOT_LIVE) or not native.probe_open(slot):
                del self._awaited[slot]
        if self._awaited:
            return
        self._make_ready()
        if self._is_short():
            self._retire()
            if not self._awaited:  # nobody lives
                self._make_ready()

    def _make_ready(self) -> None:
        self._ready.extend(self._retired)
        self._retired.clear()

    def take(self, name: str, capacities: tuple[int, int, int], overflow: int, replicas: int) -> int | None:
        """A mailbox for an agent of that name; None when none of this size is ready."""
        for _ in range(len(self._ready)):
            index = self._ready.popleft()
            try:
                return self._native.reopen(index, name, *capacities, overflow, replicas)
            except OSError:  # of another size, or damaged
                self._ready.append(index)
        return None

    def held_up_by(self) -> list[int]:
        """Slots of the processes that are waited for."""
        return list(self._awaited)

    def _is_short(self) -> bool:
        left = self._most - self._native.records() + len(self._ready)
        return left < max(1, self._most // RESERVE_SHARE)

    def _retire(self) -> None:
        for handle in list(self._closed):
            if self._native.retire(handle):  # else a letter is still to be stored, or its reader has not let go
                del self._closed[handle]
                self._retired.append(handle & _shm.INDEX_MASK)
        if not self._retired:
            return
        for slot in self._slots:
            incarnation, state = self._native.slot(slot)[:2]
            if state == SLOT_LIVE:
                self._native.probe(slot)  # behind the words that refuse the old names
                self._awaited[slot] = incarnation
