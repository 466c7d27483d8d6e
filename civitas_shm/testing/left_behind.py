"""What a test can leave behind: processes, descriptors, bytes in the run directory and in /dev/shm, signal handlers.

    before = Left(mark, runs, own)
    …
    said, processes, segments = Left(mark, runs, own).since(before)

Rules of this file: it looks, in about two milliseconds, and changes nothing; what another session on the same machine
does is not this one's to complain of.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

__all__ = ["GRACE_S", "SESSION_MARK", "Left", "session_mark", "tidy", "what_is_left"]

GRACE_S = 5.0
"""How long what was told to end may take. Killed processes are gone within milliseconds; reaping on a machine with
many busy processes is what takes time."""

KEPT_OPEN: Final = ("/dev/urandom", "/dev/null")
"""What Python or a library opens once, at its first use, and keeps."""

SESSION_MARK: Final = "CIVITAS_SHM_TEST_SESSION"
"""Environment variable that all descendants of this session inherit. Other sessions may run on the same machine."""

HANDLED: Final = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGCHLD", "SIGHUP", "SIGPIPE") if hasattr(signal, name)
)

SHM: Final = Path("/dev/shm")


@contextmanager
def session_mark() -> Iterator[str]:
    """Inside of this, processes that are started bear the mark of this session; that of an outer session holds."""
    given = os.environ.get(SESSION_MARK, "")
    if given.startswith(f"{os.getpid()}-"):
        yield given
        return
    os.environ[SESSION_MARK] = mark = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        yield mark
    finally:
        if given:
            os.environ[SESSION_MARK] = given
        else:
            del os.environ[SESSION_MARK]


def what_is_left(before: Left, grace_s: float | None = None) -> tuple[list[str], set[int], set[str]]:
    """What is there and was not before: (sentences, processes, segments), once it is nothing or the grace is over.

    `grace_s`: None is GRACE_S.
    """
    deadline_s = time.monotonic() + (GRACE_S if grace_s is None else grace_s)
    while True:
        said, processes, segments = Left(before.mark, before.runs, before.own).since(before)
        if not said or time.monotonic() > deadline_s:
            return said, processes, segments
        gc.collect()  # what is only waiting for the collector is no leak
        time.sleep(0.05)


def tidy(processes: set[int], segments: set[str]) -> None:
    """End and remove it, so that the next test starts clean."""
    for pid in processes:
        try:
            process = psutil.Process(pid)
            process.kill()
            process.wait(timeout=1)
        except psutil.Error:  # has ended, or nobody reaps it: the failure names it all the same
            continue
    for name in segments:
        (SHM / name).unlink(missing_ok=True)


# --- reading what is there ---------------------------------------------------------------------------------------


def _segments() -> dict[str, int]:
    """Name and size of those of this user. What others do on the machine is not ours to complain of."""
    return {name: size for name, size in _files(SHM).items() if "civitas" in name and _is_own(SHM / name)}


def _is_own(path: Path) -> bool:
    """False also for what has gone since it was listed: somebody else's run has ended in between."""
    try:
        return path.lstat().st_uid == os.geteuid()
    except FileNotFoundError:
        return False


def _files(folder: Path) -> dict[str, int]:
    """Every file below a folder, with its bytes, and every directory; {} where it is not there."""
    found: dict[str, int] = {}
    try:
        with os.scandir(folder) as listing:
            entries = [*listing]
    except OSError:
        return found
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                found[entry.name + "/"] = 0
                found |= {f"{entry.name}/{name}": size for name, size in _files(Path(entry.path)).items()}
            else:
                found[entry.name] = entry.stat(follow_symlinks=False).st_size
        except OSError:  # removed while it was looked at
            continue
    return found


def _used_by_others(segments: set[str], ours: set[int]) -> set[str]:
    """Which of these segments a living process outside of this session has open: those are not ours to complain of."""
    used: set[str] = set()
    for pid in _pids() - ours:
        try:
            targets = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:  # the process has ended, or belongs to another user
            continue
        used.update(name for name in segments if f"{SHM}/{name}" in targets)
    return used


def _of_runs_below(segments: set[str], folders: list[Path]) -> set[str]:
    """Which of these belong to a run whose directory lies in one of the folders, alive or not."""
    runs = {name: re.sub(r"^civitas-\d+-(.+)-[0-9a-f]{8}-\w+$", r"\1", name) for name in segments}
    found = {run for run in set(runs.values()) for folder in folders if any(folder.glob(f"**/{run}"))}
    return {name for name, run in runs.items() if run in found}


def _pids() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdigit()} if Path("/proc").is_dir() else set()


def _ours(pid: int, mark: str) -> str:
    """What that process is, if it is a child of this one or bears the mark of this session; else empty."""
    try:
        proc = Path(f"/proc/{pid}")
        state, parent = (proc / "stat").read_text().rpartition(")")[2].split()[:2]
        if int(parent) != os.getpid() and f"{SESSION_MARK}={mark}".encode() not in (proc / "environ").read_bytes():
            return ""
        command = (proc / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        return f"{(proc / 'comm').read_text().strip()} (zombie)" if state == "Z" else command or f"pid {pid}"
    except OSError:  # ended while it was looked at, or another user's
        return ""


def _descriptors() -> dict[int, str]:
    """Open ones of this process, and where they lead."""
    found: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd") if Path("/proc/self/fd").is_dir() else []:
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the descriptor of this very listing
            continue
    return found


# --- the checks --------------------------------------------------------------------------------------------------


@dataclass
class Left:
    """What is there that a test could leave behind. Two of them are compared by `since`."""

    mark: str
    runs: Path
    own: Path
    """Below it is everything that this session's tests write; its neighbours are those of other sessions."""
    pids: set[int] = field(init=False)
    descriptors: dict[int, str] = field(init=False)
    files: dict[str, int] = field(init=False)
    handlers: dict[int, Any] = field(init=False)
    """What this process does at each signal."""
    segments: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.pids = _pids()
        self.descriptors = _descriptors()
        self.files = _files(self.runs)
        self.handlers = {number: signal.getsignal(number) for number in HANDLED}
        self.segments = _segments()

    def folders_of_others(self) -> list[Path]:
        """Sessions beside this one, and the other processes of this one (pytest-xdist), have theirs at its side."""
        beside = [*self.own.parent.iterdir(), *self.own.parent.parent.glob("pytest-*")]
        return [folder for folder in beside if not self.own.is_relative_to(folder)]

    def since(self, before: Left) -> tuple[list[str], set[int], set[str]]:
        """(sentences, processes, segments) that are there now and were not before, or have grown."""
        processes = {pid: what for pid in self.pids - before.pids if (what := _ours(pid, self.mark))}
        processes = {pid: what for pid, what in processes.items() if "multiprocessing.resource_tracker" not in what}
        said = [f"process {pid}: {what}" for pid, what in processes.items()]
        said += [
            f"descriptor {fd}: {target}"
            for fd, target in self.descriptors.items()
            if before.descriptors.get(fd) != target and not target.startswith(KEPT_OPEN)
        ]
        said += [
            f"{self.runs}/{name}: {size - before.files.get(name, 0)} bytes more"
            for name, size in self.files.items()
            if size > before.files.get(name, -1)
        ]
        said += [
            f"{signal.Signals(number).name}: {handler} instead of {before.handlers[number]}"
            for number, handler in self.handlers.items()
            if handler != before.handlers[number]
        ]
        segments = {name for name, size in self.segments.items() if size > before.segments.get(name, -1)}
        if segments:
            segments -= _used_by_others(segments, {os.getpid(), *processes})
            # A run between two hosts is open nowhere; most bear the pid of the test or script that plays them.
            others = self.pids - {os.getpid(), *processes}
            segments = {name for name in segments if not others & {int(n) for n in re.findall(r"\d+", name)} - {0, 1}}
        if segments:
            segments -= _of_runs_below(segments, [folder for folder in self.folders_of_others() if folder.is_dir()])
        return [*said, *(f"{SHM}/{name}" for name in sorted(segments))], set(processes), segments
