"""The C harnesses, compiled and run: cases of the native core, threads under sanitizers, processes under SIGKILL and
SIGSTOP, a kill at every instruction.

Rules of this file: each harness says what it checks in its own first lines and ends with 0 only if all of it held; what
it prints is the failure. Times here are the ordinary test run's; scripts/torture runs the same programs for long.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "transports" / "civitas_shm_transports" / "shm" / "native"

PACKAGES = {"gcc": "gcc libc6-dev", "clang": "clang libclang-rt-dev"}
"""Debian packages that bring the compiler with its sanitizers' runtimes."""

Build = Callable[..., Path]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """`build(source, compiler, sanitizer)`: the program, compiled once a session; a skip names what to install."""
    folder = tmp_path_factory.mktemp("harness")

    def compiled(source: str, compiler: str = "gcc", sanitizer: str = "") -> Path:
        program = folder / f"{source}-{compiler}-{sanitizer.replace(',', '-')}"
        if program.exists():
            return program
        if shutil.which(compiler) is None:
            _missing(f"{compiler} is not installed; on Debian: apt-get install {PACKAGES[compiler]}")
        flags = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"] if sanitizer else []
        command = [
            compiler, "-D_GNU_SOURCE", "-std=c11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread",
            *flags, f"-I{NATIVE}", str(HERE / f"{source}.c"), "-o", str(program),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode and sanitizer and re.search(r"cannot find.*(lib[atu]*san|libclang_rt)", done.stderr):
            _missing(
                f"{compiler} has no runtime of -fsanitize={sanitizer}; on Debian: apt-get install {PACKAGES[compiler]}"
            )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
        return program

    return compiled


def _missing(text: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(text)
    pytest.skip(text)


def run(program: Path, *arguments: str | int) -> str:
    """What it printed; the test fails with it unless the program ends with 0."""
    environment = dict(
        os.environ, TSAN_OPTIONS="halt_on_error=1 second_deadlock_stack=1", ASAN_OPTIONS="detect_leaks=1"
    )
    done = subprocess.run(
        [str(program), *map(str, arguments)], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        pytest.fail(f"{program.name} {' '.join(map(str, arguments))} ended with {done.returncode}:\n"
                    f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}")  # fmt: skip
    return done.stdout


# --- one process, word by word ------------------------------------------------------------------------------------

CASES = re.findall(r"CASE\((\w+)\),", (HERE / "mailbox_cases.c").read_text())


def test_the_list_of_cases_is_the_programs_own(build: Build) -> None:
    assert run(build("mailbox_cases", "gcc", "address,undefined")).split() == CASES


@pytest.mark.parametrize("case", CASES)
def test_case(build: Build, case: str) -> None:
    run(build("mailbox_cases", "gcc", "address,undefined"), case)
