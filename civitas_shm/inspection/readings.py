"""One reading of a run: everything that is looked at, at one moment, frozen; and who makes them.

Rules of this file: a Reading can be written as a line of JSON and read back (`top --record`, `--replay`); no rate and
no judgement is in it. What cannot be read (no chart yet, letters that are busy) is absent, and nothing fails for it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from ..chart import Chart, read_chart
from ..chronicle import FILE as EVENTS
from ..chronicle import read_events
from ..letters import DIRECTORY as LETTERS
from ..letters import FILE as LETTERS_FILE
from ..letters import count_letters
from ..messages import HEADER
from ..transport import MailboxStats, Peeked, RunReader, SlotView, Wait
from .proc import Sample, sample

__all__ = ["Hand", "Looker", "Reading", "decode_reading", "encode_reading"]

HANDS_MAX: Final = 2000
"""Messages in hand that are looked at in one reading; the others are only counted."""
LETTERS_SHOWN: Final = 100


class Hand(msgspec.Struct, frozen=True):
    """A message that an agent has in hand."""

    mailbox: int
    where: str
    type: str
    sender: str
    id: str
    """32 hex digits."""
    sent_s: float
    """Since 1970."""
    deliveries: int
    payload_bytes: int
    reader: int
    """Slot."""


class Reading(msgspec.Struct, frozen=True):
    """All of it."""

    name: str
    run_id: str
    path: str
    alive: bool
    """Its host holds the lock."""
    removed: bool
    """Its directory is gone, or another run's by now: what is seen here is what was last."""
    time_s: float
    """Since 1970."""
    monotonic_ns: int
    shared_bytes: int
    chart: Chart | None
    mailboxes: tuple[MailboxStats, ...]
    waits: tuple[Wait, ...]
    slots: tuple[SlotView, ...]
    hands: tuple[Hand, ...]
    samples: dict[int, Sample]
    """By pid."""
    events: tuple[dict[str, Any], ...]
    dead_letters: int | None
    letters: tuple[dict[str, Any], ...] = ()
    """The newest, without payloads."""
    version: Literal[1] = 1


def encode_reading(reading: Reading) -> bytes:
    """One line, without its end."""
    return msgspec.json.encode(reading)


def decode_reading(line: bytes) -> Reading:
    """ValueError when it is none."""
    return msgspec.json.decode(line, type=Reading, strict=False)


class Looker:
    """Makes readings of one run; keeps what need not be read again."""

    def __init__(self, reader: RunReader) -> None:
        self.reader = reader
        self._files: dict[str, tuple[tuple[int, int], Any]] = {}
        """By name in the run directory: (size, time of change) and what was read then."""

    def look(self) -> Reading:
        """One reading, of what is there now."""
        reader, path = self.reader, self.reader.path
        removed = reader.replaced()
        mailboxes, slots = tuple(reader.stats()), tuple(reader.slots())
        chart = None if removed else read_chart(path)
        if chart is not None and chart.run_id != reader.run_id:
            chart = None
        pids = {slot.pid for slot in slots}
        if chart is not None and not removed and reader.alive():
            pids |= {chart.host_pid, chart.main_pid, *(process.pid for process in chart.processes)}
        letters = self._cached(path, f"{LETTERS}/{LETTERS_FILE}", lambda: _letters(path), (0, ()))
        return Reading(
            name=reader.name,
            run_id=reader.run_id,
            path=str(path),
            alive=not removed and reader.alive(),
            removed=removed,
            time_s=time.time(),
            monotonic_ns=time.monotonic_ns(),
            shared_bytes=reader.used_bytes(),
            chart=chart,
            mailboxes=mailboxes,
            waits=tuple(reader.waits()),
            slots=slots,
            hands=self._hands(mailboxes),
            samples=sample(pids),
            events=() if removed else self._cached(path, EVENTS, lambda: tuple(read_events(path)), ()),
            dead_letters=letters[0],
            letters=letters[1],
        )

    def _hands(self, mailboxes: tuple[MailboxStats, ...]) -> tuple[Hand, ...]:
        hands: list[Hand] = []
        for stats in mailboxes:
            if stats.in_hand and len(hands) < HANDS_MAX:
                found = self.reader.peek(stats.mailbox, stats.in_hand, 0)
                hands += [hand_of(stats.mailbox, one) for one in found if one.where != "waiting"]
        return tuple(hands)

    def _cached(self, path: Path, name: str, read: Any, absent: Any) -> Any:
        try:
            stat = (path / name).stat()
        except OSError:
            return absent
        mark = (stat.st_size, stat.st_mtime_ns)
        if name not in self._files or self._files[name][0] != mark:
            self._files[name] = mark, read()
        return self._files[name][1]


def hand_of(mailbox: int, one: Peeked) -> Hand:
    """What is said of a message, without its payload."""
    fields = HEADER.unpack(one.header)
    return Hand(
        mailbox=mailbox,
        where=one.where,
        type=one.type,
        sender=one.sender,
        id=fields[11].hex(),
        sent_s=fields[16] / 1e9,
        deliveries=one.deliveries,
        payload_bytes=fields[2],
        reader=one.reader,
    )


def _letters(path: Path) -> tuple[int | None, tuple[dict[str, Any], ...]]:
    import sqlite3

    from ..dead_letters import read_letters

    try:
        letters = read_letters(path)
    except (sqlite3.Error, OSError):
        return count_letters(path), ()
    return len(letters), tuple(letter.to_plain() for letter in letters[:LETTERS_SHOWN])
