"""The host is killed before a line between an order of a delayed message and its commit; then the next one comes.

As `test_host_killed_anywhere`: the host's own code, on real shared memory and the real file, in a forked child that is
killed (SIGKILL) before its n-th line in `delays.py`, `delay_store.py` and `orders.py`. Between two lines is one
statement of SQLite, which is done or not, or one native operation (`tests/native/kill_sweep.c`). The host that repairs
it dies too, at a line that is drawn; the third one goes on. Each of four cases takes every STRIDE-th line, all four
together every third; CIVITAS_EVERY_LINE=1 takes each line in each case (a minute and a half).

Promised, and shown here: an order that was committed is sent exactly once, whatever died when: by the number of its
publish, not by chance. (`drop_oldest` and `latest` may lose the evidence with the message: LAYOUT.md.)
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import pytest

pytest.importorskip("civitas_shm_transports.shm._shm", reason="the native part is not built")

from civitas_shm import delay_store, delays
from civitas_shm.delay_store import FILE, FileDelays
from civitas_shm.delays import Delays
from civitas_shm.sending import ORDER_SEND, How
from civitas_shm.serializer import decode, encode
from civitas_shm.transport import DELAYS, SENDER_PROGRAM, SENT, MailboxSpec, MemoryPlan
from civitas_shm_transports.shm import _shm, orders
from civitas_shm_transports.shm.memory import ShmRunMemory, create

pytestmark = pytest.mark.process

PLAN = MemoryPlan(slots=4, mailboxes=16, arena_bytes=4 << 20, mailbox_bytes=1 << 20)
TRACED = {module.__file__ for module in (delays, delay_store, orders)}
NAME = f"delays-{os.getpid()}"
SENDER, READER = 1, 2
"""Slots."""

STRIDE = 1 if os.environ.get("CIVITAS_EVERY_LINE") else 12
LINES_MIN = 60
"""Fewer lines than that, and the sweep has lost sight of the code."""


def port(run: ShmRunMemory, slot: int) -> Any:
    incarnation = run.incarnation(slot) + 1
    run.attach_spec(slot, incarnation, 0)
    directory, cells, mail, _, *rest = run.fds()
    return _shm.Port(directory, cells, mail, rest[: len(rest) // 2], rest[len(rest) // 2 :], slot, incarnation)


def crash(run: ShmRunMemory) -> None:
    """As the kernel does at a death: descriptors and locks go, nothing is tidied."""
    run._let_go()
    run._directory.release()


def order(runs: Path, how: How) -> None:
    """A run with one committed order, and nobody alive."""
    run = create(NAME, PLAN, run_dir=runs)
    run.set_readers(run.add_mailbox(MailboxSpec("agent")), [READER])
    mailbox = run.add_mailbox(MailboxSpec(DELAYS))
    what = how.order("agent", "message", {"n": 1}, 0)
    sender = port(run, SENDER)
    data = encode({"order": msgspec.msgpack.encode(what)})
    assert sender.post(mailbox, data, ORDER_SEND, SENDER_PROGRAM, None, 2, 0) == SENT
    crash(run)


class Host:
    """One life of a host: it settles what an earlier one left, and sends what is due."""

    def __init__(self, runs: Path, reads_at_once: bool) -> None:
        self.runs = runs
        self.reads_at_once = reads_at_once
        """The receiver takes and releases what comes before the host has noted that it was sent."""

    async def live(self) -> None:
        self.run = run = create(NAME, PLAN, run_dir=self.runs, resume=True)
        self.mailbox = run.resolve("agent")
        run.set_readers(self.mailbox, [READER])
        self.reader = port(run, READER)
        self.reader.listen(self.mailbox, True)
        fire = run.fire

        def fired(*args: Any) -> int:
            outcome = fire(*args)
            if self.reads_at_once:
                self.read()
            return outcome

        run.fire = fired  # type: ignore[method-assign]
        loop = asyncio.get_running_loop()
        self.delays = Delays(loop, run, lambda: FileDelays(run.run_dir), lambda letter, note: None)
        self.delays.start(resumed=(run.run_dir / FILE).exists())
        while run.waiting().get(DELAYS) or any(one.due_ns < 10**15 and self.is_due(one) for one in self.now()):
            await asyncio.sleep(0)

    def now(self) -> list[Any]:
        return list(self.delays._delayed.values())

    def is_due(self, one: Any) -> bool:
        return bool(one.due_ns <= self.delays._monotonic_ns())

    def read(self) -> None:
        """What the receiver does, with an effect that outlives it."""
        while (got := self.reader.take(self.mailbox)) is not None:
            with open(self.runs / "effects", "a", encoding="ascii") as out:
                out.write(f"{decode(got[4])['n']}\n")
            self.reader.release(self.mailbox, got[0])


def dies_before_line(number: int, host: Host) -> bool:
    """Whether a child that lives as `host` was killed before that line; False: it had ended by then."""
    pid = os.fork()
    if pid == 0:
        left = number

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal left
            if frame.f_code.co_filename not in TRACED:
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        try:
            sys.settrace(trace)
            asyncio.run(host.live())
            sys.settrace(None)
        except BaseException:  # noqa: BLE001 - this process must not come back into pytest
            traceback.print_exc()
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "what the child did failed by itself; see its stderr"
    return False


@pytest.fixture
def in_memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.mark.parametrize("reads_at_once", [False, True], ids=["unread", "read at once"])
@pytest.mark.parametrize("how", [How(delay=0.0), How(delay=0.0, every=1000.0)], ids=["once", "every"])
def test_the_host_dies_before_every_line_and_the_message_is_sent_exactly_once(
    in_memory: Path, how: How, reads_at_once: bool
) -> None:
    draw = random.Random(f"{how}{reads_at_once}")
    first = 1 + 6 * bool(how.every) + 3 * reads_at_once if STRIDE > 1 else 1
    for number in itertools.count(first, STRIDE):
        runs = in_memory / str(number)
        runs.mkdir()
        order(runs, how)
        host = Host(runs, reads_at_once)
        died = dies_before_line(number, host)
        dies_before_line(draw.randint(1, max(LINES_MIN, number)), host)

        async def goes_on(host: Host = host, number: int = number) -> None:
            await host.live()
            host.read()
            assert (host.runs / "effects").read_text() == "1\n", f"killed before line {number}"
            waiting = host.now()
            assert len(waiting) == (1 if how.every else 0)
            assert not any(map(host.is_due, waiting))
            host.delays.close()

        asyncio.run(goes_on())
        host.run.close(keep=False)
        if not died:
            break
    assert number > LINES_MIN, f"{number} lines only"
    assert [entry for entry in os.listdir("/dev/shm") if NAME in entry] == []
