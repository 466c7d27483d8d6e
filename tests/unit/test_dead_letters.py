"""Dead letters: kept, bounded, found, replayed; both stores by the same tests, and the file through deaths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from civitas_shm.clock import SystemClock
from civitas_shm.dead_letters import DeadLetterOffice, FileLetters, MemoryLetters, Store, store_of
from civitas_shm.letters import (
    DIRECTORY,
    NOTE_BYTES_MAX,
    PAYLOAD_KEPT_MAX,
    Letter,
    Note,
    count_letters,
    describe,
    letter_of,
)
from civitas_shm.messages import new_header
from civitas_shm.transport import CLOSED, FULL, SENT, Buried

Make = Callable[..., Store]


@pytest.fixture(params=["file", "memory"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    stores: list[Store] = []

    def build(**bounds: int) -> Store:
        store: Store = (
            MemoryLetters(**bounds) if request.param == "memory" else FileLetters(tmp_path / DIRECTORY, **bounds)
        )
        stores.append(store)
        return store

    yield build
    for store in stores:
        store.close()


def letter(n: int = 0, payload: bytes = b"payload", **fields: Any) -> Letter:
    header = new_header(payload_len=len(payload))
    made = letter_of(
        header, recipient="b", sender="a", type="t", payload=payload, note=Note(f"cause {n}", "traceback", 2),
        buried_s=7.0, deliveries=3, strikes=1,
    )  # fmt: skip
    return Letter(**{**{name: getattr(made, name) for name in Letter.__struct_fields__}, **fields})


# --- stores -------------------------------------------------------------------------------------------------------


def test_a_letter_comes_back_as_it_was(make: Make) -> None:
    store, kept = make(), letter(1, bytes(range(256)))
    store.add([kept])
    assert store.find(kept.id) == [kept]
    assert store.letters(payloads=True) == [kept]
    assert len(store) == 1


def test_lists_show_the_newest_first_and_no_bytes(make: Make) -> None:
    store = make()
    kept = [letter(n) for n in range(3)]
    store.add(kept)
    assert [one.cause for one in store.letters()] == ["cause 2", "cause 1", "cause 0"]
    assert all(one.payload is None and one.header == b"" for one in store.letters())


def test_a_message_has_one_letter_however_often_it_is_put_aside(make: Make) -> None:
    store, kept = make(), letter()
    store.add([kept])
    store.add([letter(9, id=kept.id)])
    assert [one.cause for one in store.letters()] == ["cause 9"]


def test_an_id_is_found_by_its_beginning_and_not_by_a_pattern(make: Make) -> None:
    store = make()
    store.add([letter(1, id="abc1"), letter(2, id="abc2"), letter(3, id="xyz")])
    assert {one.id for one in store.find("abc")} == {"abc1", "abc2"}
    assert store.find("%") == []
    assert [one.id for one in store.find("x")] == ["xyz"]


def test_dropped_is_gone_and_counted_once(make: Make) -> None:
    store = make()
    kept = [letter(n) for n in range(3)]
    store.add(kept)
    assert store.drop([kept[0].id, kept[0].id, "never"]) == 1
    assert len(store) == 2


def test_the_bound_in_number_pushes_out_the_oldest_and_counts_them(make: Make) -> None:
    store = make(most=5)
    for n in range(12):
        store.add([letter(n)])
    assert [one.cause for one in store.letters()] == [f"cause {n}" for n in (11, 10, 9, 8, 7)]
    assert store.evicted == 7


def test_the_bound_in_bytes_holds_too(make: Make) -> None:
    store = make(bytes_most=50_000)
    store.add([letter(n, b"x" * 10_000) for n in range(20)])
    assert 1 <= len(store) <= 4
    assert sum(one.size_bytes for one in store.letters(payloads=True)) <= 50_000
    assert store.evicted == 20 - len(store)


def test_a_payload_beyond_the_bound_is_left_out_and_its_size_is_told() -> None:
    large = letter_of(
        new_header(), recipient="b", sender="a", type="t", payload=bytes(PAYLOAD_KEPT_MAX + 1), note=Note("c"),
        buried_s=0.0, deliveries=1, strikes=0,
    )  # fmt: skip
    assert large.payload is None
    assert large.payload_bytes == PAYLOAD_KEPT_MAX + 1
    assert large.to_plain()["payload_kept"] is False


# --- notes --------------------------------------------------------------------------------------------------------


def test_a_note_survives_its_way_and_a_long_traceback_keeps_its_end() -> None:
    assert Note.decode(Note("why", "where", 3).encode()) == Note("why", "where", 3)
    encoded = Note("why" * 10_000, "é" * 100_000 + "the end", 1).encode()
    assert len(encoded) <= NOTE_BYTES_MAX + 100
    assert Note.decode(encoded).traceback.endswith("the end")


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x93\x01\x02\x03", b"\xc1"])
def test_a_note_that_does_not_check_out_is_said_to_be_one(data: bytes) -> None:
    assert "gave it up" in Note.decode(data).cause


def test_one_line_says_what_where_and_why() -> None:
    line = describe(letter(4))
    assert "a -> b" in line
    assert "cause 4" in line
    assert "delivered 3x" in line


# --- the file -----------------------------------------------------------------------------------------------------


def test_letters_outlive_the_death_of_their_writer(tmp_path: Path) -> None:
    program = (
        "import sys, os, signal; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from tests.unit.test_dead_letters import letter\n"
        "from civitas_shm.dead_letters import FileLetters\n"
        "store = FileLetters(Path(sys.argv[1]))\n"
        "for n in range(1000):\n"
        "    store.add([letter(n)])\n"
        "    print(n, flush=True)\n"
    )
    root = str(Path(__file__).parents[2])
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / DIRECTORY), root], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    told = [int(child.stdout.readline()) for _ in range(20)]
    os.kill(child.pid, signal.SIGKILL)
    told += [int(line) for line in child.stdout.read().split()]
    child.stdout.close()
    child.wait()
    counted = count_letters(tmp_path)
    assert counted is not None
    assert len(told) <= counted <= len(told) + 1
    store = store_of(tmp_path)
    assert store is not None
    assert {f"cause {n}" for n in told} <= {one.cause for one in store.letters()}
    store.drop([one.id for one in store.letters()])
    store.close()
    assert not (tmp_path / DIRECTORY).exists()


def test_a_store_without_letters_leaves_nothing_and_one_with_letters_all(tmp_path: Path) -> None:
    FileLetters(tmp_path / DIRECTORY).close()
    assert list(tmp_path.iterdir()) == []
    assert store_of(tmp_path) is None
    assert count_letters(tmp_path) == 0
    store = FileLetters(tmp_path / DIRECTORY)
    store.add([letter()])
    store.close()
    assert count_letters(tmp_path) == 1


def test_a_file_that_is_no_store_is_not_counted_as_empty(tmp_path: Path) -> None:
    (tmp_path / DIRECTORY).mkdir()
    (tmp_path / DIRECTORY / "dead.sqlite").write_bytes(b"not a database, surely not" * 100)
    assert count_letters(tmp_path) is None


def test_a_reader_that_stands_still_does_not_stop_the_writer(tmp_path: Path) -> None:
    import sqlite3

    store = FileLetters(tmp_path / DIRECTORY)
    store.add([letter(1)])
    reader = sqlite3.connect(tmp_path / DIRECTORY / "dead.sqlite", isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT COUNT(*) FROM letters").fetchone() == (1,)
    store.add([letter(2)])
    assert len(store) == 2
    reader.close()
    store.close()


# --- the office -----------------------------------------------------------------------------------------------------


class Memory:
    """What a office needs of a run's memory."""

    def __init__(self) -> None:
        self.waiting: list[Buried] = []
        self.log: list[tuple[Any, ...]] = []
        self.outcome = SENT

    def resolve(self, name: str) -> int:
        return {"agent-7": 7, "a": 3}.get(name, -1)

    def buried(self) -> list[Buried]:
        return self.waiting[:2]

    def discard(self, mailbox: int, token: int) -> None:
        self.log.append(("discard", mailbox, token))
        self.waiting = [one for one in self.waiting if (one.mailbox, one.token) != (mailbox, token)]

    def answer_failed(self, header: bytes, payload: bytes, mailbox: int) -> None:
        self.log.append(("answer", mailbox))

    def repost(self, mailbox: int, letter: Buried, sender: int) -> int:
        self.log.append(("repost", mailbox, letter.payload, sender))
        return self.outcome


def office_over(memory: Memory, store: Store, **options: Any) -> DeadLetterOffice:
    return DeadLetterOffice(memory, lambda: store, SystemClock(), **options)


def buried(token: int, note: bytes = b"", **fields: Any) -> Buried:
    return Buried(7, token, 2, 1, new_header(payload_len=3), "t", "a", b"abc", note, recipient="agent-7", **fields)


def test_what_is_buried_becomes_letters_and_only_then_is_let_go(make: Make) -> None:
    memory, store, told = Memory(), make(), []

    def on_letter(one: Letter) -> None:
        assert store.find(one.id)
        assert ("discard", 7, len(told)) not in memory.log
        told.append(one)

    memory.waiting = [buried(n, Note(f"why {n}", "tb", 1).encode()) for n in range(5)]
    office = office_over(memory, store, on_letter=on_letter)
    assert office.collect() == 5
    assert office.collect() == 0
    assert [one.cause for one in reversed(store.letters())] == [f"why {n}" for n in range(5)]
    assert {one.recipient for one in store.letters()} == {"agent-7"}
    assert len(told) == office.written == 5


def test_what_cannot_be_let_go_is_stored_and_left(make: Make) -> None:
    """A damaged word may be in the way of a discard: the host must not collect the same for ever."""

    class Stuck(Memory):
        def discard(self, mailbox: int, token: int) -> None:
            self.log.append(("discard", mailbox, token))
            assert len(self.log) < 10, "for ever"

    memory, store = Stuck(), make()
    memory.waiting = [buried(1), buried(2)]
    assert office_over(memory, store).collect() == 2
    assert memory.log == [("discard", 7, 1), ("discard", 7, 2)]
    assert len(store) == 2


def test_garbage_is_kept_as_what_it_is(make: Make) -> None:
    memory, store = Memory(), make()
    memory.waiting = [Buried(7, n, 0, 0, b"\xff" * 128, "", "", b"", b"", sound=False) for n in range(2)]
    office_over(memory, store).collect()
    found = store.letters(payloads=True)
    assert len({one.id for one in found}) == 2
    assert all("garbage" in one.cause and one.header == b"\xff" * 128 for one in found)


def test_a_conviction_is_stored_then_answered_then_let_go(make: Make) -> None:
    memory, store = Memory(), make()
    office_over(memory, store).convict(buried(4), Note("it ended its process", "last words"), "ProcessDied")
    assert memory.log == [("answer", 7), ("discard", 7, 4)]
    assert store.letters()[0].traceback == "last words"


def test_a_replay_commits_before_the_letter_goes_and_says_why_it_cannot(make: Make) -> None:
    memory, store = Memory(), make()
    office = office_over(memory, store)
    office.keep(buried(1), Note("x"))
    (kept,) = store.letters()
    memory.outcome = FULL
    assert "full" in str(office.replay(kept.id))
    memory.outcome = CLOSED
    assert "stopped" in str(office.replay(kept.id))
    assert len(store) == 1
    memory.outcome = SENT
    assert office.replay(kept.id[:30]) is None
    assert memory.log[-1] == ("repost", 7, b"abc", 3)
    assert len(store) == 0
    assert "no dead letter" in str(office.replay(kept.id))
    store.add([letter(1, recipient="gone")])
    assert "no agent 'gone'" in str(office.replay(store.letters()[0].id))


def test_a_disk_that_is_full_ends_neither_run_nor_letters(capsys: pytest.CaptureFixture[str]) -> None:
    memory = Memory()
    memory.waiting = [buried(n) for n in range(3)]

    class Broken(MemoryLetters):
        def add(self, letters: Any) -> None:
            raise OSError(28, "No space left on device")

    office = office_over(memory, Broken())
    assert office.collect() == 3
    assert len(office.store) == 3
    assert capsys.readouterr().err.count("No space left") == 1
