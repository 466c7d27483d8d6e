"""The look after each test sees whatever a test can leave behind: each kind is left once, and the test fails for it.
What a process of the test run dies of is seen too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

LEAVE = {
    "a_child": ("import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()'], stdin=-1)", "process "),
    "a_zombie": ("import os, time\n    os.fork() or os._exit(0)", "(zombie)"),
    "an_orphan": (
        "import subprocess, sys\n    subprocess.run([sys.executable, '-c', "
        '\'import subprocess; subprocess.Popen(["sleep", "60"])\'])',
        "sleep 60",
    ),
    "a_descriptor": ("import os; os.pipe()", "descriptor "),
    "a_run_directory": ("import os, pathlib; (pathlib.Path(os.environ['CIVITAS_SHM_DIR']) / 'r').mkdir()", "/r/"),
    "a_byte_in_a_file_that_was_there": (
        "import os, pathlib\n    (pathlib.Path(os.environ['CIVITAS_SHM_DIR']) / 'was_there').write_text('ab')",
        "was_there: 1 bytes more",
    ),
    "a_signal_handler": ("import signal; signal.signal(signal.SIGTERM, lambda *_: None)", "SIGTERM: <function"),
    "a_segment": ("open(f'/dev/shm/civitas-left-{__import__(\"os\").getpid()}', 'x').close()", "/dev/shm/civitas-left"),
    "nothing": ("pass", ""),
}

SESSION = """
import os, pathlib
import pytest

@pytest.fixture(scope="session", autouse=True)
def was_there(session_runs):
    (session_runs / "was_there").write_text("a")

def test_it():
    {leave}
"""


@pytest.mark.parametrize("kind", LEAVE)
def test_what_a_test_leaves_behind_fails_it(tmp_path: Path, kind: str) -> None:
    leave, says = LEAVE[kind]
    (tmp_path / "test_leaves.py").write_text(SESSION.format(leave=leave))
    text = (HERE / "conftest.py").read_text()
    assert text.count("GRACE_S = 5.0") == 1
    (tmp_path / "conftest.py").write_text(text.replace("GRACE_S = 5.0", "GRACE_S = 0.3"))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    native\nfilterwarnings = ignore\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    if not says:
        assert done.returncode == 0, done.stdout
        return
    assert done.returncode == 1, done.stdout
    assert "The test left behind, 0.3 s after its end" in done.stdout
    assert says in done.stdout


FAULT = """
import faulthandler

pytest_plugins = "pytester"

def test_a_session_within(pytester):
    pytester.runpytest_inprocess("-p", "no:cacheprovider")

def test_that_dies():
    faulthandler._sigsegv()
"""


def test_a_process_that_dies_of_a_fault_says_where_also_after_a_session_within_a_test(tmp_path: Path) -> None:
    (tmp_path / "test_dies.py").write_text(FAULT)
    (tmp_path / "conftest.py").write_text((HERE / "conftest.py").read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    native\nfilterwarnings = ignore\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == -signal.SIGSEGV, done.stdout
    assert "Segmentation fault" in done.stderr
    assert "in test_that_dies" in done.stderr
