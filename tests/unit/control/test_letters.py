"""Requests about dead letters against both stores, and `dead` on the store of a dead run."""

from __future__ import annotations

import json
import os
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from civitas_shm.cli.app import app
from civitas_shm.control.letters import answer_letters
from civitas_shm.control.protocol import (
    PAYLOAD_SHOWN_MAX,
    DeadDrop,
    DeadList,
    DeadReplay,
    DeadShow,
    Letters,
    Outcomes,
    Refusal,
    Shown,
)
from civitas_shm.dead_letters import FileLetters, MemoryLetters, Store, store_of
from civitas_shm.letters import DIRECTORY, Letter
from civitas_shm.serializer import encode


def letter(n: int, payload: bytes | None = b"", **fields: Any) -> Letter:
    plain: dict[str, Any] = {
        "id": f"{n:08x}-0000-7000-8000-000000000000", "recipient": "sink", "sender": "source", "type": "message",
        "cause": f"cause {n}", "traceback": "", "buried_s": 1000.0 + n, "sent_s": 900.0, "deliveries": 3, "attempts": 0,
        "strikes": 3, "hops": 0, "payload_bytes": len(payload or b""), "header": b"h" * 80, "payload": payload,
    }  # fmt: skip
    return Letter(**(plain | fields))


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    store: Store = MemoryLetters() if request.param == "memory" else FileLetters(tmp_path / DIRECTORY)
    store.add([letter(n) for n in range(250)])
    yield store
    store.close()


def test_pages_follow_each_other_newest_first(store: Store) -> None:
    pages = [answer_letters(DeadList(skip=skip, limit=100), store, None) for skip in (0, 100, 200, 300)]
    causes = [letter["cause"] for page in pages if isinstance(page, Letters) for letter in page.letters]
    assert causes == [f"cause {n}" for n in reversed(range(250))]
    assert {page.total for page in pages if isinstance(page, Letters)} == {250}


def test_one_is_shown_with_its_payload_and_several_are_not(store: Store) -> None:
    store.add([letter(250, b"p" * (PAYLOAD_SHOWN_MAX + 1))])
    shown = answer_letters(DeadShow(id=f"{250:08x}"), store, None)
    assert isinstance(shown, Shown)
    assert shown.payload == b"p" * PAYLOAD_SHOWN_MAX
    assert shown.letters[0]["payload_bytes"] == PAYLOAD_SHOWN_MAX + 1
    many = answer_letters(DeadShow(id="0000"), store, None)
    assert isinstance(many, Shown)
    assert (len(many.letters), many.payload) == (10, None)
    assert answer_letters(DeadShow(id="ff"), store, None) == Shown(letters=[])


def test_each_id_is_answered_for_by_itself(store: Store) -> None:
    dropped = answer_letters(DeadDrop(ids=[f"{7:08x}", "ffff", "0000", ""]), store, None)
    assert isinstance(dropped, Outcomes)
    assert dropped.outcomes[f"{7:08x}"] is None
    assert dropped.outcomes["ffff"] == "no dead letter begins with 'ffff'"
    assert dropped.outcomes["0000"] == "more than one dead letter begins with '0000'"
    assert dropped.outcomes[""] is not None
    assert len(store) == 249

    def replay(id_: str) -> str | None:
        return None if id_ == "a" else f"the mailbox of {id_!r} is full"

    replayed = answer_letters(DeadReplay(ids=["a", "b"]), store, replay)
    assert replayed == Outcomes(outcomes={"a": None, "b": "the mailbox of 'b' is full"})
    refused = answer_letters(DeadReplay(ids=["a"]), store, None)
    assert isinstance(refused, Refusal)
    assert "run --resume" in refused.text


def test_a_run_without_letters_has_none() -> None:
    assert answer_letters(DeadList(), None, None) == Letters(letters=[], total=0, evicted=0)
    assert answer_letters(DeadShow(id="a"), None, None) == Shown(letters=[])
    dropped = answer_letters(DeadDrop(ids=["a"]), None, None)
    assert isinstance(dropped, Outcomes)
    assert dropped.outcomes["a"] is not None


def test_a_store_that_cannot_be_read_is_a_refusal() -> None:
    class Broken(MemoryLetters):
        def letters(self, **options: Any) -> list[Letter]:
            raise sqlite3.DatabaseError("database disk image is malformed")

    refused = answer_letters(DeadList(), Broken(), None)
    assert isinstance(refused, Refusal)
    assert "cannot be read or changed: database disk image is malformed" in refused.text


# --- the command, with a run that is dead -----------------------------------------------------------------------------


@pytest.fixture
def dead_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that ended in order and left its letters."""
    pytest.importorskip("civitas_shm_transports.shm._shm", reason="the native part is not built")
    monkeypatch.setenv("CIVITAS_SHM_DIR", str(tmp_path))
    path = tmp_path / f"dead-{uuid.uuid4().hex[:8]}"
    path.mkdir(mode=0o700)
    store = FileLetters(path / DIRECTORY)
    store.add(
        [
            letter(1, encode({"n": 1, "blob": b"\xff", "pair": (1, 2)}), traceback="Traceback: boom\n"),
            letter(2, b"\xc1 no msgpack"),
            letter(3, None, payload_bytes=99, sender=""),
        ]
    )
    store.close()
    return path


def dead(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["dead", *arguments])


def test_the_letters_of_a_dead_run_are_listed_and_shown(dead_run: Path) -> None:
    listed = dead("list")
    assert listed.exit_code == 0, listed.output
    lines = listed.stdout.splitlines()
    assert lines[0].split()[:2] == ["ID", "WHEN"]
    assert [line[:8] for line in lines[1:]] == ["00000003", "00000002", "00000001"]
    assert lines[3].endswith("cause 1")
    plain = json.loads(dead("list", "--json", "--run", dead_run.name).stdout)
    assert plain["run"] == dead_run.name
    assert [one["cause"] for one in plain["letters"]] == ["cause 3", "cause 2", "cause 1"]
    shown = dead("show", "00000001").stdout
    for part in ("source", "sink", "Traceback: boom", '"n": 1', "\\\\xff"):
        assert part in shown
    assert "no msgpack" in dead("show", "00000002").stdout
    assert "(not kept)" in dead("show", "00000003").stdout
    assert json.loads(dead("show", "00000001", "--json").stdout)["payload"]["pair"] == [1, 2]
    ambiguous = dead("show", "0000")
    assert ambiguous.exit_code == 1
    assert "3 or more dead letters" in ambiguous.stderr
    assert dead("show", "f").exit_code == 1


def test_the_letters_of_a_dead_run_are_dropped_and_then_nothing_is_left(dead_run: Path) -> None:
    partly = dead("drop", "00000002", "ffff")
    assert partly.exit_code == 1
    assert "1 dead letter of" in partly.stdout
    assert "ffff: no dead letter begins" in partly.stderr
    store = store_of(dead_run)
    assert store is not None
    assert len(store) == 2
    store.close()
    plain = json.loads(dead("drop", "--all", "--json").stdout)
    assert (len(plain["dropped"]), plain["problems"]) == (2, {})
    assert not dead_run.exists()
    assert dead("list").exit_code == 7


def test_a_damaged_file_is_a_sentence(dead_run: Path) -> None:
    for path in (dead_run / DIRECTORY).iterdir():
        path.write_bytes(os.urandom(8192))
    refused = dead("list", "--run", dead_run.name)
    assert refused.exit_code == 8
    assert "dead letters cannot be read" in refused.stderr
    assert "dead letters that cannot be read" in CliRunner().invoke(app, ["ps"]).stdout
    assert CliRunner().invoke(app, ["gc", "--empty"]).exit_code == 0
    assert dead_run.exists()
    CliRunner().invoke(app, ["gc", dead_run.name, "--yes"])
    assert not dead_run.exists()


def test_what_needs_a_live_run_or_another_command_line_is_a_sentence(dead_run: Path) -> None:
    refused = dead("replay", "--all")
    assert refused.exit_code == 8
    assert "run --resume" in refused.stderr
    assert dead("replay").exit_code == 2
    assert dead("drop", "--all", "00").exit_code == 2
    assert dead("list", "--run", "nobody").exit_code == 7
    store = store_of(dead_run)
    assert store is not None
    assert len(store) == 3
    store.close()
