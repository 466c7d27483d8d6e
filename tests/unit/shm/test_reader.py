"""A look from outside: says what a port says, writes nothing, shows what lies there, and survives what it finds."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_shm = pytest.importorskip("civitas_shm_transports.shm._shm", reason="the native part is not built")

from civitas_shm.errors import RunNotFound, TransportClosed  # noqa: E402
from civitas_shm.messages import HEADER  # noqa: E402
from civitas_shm.transport import MailboxSpec, MemoryPlan  # noqa: E402
from civitas_shm_transports.shm.memory import create  # noqa: E402
from civitas_shm_transports.shm.reader import look  # noqa: E402
from civitas_shm_transports.shm.transport import read_stats  # noqa: E402

NAMED = MemoryPlan(slots=4, mailboxes=32, arena_bytes=4 << 20, mailbox_bytes=4 << 20)


def reader_of(run: Any) -> Any:
    directory, cells, mail, _, *rest = run.memory.fds()
    return _shm.Reader(directory, cells, mail, rest[: len(rest) // 2])


def payloads(reader: Any, mailbox: int, most: int = 100) -> list[tuple[str, bytes]]:
    return [(one[0], one[9]) for one in reader.peek(mailbox, most, 1000)]


def test_it_says_what_a_port_says(run: Any) -> None:
    box = run.mailbox("a", capacity=5)
    sender, taker = run.port(1), run.port(2)
    taker.listen(box, True)
    for n in range(4):
        assert sender.post(box, bytes([n]), "type", box) == 0
    token = taker.take(box)[0]
    taker.note_wait(box, box, 0, 7, 1, 2, "type")
    reader = reader_of(run)
    assert read_stats(reader, box) == read_stats(taker, box)
    assert (read_stats(reader, box).waiting, read_stats(reader, box).in_hand) == (3, 1)
    assert reader.waits() == taker.waits() != []
    assert reader.record(box) == taker.record(box) == ("a", True)
    assert reader.mailboxes(0) == taker.mailboxes(0)
    taker.release(box, token)
    assert read_stats(reader, box) == read_stats(taker, box)


def test_it_shows_what_is_in_hand_then_lanes_in_the_order_of_service(run: Any) -> None:
    box = run.mailbox("a")
    sender, taker = run.port(1), run.port(2)
    taker.listen(box, True)
    for n in range(4):
        sender.post(box, bytes([n]), "type", box)
    first = taker.take(box)[0]
    taker.strike(box, taker.take(box)[0])
    sender.post(box, b"fast", "type", box, None, 1)
    reader = reader_of(run)
    assert payloads(reader, box) == [
        ("running", b"\0"), ("waits", b"\1"), ("waiting", b"fast"), ("waiting", b"\2"), ("waiting", b"\3"),
    ]  # fmt: skip
    assert payloads(reader, box, 2) == [("running", b"\0"), ("waits", b"\1")]
    taker.bury(box, first)
    assert payloads(reader, box)[0] == ("buried", b"\0")
    assert taker.take(box)[4] == b"fast"  # nothing was taken out by looking


def test_of_a_long_payload_the_beginning_and_its_length(run: Any) -> None:
    box = run.mailbox("a")
    run.port(1).post(box, bytes(100_000), "type", box)
    ((_, _, _, _, _, _, header, type_, sender, payload),) = reader_of(run).peek(box, 10, 50)
    assert (len(payload), HEADER.unpack(header)[2], type_, sender) == (50, 100_000, "type", "a")


def test_a_look_changes_no_byte_and_its_memory_cannot_be_written(run: Any) -> None:
    box = run.mailbox("a")
    for n in range(3):
        run.port(1).post(box, bytes([n]), "type", box)
        run.die(1)  # wherever head and tail have been left
    fds = [fd for at, fd in enumerate(run.memory.fds()) if at < 3]
    before = [os.pread(fd, 1 << 20, 0) for fd in fds]
    known = {line.split()[0] for line in _maps()}
    reader = reader_of(run)
    new = [line for line in _maps() if line.split()[0] not in known and "civitas" in line]
    assert len(new) == 3
    assert all(line.split()[1] == "r--s" for line in new)
    reader.stats(box), reader.record(box), reader.waits(), reader.peek(box, 10, 10), reader.slot(1)
    assert [os.pread(fd, 1 << 20, 0) for fd in fds] == before
    reader.close()
    with pytest.raises(TransportClosed):
        reader.stats(box)


def _maps() -> list[str]:
    return Path("/proc/self/maps").read_text().splitlines()


def test_a_message_whose_producer_died_before_it_helped_the_tail_is_seen_all_the_same(run: Any) -> None:
    box = run.mailbox("a")
    run.port(1).post(box, b"x", "type", box)
    directory, mail = mmap.mmap(run.memory.fds()[0], 0), mmap.mmap(run.memory.fds()[2], 0)
    record = directory.find(b"\x01a") - 68  # length and name are the end of a record
    mail_at = int.from_bytes(directory[record + 8 : record + 16], "little")
    tail = slice(mail_at + 9 * 128, mail_at + 9 * 128 + 8)  # of the normal lane
    behind = (int.from_bytes(mail[tail], "little") - 1).to_bytes(8, "little")
    mail[tail] = behind
    reader = reader_of(run)
    assert read_stats(reader, box).waiting == 1
    assert payloads(reader, box) == [("waiting", b"x")]
    assert mail[tail] == behind


@pytest.fixture
def named(name: str, runs: Path) -> Callable[[], Any]:
    return lambda: create(name, NAMED, run_dir=runs)


def test_a_run_by_its_directory_alive_dead_and_removed_under_the_reader(
    named: Callable[[], Any], runs: Path, name: str
) -> None:
    memory = named()
    box = memory.add_mailbox(MailboxSpec("a"))
    reader = look(runs / name)
    assert (reader.name, reader.alive(), reader.replaced()) == (name, True, False)
    assert [slot.slot for slot in reader.slots()] == [0]
    assert reader.slots()[0].pid == os.getpid()
    assert [one.name for one in reader.stats()] == ["a"]
    memory.close(keep=True)
    assert not reader.alive()
    assert not reader.slots()[0].alive
    again = create(name, NAMED, run_dir=runs, fresh=True)
    assert reader.replaced()
    assert not reader.alive()  # another run of the same name lives there, not this one
    again.close(keep=False)
    assert reader.replaced()
    assert [one.name for one in reader.stats()] == ["a"]  # what was mapped can be read on
    assert reader.peek(box, 10, 10) == []
    reader.close()
    with pytest.raises(RunNotFound):
        look(runs / name)


def test_memory_without_a_name_is_refused_with_the_way_out(name: str, runs: Path) -> None:
    memory = create(name, MemoryPlan(slots=4, mailboxes=32, arena_bytes=4 << 20, kind="memfd"), run_dir=runs)
    with pytest.raises(RunNotFound, match="segments: named"):
        look(runs / name)
    memory.close(keep=False)


SCRIPT = """
import faulthandler, mmap, random, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import _shm, Run, SMALL
from civitas_shm_transports.shm.transport import read_stats, read_waits

luck = random.Random(1)
run = Run(Path(sys.argv[2]), SMALL)
hurt = run.mailbox("hurt")
for slot in (1, 2, 3):
    run.port(slot)
run.ports[2].listen(hurt, True)
for number in range(6):
    assert run.ports[1].post(hurt, bytes([number]), "type", hurt) == 0
run.ports[2].bury(hurt, run.ports[2].take(hurt)[0])
run.ports[2].take(hurt)
run.ports[2].note_wait(hurt, hurt, 0, 7, 1, 2, "type")
directory, cells, mail, _, *rest = run.memory.fds()
fds = [directory, cells, mail, rest[1]]
maps = {name: mmap.mmap(fd, 0) for name, fd in zip(("directory", "cells", "mail", "arena"), fds)}
reader = _shm.Reader(directory, cells, mail, rest[: len(rest) // 2])
record = maps["directory"].find(b"hurt") - 69
stride = (record - hurt * 256 - 4096) // run.memory._segments.files.slots
mail_at, mail_size = (int.from_bytes(maps["directory"][record + 8 + i : record + 16 + i], "little") for i in (0, 8))
places = [("directory", record, 256), ("directory", 512, 256), ("directory", 4096 + 2 * stride, stride),
          ("cells", 4096 + hurt * 512, 512), ("mail", mail_at, 11 * 128 + 64 * 16 + 128),
          ("mail", mail_at + mail_size - 1024 * 8, 256), ("arena", 4096, 16), ("arena", 16384, 2048)]
rounds = 0
faulthandler.dump_traceback_later(60, exit=True)
for where, start, size in places:
    for at in range(start, start + size, 8):
        kept = maps[where][at : at + 8]
        for value in [bytes(8), b"\\xff" * 8, bytes(7) + b"\\x80", luck.randbytes(8), luck.randbytes(2) + bytes(6)]:
            maps[where][at : at + 8] = value
            for mailbox in [hurt, *reader.mailboxes(5)[:3]]:
                try:
                    read_stats(reader, mailbox), reader.peek(mailbox, 4096, 100), reader.life(mailbox)
                except IndexError:
                    pass
            read_waits(reader), reader.slot(2), reader.probe_open(2), reader.find("hurt"), reader.records()
            rounds += 1
        maps[where][at : at + 8] = kept
assert [one[0] for one in reader.peek(hurt, 9, 9)] == ["buried", "running", "waiting", "waiting", "waiting", "waiting"]
print(rounds)
"""


def test_no_hostile_word_crashes_or_loops_a_reader(tmp_path: Path) -> None:
    played = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path)],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert played.returncode == 0, f"ended with {played.returncode}\n{played.stdout}{played.stderr[-3000:]}"
    assert int(played.stdout) > 1000
