"""Where dead letters are kept: bounded, oldest out first and counted, and on disk so that no death loses them.

For a run under a host the store is `FileLetters(run directory/letters)`: one SQLite file, written by the host alone
while it lives, and by whoever holds the run's lock after its death. It outlives processes, the host and the end of the
run; the run directory stays for as long as letters are in it. In process it is `MemoryLetters`, which ends with the
program.

What others may build on:
- `store_of(run_directory)` opens what is there for reading and writing, for who holds the run; `read_letters` and
  `letters.count_letters(run_directory)` only read, and are for everybody, at any time;
- `store.letters()` newest first, without header and payload unless asked; `store.find("01a2")` by any beginning of an
  id, complete; `store.drop(ids)`; `len(store)`; `store.evicted` (letters that the bound has pushed out);
- `DeadLetterOffice.replay(id)` puts a copy back into the recipient's mailbox; the letter goes only after that is
  committed. `None`, or a sentence that says why it could not be done. It needs the live run.

Guarantees:
- a message has one letter: adding it again replaces the former, so whoever dies between storing and letting go does no
  harm;
- when `add` returns the letter is the kernel's: only the death of the machine could lose it;
- never more than LETTERS_MAX letters and LETTERS_BYTES_MAX bytes;
- readers never make the writer wait (write-ahead log).
"""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from .clock import Clock
from .letters import DIRECTORY, FILE, Letter, Note, count_letters, letter_of
from .messages import Message, is_system_type
from .transport import CLOSED, FULL, NO_MEMORY, SENT, TOO_LARGE, Burials, Buried, InHand

__all__ = [
    "LETTERS_BYTES_MAX",
    "LETTERS_MAX",
    "DeadLetterOffice",
    "FileLetters",
    "MemoryLetters",
    "Store",
    "read_letters",
    "store_of",
]

LETTERS_MAX: Final = 10_000
LETTERS_BYTES_MAX: Final = 64 << 20
"""Of all letters together, wherever the run directory lies: a disk, or a tmpfs whose memory it takes."""

_BUSY_S: Final = 1.0
"""How long a command may keep the file; the host alone writes while it lives."""

_ID: Final = slice(32, 48)
"""Of a message, in its header."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS letters (
    n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, fields TEXT NOT NULL,
    header BLOB NOT NULL, payload BLOB);
CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT OR IGNORE INTO counts VALUES ('evicted', 0);
CREATE TABLE IF NOT EXISTS dropped (id TEXT PRIMARY KEY);
"""


class Store(Protocol):
    """Dead letters of one run."""

    @property
    def evicted(self) -> int:
        """Letters that were pushed out by newer ones since the store was made."""
        ...

    def add(self, letters: Sequence[Letter]) -> None:
        """Keep them, all or none. Replaces those of the same ids."""
        ...

    def letters(self, *, payloads: bool = False, skip: int = 0, limit: int = -1) -> list[Letter]:
        """The newest first, all or a page; without `payloads` their header and payload are empty."""
        ...

    def find(self, beginning: str, limit: int = -1) -> list[Letter]:
        """Those whose id begins so, complete; at most `limit`."""
        ...

    def drop(self, ids: Iterable[str]) -> int:
        """Forget them; how many were there."""
        ...

    def was_dropped(self, id_: str) -> bool:
        """Whether somebody forgot it while no host lived, who may have died between its letter and its discard."""
        ...

    def forget_dropped(self) -> None:
        """The next host has settled what its predecessor was about to."""
        ...

    def __len__(self) -> int: ...

    def close(self) -> None:
        """Idempotent. A store without letters leaves no file."""
        ...


class MemoryLetters:
    """In the memory of this process: for runs without a host."""

    def __init__(self, most: int = LETTERS_MAX, bytes_most: int = LETTERS_BYTES_MAX) -> None:
        self._letters: dict[str, Letter] = {}  # in the order in which they came
        self._most, self._bytes_most = most, bytes_most
        self._bytes = 0
        self.evicted = 0

    def add(self, letters: Sequence[Letter]) -> None:
        for letter in letters:
            self.drop([letter.id])
            self._letters[letter.id] = letter
            self._bytes += letter.size_bytes
        while len(self._letters) > self._most or (self._bytes > self._bytes_most and self._letters):
            self.evicted += self.drop([next(iter(self._letters))])

    def letters(self, *, payloads: bool = False, skip: int = 0, limit: int = -1) -> list[Letter]:
        newest_first = list(reversed(self._letters.values()))[skip:]
        page = newest_first if limit < 0 else newest_first[:limit]
        return page if payloads else [_without_bytes(letter) for letter in page]

    def find(self, beginning: str, limit: int = -1) -> list[Letter]:
        found = [letter for letter in self._letters.values() if letter.id.startswith(beginning)]
        return found if limit < 0 else found[:limit]

    def drop(self, ids: Iterable[str]) -> int:
        dropped = [letter for id_ in ids if (letter := self._letters.pop(id_, None)) is not None]
        self._bytes -= sum(letter.size_bytes for letter in dropped)
        return len(dropped)

    def was_dropped(self, id_: str) -> bool:
        return False  # they end with their host

    def forget_dropped(self) -> None:
        pass

    def __len__(self) -> int:
        return len(self._letters)

    def close(self) -> None:
        pass


class FileLetters:
    """In one file of the run directory. `sqlite3.Error` when the disk is full or the file is damaged."""

    def __init__(
        self,
        directory: Path,
        most: int = LETTERS_MAX,
        bytes_most: int = LETTERS_BYTES_MAX,
        *,
        notes_drops: bool = False,
    ) -> None:
        """`notes_drops`: no host lives, and messages may still be in hand: what is dropped must not come again."""
        import sqlite3  # 4 ms, and most runs have no dead letter

        self._directory = directory
        self._most, self._bytes_most = most, bytes_most
        self._notes_drops = notes_drops
        directory.mkdir(mode=0o700, exist_ok=True)
        self._path = directory / FILE
        self._path.touch(mode=0o600)
        # The death of processes is what it must survive: what is written is the kernel's. An fsync each would cost a
        # second for a few hundred letters, in the loop of the host.
        self._db: sqlite3.Connection | None = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
        try:
            self._db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; {_SCHEMA}")
        except BaseException:
            self._db.close()
            raise

    @property
    def evicted(self) -> int:
        return int(self._one("SELECT value FROM counts WHERE name = 'evicted'"))

    def add(self, letters: Sequence[Letter]) -> None:
        with self._transaction() as db:
            for letter in letters:
                fields = msgspec.json.encode(_without_bytes(letter)).decode()
                db.execute(
                    "INSERT OR REPLACE INTO letters (id, size, fields, header, payload) VALUES (?, ?, ?, ?, ?)",
                    (letter.id, letter.size_bytes, fields, letter.header, letter.payload),
                )
            self._evict(db)

    def _evict(self, db: Any) -> None:
        """The oldest go until the rest fits. One after the other: mostly none does, and never many."""
        count, total = db.execute("SELECT COUNT(*), COALESCE(SUM(size), 0) FROM letters").fetchone()
        while count > self._most or (total > self._bytes_most and count):
            n, size = db.execute("SELECT n, size FROM letters ORDER BY n LIMIT 1").fetchone()
            db.execute("DELETE FROM letters WHERE n = ?", (n,))
            db.execute("UPDATE counts SET value = value + 1 WHERE name = 'evicted'")
            count, total = count - 1, total - size

    def letters(self, *, payloads: bool = False, skip: int = 0, limit: int = -1) -> list[Letter]:
        page = "ORDER BY n DESC LIMIT ? OFFSET ?"  # a limit of -1 is none
        if payloads:
            rows = self._all(f"SELECT fields, header, payload FROM letters {page}", limit, skip)
        else:
            rows = [(fields, b"", None) for (fields,) in self._all(f"SELECT fields FROM letters {page}", limit, skip)]
        return [_restored(*row) for row in rows]

    def find(self, beginning: str, limit: int = -1) -> list[Letter]:
        rows = self._all(
            "SELECT fields, header, payload FROM letters WHERE substr(id, 1, ?) = ? ORDER BY n LIMIT ?",
            len(beginning),
            beginning,
            limit,
        )
        return [_restored(*row) for row in rows]

    def drop(self, ids: Iterable[str]) -> int:
        dropped = 0
        with self._transaction() as db:
            for id_ in ids:
                dropped += db.execute("DELETE FROM letters WHERE id = ?", (id_,)).rowcount
                if self._notes_drops:
                    db.execute("INSERT OR IGNORE INTO dropped VALUES (?)", (id_,))
        return dropped

    def was_dropped(self, id_: str) -> bool:
        return bool(self._all("SELECT 1 FROM dropped WHERE id = ?", id_))

    def forget_dropped(self) -> None:
        with self._transaction() as db:
            db.execute("DELETE FROM dropped")

    def __len__(self) -> int:
        return int(self._one("SELECT COUNT(*) FROM letters"))

    def close(self) -> None:
        if self._db is None:
            return
        empty = len(self) == 0 and not (self._notes_drops and self._one("SELECT COUNT(*) FROM dropped"))
        self._db.close()
        self._db = None
        if empty:
            _remove(self._directory)

    @contextlib.contextmanager
    def _transaction(self) -> Any:
        assert self._db is not None, "the store is closed"
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _all(self, sql: str, *values: object) -> list[Any]:
        assert self._db is not None, "the store is closed"
        return self._db.execute(sql, values).fetchall()

    def _one(self, sql: str) -> Any:
        return self._all(sql)[0][0]


def store_of(directory: Path, *, notes_drops: bool = False) -> FileLetters | None:
    """The letters that a run has left in its directory; None when it has left none. The caller closes it."""
    place = directory / DIRECTORY
    return FileLetters(place, notes_drops=notes_drops) if (place / FILE).exists() else None


def read_letters(run_directory: Path, *, payloads: bool = False) -> list[Letter]:
    """What a run has in its directory, the newest first; for who does not hold the run. Changes nothing.

    `sqlite3.Error` when the file is damaged.
    """
    path = run_directory / DIRECTORY / FILE
    if not path.exists():
        return []
    import sqlite3

    columns = "fields, header, payload" if payloads else "fields, x'', NULL"
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=_BUSY_S, uri=True)) as db:
        return [_restored(*row) for row in db.execute(f"SELECT {columns} FROM letters ORDER BY n DESC")]


def _without_bytes(letter: Letter) -> Letter:
    return msgspec.structs.replace(letter, header=b"", payload=None)


def _restored(fields: str, header: bytes, payload: bytes | None) -> Letter:
    letter = msgspec.json.decode(fields, type=Letter)
    return msgspec.structs.replace(letter, header=header, payload=payload)


def _remove(directory: Path) -> None:
    for path in directory.glob(f"{FILE}*"):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody keeps something else there
        directory.rmdir()


# --- the office: from mailbox to store, and back --------------------------------------------------------------------


class DeadLetterOffice:
    """Writes the letters of what was given up, and replays them. Belongs to one run and one loop."""

    def __init__(
        self,
        memory: Burials,
        open_store: Callable[[], Store],
        clock: Clock,
        *,
        on_letter: Callable[[Letter], object] = lambda letter: None,
    ) -> None:
        self._memory = memory
        self._open_store = open_store
        self._clock = clock
        self._on_letter = on_letter
        self._store: Store | None = None
        self.written = 0
        """Letters of this run so far."""

    @property
    def store(self) -> Store:
        """Opened at the first use."""
        if self._store is None:
            self._store = self._opened()
        return self._store

    def settle(self, in_hand: Iterable[InHand]) -> int:
        """After the death of an earlier writer: what has its letter, or had it until somebody dropped it, is let go, so
        that nobody handles it once more, and no letter that was dropped comes back."""
        settled = 0
        for entry in in_hand:
            if self.store.find(id_ := _id_of(entry.header)) or self.store.was_dropped(id_):
                self._memory.discard(entry.mailbox, entry.token)
                settled += 1
        for each in self._memory.buried():
            if self.store.was_dropped(_id_of(each.header)):
                self._memory.discard(each.mailbox, each.token)
                settled += 1
        if self._store is not None:
            self._store.forget_dropped()
        return settled

    def collect(self) -> int:
        """Store what was buried, then let it go; how many letters that were. Cheap when there is nothing."""
        written = 0
        done: set[tuple[int, int, bytes]] = set()  # what is still there after its discard: damaged words are in the way
        while buried := [each for each in self._memory.buried() if (each.mailbox, each.token, each.header) not in done]:
            self._keep([self._letter(each, _note_of(each)) for each in buried])
            for each in buried:
                self._memory.discard(each.mailbox, each.token)
                done.add((each.mailbox, each.token, each.header))
            written += len(buried)
        return written

    def keep(self, message: Buried, note: Note) -> None:
        """Store the letter of one message that its caller removes afterwards. The runtime's own news need none."""
        if is_system_type(message.type):
            return
        self._keep([self._letter(message, note)])

    def convict(self, message: Buried, note: Note, error_type: str) -> None:
        """Store the letter of a message of a dead reader, tell its asker, let it go."""
        self.keep(message, note)
        fields = {"type": error_type, "text": note.cause, "traceback": note.traceback}
        self._memory.answer_failed(message.header, msgspec.msgpack.encode(fields), message.mailbox)
        self._memory.discard(message.mailbox, message.token)

    def replay(self, id_: str) -> str | None:
        """Put a copy into its recipient's mailbox, then forget the letter. None, or why that could not be done."""
        found = self.store.find(id_)
        if len(found) != 1:
            return (
                f"no dead letter begins with {id_!r}" if not found else f"{len(found)} dead letters begin with {id_!r}"
            )
        letter = found[0]
        if letter.payload is None:
            return f"the payload of {letter.id} was not kept ({letter.payload_bytes:,} bytes)"
        mailbox = self._memory.resolve(letter.recipient)
        if mailbox < 0:
            return f"there is no agent {letter.recipient!r} in this run"
        sender = self._memory.resolve(letter.sender)
        copy = Buried(mailbox, -1, 0, 0, letter.header, letter.type, letter.sender, letter.payload)
        outcome = self._memory.repost(mailbox, copy, sender)
        if outcome != SENT:
            return _REFUSALS[outcome].format(letter.recipient)
        self.store.drop([letter.id])
        return None

    def close(self, run_dir: Path | None = None) -> int:
        """Let go of the store; how many letters stay in it, and in `run_dir` if none was ever opened."""
        if self._store is None:
            return 0 if run_dir is None else count_letters(run_dir) or 0
        left = len(self._store)
        self._store.close()
        self._store = None
        return left

    def _keep(self, letters: list[Letter]) -> None:
        import sqlite3

        try:
            self.store.add(letters)
        except (OSError, sqlite3.Error) as error:
            self._store_failed(error)
            self.store.add(letters)
        self.written += len(letters)
        for letter in letters:
            self._on_letter(letter)

    def _opened(self) -> Store:
        import sqlite3

        try:
            return self._open_store()
        except (OSError, sqlite3.Error) as error:
            self._store_failed(error)
            assert self._store is not None
            return self._store

    def _store_failed(self, error: Exception) -> None:
        """A full disk must not end the run, nor stop its agents: what comes now is kept in memory."""
        print(
            f"Dead letters cannot be written ({error}); those that come now are kept in memory, until the run ends. "
            "Make room where the run directory lies.",
            file=sys.stderr,
        )
        self._store = MemoryLetters()

    def _letter(self, message: Buried, note: Note) -> Letter:
        if not message.sound:
            return self._garbage(message)
        return letter_of(
            message.header,
            recipient=message.recipient,
            sender=message.sender,
            type=message.type,
            payload=message.payload,
            note=note,
            buried_s=self._clock.wall_s(),
            deliveries=message.delivery,
            strikes=message.strikes,
        )

    def _garbage(self, message: Buried) -> Letter:
        """Nothing in it can be believed, its id neither; the bytes are kept to be looked at."""
        now_s = self._clock.wall_s()
        return Letter(
            id=Message().id,
            recipient=message.recipient,
            sender="",
            type="",
            cause="garbage: a slot of this mailbox referred to bytes that are no message of it",
            traceback="",
            buried_s=now_s,
            sent_s=now_s,
            deliveries=message.delivery,
            attempts=0,
            strikes=message.strikes,
            hops=0,
            payload_bytes=len(message.payload),
            header=message.header,
            payload=None,
        )


def _id_of(header: bytes) -> str:
    return str(uuid.UUID(bytes=header[_ID]))


def _note_of(message: Buried) -> Note:
    if message.once and not message.note:
        return Note("its process died while its handler ran, and delivery is at_most_once")
    return Note.decode(message.note)


_REFUSALS: Final = {
    FULL: "the mailbox of {!r} is full; try again when it has room",
    CLOSED: "{!r} has stopped or was given up, so nothing reads its mailbox",
    NO_MEMORY: "there is no shared memory for the copy to {!r} now; try again when messages have been handled",
    TOO_LARGE: "the message to {!r} is larger than this run's host can post",
}
