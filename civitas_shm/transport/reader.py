"""The contract of a look into a run from outside: by any process of the same user, of a live run or of one that is
dead.

Rules of this file: no implementation. A reader maps nothing that it could write to, sends nothing, takes no lock that
anybody waits for, and asks nobody; so no process of the run does anything because of it. What it reads is out of date
at once, and words that do not check out are left out, never followed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from .values import MailboxStats, Wait

__all__ = ["Peeked", "RunReader", "SlotView"]

Where = Literal["running", "waits", "buried", "waiting"]
"""`running`: its handler runs, or ran when its process died; `waits`: in hand, its handler has not begun; `buried`:
given up, its letter is not stored yet; `waiting`: in its lane."""


@dataclass(frozen=True, slots=True)
class SlotView:
    """One process slot as it is seen from outside."""

    slot: int
    incarnation: int
    alive: bool
    """It is somebody's: its lock is held, or, of the host's, that of the run."""
    pid: int
    """Of who holds its lock; 0: nobody, or not to be told from here."""
    parked: bool
    """Its process sleeps: nothing is ready for it."""
    asked: bool
    """The host has asked whether its loop turns, and it has not answered yet."""
    arena_bytes: int
    """Memory that the kernel has given for its messages."""
    arena_most_bytes: int


@dataclass(frozen=True, slots=True)
class Peeked:
    """One message where it lies, copied while it was there."""

    where: Where
    lane: int
    deliveries: int
    """How often it was handed over; 0 while it waits."""
    reader: int
    """Slot of who has it in hand; 0 while it waits."""
    strikes: int
    once: bool
    header: bytes
    type: str
    sender: str
    payload: bytes
    """The first bytes of it."""


class RunReader(Protocol):
    """Opened by `TransportModule.look`. The run may end, die, or be removed meanwhile: what was mapped can be read
    on.
    """

    name: str
    run_id: str
    path: Path

    def stats(self) -> list[MailboxStats]:
        """Every mailbox that is some agent's, in the order in which they were made; closed ones too."""
        ...

    def waits(self) -> list[Wait]:
        """What handlers wait for, as their processes noted it last."""
        ...

    def slots(self) -> list[SlotView]:
        """Every slot of a process that has ever been used, the host's first."""
        ...

    def peek(self, mailbox: int, most: int, bytes_most: int) -> list[Peeked]:
        """What is in hand, then what waits, in the order in which it is served; of each payload the first bytes."""
        ...

    def alive(self) -> bool:
        """Whether the run's owner holds its lock."""
        ...

    def replaced(self) -> bool:
        """Whether the directory speaks of another run by now, or of none: this one is over, and its memory is
        removed.
        """
        ...

    def used_bytes(self) -> int:
        """Shared memory that is really taken."""
        ...

    def close(self) -> None:
        """Let go. Idempotent."""
        ...
