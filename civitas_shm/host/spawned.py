"""Agents that were spawned, as the host keeps them: where they run, and what a resumed run knows of them.

Rules of this file: a spawn is noted before its mailbox is made, a removal after it is closed. So a host that is killed
in between may bring back an agent whose despawn nobody was told of, and never forgets one whose spawn somebody was.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from ..errors import CivitasError
from ..notices import encode_notice
from ..supervision import AddChild, Event, Tree
from ..transport import SENT, RunMemory
from .homes import Homes

__all__ = ["Hands", "Journal"]

REWRITE_LINES: Final = 1000
"""Lines of agents that are gone, before the journal is written anew."""


class Journal:
    """The spawned agents of a run, in its directory: a line for each spawn and each removal."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self._path = path
        self._known: dict[str, AddChild] = {}
        if resume:
            self._read()
        self._fd = -1
        self._rewrite()

    def known(self) -> list[AddChild]:
        """What was spawned and is not gone, in that order."""
        return list(self._known.values())

    def added(self, wanted: AddChild) -> bool:
        """Note it; False when that was done in an earlier life of the run."""
        if self._known.get(wanted.agent.name) == wanted:
            return False
        self._known[wanted.agent.name] = wanted
        self._append(_line(wanted))
        return True

    def removed(self, name: str) -> None:
        if self._known.pop(name, None) is not None:
            self._append(msgspec.json.encode({"gone": name}) + b"\n")
            if self._lines > 2 * len(self._known) + REWRITE_LINES:
                self._rewrite()

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, line: bytes) -> None:
        os.write(self._fd, line)  # one call: a host that is killed leaves it whole or not at all
        self._lines += 1

    def _read(self) -> None:
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            try:
                entry: dict[str, Any] = msgspec.json.decode(line)
            except msgspec.DecodeError:
                continue  # cut off by a full disk: its spawn was refused
            if "gone" in entry:
                self._known.pop(entry["gone"], None)
            else:
                wanted = msgspec.convert(entry, AddChild)
                self._known[wanted.agent.name] = wanted

    def _rewrite(self) -> None:
        """Put a new file in the place of the old one, by one rename."""
        new = self._path.with_suffix(".new")
        new.write_bytes(b"".join(map(_line, self._known.values())))
        os.replace(new, self._path)
        self.close()
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._lines = len(self._known)


def _line(wanted: AddChild) -> bytes:
    return msgspec.json.encode(wanted) + b"\n"


class Driver(Protocol):
    """What is needed of `driver.Driver`."""

    @property
    def tree(self) -> Tree: ...
    @property
    def stopping(self) -> bool: ...
    @property
    def homes(self) -> Homes: ...
    def feed(self, event: Event) -> None: ...
    def crash(self, child: str, incarnation: int, reason: str, counts: bool, wanted: bool = False) -> None: ...
    def judge(self, wanted: AddChild, then: Callable[[str], None]) -> None: ...
    def steer(self, child: str, incarnation: int, number: int, what: str, fields: dict[str, Any]) -> bool: ...


class Hands:
    """The host's `requests.RequestsDriver`."""

    def __init__(
        self, driver: Driver, loop: asyncio.AbstractEventLoop, memory: RunMemory, journal: Journal | None
    ) -> None:
        self._driver = driver
        self._loop = loop
        self._memory = memory
        self._journal = journal
        self.feed = driver.feed
        self.crash = driver.crash
        self.steer = driver.steer

    @property
    def tree(self) -> Tree:
        return self._driver.tree

    @property
    def stopping(self) -> bool:
        return self._driver.stopping

    @property
    def now_s(self) -> float:
        return self._loop.time()

    def admit(self, wanted: AddChild) -> None:
        agent = wanted.agent
        new = self._journal is not None and self._journal.added(wanted)
        try:
            self._driver.homes.move_in(agent)
        except CivitasError:
            if new:  # else its messages wait, for a resume that has room for it
                self.forget(agent.name)
            raise

    def forget(self, agent: str) -> None:
        """It is gone, and its mailbox is closed."""
        if self._journal is not None:
            self._journal.removed(agent)

    def tell(self, agent: str, kind: str, name: str, reason: str) -> bool:
        mailbox = self._driver.homes.mailbox_of(agent)
        if mailbox is None:
            return True  # it is gone itself
        return self._memory.post_notice(mailbox, kind, encode_notice(name, reason)) == SENT

    def judge(self, wanted: AddChild, then: Callable[[str], None]) -> None:
        self._driver.judge(wanted, then)

    def suspended(self, agent: str) -> bool:
        return any(one.name == agent and one.suspended_since_s > 0 for one in self._memory.stats())

    def later(self, delay_s: float, work: Callable[[], None]) -> object:
        return self._loop.call_later(delay_s, work)
