"""Where delayed messages are kept: in a file of the run directory, which outlives the host; or in memory, without a
host.

Guarantees: when a method of FileDelays returns, what it did is the kernel's, as everything in shared memory is: no
death of a process loses it. One writer, the host. Who only looks (`count_delayed`, `list_delayed`) makes nobody wait.

Rules of this file: no clock and no loop; when something is due is decided in `delays`.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

__all__ = ["FILE", "Delayed", "FileDelays", "MemoryDelays", "Store", "count_delayed", "list_delayed"]

FILE: Final = "delayed"
"""In the run directory."""

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_BUSY_S: Final = 1.0

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS delayed (
    n INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE, key TEXT NOT NULL, sender TEXT NOT NULL,
    recipient TEXT NOT NULL, type TEXT NOT NULL, header BLOB NOT NULL, payload BLOB NOT NULL, due_ns INTEGER NOT NULL,
    due_wall_ns INTEGER NOT NULL, boot TEXT NOT NULL, at_ns INTEGER NOT NULL, every_ns INTEGER NOT NULL,
    ttl_ns INTEGER NOT NULL, priority INTEGER NOT NULL, number INTEGER NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS delayed_by_key ON delayed (sender, key) WHERE key != '';
"""


@dataclass(slots=True)
class Delayed:
    """One message that waits for its time. Times in nanoseconds."""

    n: int
    """Its number in the store; 0 before it is in it."""
    id: bytes
    """Of the order."""
    key: str
    sender: str
    to: str
    type: str
    header: bytes
    payload: bytes
    due_ns: int
    """CLOCK_MONOTONIC; does not count while `at_ns` says when."""
    at_ns: int
    """CLOCK_REALTIME, or 0."""
    every_ns: int
    ttl_ns: int
    priority: int
    number: int = 0
    """Of the publish that is about to be made, or may have been; 0: none."""

    def repeats_as(self, other: Delayed) -> bool:
        """Whether both send the same to the same equally often."""
        return (self.to, self.type, self.payload, self.every_ns, self.ttl_ns, self.priority) == (
            other.to, other.type, other.payload, other.every_ns, other.ttl_ns, other.priority,
        )  # fmt: skip

    def to_plain(self, monotonic_ns: int, wall_ns: int) -> dict[str, Any]:
        """What people and other programs are told of it. Seconds; `due_s` since 1970."""
        return {
            "id": str(uuid.UUID(bytes=self.id)),
            "due_s": (self.at_ns or wall_ns + self.due_ns - monotonic_ns) / 1e9,
            "every_s": self.every_ns / 1e9 or None,
            "ttl_s": self.ttl_ns / 1e9 or None,
            "sender": self.sender,
            "recipient": self.to,
            "type": self.type,
            "key": self.key or None,
            "priority": self.priority,
            "payload_bytes": len(self.payload),
        }


class Store(Protocol):
    """Delayed messages of one run."""

    def load(self, monotonic_ns: int, wall_ns: int) -> list[Delayed]:
        """All of them, in the order of their coming; due times on the monotonic clock of this boot."""
        ...

    def add(self, delayed: Delayed, due_wall_ns: int) -> bool:
        """Keep it and give it its number `n`. False: an order of that id is kept already."""
        ...

    def intend(self, delayed: Delayed, due_wall_ns: int = 0) -> None:
        """Note its number of publish and, with `due_wall_ns`, when it is due."""
        ...

    def remove(self, n: int) -> None:
        """Forget it."""
        ...

    def find(self, sender: str, key: str) -> int | None:
        """The number of what that sender has ordered under that key."""
        ...

    def cancel(self, sender: str, key: str) -> int | None:
        """Forget what that sender has ordered under that key; its number, or None."""
        ...

    def close(self) -> None:
        """Idempotent. Without messages it leaves no file."""
        ...


class MemoryDelays:
    """In the memory of this process."""

    def __init__(self) -> None:
        self._last = 0
        self._numbers: dict[tuple[str, str], int] = {}
        self._keys: dict[int, tuple[str, str]] = {}

    def load(self, monotonic_ns: int, wall_ns: int) -> list[Delayed]:
        return []

    def add(self, delayed: Delayed, due_wall_ns: int) -> bool:
        self._last += 1
        delayed.n = self._last
        if delayed.key:
            self._keys[delayed.n] = key = (delayed.sender, delayed.key)
            self._numbers[key] = delayed.n
        return True

    def intend(self, delayed: Delayed, due_wall_ns: int = 0) -> None:
        pass

    def remove(self, n: int) -> None:
        key = self._keys.pop(n, None)
        if key is not None:
            del self._numbers[key]

    def find(self, sender: str, key: str) -> int | None:
        return self._numbers.get((sender, key))

    def cancel(self, sender: str, key: str) -> int | None:
        n = self._numbers.get((sender, key))
        if n is not None:
            self.remove(n)
        return n

    def close(self) -> None:
        pass


class FileDelays:
    """In one file. OSError when the disk is full or the file is damaged."""

    def __init__(self, run_directory: Path) -> None:
        import sqlite3  # 4 ms, and most runs delay nothing

        self._path = run_directory / FILE
        self._path.touch(mode=0o600)
        # No fsync: what must be survived is the death of processes.
        self._db: sqlite3.Connection | None = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
        self._boot = _boot()
        try:
            self._db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; {_SCHEMA}")
        except sqlite3.Error as error:
            self._db.close()
            raise OSError(f"{self._path}: {error}") from error

    def load(self, monotonic_ns: int, wall_ns: int) -> list[Delayed]:
        return [_of(row, self._boot, monotonic_ns, wall_ns) for row in self._run(_ALL)]

    def add(self, delayed: Delayed, due_wall_ns: int) -> bool:
        d = delayed
        added = self._execute(
            "INSERT OR IGNORE INTO delayed (id, key, sender, recipient, type, header, payload, due_ns, due_wall_ns, "
            "boot, at_ns, every_ns, ttl_ns, priority, number) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            d.id, d.key, d.sender, d.to, d.type, d.header, d.payload, d.due_ns, due_wall_ns, self._boot, d.at_ns,
            d.every_ns, d.ttl_ns, d.priority, d.number,
        )  # fmt: skip
        if added.rowcount != 1 or added.lastrowid is None:
            return False
        delayed.n = added.lastrowid
        return True

    def intend(self, delayed: Delayed, due_wall_ns: int = 0) -> None:
        if not due_wall_ns:
            self._run("UPDATE delayed SET number = ? WHERE n = ?", delayed.number, delayed.n)
            return
        self._run(
            "UPDATE delayed SET number = ?, due_ns = ?, due_wall_ns = ?, boot = ?, at_ns = ? WHERE n = ?",
            delayed.number, delayed.due_ns, due_wall_ns, self._boot, delayed.at_ns, delayed.n,
        )  # fmt: skip

    def remove(self, n: int) -> None:
        self._run("DELETE FROM delayed WHERE n = ?", n)

    def find(self, sender: str, key: str) -> int | None:
        row = self._run("SELECT n FROM delayed WHERE sender = ? AND key = ?", sender, key)
        return row[0][0] if row else None

    def cancel(self, sender: str, key: str) -> int | None:
        n = self.find(sender, key)
        if n is not None:
            self.remove(n)
        return n

    def close(self) -> None:
        if self._db is None:
            return
        empty = not self._run("SELECT 1 FROM delayed LIMIT 1")
        self._db.close()
        self._db = None
        if empty:
            for path in self._path.parent.glob(f"{FILE}*"):
                path.unlink(missing_ok=True)

    def _run(self, sql: str, *values: object) -> list[Any]:
        return list(self._execute(sql, *values).fetchall())

    def _execute(self, sql: str, *values: object) -> Any:
        import sqlite3

        assert self._db is not None, "the store is closed"
        try:
            return self._db.execute(sql, values)
        except sqlite3.Error as error:
            raise OSError(f"{self._path}: {error}") from error


_ALL: Final = "SELECT * FROM delayed ORDER BY n"


def _of(row: Any, boot_now: str, monotonic_ns: int, wall_ns: int) -> Delayed:
    (n, id_, key, sender, to, kind, header, payload, due_ns, due_wall_ns, boot, at_ns, every_ns, ttl_ns,
     priority, number) = row  # fmt: skip
    if boot != boot_now:
        due_ns = monotonic_ns + due_wall_ns - wall_ns  # the monotonic clock began anew with the machine
    return Delayed(n, id_, key, sender, to, kind, header, payload, due_ns, at_ns, every_ns, ttl_ns, priority, number)


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def list_delayed(run_directory: Path) -> list[dict[str, Any]]:
    """Those of a dead run, as `Delayed.to_plain`, in the order of their coming. Changes nothing.

    OSError when the file cannot be read.
    """
    monotonic_ns, wall_ns, boot = time.monotonic_ns(), time.time_ns(), _boot()
    rows = _looked_at(run_directory, _ALL)
    return [_of(row, boot, monotonic_ns, wall_ns).to_plain(monotonic_ns, wall_ns) for row in rows]


def count_delayed(run_directory: Path) -> dict[str, int]:
    """Messages of a dead run that wait for their time, by recipient; what repeats is not counted. Changes nothing.

    OSError when the file cannot be read.
    """
    rows = _looked_at(run_directory, "SELECT recipient, COUNT(*) FROM delayed WHERE every_ns = 0 GROUP BY recipient")
    return dict(rows)


def _looked_at(run_directory: Path, query: str) -> list[Any]:
    path = run_directory / FILE
    if not path.exists():
        return []
    import sqlite3

    uri = f"{path.absolute().as_uri()}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(uri, timeout=_BUSY_S, uri=True)) as db:
            return list(db.execute(query).fetchall())
    except sqlite3.Error as error:
        raise OSError(f"{path}: its delayed messages cannot be read: {error}") from error
