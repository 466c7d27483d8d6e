"""The host is killed before every line of making, changing, adopting and removing a run; then the next one comes.

Here the host's own code runs in a forked child, with a trace that kills it for good (SIGKILL) before its n-th line in
`memory.py`, `segments.py`, `names.py`, `survey.py` and `waiting.py`, for every n up to the last (of `recycling.py` in a
test of its own). What happens between two lines is at most one call of the kernel, which is done or not, or one native
operation, for which `tests/native/kill_sweep.c` does the same at every instruction. A second death, while the first is
being repaired, comes at a line that is drawn.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

pytest.importorskip("civitas_shm_transports.shm._shm", reason="the native part is not built")

from civitas_shm.transport import CLOSED, SENT, MailboxSpec, MemoryPlan
from civitas_shm_transports.shm import _shm, memory, names, recycling, segments, survey, waiting
from civitas_shm_transports.shm.memory import ShmRunMemory, create
from civitas_shm_transports.shm.survey import remove_stale, stale_runs

pytestmark = pytest.mark.process

PLAN = MemoryPlan(slots=4, mailboxes=16, arena_bytes=4 << 20, mailbox_bytes=1 << 20)
TRACED = {module.__file__ for module in (memory, names, segments, survey, waiting)}
NAME = f"anywhere-{os.getpid()}"

LINES_MIN = 150
"""Fewer lines than that, and the sweep has lost sight of the code."""


def dies_before_line(number: int, act: Callable[[], object]) -> bool:
    """Whether a child that does `act` was killed before that line; False: it had ended by then."""
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
            act()
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


def lines_of(act: Callable[[], object]) -> int:
    """How many there are: where `dies_before_line` turns False."""
    low, high = 1, 2
    while dies_before_line(high, act):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if dies_before_line(middle, act) else (low, middle)
    return low


def port(run: ShmRunMemory, slot: int) -> Any:
    incarnation = run.incarnation(slot) + 1
    run.attach_spec(slot, incarnation, 0)
    directory, cells, mail, _, *rest = run.fds()
    return _shm.Port(directory, cells, mail, rest[: len(rest) // 2], rest[len(rest) // 2 :], slot, incarnation)


def crash(run: ShmRunMemory) -> None:
    """As the kernel does at a death: descriptors and locks go, nothing is tidied."""
    run._let_go()
    run._directory.release()


def taken(one: Any, mailbox: int) -> list[tuple[int, int]]:
    """(number, delivery) of everything in a mailbox, in order."""
    seen = []
    one.listen(mailbox, True)
    while (got := one.take(mailbox)) is not None:
        seen.append((got[4][0], got[5]))
        one.release(mailbox, got[0])
    return seen


def nothing_is_left(runs: Path) -> None:
    assert [entry for entry in os.listdir("/dev/shm") if NAME in entry] == []
    assert list(runs.iterdir()) == []


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder in memory: a few thousand segments as files would keep a disk busy."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


# --- a run without messages: whatever is left of it stops nobody ------------------------------------------------------


def make_and_remove(runs: Path) -> None:
    run = create(NAME, PLAN, run_dir=runs)
    run.set_readers(run.add_mailbox(MailboxSpec("agent")), [2])
    run.close(keep=False)


def make_and_keep(runs: Path) -> None:
    run = create(NAME, PLAN, run_dir=runs)
    run.add_mailbox(MailboxSpec("agent"))
    run.close(keep=True)


def run_again(runs: Path) -> None:
    create(NAME, PLAN, run_dir=runs).close(keep=False)


def resume_it(runs: Path) -> None:
    create(NAME, PLAN, run_dir=runs, resume=True).close(keep=False)


def gc(runs: Path) -> None:
    for stale in stale_runs(runs):
        assert stale.waiting == 0
        remove_stale(stale)


@pytest.mark.parametrize(("place", "after"), [("shm", run_again), ("shm", resume_it), ("shm", gc), ("files", gc)])
def test_a_death_while_a_run_is_made_or_removed_leaves_nothing_that_stops_anybody(
    in_memory: Path, monkeypatch: pytest.MonkeyPatch, place: str, after: Callable[[Path], None]
) -> None:
    runs = in_memory / "runs"
    runs.mkdir(mode=0o700)
    monkeypatch.setattr(segments, "_shm_has_room", lambda: place == "shm")
    number = 0
    while dies_before_line(number + 1, lambda: make_and_remove(runs)):
        number += 1
        after(runs)
        nothing_is_left(runs)
    assert number > LINES_MIN
    nothing_is_left(runs)


def test_a_death_while_the_dead_are_removed_is_finished_by_the_next(in_memory: Path) -> None:
    runs = in_memory / "runs"
    runs.mkdir(mode=0o700)
    number, killed = 0, True
    while killed:
        number += 1
        make_and_keep(runs)
        killed = dies_before_line(number, lambda: gc(runs))
        gc(runs)
        nothing_is_left(runs)
    assert number > 50


# --- a run with messages ----------------------------------------------------------------------------------------------


def leave_messages(runs: Path) -> None:
    """A dead run: `agent` has 0 in hand and 1, 2 waiting, `closing` has 0 and 1; both have a state."""
    run = create(NAME, PLAN, run_dir=runs)
    agent, closing = (run.add_mailbox(MailboxSpec(name)) for name in ("agent", "closing"))
    for mailbox in (agent, closing):
        run.set_readers(mailbox, [2])
    sender, reader = port(run, 1), port(run, 2)
    for number in range(3):
        assert sender.post(agent, bytes([number]), "t", agent) == SENT
    for number in range(2):
        assert sender.post(closing, bytes([number]), "t", closing) == SENT
    assert reader.take(agent)[4] == b"\0"
    assert reader.commit_state(agent, 0, b"state") == SENT
    sender.close()
    reader.close()
    crash(run)


def adopt_and_change(runs: Path) -> None:
    """What a host does to the structure of an adopted run: every kind of change once."""
    run = create(NAME, PLAN, run_dir=runs, resume=True)
    agent = run.add_mailbox(MailboxSpec("agent"))
    run.set_readers(agent, [3])
    run.attach_spec(3, run.incarnation(3) + 1, 0)
    run.set_readers(run.add_mailbox(MailboxSpec("new")), [3])
    closing = run._find("closing")
    if closing is not None:
        run.close_mailbox(closing)
    run.slot_died(3)  # its entries of `agent` stay its own
    run.set_readers(agent, [2])
    run.close(keep=True)


def check(runs: Path) -> None:
    """The next host finds every committed message once, in order, and all mailboxes work."""
    run = create(NAME, PLAN, run_dir=runs, resume=True)
    run.finish_closing(None)  # as every host does first
    agent = run.add_mailbox(MailboxSpec("agent"))
    new = run.add_mailbox(MailboxSpec("new"))
    closing = run._find("closing")
    for mailbox in filter(None, (agent, new, closing)):
        run.set_readers(mailbox, [2])
    sender, reader = port(run, 1), port(run, 2)
    assert taken(reader, agent) == [(0, 2), (1, 1), (2, 1)]
    assert reader.stored_state(agent)[0] == b"state"
    if closing is not None:  # its end had not begun
        assert taken(reader, closing) == [(0, 1), (1, 1)]
    else:
        old = next(m for m in run._agents() if run._native.record(m)[0] == "closing")
        assert sender.post(old, b"", "t", old) == CLOSED
    assert run.waiting() == {}
    for mailbox in (agent, new):
        assert sender.post(mailbox, b"\7", "t", mailbox) == SENT
        assert taken(reader, mailbox) == [(7, 1)]
    assert sender.trim(0) >= 0
    assert sender.memory()[0] == 0, "every chunk is free again"
    sender.close()
    reader.close()
    run.close(keep=False)


@pytest.mark.timeout(400)  # a host for each line, each in a process of its own
@pytest.mark.fault("host kill while adopting")
def test_a_host_killed_before_any_line_of_adopting_and_changing_loses_nothing_also_when_it_dies_again(
    in_memory: Path, fired: Any
) -> None:
    runs = in_memory / "runs"
    leave_messages(runs)
    lines = lines_of(lambda: adopt_and_change(runs))
    create(NAME, PLAN, run_dir=runs, fresh=True).close(keep=False)
    assert lines > LINES_MIN
    fired(lines, "lines before each of which a host is killed")
    dice = random.Random(lines)
    for number in range(1, lines + 1):
        leave_messages(runs)
        assert dies_before_line(number, lambda: adopt_and_change(runs))
        while dice.random() < 0.5:
            dies_before_line(dice.randrange(1, lines + 1), lambda: adopt_and_change(runs))
        check(runs)
        nothing_is_left(runs)


# --- mailboxes that change hands --------------------------------------------------------------------------------------

FEW = MemoryPlan(slots=4, mailboxes=3, arena_bytes=4 << 20, mailbox_bytes=1 << 20)


def leave_agents_that_are_gone(runs: Path) -> None:
    """A dead run with a message for `agent`, and no mailbox that was not used."""
    run = create(NAME, FEW, run_dir=runs)
    agent = run.add_mailbox(MailboxSpec("agent"))
    sender = port(run, 1)
    assert sender.post(agent, b"\1", "t", agent) == SENT
    for name in ("one", "two"):
        run.close_mailbox(run.add_mailbox(MailboxSpec(name)))
    sender.close()
    crash(run)


def come_and_go(runs: Path) -> None:
    run = create(NAME, FEW, run_dir=runs, resume=True)
    for number in range(4):
        run.close_mailbox(run.add_mailbox(MailboxSpec(f"agent-{number}")))
    run.close(keep=True)


def test_a_host_killed_before_any_line_of_giving_a_mailbox_to_another_agent_harms_neither(
    in_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "TRACED", {recycling.__file__})
    runs = in_memory / "runs"
    leave_agents_that_are_gone(runs)
    lines = lines_of(lambda: come_and_go(runs))
    create(NAME, FEW, run_dir=runs, fresh=True).close(keep=False)
    assert lines > 40
    for number in range(1, lines + 1, 2):
        leave_agents_that_are_gone(runs)
        for line in (number, number + 1):  # the second host dies a line later, over what the first has left
            dies_before_line(line, lambda: come_and_go(runs))
        run = create(NAME, FEW, run_dir=runs, resume=True)
        agent = run.add_mailbox(MailboxSpec("agent"))
        new = [run.add_mailbox(MailboxSpec(name)) for name in ("three", "four")]
        sender, reader = port(run, 1), port(run, 2)
        for mailbox in (agent, *new):
            run.set_readers(mailbox, [2])
        assert taken(reader, agent) == [(1, 1)]
        assert [sender.find(name) for name in ("agent", "three", "four")] == [agent, *new]
        for mailbox in new:
            assert sender.post(mailbox, b"\7", "t", mailbox) == SENT
            assert taken(reader, mailbox) == [(7, 1)]
            assert sender.post(mailbox & _shm.INDEX_MASK, b"", "t", agent) == CLOSED, "what its first name was"
        sender.close()
        reader.close()
        run.close(keep=False)
        nothing_is_left(runs)
