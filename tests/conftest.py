"""What holds for every test: a watchdog, nothing left behind, and tools that are asked for by name.

Rules of this file:
- the watchdog is pytest-timeout (limits in pyproject.toml): the only upper bound on wall time that tests have;
- after each test there is no new child, no process that was started in this session and lost its parent, no new
  descriptor, no byte more in the run directory and in /dev/shm; what needs a moment to end (a killed process, say) gets
  `GRACE_S`. The look costs two milliseconds; tests/test_left_behind.py shows that it sees each of these;
- a process of the test run that dies of a fault says where: to the stderr that it began with, whatever a test has done;
- a tool that is not there is a skip that says what to install, and a failure where CI=true.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import shutil
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from civitas_shm import redaction
from civitas_shm.testing import left_behind
from civitas_shm.testing.left_behind import Left, tidy, what_is_left

if TYPE_CHECKING:
    from .faults.table import Fired

GRACE_S = 5.0
"""How long what was told to end may take."""

TEARDOWN_S = 60.0
"""How long it may take to tidy up."""

NATIVE = Path(__file__).parent / "native"

# Property tests have no time limit for an example: the watchdog is the only one, see above.
settings.register_profile("civitas", deadline=None)
settings.load_profile("civitas")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever lies in tests/native is marked `native`, so that other interpreters can leave it out."""
    for item in items:
        if item.path.is_relative_to(NATIVE):
            item.add_marker("native")


def pytest_collection_finish() -> None:
    """Thousands of tests and their modules stay to the end: no `gc.collect()` of a test has to walk through them. A
    whole collection took a tenth of a second, which was half of what tests/contract/test_streams.py did."""
    gc.collect()
    gc.freeze()


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


# --- a fault of this process --------------------------------------------------------------------------------------

_first_stderr = -1
"""A copy of the stderr that this process began with. Nothing captures it."""


def pytest_configure() -> None:
    global _first_stderr
    if _first_stderr < 0:
        _first_stderr = os.dup(2)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """pytest does it once. A session within a test (`pytester.runpytest_inprocess`) turns it to what is captured then:
    twice a process died, and its stacks went into a file that nobody could read."""
    faulthandler.enable(file=_first_stderr)


# --- nothing is left behind ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def session_mark() -> Iterator[str]:
    with left_behind.session_mark() as mark:
        yield mark


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
    said, processes, segments = what_is_left(before, GRACE_S)
    if not said:
        return
    tidy(processes, segments)
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


@pytest.fixture
def redis_server(need_tool: NeedTool) -> Iterator[Any]:
    """A running RedisServer."""
    pytest.importorskip("redis", reason='pip install "civitas-shm[redis]"')
    from .redis_server import RedisServer

    with RedisServer(need_tool("redis-server", "redis-server")) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_secrets_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process keeps secret it keeps for its life; tests share a process."""
    monkeypatch.setattr(redaction, "_kept", set())
    monkeypatch.setattr(redaction, "_kept_pattern", None)
