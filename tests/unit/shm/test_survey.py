"""What is found of runs: each state from a run that is in it; looking changes nothing; nothing live is removed."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("civitas_shm_transports.shm._shm", reason="the native part is not built")

from civitas_shm import __version__
from civitas_shm.errors import RunAlive, RunHasMessages
from civitas_shm.runs import RunFound
from civitas_shm.transport import SENT, MailboxSpec, MemoryPlan
from civitas_shm_transports.shm import _shm, names
from civitas_shm_transports.shm.memory import ShmRunMemory, create
from civitas_shm_transports.shm.segments import RunDirectory, is_held
from civitas_shm_transports.shm.survey import find_runs, remove_stale

PLAN = MemoryPlan(slots=4, mailboxes=16, arena_bytes=4 << 20, mailbox_bytes=4 << 20)


def crash(run: ShmRunMemory) -> None:
    """Locks and descriptors go, as the kernel would let them go; nothing is tidied."""
    run._let_go()
    run._directory.release()


def make(name: str, runs: Path, messages: int = 0) -> ShmRunMemory:
    run = create(name, PLAN, run_dir=runs)
    mailbox = run.add_mailbox(MailboxSpec("agent"))
    run.set_readers(mailbox, [2])
    run.attach_spec(2, 1, 0)
    directory, cells, mail, _, *rest = run.fds()
    port = _shm.Port(directory, cells, mail, rest[: len(rest) // 2], rest[len(rest) // 2 :], 2, 1)
    for _ in range(messages):
        assert port.post(mailbox, b"x", "message", mailbox, None, 2, 0) == SENT
    port.close()
    return run


def of(name: str, runs: Path) -> RunFound:
    [found] = [run for run in find_runs(runs) if run.name == name]
    return found


def segments_of(name: str) -> list[str]:
    return [entry for entry in os.listdir("/dev/shm") if f"-{name}-" in entry]


def own_segments(name: str) -> list[str]:
    """Of all runs whose names begin with that; other tests make and remove theirs meanwhile."""
    return sorted(entry for entry in os.listdir("/dev/shm") if f"-{name}-" in entry)


def snapshot(runs: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in [runs, *runs.rglob("*")])


def test_each_state_is_told_apart_and_looking_changes_nothing(name: str, runs: Path) -> None:
    alive = make(f"{name}-alive", runs, 3)
    crash(make(f"{name}-dead", runs, 17))
    crash(make(f"{name}-empty", runs))
    (runs / f"{name}-ended").mkdir()
    (runs / f"{name}-ended" / "log").write_text("last words\n")
    (runs / f"{name}-begun").mkdir()
    before, shm = snapshot(runs), own_segments(name)
    found = {run.name.removeprefix(f"{name}-"): run for run in find_runs(runs) if run.name.startswith(name)}
    assert {short: run.state for short, run in found.items()} == {
        "alive": "live", "dead": "dead", "empty": "empty", "ended": "ended", "begun": "empty",
    }  # fmt: skip
    assert (found["dead"].waiting, found["empty"].waiting, found["alive"].waiting) == (17, 0, None)
    assert found["alive"].size_bytes > 0
    assert found["ended"].has_log
    assert [run.holds_messages for run in (found["dead"], found["empty"], found["ended"])] == [True, False, False]
    assert snapshot(runs) == before
    assert own_segments(name) == shm
    alive.close(keep=False)
    remove_stale(found["ended"])
    assert not (runs / f"{name}-ended").exists()


def test_a_run_that_starts_while_somebody_looks_does_not_find_itself_alive(name: str, runs: Path) -> None:
    crash(make(name, runs))
    fd = os.open(runs / name / "lock", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)  # somebody who looks, for longer than it takes
    let_go = threading.Timer(0.1, os.close, [fd])
    let_go.start()
    make(name, runs).close(keep=False)
    let_go.join()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "its run.json (0 bytes) is damaged"),
        (b'{"name": "x", "run_', "damaged"),
        (b"[1]", "names no layout version"),
        (b'{"layout": "1"}', "names no layout version"),
        (b"null", "names no layout version"),
    ],
)
def test_a_damaged_run_json_is_never_taken_for_an_absent_one(name: str, runs: Path, text: bytes, why: str) -> None:
    crash(make(name, runs, 2))
    (runs / name / "run.json").write_bytes(text)
    segments = segments_of(name)
    for resume in (False, True):
        with pytest.raises(RunHasMessages) as refused:
            create(name, PLAN, run_dir=runs, resume=resume)
        assert why in str(refused.value)
        assert "--fresh" in str(refused.value)
    assert segments_of(name) == segments
    found = of(name, runs)
    assert (found.state, found.waiting) == ("unreadable", None)
    assert why in found.problem
    create(name, PLAN, run_dir=runs, fresh=True).close(keep=False)
    assert segments_of(name) == []


@pytest.mark.parametrize("field", ["slots", "prefix", "run_id", "mailbox_bytes", "name"])
def test_values_of_run_json_that_cannot_be_are_damage(name: str, runs: Path, field: str) -> None:
    crash(make(name, runs, 1))
    plain = json.loads((runs / name / "run.json").read_text())
    plain[field] = "../../etc/x" if isinstance(plain[field], str) else -1 if field == "slots" else None
    (runs / name / "run.json").write_text(json.dumps(plain))
    with pytest.raises(RunHasMessages, match="damaged"):
        create(name, PLAN, run_dir=runs)
    remove_stale(of(name, runs))
    assert segments_of(name) == []


@pytest.mark.parametrize("resume", [False, True])
def test_another_layout_version_is_refused_with_both_versions(name: str, runs: Path, resume: bool) -> None:
    crash(make(name, runs, 2))
    plain = json.loads((runs / name / "run.json").read_text())
    assert plain["made_by"] == __version__
    (runs / name / "run.json").write_text(json.dumps({"layout": 77, "made_by": "9.9", "of": "the future"}))
    with pytest.raises(RunHasMessages) as refused:
        create(name, PLAN, run_dir=runs, resume=resume)
    for part in ("9.9", "77", __version__, f"layout version {_shm.LAYOUT_VERSION}"):
        assert part in str(refused.value)
    found = of(name, runs)
    assert found.holds_messages
    remove_stale(found)
    assert segments_of(name) == []
    assert not (runs / name).exists()


def test_a_run_json_that_vanished_is_damage_too(name: str, runs: Path) -> None:
    crash(make(name, runs, 2))
    (runs / name / "run.json").unlink()
    with pytest.raises(RunHasMessages, match="is missing"):
        create(name, PLAN, run_dir=runs)
    remove_stale(of(name, runs))
    assert segments_of(name) == []


def test_what_cannot_be_read_but_never_held_anything_is_swept(name: str, runs: Path) -> None:
    (runs / name).mkdir(parents=True)
    (runs / name / "run.json").write_text("{")
    create(name, PLAN, run_dir=runs).close(keep=False)
    assert not (runs / name).exists()


def test_resume_of_nothing_starts_anew(name: str, runs: Path) -> None:
    create(name, PLAN, run_dir=runs, resume=True).close(keep=False)  # never was
    crash(make(name, runs, 2))
    for segment in segments_of(name):  # the machine was started anew, and the run directory is on a disk
        os.unlink(f"/dev/shm/{segment}")
    run = create(name, PLAN, run_dir=runs, resume=True)
    assert not run.adopted
    run.close(keep=False)


def test_a_log_outlives_the_run_and_goes_with_the_rest(name: str, runs: Path) -> None:
    run = make(name, runs)
    (runs / name / "log").write_text("one\n")
    (runs / name / "log.1").write_text("zero\n")
    run.close(keep=False)
    assert sorted(os.listdir(runs / name)) == ["log", "log.1"]
    assert segments_of(name) == []
    again = make(name, runs)  # the log does not stand in the way
    assert is_held(runs / name)
    again.close(keep=False)
    remove_stale(of(name, runs))
    assert not (runs / name).exists()


def test_the_log_of_a_start_that_was_killed_is_found_after_a_while(name: str, runs: Path) -> None:
    runs.mkdir()
    left = runs / f".{name}.12345.log"
    left.write_text("begun\n")
    assert [run for run in find_runs(runs) if run.name == name] == []  # it may still become a run
    os.utime(left, (left.stat().st_mtime - 4000,) * 2)
    found = of(name, runs)
    assert (found.state, found.has_log, found.holds_messages, found.size_bytes) == ("ended", False, False, 6)
    remove_stale(found)
    assert list(runs.iterdir()) == []


HOLDS = "import os, sys; fd = os.open(sys.argv[1], os.O_RDWR); print('held', flush=True); sys.stdin.read()"


def test_segments_without_a_run_directory_are_found_and_removed_only_if_nobody_uses_them(
    name: str, runs: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    run = make(name, elsewhere, 1)
    alive = of(name, runs)
    assert (alive.state, alive.elsewhere, alive.path) == ("live", True, elsewhere / name)
    crash(run)
    orphan = of(name, runs)
    assert (orphan.state, orphan.waiting, orphan.holds_messages) == ("orphan", None, True)
    assert sorted(orphan.segments) == sorted(segments_of(name))
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, f"/dev/shm/{orphan.segments[0]}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(RunAlive):
        remove_stale(orphan)
    process.communicate("")
    remove_stale(orphan)
    assert segments_of(name) == []


def test_fresh_over_what_cannot_be_read_spares_a_living_run_of_the_same_name_elsewhere(
    name: str, runs: Path, tmp_path: Path
) -> None:
    other = make(name, tmp_path / "elsewhere", 1)
    theirs = segments_of(name)
    crash(make(name, runs, 1))
    (runs / name / "run.json").write_text("{")
    create(name, PLAN, run_dir=runs, fresh=True).close(keep=False)
    assert segments_of(name) == theirs
    other.close(keep=False)


def test_names_that_end_like_ids_are_not_confused() -> None:
    match = names._SEGMENT_NAME.fullmatch("civitas-0-a-12345678-9abcdef0-arena12")
    assert match is not None
    assert match.groups() == ("0", "a-12345678", "9abcdef0")
    match = names._SEGMENT_NAME.fullmatch("civitas-0-a-12345678-dir")
    assert match is not None
    assert match.groups() == ("0", "a", "12345678")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a file of another user")
def test_what_belongs_to_another_user_is_shown_and_never_touched(name: str, runs: Path) -> None:
    segment = f"civitas-65534-{name}-0123abcd-dir"
    Path(f"/dev/shm/{segment}").write_bytes(b"x" * 5000)
    os.chown(f"/dev/shm/{segment}", 65534, 65534)
    try:
        found = of(name, runs)
        assert (found.state, found.uid, found.size_bytes) == ("foreign", 65534, 8192)
        with pytest.raises(RunAlive):
            remove_stale(found)
        assert os.path.exists(f"/dev/shm/{segment}")
    finally:
        os.unlink(f"/dev/shm/{segment}")


def test_a_lock_that_is_not_ours_is_never_let_go_by_looking(name: str, runs: Path) -> None:
    run = make(name, runs)
    find_runs(runs)
    with pytest.raises(RunAlive):
        RunDirectory.take(runs / name)
    run.close(keep=False)
