"""The lifecycle of a run as JSON lines: what `--events FILE` holds and the caller's screen is told.

Rules of this file: one object per line, `event` and `time` (seconds since 1970) first, then what applies of `process`,
`pid`, `agent`, `cause`, `in_hand`, `in_s`; each line is written at once, so the file is complete up to any crash.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from ..chronicle import Chronicle
from ..clock import Clock
from ..errors import ConfigurationError
from ..transport import InHand

__all__ = ["EVENTS", "EventLog", "in_hand_plain"]

EVENTS: Final = (
    "run_started",
    "process_started",
    "process_died",
    "process_restarting",
    "process_recovered",
    "process_stopped",
    "agent_failed",
    "agent_suspended",
    "agent_resumed",
    "dead_letter",
    "agent_given_up",
    "supervisor_shut_down",
    "supervisor_gave_up",
    "verdict",
    "deadlock",
    "run_stopping",
    "run_stopped",
)
"""All names, in the order of a life."""


class EventLog:
    """Where events go: to a listener, and into a file once one is opened."""

    def __init__(self, clock: Clock, listener: Callable[[dict[str, Any]], None]) -> None:
        self._clock = clock
        self._listener = listener
        self._path = ""
        self._fd = -1
        self._kept: Chronicle | None = None

    def keep(self, directory: Path) -> None:
        """Keep the last ones there, for those who look from outside; where that cannot be, it is said once."""
        try:
            self._kept = Chronicle(directory)
        except OSError as error:
            print(f"{directory}: events cannot be kept there ({error.strerror}).", file=sys.stderr)

    def open(self, path: str) -> None:
        """Write to this file too, at its end. ConfigurationError when it cannot be opened."""
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigurationError(f"--events {path}: {error.strerror}.") from error
        self._path = path

    def emit(self, event: str, **fields: Any) -> None:
        """Write one event; fields that are None or empty text do not apply and are left out."""
        if event not in EVENTS:
            raise ValueError(f"unknown event {event!r}")
        entry = {"event": event, "time": self._clock.wall_s()}
        entry |= {key: value for key, value in fields.items() if value is not None and value != ""}
        line = msgspec.json.encode(entry) + b"\n" if self._fd >= 0 or self._kept is not None else b""
        if self._kept is not None:
            try:
                self._kept.note(event, line)
            except OSError as error:
                print(f"The events of this run are kept no longer: {error.strerror}.", file=sys.stderr)
                self._kept.close()
                self._kept = None
        if self._fd >= 0:
            try:
                os.write(self._fd, line)
            except OSError as error:  # a full disk must not end the run; it is said once, on the host's stderr
                print(f"--events {self._path}: {error.strerror}; no more events are written.", file=sys.stderr)
                os.close(self._fd)
                self._fd = -1
        self._listener(entry)

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._kept is not None:
            self._kept.close()
            self._kept = None


def in_hand_plain(entries: list[InHand], agent_of: Callable[[int], str]) -> list[dict[str, Any]]:
    """What a dead process had in hand, as events and reports show it; payloads are nobody's business."""
    return [
        {
            "agent": agent_of(entry.mailbox),
            "type": entry.type,
            "sender": entry.sender,
            "id": entry.header[32:48].hex(),
            "delivery": entry.delivery,
            "payload_bytes": entry.payload_len,
        }
        for entry in entries
    ]
