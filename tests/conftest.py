"""What holds for every test: a watchdog, nothing left behind, and tools that are asked for by name.

Rules of this file:
- the watchdog is pytest-timeout (limits in pyproject.toml): the only upper bound on wall time that tests have;
- after each test there is no new entry in /dev/shm, no new child and no process that was started in this session and
  lost its parent; what needs a moment to end (a killed process, say) gets `GRACE_S`;
- at the end of the session the number of file descriptors is what it was, up to `FD_TOLERANCE`;
- a tool that is not there is a skip that says what to install, and a failure where CI=true.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import pytest
from hypothesis import settings

GRACE_S = 5.0
"""How long what was told to end may take. Killed processes are gone within milliseconds; reaping on a machine with
many busy processes is what takes time."""

FD_TOLERANCE = 8
"""Imports, caches and the loop's own machinery may keep some; a leak of one for each test is far above it."""

SESSION_MARK = "CIVITAS_SHM_TEST_SESSION"
"""Environment variable that all descendants of this session inherit. Other sessions may run on the same machine."""

SHM = Path("/dev/shm")

NATIVE = Path(__file__).parent / "native"

# Property tests have no time limit for an example: the watchdog is the only one, see above.
settings.register_profile("civitas", deadline=None)
settings.load_profile("civitas")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever lies in tests/native is marked `native`, so that other interpreters can leave it out."""
    for item in items:
        if item.path.is_relative_to(NATIVE):
            item.add_marker("native")


# --- the watchdog -----------------------------------------------------------------------------------------------


class WatchdogTimeout(SystemExit):
    """A test ran too long. A SystemExit, because uvloop gives every other exception of a signal handler to the loop's
    exception handler and goes on waiting; pytest counts it as a failure of the test like any other."""


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool | None:
    """Fail the test with the stacks of all threads and tasks. Called by pytest-timeout; None leaves it to that."""
    if settings.method != "signal":
        return None

    def expired(signal_number: int, frame: FrameType | None) -> None:
        faulthandler.dump_traceback(sys.stderr)
        try:
            tasks = asyncio.all_tasks()
        except RuntimeError:  # no loop is running
            tasks = set()
        for task in tasks:
            task.print_stack(file=sys.stderr)
        raise WatchdogTimeout(f"the watchdog ended {item.nodeid} after {settings.timeout:g} s")

    signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout)
    return True


def pytest_timeout_cancel_timer(item: pytest.Item) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)


# --- reading what is there ---------------------------------------------------------------------------------------


def _segments() -> set[str]:
    """Those of this user. What others do on the machine is not ours to complain of, nor could we see who holds it."""
    if not SHM.is_dir():
        return set()
    found = set()
    for path in SHM.iterdir():
        try:
            if "civitas" in path.name and path.lstat().st_uid == os.geteuid():
                found.add(path.name)
        except FileNotFoundError:  # removed while it was looked at
            continue
    return found


def _used_by_others(segments: set[str], ours: set[int]) -> set[str]:
    """Which of these segments a living process outside of this session has open: those are not ours to complain of."""
    used: set[str] = set()
    for directory in Path("/proc").glob("[0-9]*/fd"):
        if int(directory.parent.name) in ours:
            continue
        try:
            targets = [os.readlink(entry) for entry in directory.iterdir()]
        except OSError:  # the process has ended, or belongs to another user
            continue
        used.update(name for name in segments if f"{SHM}/{name}" in targets)
    return used


def _processes(mark: str) -> dict[int, str]:
    """Descendants of this process, and every process that bears the mark of this session: pid -> what it is."""
    me = psutil.Process()
    found: dict[int, str] = {}
    for process in {*me.children(recursive=True), *(p for p in psutil.process_iter() if _bears(p.pid, mark))} - {me}:
        try:
            zombie = process.status() == psutil.STATUS_ZOMBIE
            found[process.pid] = f"{process.name()} (zombie)" if zombie else " ".join(process.cmdline())
        except psutil.Error:  # ended while it was looked at
            continue
    return {pid: what for pid, what in found.items() if "multiprocessing.resource_tracker" not in what}


def _bears(pid: int, mark: str) -> bool:
    try:
        return f"{SESSION_MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def _fd_count() -> int:
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0


# --- the checks --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def session_mark() -> Iterator[str]:
    mark = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    os.environ[SESSION_MARK] = mark
    yield mark
    del os.environ[SESSION_MARK]


@pytest.fixture(autouse=True)
def nothing_left_behind(session_mark: str) -> Iterator[None]:
    """Fail the test that leaves a segment or a process; end the process, so that the next test starts clean."""
    segments, processes = _segments(), _processes(session_mark)
    yield
    deadline_s = time.monotonic() + GRACE_S
    while True:
        new_segments = _segments() - segments
        new_processes = {pid: what for pid, what in _processes(session_mark).items() if pid not in processes}
        if new_segments:
            new_segments -= _used_by_others(new_segments, {os.getpid(), *new_processes, *processes})
        if not new_segments and not new_processes:
            return
        if time.monotonic() > deadline_s:
            break
        time.sleep(0.05)
    for pid in new_processes:
        try:
            process = psutil.Process(pid)
            process.kill()
            process.wait(timeout=1)
        except psutil.Error:  # has ended, or nobody reaps it: the message below names it all the same
            continue
    for name in new_segments:
        (SHM / name).unlink(missing_ok=True)
    left = [f"/dev/shm/{name}" for name in sorted(new_segments)]
    left += [f"process {pid}: {what}" for pid, what in new_processes.items()]
    pytest.fail(f"The test left behind, {GRACE_S:g} s after its end: {'; '.join(left)}")


@pytest.fixture(scope="session", autouse=True)
def no_descriptor_leaks(session_mark: str) -> Iterator[None]:
    before = _fd_count()
    yield
    after = _fd_count()
    if after > before + FD_TOLERANCE:
        targets = []
        for entry in Path("/proc/self/fd").iterdir():
            try:
                targets.append(os.readlink(entry))
            except OSError:  # the descriptor of this very listing
                continue
        pytest.fail(f"The session began with {before} file descriptors and ends with {after}: {sorted(targets)}")


# --- tools from outside -------------------------------------------------------------------------------------------

NeedTool = Callable[[str, str], str]


@pytest.fixture(scope="session")
def need_tool() -> NeedTool:
    """`need_tool(program, package)`: its path, or a skip that names the Debian package; with CI=true a failure."""

    def need(program: str, package: str) -> str:
        path = shutil.which(program)
        if path is None:
            text = f"{program} is not installed; on Debian: apt-get install {package}"
            if os.environ.get("CI") == "true":
                pytest.fail(text)
            pytest.skip(text)
        return path

    return need
