"""The life of a run: made, left by a dead host, adopted with every message, swept when empty, removed.

A host dies here by `crash`: its locks and descriptors go, as the kernel would let them go, and nothing is tidied.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from civitas_shm.cli import dead
from civitas_shm.clock import SystemClock
from civitas_shm.dead_letters import DeadLetterOffice, FileLetters
from civitas_shm.errors import ConfigurationError, RunAlive, RunHasMessages, TransportUnavailable
from civitas_shm.host.verdicts import Verdicts
from civitas_shm.letters import DIRECTORY, Note
from civitas_shm.transport import CLOSED, SENT, Buried, MailboxSpec, MemoryPlan
from civitas_shm_transports.shm import _shm, segments
from civitas_shm_transports.shm.memory import ShmRunMemory, create
from civitas_shm_transports.shm.segments import RunDirectory
from civitas_shm_transports.shm.survey import remove_stale, stale_runs
from civitas_shm_transports.shm.transport import attach

PLAN = MemoryPlan(slots=4, mailboxes=16, arena_bytes=4 << 20, mailbox_bytes=4 << 20)


def crash(run: ShmRunMemory) -> None:
    run._let_go()
    run._directory.release()


def port(run: ShmRunMemory, slot: int) -> Any:
    incarnation = run.incarnation(slot) + 1
    run.attach_spec(slot, incarnation, 0)
    directory, cells, mail, _, *rest = run.fds()
    return _shm.Port(directory, cells, mail, rest[: len(rest) // 2], rest[len(rest) // 2 :], slot, incarnation)


def with_messages(name: str, runs: Path, **options: Any) -> ShmRunMemory:
    """A run in which a message is in hand and two wait."""
    run = create(name, PLAN, run_dir=runs, **options)
    mailbox = run.add_mailbox(MailboxSpec("agent"))
    run.set_readers(mailbox, [2])
    a, b = port(run, 1), port(run, 2)
    for number in range(3):
        assert a.post(mailbox, bytes([number]), "t", mailbox) == SENT
    assert b.take(mailbox)[4] == b"\0"
    assert b.commit_state(mailbox, 0, b"state") == SENT
    a.close()
    b.close()
    return run


def segments_of(name: str) -> list[str]:
    return [entry for entry in os.listdir("/dev/shm") if name in entry]


# --- beginnings and ends ----------------------------------------------------------------------------------------------


def test_nothing_is_left_of_a_closed_run(name: str, runs: Path) -> None:
    run = with_messages(name, runs)
    assert len(segments_of(name)) == 3 + PLAN.slots
    run.close(keep=False)
    run.close(keep=False)
    assert segments_of(name) == []
    assert not (runs / name).exists()


def test_segments_and_directory_are_for_their_owner_alone(name: str, runs: Path) -> None:
    run = create(name, PLAN, run_dir=runs)
    modes = {os.stat(f"/dev/shm/{entry}").st_mode & 0o777 for entry in segments_of(name)}
    assert modes == {0o600}
    assert (runs / name).stat().st_mode & 0o777 == 0o700
    assert not any(os.get_inheritable(fd) for fd in run.fds())
    run.close(keep=False)


def test_a_run_that_is_alive_is_not_touched(name: str, runs: Path) -> None:
    run = with_messages(name, runs)
    for options in ({}, {"resume": True}, {"fresh": True}):
        with pytest.raises(RunAlive, match=name):
            create(name, PLAN, run_dir=runs, **options)
    assert stale_runs(runs) == []
    assert sum(run.waiting().values()) == 3
    run.close(keep=False)


def test_messages_of_a_dead_run_are_never_dropped_without_being_told_to(name: str, runs: Path) -> None:
    crash(with_messages(name, runs))
    with pytest.raises(RunHasMessages, match=r"3 messages waiting \(agent 3\)"):
        create(name, PLAN, run_dir=runs)
    run = create(name, PLAN, run_dir=runs, fresh=True)
    assert run.waiting() == {}
    assert not run.adopted
    run.close(keep=False)
    assert segments_of(name) == []


def test_a_dead_run_without_messages_is_swept(name: str, runs: Path) -> None:
    crash(create(name, PLAN, run_dir=runs))
    before = segments_of(name)
    run = create(name, PLAN, run_dir=runs)
    assert not set(before) & set(segments_of(name))
    run.close(keep=False)


def test_an_adopted_run_goes_on_with_what_was_in_hand_then_what_waited_and_the_state(name: str, runs: Path) -> None:
    crash(with_messages(name, runs))
    run = create(name, PLAN, run_dir=runs, resume=True)
    assert run.adopted
    mailbox = run.add_mailbox(MailboxSpec("agent"))
    run.set_readers(mailbox, [3])  # another process than before
    b = port(run, 3)
    b.listen(mailbox, True)
    seen = []
    while (got := b.take(mailbox)) is not None:
        seen.append((got[4], got[5]))
        b.release(mailbox, got[0])
    assert seen == [(b"\0", 2), (b"\1", 1), (b"\2", 1)]
    assert b.stored_state(mailbox)[0] == b"state"
    b.close()
    run.close(keep=False)
    assert segments_of(name) == []


@pytest.mark.parametrize("is_buried", [False, True], ids=["in_hand", "buried"])
def test_a_letter_that_is_dropped_while_no_host_lives_stays_dropped(
    name: str, runs: Path, monkeypatch: pytest.MonkeyPatch, is_buried: bool
) -> None:
    """Its host died between letter and discard: the next one must neither hand the message over nor write it again."""

    def office_of(run: ShmRunMemory) -> DeadLetterOffice:
        return DeadLetterOffice(run, lambda: FileLetters(run.run_dir / DIRECTORY), SystemClock())

    run = create(name, PLAN, run_dir=runs)
    mailbox = run.add_mailbox(MailboxSpec("agent"))
    run.set_readers(mailbox, [2])
    reader = port(run, 2)
    for data in (b"poison", b"next"):
        assert reader.post(mailbox, data, "t", mailbox) == SENT
    token = reader.take(mailbox)[0]
    if is_buried:
        reader.bury(mailbox, token)
    reader.close()
    in_hand = run.slot_died(2)
    office = office_of(run)
    office.keep(run.buried()[0] if is_buried else run.read(in_hand[0]), Note("convicted"))
    office.close()
    crash(run)
    monkeypatch.setenv("CIVITAS_SHM_DIR", str(runs))
    said = CliRunner().invoke(dead.command, ["drop", "--all", "--run", name])
    assert "1 dead letter" in said.output, said.output
    run = create(name, PLAN, run_dir=runs, resume=True)
    office = office_of(run)
    Verdicts(run, office).settle(range(PLAN.slots))
    assert (run.in_hand(2), run.buried(), office.close(), office.written) == ([], [], 0, 0)
    assert run.waiting() == {"agent": 1}
    assert not (run.run_dir / DIRECTORY).exists()
    run.close(keep=False)


def test_a_run_is_adopted_again_and_again(name: str, runs: Path) -> None:
    crash(with_messages(name, runs))
    for _ in range(5):
        crash(create(name, PLAN, run_dir=runs, resume=True))
    run = create(name, PLAN, run_dir=runs, resume=True)
    assert run.waiting() == {"agent": 3}
    assert run.incarnation(0) > 5, "the host counts on, so that late replies are refused"
    run.close(keep=False)


def test_the_incarnation_in_a_record_only_grows_over_closing_a_new_record_and_adoption(name: str, runs: Path) -> None:
    run = create(name, PLAN, run_dir=runs)
    assert run.last_incarnation() == 0
    one = run.add_mailbox(MailboxSpec("one"))
    for incarnation in (1, 7, 3):
        run.begin_life(one, incarnation)
    assert run.last_incarnation() == 7
    run.close_mailbox(one)
    assert run._native.record(one) == ("one", False), "closed, by the same word"
    again = run.add_mailbox(MailboxSpec("one"))
    assert again != one
    assert run.last_incarnation() == 7, "of those that are gone too"
    crash(run)
    run = create(name, PLAN, run_dir=runs, resume=True)
    assert run.last_incarnation() == 7
    run.begin_life(again, 8)
    assert run.last_incarnation() == 8
    assert run._native.record(again) == ("one", True)
    run._native.begin_life(again, (1 << 56) - 1)
    run.begin_life(again, 1 << 56)
    assert run.last_incarnation() == (1 << 56) - 1, "what does not fit changes nothing, and breaks nothing"
    run.close(keep=False)


def test_a_kept_run_is_one_that_can_be_resumed(name: str, runs: Path) -> None:
    with_messages(name, runs).close(keep=True)
    [stale] = stale_runs(runs)
    assert (stale.name, stale.waiting) == (name, 3)
    run = create(name, PLAN, run_dir=runs, resume=True)
    assert run.waiting() == {"agent": 3}
    run.close(keep=False)


def test_resume_refuses_what_does_not_fit_and_leaves_the_run_as_it_was(name: str, runs: Path) -> None:
    crash(with_messages(name, runs))
    fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigurationError, match="made for 4 processes"):
        create(name, MemoryPlan(slots=8), run_dir=runs, resume=True)
    assert len(os.listdir("/proc/self/fd")) == fds
    run = create(name, PLAN, run_dir=runs, resume=True)
    with pytest.raises(ConfigurationError, match="1000 places"):
        run.add_mailbox(MailboxSpec("agent", 7))
    run.close(keep=False)


def test_memfd_dies_with_its_processes_and_cannot_be_resumed(name: str, runs: Path) -> None:
    plan = MemoryPlan(slots=4, mailboxes=16, arena_bytes=4 << 20, kind="memfd")
    run = create(name, plan, run_dir=runs)
    assert segments_of(name) == []
    crash(run)
    with pytest.raises(ConfigurationError, match="memfd"):
        create(name, plan, run_dir=runs, resume=True)
    create(name, plan, run_dir=runs).close(keep=False)


# --- half done --------------------------------------------------------------------------------------------------------


def test_a_host_that_died_while_it_closed_a_mailbox_is_finished_by_the_next(name: str, runs: Path) -> None:
    run = with_messages(name, runs)
    mailbox = run._find("agent")
    real = run._native
    run._native = type("Dying", (), {"close_lanes": real.close_lanes})()  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        run.close_mailbox(mailbox)  # lanes are closed; what waits is not removed yet
    run._native = real
    crash(run)
    with pytest.raises(RunHasMessages):
        create(name, PLAN, run_dir=runs)
    run = create(name, PLAN, run_dir=runs, resume=True)
    letters: list[Buried] = []
    assert len(run.finish_closing(letters.append)) == len(letters) == 3
    assert [letter.delivery for letter in letters] == [1, 0, 0]
    assert run.waiting() == {}
    again = run.add_mailbox(MailboxSpec("agent"))
    assert again != mailbox, "a new one of the same name"
    run.set_readers(again, [2])
    a = port(run, 1)
    assert a.post(mailbox, b"", "t", mailbox) == CLOSED
    assert a.post(again, b"", "t", again) == SENT
    a.close()
    run.close(keep=False)


BEGIN_AND_DIE = """
import os, signal, sys
from pathlib import Path
from civitas_shm.transport import MemoryPlan
from civitas_shm_transports.shm import memory, segments
kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
real, left = segments._open, [int(sys.argv[3])]
def opening(*arguments, **options):
    if left[0] == 0:
        kill()
    left[0] -= 1
    return real(*arguments, **options)
segments._open = opening
if sys.argv[4] == "attach":
    memory.ShmRunMemory = kill
if sys.argv[4] == "begin":
    memory.ShmRunMemory._begin = kill
memory.create(sys.argv[1], MemoryPlan(slots=4, mailboxes=16, arena_bytes=4 << 20, mailbox_bytes=4 << 20),
              run_dir=Path(sys.argv[2]))
"""


@pytest.mark.parametrize("segments_made", [0, 1, 4, 6])
def test_a_host_killed_while_it_made_segments_leaves_what_the_next_sweeps(
    name: str, runs: Path, segments_made: int
) -> None:
    begin_and_die(name, runs, segments_made, "")
    assert len(segments_of(name)) == segments_made
    sweeps(name, runs)


@pytest.mark.parametrize("before", ["attach", "begin"])
def test_a_host_killed_before_it_began_leaves_what_the_next_sweeps(name: str, runs: Path, before: str) -> None:
    begin_and_die(name, runs, 99, before)
    sweeps(name, runs)


def begin_and_die(name: str, runs: Path, segments_made: int, before: str) -> None:
    died = subprocess.run(
        [sys.executable, "-c", BEGIN_AND_DIE, name, str(runs), str(segments_made), before],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)), capture_output=True, check=False,
    )  # fmt: skip
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()


def sweeps(name: str, runs: Path) -> None:
    run = create(name, PLAN, run_dir=runs)
    assert len(segments_of(name)) == 3 + PLAN.slots
    run.close(keep=False)
    assert segments_of(name) == []


def test_a_dead_run_that_cannot_be_read_is_kept_until_told_otherwise(name: str, runs: Path) -> None:
    crash(with_messages(name, runs))
    [directory] = [entry for entry in segments_of(name) if entry.endswith("-dir")]
    with open(f"/dev/shm/{directory}", "r+b") as file:
        file.seek(8)
        file.write(b"\x63")  # another layout version
    with pytest.raises(RunHasMessages, match="layout version"):
        create(name, PLAN, run_dir=runs)
    with pytest.raises(ConfigurationError, match="layout version"):
        create(name, PLAN, run_dir=runs, resume=True)
    [stale] = stale_runs(runs)
    assert (stale.state, stale.waiting) == ("unreadable", None)
    assert "layout version is 99" in stale.problem
    create(name, PLAN, run_dir=runs, fresh=True).close(keep=False)
    assert segments_of(name) == []


def test_a_run_that_was_resumed_from_the_first_moments_of_another_is_as_sure_of_its_messages(
    name: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first host died when all was there but the mark that says so; the second had messages and died."""
    monkeypatch.setattr(segments, "_shm_has_room", lambda: False)  # no name in /dev/shm speaks for the run
    with monkeypatch.context() as first:
        first.setattr(RunDirectory, "mark_made", lambda self: None)
        crash(create(name, PLAN, run_dir=runs))
    crash(with_messages(name, runs, resume=True))
    (runs / name / "run.json").write_text(json.dumps({"layout": 77, "made_by": "9.9"}))
    with pytest.raises(RunHasMessages, match=r"9\.9"):
        create(name, PLAN, run_dir=runs)
    create(name, PLAN, run_dir=runs, fresh=True).close(keep=False)


@pytest.mark.parametrize("resume", [False, True])
def test_after_a_reboot_nothing_is_left_to_keep_and_that_is_told(name: str, runs: Path, resume: bool) -> None:
    crash(with_messages(name, runs))
    for entry in segments_of(name):
        os.unlink(f"/dev/shm/{entry}")
    run = create(name, PLAN, run_dir=runs, resume=resume)
    assert not run.adopted
    [told] = run.told
    assert told.startswith(f"The memory of the run {name!r} is gone, with whatever waited in it: ")
    run.close(keep=False)
    run = create(name, PLAN, run_dir=runs, resume=resume)
    assert run.told == []
    run.close(keep=False)


# --- who lives --------------------------------------------------------------------------------------------------------

HOLDER = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
{lock}
print("held", flush=True)
sys.stdin.read()
"""


def holder(path: Path, lock: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(lock=lock), str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_run_is_not_adopted_while_a_process_of_its_dead_host_lives(
    name: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash(with_messages(name, runs))
    worker = holder(runs / name / "slots", "fcntl.lockf(fd, fcntl.LOCK_EX, 1, 2)")
    monkeypatch.setattr(RunDirectory.wait_for_the_dead, "__defaults__", (0.1,))
    for options in ({"resume": True}, {"fresh": True}, {}):
        with pytest.raises(RunAlive, match="still live"):
            create(name, PLAN, run_dir=runs, **options)
    worker.kill()
    worker.wait()
    run = create(name, PLAN, run_dir=runs, resume=True)
    assert run.waiting() == {"agent": 3}
    run.close(keep=False)
    for stream in (worker.stdin, worker.stdout):
        assert stream is not None
        stream.close()


def test_a_process_that_a_dead_host_had_just_spawned_does_not_come_into_the_run_of_the_next(
    name: str, runs: Path
) -> None:
    """It was not yet at the lock of its slot when the next host looked there, and has it a moment later."""
    run = with_messages(name, runs)
    spec = run.attach_spec(2, run.incarnation(2) + 1, 0)
    fds = [os.dup(fd) for fd in run.fds()]
    crash(run)
    run = create(name, PLAN, run_dir=runs, resume=True)
    with pytest.raises(ValueError, match="slot 2"):
        attach(spec, fds)
    run.attach_spec(2, run.incarnation(2) + 1, 0)
    with pytest.raises(ValueError, match="slot 2"):
        attach(spec, fds)
    for fd in fds:
        os.close(fd)
    run.close(keep=False)


TRY_SLOT_2 = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 2)"


def test_the_locks_of_the_slots_are_kept_until_the_slots_are_nobodys(
    name: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash(with_messages(name, runs))
    tried = []

    def try_slot_2() -> int:
        command = [sys.executable, "-c", TRY_SLOT_2, str(runs / name / "slots")]
        return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode

    adopt = ShmRunMemory._adopt
    monkeypatch.setattr(ShmRunMemory, "_adopt", lambda self: (adopt(self), tried.append(try_slot_2())))
    run = create(name, PLAN, run_dir=runs, resume=True)
    assert tried == [1]
    assert try_slot_2() == 0
    run.close(keep=False)


def test_stale_runs_lists_the_dead_and_not_the_living(name: str, runs: Path) -> None:
    crash(with_messages(name, runs))
    alive = create(name + "-alive", PLAN, run_dir=runs)
    [stale] = stale_runs(runs)
    assert (stale.name, stale.waiting, Path(stale.path)) == (name, 3, runs / name)
    remove_stale(stale)
    assert stale_runs(runs) == []
    assert segments_of(name + "-alive")
    alive.close(keep=False)
    assert segments_of(name) == []


def test_remove_stale_refuses_a_run_that_has_come_to_life(name: str, runs: Path) -> None:
    crash(with_messages(name, runs))
    [stale] = stale_runs(runs)
    run = create(name, PLAN, run_dir=runs, resume=True)
    with pytest.raises(RunAlive):
        remove_stale(stale)
    assert run.waiting() == {"agent": 3}
    run.close(keep=False)


def test_a_lock_file_that_was_replaced_is_not_the_lock(runs: Path) -> None:
    taken = RunDirectory.take(runs / "run")
    os.unlink(runs / "run" / "lock")  # somebody removed the directory and made it again
    other = RunDirectory.take(runs / "run")
    taken.release()
    with pytest.raises(RunAlive):
        RunDirectory.take(runs / "run")
    other.remove(None)


def test_a_run_directory_that_others_can_enter_is_made_private_and_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    RunDirectory.take(tmp_path / "open" / "run").remove(None)
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "open")
    with pytest.raises(TransportUnavailable, match="CIVITAS_SHM_DIR"):
        RunDirectory.take(tmp_path / "link" / "run")


def test_a_lock_is_not_followed_through_a_link(tmp_path: Path) -> None:
    run = tmp_path / "others" / "run"
    run.mkdir(parents=True)
    (tmp_path / "victim").write_text("untouched")
    (run / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic link"):
        RunDirectory.take(run)


def test_attach_holds_the_lock_of_its_slot_and_a_second_process_is_refused(name: str, runs: Path) -> None:
    run = create(name, PLAN, run_dir=runs)
    worker = holder(runs / name / "slots", "fcntl.lockf(fd, fcntl.LOCK_EX, 1, 2)")
    with pytest.raises(BlockingIOError):
        attach(run.attach_spec(2, 1, 0), run.fds())
    attached = attach(run.attach_spec(3, 1, 0), run.fds())
    held = subprocess.run(
        [sys.executable, "-c", HOLDER.format(lock="fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 3)"),
         str(runs / name / "slots")],
        capture_output=True, check=False,
    )  # fmt: skip
    assert b"BlockingIOError" in held.stderr
    attached.stop()
    worker.kill()
    worker.communicate()
    run.close(keep=False)


# --- where memory is short --------------------------------------------------------------------------------------------


def test_a_small_dev_shm_puts_the_segments_into_the_run_directory(
    name: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "_shm_has_room", lambda: False)
    run = with_messages(name, runs)
    assert run.place == "files"
    assert segments_of(name) == []
    assert len([entry for entry in (runs / name).iterdir() if entry.name.startswith("civitas-")]) == 3 + PLAN.slots
    crash(run)
    run = create(name, PLAN, run_dir=runs, resume=True)
    assert run.waiting() == {"agent": 3}, "they survive as well"
    run.close(keep=False)
    assert not (runs / name).exists()


TINY = """
import ctypes, os, sys
from pathlib import Path
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, MS_PRIVATE_REC = 0x20000, 1 << 18 | 1 << 14
if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_PRIVATE_REC, None) or libc.mount(
    b"tmpfs", sys.argv[1].encode(), b"tmpfs", 0, b"size=" + sys.argv[2].encode()
):
    print("not permitted: " + os.strerror(ctypes.get_errno()))
    sys.exit(77)
sys.path[:0] = sys.argv[4:]
{script}
"""


def in_a_tiny_filesystem(folder: Path, size: str, script: str) -> str:
    """What a process prints that sees a file system of that size at `folder`, in a mount namespace of its own."""
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", TINY.format(script=script), str(folder), size, "", *sys.path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip(f"mounting a file system is {done.stdout.strip()}")
    assert done.returncode == 0, f"ended with {done.returncode} (-7 is SIGBUS)\n{done.stdout}{done.stderr}"
    return done.stdout


FULL_LATER = """
from civitas_shm.errors import SharedMemoryFull
from civitas_shm.transport import *
from civitas_shm_transports.shm import _shm, segments
from civitas_shm_transports.shm.memory import create
segments._shm_has_room = lambda: False
run = create("tiny", MemoryPlan(slots=3, mailboxes=4096, arena_bytes=64 << 20, mailbox_bytes=64 << 20),
             run_dir=Path(sys.argv[1]) / "runs")
mailbox = run.add_mailbox(MailboxSpec("box"))
run.set_readers(mailbox, [2])
ports = []
for slot in (1, 2):
    run.attach_spec(slot, 1, 0)
    directory, cells, mail, _, *rest = run.fds()
    ports.append(_shm.Port(directory, cells, mail, rest[:3], rest[3:], slot, 1))
a, b = ports
sent = 0
while (outcome := a.post(mailbox, bytes(100_000), "t", mailbox)) == SENT:
    sent += 1
assert outcome == NO_MEMORY and sent > 5, (outcome, sent)
assert a.memory()[3] == 28, "the kernel said ENOSPC"
added = 0
try:
    while True:
        run.add_mailbox(MailboxSpec(f"agent{added}", 60_000))
        added += 1
except SharedMemoryFull as error:
    print("full:", error)
assert a.want_room(mailbox) == 0
got = b.take(mailbox)
b.release(mailbox, got[0])
assert got[4] == bytes(100_000)
assert a.post(mailbox, bytes(100_000), "t", mailbox) == SENT, "what was freed serves again"
for _ in range(sent):
    got = b.take(mailbox)
    b.release(mailbox, got[0])
assert b.take(mailbox) is None
for size in (9_000, 15_000):  # small ones, then others: what the kernel has given serves them all
    count = 0
    while a.post(mailbox, bytes(size), "t", mailbox) == SENT:
        count += 1
    assert a.memory()[3] == 28 and count * size > 1 << 19, (size, count)
    for _ in range(count):
        got = b.take(mailbox)
        b.release(mailbox, got[0])
assert a.trim(0) > 0
print("sent", sent, "added", added)
run.close(keep=False)
"""

FULL_AT_ONCE = """
from civitas_shm.errors import SharedMemoryFull
from civitas_shm.transport import *
from civitas_shm_transports.shm import segments
from civitas_shm_transports.shm.memory import create
segments._shm_has_room = lambda: False
try:
    create("tiny", MemoryPlan(slots=64, mailboxes=60_000), run_dir=Path(sys.argv[1]) / "runs")
except SharedMemoryFull as error:
    print("full:", error)
print(os.listdir(Path(sys.argv[1]) / "runs"))
"""


def test_full_shared_memory_is_an_outcome_and_never_sigbus(tmp_path: Path) -> None:
    printed = in_a_tiny_filesystem(tmp_path / "tiny", "8m", FULL_LATER)
    assert "full: There is no shared memory for the mailbox of" in printed
    assert f"{tmp_path / 'tiny'}/runs/tiny has 0." in printed
    assert "MiB free of 8.0 MiB. Make it larger" in printed
    assert "sent" in printed


def test_shared_memory_that_is_full_at_the_start_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    printed = in_a_tiny_filesystem(tmp_path / "tiny", "1m", FULL_AT_ONCE)
    assert "full: There is too little room to begin: " in printed
    assert printed.splitlines()[-1] == "[]"


def test_plans_that_cannot_be_are_sentences(name: str, runs: Path) -> None:
    with pytest.raises(TransportUnavailable, match="3 to 128"):
        create(name, MemoryPlan(slots=129), run_dir=runs)
    with pytest.raises(ConfigurationError, match="arena_mb"):
        create(name, MemoryPlan(slots=4, arena_bytes=1 << 40), run_dir=runs)
    assert not (runs / name / "run.json").exists()


def test_run_json_names_all_that_is_made(name: str, runs: Path) -> None:
    run = create(name, PLAN, run_dir=runs)
    written = json.loads((runs / name / "run.json").read_text())
    files = segments.RunFiles(**written)
    assert sorted(segment for segment, *_ in files.segments()) == sorted(segments_of(name))
    run.close(keep=False)
