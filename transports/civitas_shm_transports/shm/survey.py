"""Every run of this user, and what is left of runs: for `ps`, `gc` and `doctor`.

Rules of this file:
- looking changes nothing and makes nothing; a dead run is read under a shared lock, so that nobody adopts or removes it
  in the middle, and a run that starts at that moment waits for it instead of giving up;
- what cannot be told is said to be so; a run that cannot be read is never called empty;
- only `remove_stale` removes, and only what nobody holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from civitas_shm.delay_store import count_delayed
from civitas_shm.errors import RunAlive
from civitas_shm.letters import count_letters
from civitas_shm.runs import ABANDONED_S, LOGS, RunFound, RunState

from .names import SHM, groups_by_name, in_use, opened_segments, owners, remove_named, run_directory_of
from .segments import RunDirectory, Segments, UnreadableRun, is_held, runs_directory
from .waiting import count_waiting

__all__ = ["find_runs", "hold", "remove_stale", "run_directory", "stale_runs"]

_START: Final = re.compile(r"\.(.+)\.\d+\.log")
"""The log of a `run --detach` that has no run directory yet: it, and who waited for it, were killed before it had."""

_KEPT: Final = ("dead", "empty", "unreadable")


def run_directory(name: str) -> Path:
    """Of the run of that name; it need not be there."""
    return runs_directory() / name


def stale_runs(base: Path | None = None) -> list[RunFound]:
    """Runs of this user whose host is dead."""
    return [run for run in _in_directory(base or runs_directory()) if run.state in _KEPT]


def find_runs(base: Path | None = None) -> list[RunFound]:
    """All that is there: this user's runs by name, then those elsewhere and what is left of some, then others'."""
    base = base or runs_directory()
    return [*_in_directory(base), *_elsewhere(base), *_foreign()]


def remove_stale(run: RunFound) -> None:
    """Remove all of it, messages and log included. RunAlive when somebody holds it (again), or it is not ours."""
    match run.state:
        case "orphan":
            if in_use(list(run.segments)):
                raise RunAlive(f"A process has segments of {run.name!r} open.")
            for name in run.segments:
                remove_named(name)
        case "live" | "foreign":
            raise RunAlive(f"The run {run.name!r} is {'alive' if run.state == 'live' else 'of another user'}.")
        case _:
            if not run.path.is_dir():
                run.path.unlink(missing_ok=True)  # the log of a start that was killed
                return
            with contextlib.suppress(OSError):
                run.path.rmdir()  # without a lock: who is just making it makes it again
                return
            directory = RunDirectory.take(run.path)
            directory.wait_for_the_dead()
            directory.drop_rest()
            try:
                directory.remove(directory.files())
            except UnreadableRun:
                directory.remove_unread()


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """For who reads or changes the dead letters of a dead run. Afterwards nothing is left of a run that had only these,
    if they are gone."""
    directory = RunDirectory.take(path)
    try:
        yield
    finally:
        if not directory.is_made() and not (path / "run.json").exists():
            directory.remove(None)
        directory.release()


def _in_directory(base: Path) -> list[RunFound]:
    found = []
    for path in sorted(base.iterdir()) if base.is_dir() else []:
        if path.is_dir() and not path.is_symlink() and (run := _look(path)) is not None:
            found.append(run)
        elif (start := _START.fullmatch(path.name)) and time.time() - path.lstat().st_mtime > ABANDONED_S:
            size_bytes, made_s = path.lstat().st_size, path.lstat().st_mtime
            found.append(RunFound(start[1], "", 0, size_bytes, path, "ended", made_s=made_s))
    return found


def _look(path: Path) -> RunFound | None:
    """One run directory. None: it is being removed just now."""
    logs = [path / name for name in LOGS if (path / name).exists()]
    log_bytes = sum(log.stat().st_size for log in logs if log.exists())
    try:
        fd = os.open(path / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        letters = count_letters(path)
        if not logs and letters == 0:  # its maker, or its remover, was killed at the one moment when there is no lock
            with contextlib.suppress(OSError):
                return None if os.listdir(path) else RunFound(path.name, "", 0, 0, path, "empty", 0)
            return None
        made_s = max((log.stat().st_mtime for log in logs), default=None)
        state: RunState = "ended" if letters == 0 else "dead"
        return RunFound(path.name, "", 0, log_bytes, path, state, letters, made_s=made_s, has_log=bool(logs))
    except OSError as error:
        return RunFound(
            path.name, "", None, 0, path, "unreadable", None, f"its lock cannot be opened: {error.strerror}"
        )
    known = RunFound(path.name, "", None, log_bytes, path, "live", None, has_log=bool(logs))
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _live(known)
    else:
        return _dead(known)
    finally:
        os.close(fd)


def _live(known: RunFound) -> RunFound:
    """As far as files tell; its host tells the rest."""
    try:
        files = RunDirectory(known.path, -1).files()
        if files is None:
            return known  # it has just begun
        known = replace(known, run_id=files.run_id, made_s=files.created_s)
        segments = Segments.open(files, known.path)
    except (ValueError, OSError):  # it is making its segments, or removing them
        return known
    size_bytes = known.size_bytes + segments.used_bytes()
    segments.close()
    return replace(known, size_bytes=size_bytes)


def _dead(known: RunFound) -> RunFound:
    """Under a shared lock: nobody adopts or removes it meanwhile."""
    directory = RunDirectory(known.path, -1)  # only to read; the lock is not its
    try:
        files = directory.files()
    except UnreadableRun as reason:
        return replace(known, state="unreadable", problem=str(reason))
    letters = count_letters(known.path)
    empty = replace(known, state="dead" if letters != 0 else "empty", waiting=0, dead_letters=letters)
    if files is None:  # its maker was killed before it came that far
        return empty
    known = replace(known, run_id=files.run_id, made_s=files.created_s)
    empty = replace(empty, run_id=files.run_id, made_s=files.created_s)
    try:
        segments = Segments.open(files, known.path)
        size_bytes = known.size_bytes + segments.used_bytes()
        segments.close()
        waiting = sum(count_waiting(files, known.path).values()) + sum(count_delayed(known.path).values())
    except (ValueError, OSError) as reason:
        if directory.is_made() and Segments.remains(files, known.path):
            return replace(known, state="unreadable", problem=str(reason))
        return empty  # it was killed while it made them, or the machine was started anew
    return replace(empty, size_bytes=size_bytes, waiting=waiting, state="dead" if waiting else empty.state)


def _elsewhere(base: Path) -> list[RunFound]:
    """Segments that no directory here speaks of: of a run under another CIVITAS_SHM_DIR, to which its host leads while
    it lives, or of one whose directory is gone."""
    known = {path.name for path in base.iterdir()} if base.is_dir() else set()
    opened: dict[str, set[int]] | None = None
    found = []
    for (name, digits), segments in groups_by_name().items():
        if name in known and (_speaks_of(base / name, digits) or is_held(base / name)):
            continue
        opened = opened_segments() if opened is None else opened
        if in_use(segments, opened):
            processes = {process for segment in segments for process in opened.get(segment, ())}
            paths = {run_directory_of(process, name) for process in processes}
            found += [replace(run, elsewhere=True) for path in paths if path and (run := _look(path))]
            continue
        problem = f"no run directory in {base} speaks of it"
        size = sum(_size_bytes(segment) for segment in segments)
        found.append(RunFound(name, digits, None, size, SHM, "orphan", None, problem, segments=tuple(segments)))
    return found


def _speaks_of(path: Path, digits: str) -> bool:
    try:
        files = RunDirectory(path, -1).files()
    except UnreadableRun:
        return True  # it may; whoever removes that run removes these too
    return files is not None and files.run_id.startswith(digits)


def _foreign() -> list[RunFound]:
    found = []
    for uid, groups in owners().items():
        if uid == os.getuid():
            continue
        for (name, digits), segments in groups.items():
            size = sum(_size_bytes(segment) for segment in segments)
            found.append(RunFound(name, digits, None, size, SHM, "foreign", None, uid=uid, segments=tuple(segments)))
    return found


def _size_bytes(segment: str) -> int:
    try:
        return (SHM / segment).stat().st_blocks * 512
    except OSError:  # removed meanwhile
        return 0
