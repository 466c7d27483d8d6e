"""What a history of messages must be: a pure check of what senders and receivers have noted.

A sender notes a number before it sends it and once more when `send` has returned; it never uses a number twice. A
receiver notes what it handles, in order. Then:

- *lost*: `send` had returned and nobody handled it;
- *invented*: it was handled and no sender had begun to send it, or its content is another one;
- *reordered*: the first arrivals from one sender at one receiver do not ascend;
- *doubled*: it was handled more often than once. That is allowed for messages that were in hand when their process
  died, and for no more: the caller says how many those were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Handled", "History", "Sent", "faults", "mark_of", "read"]


def mark_of(sender: str, number: int) -> int:
    """What a message carries beside its number, so that a changed one is known."""
    mark = 14695981039346656037
    for byte in f"{sender}:{number}".encode():
        mark = (mark ^ byte) * 1099511628211 % (1 << 64)
    return mark >> 1


@dataclass(frozen=True, slots=True)
class Sent:
    """One sender's notes."""

    begun: frozenset[int]
    returned: frozenset[int]


@dataclass(frozen=True, slots=True)
class Handled:
    """One note of a receiver."""

    sender: str
    number: int
    mark: int


@dataclass(frozen=True, slots=True)
class History:
    """All of a run: `handled` by receiver, in order."""

    sent: Mapping[str, Sent]
    handled: Mapping[str, Iterable[Handled]]
    in_hand_at_deaths: int
    """An upper bound of how many were in hand whenever a process died."""


def read(folder: Path, senders: Iterable[str], receivers: Iterable[str], in_hand_at_deaths: int) -> History:
    """From the notes of `chaos_agents`: `sent-NAME` has `b1` before and `r1` after the send of 1, `got-NAME` one line
    for each message, with sender, number and mark. A last line that a death has cut off counts for nothing."""
    sent = {}
    for name in senders:
        lines = _lines(folder / f"sent-{name}")
        numbers = {sort: frozenset(int(line[1:]) for line in lines if line[:1] == sort) for sort in ("b", "r")}
        sent[name] = Sent(numbers["b"], numbers["r"])
    return History(sent, {name: list(_handled(folder / f"got-{name}")) for name in receivers}, in_hand_at_deaths)


def _handled(path: Path) -> Iterator[Handled]:
    for line in _lines(path):
        sender, number, mark = line.split()
        yield Handled(sender, int(number), int(mark))


def _lines(path: Path) -> list[str]:
    return path.read_text().split("\n")[:-1] if path.exists() else []


def faults(history: History) -> tuple[list[str], int]:
    """Every fault as a sentence, and how many doubles there were."""
    found: list[str] = []
    times: Counter[tuple[str, int]] = Counter()
    for receiver, notes in history.handled.items():
        last: dict[str, int] = {}
        seen: set[tuple[str, int]] = set()
        for note in notes:
            key = (note.sender, note.number)
            sent = history.sent.get(note.sender)
            if sent is None or note.number not in sent.begun:
                found.append(f"invented: {receiver} handled {note.number} of {note.sender}, which nobody sent")
            elif note.mark != mark_of(note.sender, note.number):
                found.append(f"invented: {receiver} handled {note.number} of {note.sender} with another content")
            times[key] += 1
            if key in seen:
                continue
            seen.add(key)
            if note.number < last.get(note.sender, -1):
                found.append(f"reordered: {receiver} handled {note.number} of {note.sender} behind {last[note.sender]}")
            last[note.sender] = max(note.number, last.get(note.sender, -1))
    for sender, sent in history.sent.items():
        missing = sorted(number for number in sent.returned if not times[sender, number])
        found += [f"lost: {number} of {sender}, whose send had returned" for number in missing]
    doubles = sum(count - 1 for count in times.values())
    if doubles > history.in_hand_at_deaths:
        found.append(f"doubled: {doubles} messages, and {history.in_hand_at_deaths} were in hand at deaths")
    return found, doubles
