"""Damaged words behind the binding: whatever lies in shared memory, calls of a port return or raise what they promise.

The algorithms under hostile words have a harness of their own (tests/native/hostile_words.c, under AddressSanitizer);
here the binding reads the same memory. It plays in a process of its own, because what is feared is the end of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import faulthandler, mmap, random, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from conftest import Run, SMALL
from civitas_shm.errors import CivitasError
from civitas_shm_transports.shm.transport import read_stats

luck = random.Random(int(sys.argv[1]))
run = Run(Path(sys.argv[2]), SMALL)
hurt, beside = run.mailbox("hurt"), run.mailbox("beside")
fds = run.memory.fds()
for slot in (1, 2, 3):
    run.port(slot)
run.ports[2].listen(hurt, True)
for number in range(6):
    assert run.ports[1].post(hurt, bytes([number]), "type", hurt) == 0
for number in range(3):
    assert run.ports[3].post(beside, bytes([number]), "type", beside) == 0
token = run.ports[2].take(hurt)[0]
run.ports[2].commit_state(hurt, token, b"state")
run.ports[2].bury(hurt, run.ports[2].take(hurt)[0])
run.ports[2].strike(hurt, run.ports[2].take(hurt)[0])
run.ports[2].note_wait(hurt, beside, 0, 7, 1, 2, "type")
maps = {name: mmap.mmap(fd, 0) for name, fd in zip(("directory", "cells", "mail", "arena"), [*fds[:3], fds[5]])}
record = maps["directory"].find(b"hurt") - 69  # its name is the end of a record
stride = (record - hurt * 256 - 4096) // run.memory._segments.files.slots
mail_at, mail_size = (int.from_bytes(maps["directory"][record + 8 + i : record + 16 + i], "little") for i in (0, 8))
places = [
    ("directory", record, 256), ("directory", 4096 + 2 * stride, stride), ("cells", 4096 + hurt * 512, 512),
    ("mail", mail_at, 5 * 128 + 6 * 128 + 64 * 16 + 128), ("mail", mail_at + mail_size - 1024 * 8, 256),
    ("arena", 4096, 16), ("arena", 65536, 1024),
]
windows = {"directory": slice(0, len(maps["directory"])), "cells": slice(0, len(maps["cells"])),
           "mail": slice(mail_at, mail_at + 2 * mail_size), "arena": slice(0, 1 << 17)}
kept = {name: maps[name][window] for name, window in windows.items()}
values = [bytes(8), b"\\xff" * 8, (1 << 63).to_bytes(8, "little"), ((1 << 63) - 1).to_bytes(8, "little")]

def attempt(call, *arguments):
    try:
        return call(*arguments)
    except (IndexError, OverflowError, CivitasError):
        return None

rounds = 0
for where, start, size in places:
    for at in range(start, start + size, 8):
        for value in [*values, luck.randbytes(8), luck.randbytes(2) + bytes(6)]:
            faulthandler.dump_traceback_later(20, exit=True)
            maps[where][at : at + 8] = value
            native = run.memory._native
            for port in (native, *run.ports.values()):
                attempt(port.stats, hurt), attempt(port.record, hurt), attempt(port.in_hand, hurt)
                attempt(port.stored_state, hurt), attempt(port.want_room, hurt)
            attempt(read_stats, native, hurt)
            run.memory.stats(), run.memory.waiting(), run.memory.in_hand(2), run.memory.safety_poll()
            for lane in (0, 1, 2):
                attempt(run.ports[1].post, hurt, b"more", "type", hurt, None, lane)
            for entry in run.memory.slot_died(2):
                run.memory.judge(entry, 1, 1, True)
                run.memory.read(entry)
            run.memory.waits()
            for grave in run.memory.buried():
                run.memory.discard(grave.mailbox, grave.token)
            run.ports[2].poll(0, False)
            for entry in (0, 1, 2, 63):
                for call in (run.ports[2].begin, run.ports[2].forgo, run.ports[2].strike, run.ports[2].bury):
                    attempt(call, hurt, entry)
            for _ in range(3000):
                got = attempt(run.ports[2].take, hurt)
                if got is None:
                    break
                attempt(run.ports[2].release, hurt, got[0])
            else:
                sys.exit(f"messages without end: {where} {at}")
            run.memory.close_mailbox(hurt)
            for number in range(3):
                got = run.ports[2].take(beside)
                assert got is not None and got[4] == bytes([number]), (where, at, value, number, got)
                run.ports[2].release(beside, got[0])
            for name, window in windows.items():
                maps[name][window] = kept[name]
            for slot in (1, 2, 3):
                run.ports[slot].close()
                run.port(slot)
            run.ports[2].listen(hurt, True)
            for name, window in windows.items():
                maps[name][window] = kept[name]
            rounds += 1
faulthandler.cancel_dump_traceback_later()
run.end()
print(rounds, "hostile values")
"""


@pytest.mark.parametrize("seed", [1])
def test_no_hostile_word_crashes_or_loops_a_port_or_harms_the_mailbox_beside(tmp_path: Path, seed: int) -> None:
    played = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(seed), str(tmp_path), str(Path(__file__).parent)],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert played.returncode == 0, f"ended with {played.returncode}\n{played.stdout}{played.stderr[-3000:]}"
    assert int(played.stdout.split()[0]) > 1000


GONE = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conftest import Run, SMALL

run = Run(Path(sys.argv[1]), SMALL)
box = run.mailbox("box")
sender, reader = run.port(1), run.port(2)
assert sender.post(box, b"", "t" * 300, box) == 0
reader.listen(box, True)
taken = reader.take(box)
(entry,) = run.memory._native.in_hand(box)
assert (entry[0], entry[1], entry[3], entry[4]) == (taken[0], 2, taken[1], "t" * 300)
os.ftruncate(run.memory.fds()[5], 16384)  # its memory goes, as a trim on a full /dev/shm makes it go
assert run.memory._native.in_hand(box) == []
"""


def test_who_looks_at_what_is_in_hand_while_its_memory_goes_sees_nothing_and_gets_no_signal(tmp_path: Path) -> None:
    played = subprocess.run(
        [sys.executable, "-c", GONE, str(tmp_path), str(Path(__file__).parent)],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert played.returncode == 0, f"ended with {played.returncode}\n{played.stdout}{played.stderr[-3000:]}"
