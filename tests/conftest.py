"""What holds for every test: a watchdog, nothing left behind, and tools that are asked for by name.

Rules of this file:
- the watchdog is pytest-timeout (limits in pyproject.toml): the only upper bound on wall time that tests have;
- after each test there is no new child, no process that was started in this session and lost its parent, no new
  descriptor, no byte more in the run directory and in /dev/shm; what needs a moment to end (a killed process, say) gets
  `GRACE_S`. The look costs two milliseconds; tests/test_left_behind.py shows that it sees each of these;
- a tool that is not there is a skip that says what to install, and a failure where CI=true.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import re
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from .faults.table import Fired

GRACE_S = 5.0
"""How long what was told to end may take. Killed processes are gone within milliseconds; reaping on a machine with
many busy processes is what takes time."""

TEARDOWN_S = 60.0
"""How long it may take to tidy up."""

KEPT_OPEN = ("/dev/urandom", "/dev/null")
"""What Python or a library opens once, at its first use, and keeps."""

SESSION_MARK = "CIVITAS_SHM_TEST_SESSION"
"""Environment variable that all descendants of this session inherit. Other sessions may run on the same machine."""

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP, signal.SIGPIPE)

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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, None, None]:
    """What tidies up behind a failed test may wait for ever as well, and pytest-timeout has called its timer off."""
    if signal.getsignal(signal.SIGALRM) is not signal.SIG_DFL:  # the watchdog's, installed before the test
        signal.setitimer(signal.ITIMER_REAL, TEARDOWN_S)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


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


@pytest.fixture(scope="session")
def session_mark() -> Iterator[str]:
    mark = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    os.environ[SESSION_MARK] = mark
    yield mark
    del os.environ[SESSION_MARK]


@pytest.fixture(scope="session")
def session_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where run directories of this session are, unless a test says otherwise."""
    folder = tmp_path_factory.mktemp("runs")
    before = os.environ.get("CIVITAS_SHM_DIR")
    os.environ["CIVITAS_SHM_DIR"] = str(folder)
    yield folder
    os.environ.pop("CIVITAS_SHM_DIR") if before is None else os.environ.update(CIVITAS_SHM_DIR=before)


@pytest.fixture(scope="session")
def libuv_has_begun() -> None:
    """libuv opens a pipe at its first signal handler and keeps it for the life of the process."""
    try:
        import uvloop
    except ImportError:
        return
    loop = uvloop.new_event_loop()
    loop.add_signal_handler(signal.SIGUSR2, lambda: None)
    loop.run_until_complete(asyncio.sleep(0))
    loop.remove_signal_handler(signal.SIGUSR2)
    loop.close()


@pytest.fixture(autouse=True)
def nothing_left_behind(session_mark: str, session_runs: Path, libuv_has_begun: None) -> Iterator[None]:
    """Fail the test that leaves a process, a descriptor, a byte in the run directory or a segment; then tidy up, so
    that the next test starts clean."""
    before = Left(session_mark, session_runs, session_runs.parent)
    yield
    deadline_s = time.monotonic() + GRACE_S
    while True:
        said, processes, segments = Left(session_mark, session_runs, session_runs.parent).since(before)
        if not said:
            return
        if time.monotonic() > deadline_s:
            break
        gc.collect()  # what is only waiting for the collector is no leak
        time.sleep(0.05)
    for pid in processes:
        try:
            process = psutil.Process(pid)
            process.kill()
            process.wait(timeout=1)
        except psutil.Error:  # has ended, or nobody reaps it: the message below names it all the same
            continue
    for name in segments:
        (SHM / name).unlink(missing_ok=True)
    pytest.fail(f"The test left behind, {GRACE_S:g} s after its end: {'; '.join(said)}")


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def fired(request: pytest.FixtureRequest) -> Iterator[Fired]:
    """For a test that is marked `fault(CLASS)`: it says with `fired(count, "what")` that its fault came. One that never
    does fails, though all that it asserts may hold."""
    from .faults.table import Fired  # not above: this file alone is all that tests/test_left_behind.py takes

    marker = request.node.get_closest_marker("fault")
    assert marker is not None, "`fired` is for tests that are marked with their class of fault"
    evidence = Fired(marker.args[0])
    yield evidence
    assert not evidence.missing(), evidence.missing()


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
