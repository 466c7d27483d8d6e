"""What is found of runs on this machine: the words in which `ps`, `gc` and `doctor` speak of them.

Rules of this file: plain frozen values and nothing else (stdlib only). Whether a run lives is said by its lock, which
the transport looks at; never by a pid, because pids come again. A number that is not known is None, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

__all__ = ["ABANDONED_S", "LOGS", "RunFound", "RunState"]

LOGS: Final = ("log", "log.1")
"""What `run --detach` has written, and what was in it before it was last emptied: files of the run directory that stay
after the end, until the next run of the name or `gc`."""

ABANDONED_S: Final = 3600.0
"""After it, the log of a detached start that has not become a run is what killed processes have left."""

RunState = Literal["live", "dead", "empty", "unreadable", "ended", "orphan", "foreign"]
"""
- `live`: its host holds the lock; nobody else touches it;
- `dead`: nobody holds it, and messages or dead letters are in it: `run --resume` goes on with them;
- `empty`: nobody holds it and nothing is in it; the next run of that name sweeps it;
- `unreadable`: nobody holds it, and what it holds cannot be told: damaged, or of another version; `problem` says why;
- `ended`: it ended in order, and the log that `run --detach` wrote is left;
- `orphan`: segments that no run directory of this user speaks of, and that no process has open;
- `foreign`: it belongs to another user, who alone can tell more or remove it.
"""


@dataclass(frozen=True, slots=True)
class RunFound:
    """One run, or what is left of one."""

    name: str
    run_id: str
    """32 hex digits; the first 8 of an orphan's; empty when not known."""
    waiting: int | None
    """Messages that wait or were in hand. None: not to be told from outside."""
    size_bytes: int
    """Memory and disk that it takes."""
    path: Path
    """Its run directory; of an orphan, the directory of its segments."""
    state: RunState = "dead"
    dead_letters: int | None = 0
    """None: not to be told."""
    problem: str = ""
    """Why it cannot be read: a sentence without its full stop."""
    made_s: float | None = None
    """Since 1970; for an ended one, when it ended."""
    has_log: bool = False
    elsewhere: bool = False
    """A live one that lies under another CIVITAS_SHM_DIR than this process looks at: reached by its name alone."""
    uid: int = -1
    """Owner; -1: this user."""
    segments: tuple[str, ...] = ()
    """Of an orphan or a foreign one: names in /dev/shm."""

    @property
    def holds_messages(self) -> bool:
        """Whether removing it may lose something that nobody has handled or read."""
        if self.state in ("unreadable", "orphan"):
            return True
        return self.state == "dead" and (self.waiting != 0 or self.dead_letters != 0)
