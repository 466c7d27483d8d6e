"""States in a file of SQLite: any number of agents, in any number of processes of one machine.

    plugins:
      state: {type: sqlite, config: {db_path: /data/state.db}}

Guarantees:
- a `set` that has returned survives `kill -9` of any process; power loss too with `synchronous: full`;
- after a death at any point each record is there as one whole write has left it (WAL, one transaction a write);
- the loop never waits: one thread of each process does all that SQLite does, several writes in one transaction when
  they wait for it together;
- other processes may write at the same time: who finds the file locked tries again for `patience_s`;
- a call that is cancelled was not done, or was done wholly, and is not done any more once it has raised.

One table, which also Civitas has: `agent_state(agent_name, state, ...)`. What Civitas wrote there (JSON) is read; what
is written is what messages are made of (msgpack, `civitas_shm.serializer`). The file is for its owner alone (0600).

Not for network file systems: WAL needs memory that all its processes share.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from typing import Any, Final, Literal, TypeVar

from ..errors import DeserializationError, StateConflict, StateStoreUnavailable
from ..serializer import decode, encode
from ..topology.model import PluginSpec

__all__ = ["SQLiteStateStore"]

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], Any]

BATCH_MAX: Final = 256
"""Calls in one transaction: what others have to wait for, about 10 ms."""

LOOK_S: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02)
"""Between tries at a locked file; the last one again and again. A transaction of another process takes 0.1 to 10 ms."""

OLD_TAG: Final = b"civitas"
"""Of a record that Civitas wrote, which has none."""

_TABLE: Final = """
CREATE TABLE IF NOT EXISTS agent_state (
    agent_name TEXT PRIMARY KEY, state NOT NULL, tag BLOB, saved_s REAL
)
"""
_SET: Final = """
INSERT INTO agent_state (agent_name, state, tag, saved_s) VALUES (?, ?, ?, ?)
ON CONFLICT (agent_name) DO UPDATE SET state = excluded.state, tag = excluded.tag, saved_s = excluded.saved_s
"""


class SQLiteStateStore:
    """See the module. All methods belong to any one loop; the file is opened by the first call."""

    def __init__(
        self,
        db_path: str | os.PathLike[str] = "civitas_state.db",
        *,
        patience_s: float = 20.0,
        synchronous: Literal["normal", "full"] = "normal",
    ) -> None:
        """`patience_s`: how long a call may wait for a file that others have locked; then StateStoreUnavailable.

        `synchronous`: `full` waits until the disk has each write, some milliseconds, against power loss.
        """
        if patience_s <= 0:
            raise ValueError(f"patience_s is {patience_s}; a call needs some time")
        if synchronous not in ("normal", "full"):
            raise ValueError(f"synchronous is {synchronous!r}; it may be normal or full")
        path = os.fspath(db_path)
        self.db_path: Final = path if path == ":memory:" else os.path.abspath(path)
        self._patience_s = patience_s
        self._synchronous = synchronous
        self._clerk: _Clerk | None = None

    # --- the protocol ---------------------------------------------------------------------------------------------

    async def get(self, agent_name: str) -> dict[str, Any] | None:
        """The last state that was set, or None. DeserializationError: what is stored is no state."""
        return (await self.read(agent_name))[0]

    async def set(self, agent_name: str, state: dict[str, Any]) -> None:
        """Keep it in place of the last one. MessageValidationError names the field that cannot be stored."""
        await self.set_many({agent_name: state})

    async def set_many(self, states: Mapping[str, dict[str, Any]]) -> None:
        """As `set` of each, in one transaction."""
        rows = [(name, encode(state, "state"), os.urandom(8), time.time()) for name, state in states.items()]
        await self._do(lambda connection: connection.executemany(_SET, rows) and None, writes=True)

    async def delete(self, agent_name: str) -> None:
        """Forget it. Unknown names are ignored."""
        sql = "DELETE FROM agent_state WHERE agent_name = ?"
        await self._do(lambda connection: connection.execute(sql, (agent_name,)) and None, writes=True)

    async def list_agents(self) -> list[str]:
        """Names with a state, sorted."""
        sql = "SELECT agent_name FROM agent_state ORDER BY agent_name"
        return await self._do(lambda connection: [name for (name,) in connection.execute(sql)])

    async def close(self) -> None:
        """Close the file, behind the calls that wait. Idempotent; a later call opens it again."""
        clerk, self._clerk = self._clerk, None
        if clerk is not None and clerk.pid == os.getpid():
            clerk.end()
            await asyncio.wrap_future(clerk.ended)

    # --- what tells ---------------------------------------------------------------------------------------------------

    async def read(self, agent_name: str) -> tuple[dict[str, Any] | None, bytes]:
        """As `get`, with the tag of the record."""
        row = await self._do(lambda connection: _row(connection, agent_name))
        return (None, b"") if row is None else (self._state(agent_name, row[0]), row[1])

    async def write(self, agent_name: str, state: dict[str, Any], tag: bytes, after: Collection[bytes]) -> None:
        """As `set`, if the record has still a tag of `after`. StateConflict otherwise."""
        row = (agent_name, encode(state, "state"), tag, time.time())
        known = {*after, tag}

        def write(connection: sqlite3.Connection) -> None:
            there = _row(connection, agent_name)
            if (b"" if there is None else there[1]) not in known:
                raise StateConflict(agent_name, self.db_path)
            connection.execute(_SET, row)

        await self._do(write, writes=True)

    def plugin_spec(self) -> PluginSpec:
        """How another process builds the like."""
        config = {"db_path": self.db_path, "patience_s": self._patience_s, "synchronous": self._synchronous}
        return PluginSpec("sqlite", config)

    def exists(self) -> bool:
        """Whether there is a file. It is made by the first call that reads or writes."""
        return self.db_path == ":memory:" or os.path.exists(self.db_path)

    async def users(self) -> list[str]:
        """Who else has the file open, as `pid 4711 (civ-w1)`; asked before this object has opened it."""
        path = self.db_path
        return await asyncio.to_thread(_users, path) if path != ":memory:" and self.exists() else []

    # --- the thread ---------------------------------------------------------------------------------------------------

    async def _do(self, work: Callable[[sqlite3.Connection], T], *, writes: bool = False) -> T:
        if self._clerk is None or self._clerk.pid != os.getpid():  # a forked child must not touch the parent's
            self._clerk = _Clerk(self.db_path, self._patience_s, self._synchronous)
        job = _Job(work, writes)
        self._clerk.jobs.put(job)
        waiting: asyncio.Future[Any] = asyncio.wrap_future(job.done)
        try:
            await asyncio.shield(waiting)
        except asyncio.CancelledError:
            job.abandoned = True
            if not job.done.cancel():
                await _settled(waiting)
            raise
        return job.done.result()  # type: ignore[no-any-return]

    def _state(self, agent: str, stored: Any) -> dict[str, Any]:
        try:
            state = json.loads(stored) if isinstance(stored, str) else decode(bytes(stored))
        except (DeserializationError, ValueError, TypeError) as error:
            raise DeserializationError(
                f"the state of {agent!r} in {self.db_path} cannot be read: {error}. Way out: `state clear {agent}`."
            ) from None
        if not isinstance(state, dict):
            raise DeserializationError(f"the state of {agent!r} in {self.db_path} is no dict. Way out: `state clear`.")
        return state

    def __repr__(self) -> str:
        return f"SQLiteStateStore({self.db_path!r})"


def _row(connection: sqlite3.Connection, agent: str) -> tuple[Any, bytes] | None:
    sql = "SELECT state, tag FROM agent_state WHERE agent_name = ?"
    row = connection.execute(sql, (agent,)).fetchone()
    return None if row is None else (row[0], OLD_TAG if row[1] is None else row[1])


async def _settled(waiting: asyncio.Future[Any]) -> None:
    """Until the thread is done with it, however often the caller is cancelled: it is a transaction at most."""
    while not waiting.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([waiting])
    if not waiting.cancelled():
        waiting.exception()  # looked at


class _Job:
    """One call. `done` says how it ended, when its transaction is committed."""

    __slots__ = ("abandoned", "done", "work", "writes")

    def __init__(self, work: Work, writes: bool) -> None:
        self.work = work
        self.writes = writes
        self.done: Future[Any] = Future()
        self.abandoned = False


class _Clerk:
    """The thread that has the connection. It ends with `end`, or with the process."""

    def __init__(self, path: str, patience_s: float, synchronous: str) -> None:
        self.pid = os.getpid()
        self.jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.ended: Future[None] = Future()
        self._path = path
        self._patience_s = patience_s
        self._synchronous = synchronous
        self._connection: sqlite3.Connection | None = None
        threading.Thread(target=self._serve, name="civitas-state", daemon=True).start()

    def end(self) -> None:
        """Do what waits, close the file, end. `ended` says when."""
        self.jobs.put(None)

    def _serve(self) -> None:
        ends = False
        while not ends:
            batch: list[_Job] = []
            job = self.jobs.get()
            while job is not None:
                if job.done.set_running_or_notify_cancel():
                    batch.append(job)
                if len(batch) == BATCH_MAX or self.jobs.empty():
                    break
                job = self.jobs.get()
            ends = job is None
            if batch:
                self._do(batch)
        self._close()
        self.ended.set_result(None)

    def _do(self, batch: list[_Job]) -> None:
        try:
            self._transaction(batch)
        except Exception as error:  # noqa: BLE001 - the thread has to go on, and the caller to be told
            self._close()
            if len(batch) > 1:  # which of them it was is not known: each for itself
                for job in batch:
                    self._do([job])
            else:
                known = isinstance(error, (sqlite3.Error, OSError))
                batch[0].done.set_exception(self._explained(error) if known else error)

    def _transaction(self, batch: list[_Job]) -> None:
        """All of them, or none."""
        writes = any(job.writes for job in batch)
        connection = self._patiently(batch, self._open)
        self._patiently(batch, lambda: connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN"))
        results: list[tuple[_Job, Any, Exception | None]] = []
        for job in batch:
            try:
                results.append((job, job.work(connection), None))
            except StateConflict as error:  # raised before it has written anything
                results.append((job, None, error))
        self._patiently(batch, lambda: connection.execute("COMMIT"))
        for job, result, refused in results:
            if refused is None:
                job.done.set_result(result)
            else:
                job.done.set_exception(refused)

    def _patiently(self, batch: list[_Job], step: Callable[[], T]) -> T:
        """A step that a lock of another process may hold up."""
        until_s = time.monotonic() + self._patience_s
        tries = 0
        while True:
            try:
                return step()
            except sqlite3.OperationalError as error:
                if not _is_locked(error) or time.monotonic() >= until_s or all(job.abandoned for job in batch):
                    raise
            time.sleep(LOOK_S[min(tries, len(LOOK_S) - 1)])
            tries += 1

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None:
            return self._connection
        if self._path != ":memory:":
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        connection = sqlite3.connect(self._path, timeout=0, isolation_level=None)
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode not in ("wal", "memory"):
                raise sqlite3.OperationalError(f"its file system has no WAL (the journal mode stays {mode})")
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            columns = {row[1] for row in connection.execute("PRAGMA table_info(agent_state)")}
            if not {"agent_name", "state", "tag", "saved_s"} <= columns:
                _make_table(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _close(self) -> None:
        """Whatever was begun and not committed is undone."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _explained(self, error: Exception) -> StateStoreUnavailable:
        folder = os.path.dirname(self._path)
        if _is_locked(error):
            why = f"others keep it locked for more than {self._patience_s:g} s (who: `fuser {self._path}`)"
        elif isinstance(error, FileNotFoundError) or not os.path.isdir(folder or "."):
            why = f"its directory does not exist: mkdir -p {folder}"
        elif isinstance(error, PermissionError):
            why = f"user {os.getuid()} may not write there"
        elif isinstance(error, sqlite3.OperationalError) and "full" in str(error):
            why = "the disk is full"
        elif isinstance(error, sqlite3.DatabaseError) and "not a database" in str(error):
            why = "the file is no SQLite database; move it away, or name another"
        else:
            why = f"{type(error).__name__}: {error}"
        return StateStoreUnavailable(f"The states in {self._path} cannot be read or written: {why}.")


def _make_table(connection: sqlite3.Connection) -> None:
    """Also of the table that Civitas makes."""
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(_TABLE)
    columns = {row[1] for row in connection.execute("PRAGMA table_info(agent_state)")}
    for name, kind in (("tag", "BLOB"), ("saved_s", "REAL")):
        if name not in columns:
            connection.execute(f"ALTER TABLE agent_state ADD COLUMN {name} {kind}")
    connection.execute("COMMIT")


def _is_locked(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _users(path: str) -> list[str]:
    """A file that is in WAL mode can be had for oneself only when nobody else has it open. Who, /proc may tell."""
    connection = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("ROLLBACK")
        return []
    except sqlite3.Error as error:
        if not _is_locked(error):
            return []  # what is wrong with it is said by who reads it
        return _who_has_open(path) or ["another process"]
    finally:
        connection.close()


def _who_has_open(path: str) -> list[str]:
    found = []
    for pid in (name for name in os.listdir("/proc") if name.isdigit()) if os.path.isdir("/proc") else ():
        if int(pid) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}") == os.path.realpath(path):
                    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
                        found.append(f"pid {pid} ({comm.read().strip()})")
                    break
    return found
