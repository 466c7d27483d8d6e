"""The store in a file: many writers, deaths at any point, locks, errors with the way out, Civitas's own files."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from civitas_shm.errors import DeserializationError, StateStoreUnavailable
from civitas_shm.plugins.sqlite_store import SQLiteStateStore

ROOT = Path(__file__).parents[3]

WRITER = """
import asyncio, sys
from civitas_shm.plugins.sqlite_store import SQLiteStateStore

async def main(path, name, count):
    store = SQLiteStateStore(path)
    state, tag = await store.read(name)
    n = 0 if state is None else state["n"]
    while n < count:
        n += 1
        new = b"%d" % n
        await store.write(name, {"n": n, "pad": [n] * 2000}, new, [tag])
        tag = new
        print(n, flush=True)
    await store.close()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    paths = [str(ROOT), str(ROOT / "transports"), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(count)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )


def stored(path: Path) -> dict[str, Any]:
    async def read() -> dict[str, Any]:
        store = SQLiteStateStore(path)
        found = {name: await store.get(name) for name in await store.list_agents()}
        await store.close()
        return found

    return asyncio.run(read())


@pytest.mark.process
def test_defect_45_many_processes_write_one_file_and_none_of_them_fails_or_loses_a_write(tmp_path: Path) -> None:
    path = tmp_path / "states.db"
    writers = [writer(path, name, 300) for name in ("a", "b", "c")]
    assert [one.communicate()[0].split()[-1] for one in writers] == ["300"] * 3
    assert [one.returncode for one in writers] == [0, 0, 0]
    assert {name: state["n"] for name, state in stored(path).items()} == {"a": 300, "b": 300, "c": 300}


@pytest.mark.process
def test_a_write_that_has_returned_survives_kill_9_and_none_is_ever_half(tmp_path: Path) -> None:
    """Killed at whatever point it is just at, eight times; another process writes on all the while."""
    path, said = tmp_path / "states.db", 0
    beside = writer(path, "beside", 4000)
    for life in range(8):
        one = writer(path, "a", 1_000_000)
        assert one.stdout is not None
        for _ in range(20 + 13 * life):
            said = int(one.stdout.readline())
        one.send_signal(signal.SIGKILL)
        rest = one.stdout.read().split("\n")
        one.stdout.close()
        one.wait()
        said = max([said, *(int(line) for line in rest[:-1])])
        state = stored(path)["a"]
        assert state["n"] in (said, said + 1), "the next one may have been committed before it was said"
        assert state["pad"] == [state["n"]] * 2000
    beside.kill()
    beside.communicate()


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Another process's connection, as SQLite sees it."""
    connection = sqlite3.connect(tmp_path / "states.db", isolation_level=None, check_same_thread=False)
    yield connection
    connection.close()


def test_a_locked_file_is_waited_for_and_the_loop_goes_on(tmp_path: Path, lock: sqlite3.Connection) -> None:
    async def scene() -> None:
        store = SQLiteStateStore(tmp_path / "states.db")
        await store.set("a", {"n": 1})
        lock.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(store.set("a", {"n": 2}))
        for _ in range(200):
            await asyncio.sleep(0.0001)
        assert not waiting.done()
        lock.execute("COMMIT")
        await waiting
        assert await store.get("a") == {"n": 2}
        await store.close()

    asyncio.run(scene())


def test_a_file_that_stays_locked_is_an_error_with_the_way_out_and_works_later(
    tmp_path: Path, lock: sqlite3.Connection
) -> None:
    async def scene() -> None:
        store = SQLiteStateStore(tmp_path / "states.db", patience_s=0.05)
        await store.set("a", {"n": 1})
        lock.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateStoreUnavailable, match=r"states\.db .*locked for more than 0\.05 s \(who: `fuser"):
            await store.set("a", {"n": 2})
        lock.execute("ROLLBACK")
        await store.set("a", {"n": 3})
        assert await store.get("a") == {"n": 3}
        await store.close()

    asyncio.run(scene())


def test_a_call_that_was_cancelled_is_not_done_afterwards(tmp_path: Path, lock: sqlite3.Connection) -> None:
    async def scene() -> None:
        store = SQLiteStateStore(tmp_path / "states.db")
        await store.set("a", {"n": 1})
        lock.execute("BEGIN IMMEDIATE")
        begun = asyncio.create_task(store.set("a", {"n": 2}))
        await asyncio.sleep(0.01)  # the thread has it, and cannot begin
        queued = asyncio.create_task(store.set("b", {"n": 2}))
        await asyncio.sleep(0)
        for task in (begun, queued):
            task.cancel()
        for task in (begun, queued):
            with pytest.raises(asyncio.CancelledError):
                await task
        lock.execute("COMMIT")
        assert (await store.get("a"), await store.list_agents()) == ({"n": 1}, ["a"])
        await store.close()

    asyncio.run(scene())


def test_calls_that_wait_together_share_a_transaction_and_each_has_its_own_end(tmp_path: Path) -> None:
    async def scene() -> None:
        store = SQLiteStateStore(tmp_path / "states.db")
        await store.write("a", {"n": 1}, b"one", [b""])
        ends = await asyncio.gather(
            *(store.set(f"x{n}", {"n": n}) for n in range(300)),
            store.write("a", {"n": 9}, b"late", [b"zero"]),
            store.set("\ud800", {}),  # a name that SQLite cannot have
            store.get("x7"),
            return_exceptions=True,
        )
        assert [type(end).__name__ for end in ends[300:]] == ["StateConflict", "UnicodeEncodeError", "dict"]
        assert set(ends[:300]) == {None}
        assert len(await store.list_agents()) == 301
        threads = [thread.name for thread in threading.enumerate() if thread.name == "civitas-state"]
        assert threads == ["civitas-state"]
        await store.close()

    asyncio.run(scene())


def test_what_cannot_work_is_said_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database at all" * 100)
    (tmp_path / "folder.db").mkdir()

    async def scene() -> None:
        for path, text in (
            ("no/such/s.db", "its directory does not exist: mkdir -p "),
            ("text.db", "the file is no SQLite database"),
            ("folder.db", "unable to open"),
        ):
            store = SQLiteStateStore(tmp_path / path)
            for _ in range(2):
                with pytest.raises(StateStoreUnavailable, match=text):
                    await store.get("a")
            await store.close()
        with pytest.raises(ValueError, match="patience_s"):
            SQLiteStateStore(tmp_path / "s.db", patience_s=0)
        with pytest.raises(ValueError, match="synchronous"):
            SQLiteStateStore(tmp_path / "s.db", synchronous="off")  # type: ignore[arg-type]

    asyncio.run(scene())


def test_a_file_that_civitas_wrote_is_read_and_written_on(tmp_path: Path) -> None:
    path = tmp_path / "agency_state.db"
    with sqlite3.connect(path) as theirs:
        theirs.execute("CREATE TABLE agent_state (agent_name TEXT PRIMARY KEY, state TEXT)")
        theirs.execute("INSERT INTO agent_state VALUES ('old', ?)", (json.dumps({"n": [1, None]}),))
        theirs.execute("INSERT INTO agent_state VALUES ('bad', '[1]'), ('worse', '{')")
    theirs.close()

    async def scene() -> None:
        store = SQLiteStateStore(path)
        found, tag = await store.read("old")
        assert (found, bool(tag)) == ({"n": [1, None]}, True)
        await store.write("old", {"n": b"new"}, b"one", [tag])
        assert await store.get("old") == {"n": b"new"}
        for name in ("bad", "worse"):
            with pytest.raises(DeserializationError, match=rf"the state of '{name}' in .*`state clear"):
                await store.get(name)
        await store.close()

    asyncio.run(scene())


def test_the_file_is_its_owners_alone_and_full_means_full(tmp_path: Path) -> None:
    async def scene() -> None:
        store = SQLiteStateStore(tmp_path / "s.db", synchronous="full")
        await store.set("a", {})
        assert stat.S_IMODE((tmp_path / "s.db").stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "s.db-wal").stat().st_mode) == 0o600
        level = await store._do(lambda connection: connection.execute("PRAGMA synchronous").fetchone()[0])
        assert level == 2
        await store.close()
        memory = SQLiteStateStore(":memory:")
        await memory.set("a", {"n": 1})
        assert await memory.get("a") == {"n": 1}
        await memory.close()

    asyncio.run(scene())


def test_a_forked_child_opens_the_file_anew(tmp_path: Path) -> None:
    async def scene() -> None:
        store = SQLiteStateStore(tmp_path / "s.db")
        await store.set("a", {"n": 1})
        mine = store._clerk
        assert mine is not None
        mine.pid = -1  # as a forked child sees it
        await store.set("a", {"n": 2})
        assert store._clerk is not mine
        mine.end()
        await store.close()

    asyncio.run(scene())
