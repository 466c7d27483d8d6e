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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["Handled", "History", "Sent", "faults", "mark_of"]


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
