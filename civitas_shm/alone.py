"""The gate of one process: a message that is suspected of a death runs while no other handler of the process does.

Guarantees:
- while the gate is closed no other handler begins here, and the suspect begins when none runs any more, no agent is
  starting and none is still to come, so a death then has exactly one running message (`delivery`);
- nobody waits for ever: a suspect that has run for its `limit_s` without ending its process is let be, and one that
  waits as long for others to finish begins beside them. The limit doubles with each hand-over, so whatever takes its
  time to do harm is alone for long enough in the end;
- a suspect that asks another agent does not keep that agent from answering: while it waits for a reply, others begin.

It costs the hot loop one look at `closed`, a plain attribute, per message: not to be measured in an ask between two
processes (7.22 µs with it, 7.24 without, best of 2 × 3 interleaved runs of 10,000, 2026-11-21, a busy 2-core machine).
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, Protocol

__all__ = ["ALONE_S", "Alone", "Member", "limit_s"]

ALONE_S: Final = 1.0
"""Doubled for each hand-over: 2 s for the second, 4 for the third. Most poison acts within a millisecond."""
ALONE_MAX_S: Final = 60.0

LOOK_S: Final = 0.005
"""How often one who waits looks again; only while a suspect runs or is about to."""

GATHER_S: Final = 0.05
"""How long a suspect waits for the agents of its process that have not begun their start: they come one by one."""
GATHER_LOOK_S: Final = 0.0005
GATHER_BLIND_S: Final = 0.005
"""The same where nobody knows how many will come."""


def limit_s(deliveries: int) -> float:
    """How long a message that was handed over so often may be alone."""
    return min(ALONE_MAX_S, ALONE_S * 2.0 ** min(deliveries, 10))


class Member(Protocol):
    """An agent of this process."""

    @property
    def runs(self) -> bool:
        """Whether a handler of it runs, or waits at the gate, or it is starting."""
        ...

    def awaits_reply(self) -> bool:
        """Whether its handler waits for the reply of another agent."""
        ...


class Alone:
    """Who may begin. One for all agents of a process; all methods run on its loop."""

    def __init__(self, expected: int | None = None) -> None:
        """`expected`: how many agents will join; None where that is not known."""
        self.closed = False
        self._expected = expected
        self._joined = 0
        self._members: set[Member] = set()
        self._waiting: set[Member] = set()
        """At the gate: nothing of them runs."""
        self._owner: Member | None = None
        self._expires: asyncio.TimerHandle | None = None

    def join(self, member: Member) -> None:
        self._members.add(member)
        self._joined += 1

    def quit(self, member: Member) -> None:
        self.leave(member)
        self._members.discard(member)

    async def enter(self, member: Member, limit_s: float) -> None:
        """Return when `member` may begin its suspect: nobody else runs, or it has waited for `limit_s`."""
        until_s = time.monotonic() + limit_s
        self._waiting.add(member)
        try:
            while self._owner is not None and time.monotonic() < until_s:
                await asyncio.sleep(LOOK_S)
            if self._owner is not None:
                return  # beside another suspect, which has been given its time: not alone, and so not struck
            self._owner = member
            self.closed = True
            await self._gathered()
            while self._others_run(member) and time.monotonic() < until_s:
                await asyncio.sleep(LOOK_S)
        except BaseException:
            self.leave(member)
            raise
        finally:
            self._waiting.discard(member)
        self._expires = asyncio.get_running_loop().call_later(limit_s, self.leave, member)

    async def _gathered(self) -> None:
        """Every agent of the process has begun its start, or has had its time to."""
        if self._expected is None:
            await asyncio.sleep(GATHER_BLIND_S)
            return
        until_s = time.monotonic() + GATHER_S
        while self._joined < self._expected and time.monotonic() < until_s:
            await asyncio.sleep(GATHER_LOOK_S)

    def _others_run(self, member: Member) -> bool:
        return any(other is not member and other not in self._waiting and other.runs for other in self._members)

    def leave(self, member: Member) -> None:
        """Its handler has ended, or its time is over. Of anybody else: nothing."""
        if self._owner is not member:
            return
        self._owner = None
        self.closed = False
        if self._expires is not None:
            self._expires.cancel()
            self._expires = None

    async def passage(self, member: Member) -> None:
        """Return when another message of `member` may begin."""
        self._waiting.add(member)
        try:
            while self.closed and (owner := self._owner) is not member:
                if owner is not None and owner.awaits_reply():
                    return
                await asyncio.sleep(LOOK_S)
        finally:
            self._waiting.discard(member)
