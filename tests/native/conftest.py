"""Building and running the C harnesses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "transports" / "civitas_shm_transports" / "shm" / "native"

PACKAGES = {"gcc": "gcc libc6-dev", "clang": "clang libclang-rt-dev"}
"""Debian packages that bring the compiler with its sanitizers' runtimes."""

NOT_PERMITTED = 77
"""What a harness ends with where the system does not let it do its work (ptrace in some containers)."""


class Harness:
    """Builds and runs the C programs of this folder."""

    headers = NATIVE

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def build(self, source: str, compiler: str = "gcc", sanitizer: str = "", headers: Path = NATIVE) -> Path:
        """The program, compiled once a session; `headers`: a changed copy of the native core, for mutants.

        As the wheel is compiled. With a sanitizer, which looks at every access whatever becomes of it: optimized as
        little as its makers advise, in a third of the time. A mutant that is found one instruction at a time: not.
        """
        folder = self._folder if headers == NATIVE else headers
        program = folder / f"{source}-{compiler}-{sanitizer.replace(',', '-')}"
        if program.exists():
            return program
        if shutil.which(compiler) is None:
            missing(f"{compiler} is not installed; on Debian: apt-get install {PACKAGES[compiler]}")
        flags = ["-O2"] if headers == NATIVE else ["-O0"]
        if sanitizer:
            flags = ["-O1", "-g1", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
        command = [
            compiler, "-D_GNU_SOURCE", "-std=c11", "-Wall", "-Wextra", "-Werror", "-pthread",
            *flags, f"-I{headers}", str(HERE / f"{source}.c"), "-o", str(program),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode and sanitizer and re.search(r"cannot find.*(lib[atu]*san|libclang_rt)", done.stderr):
            missing(
                f"{compiler} has no runtime of -fsanitize={sanitizer}; on Debian: apt-get install {PACKAGES[compiler]}"
            )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
        return program

    def execute(self, program: Path, *arguments: str | int) -> subprocess.CompletedProcess[str]:
        """Run it, whatever comes of it; a skip where the system does not let it do its work."""
        environment = dict(os.environ, TSAN_OPTIONS="halt_on_error=1", ASAN_OPTIONS="detect_leaks=1")
        done = subprocess.run(
            [str(program), *map(str, arguments)], capture_output=True, text=True, check=False, env=environment
        )
        if done.returncode == NOT_PERMITTED:
            pytest.skip(done.stdout.strip())
        return done

    def run(self, program: Path, *arguments: str | int) -> str:
        """What it printed; the test fails with it unless the program ends with 0."""
        done = self.execute(program, *arguments)
        if done.returncode:
            pytest.fail(
                f"{program.name} {' '.join(map(str, arguments))} ended with {done.returncode}:\n"
                f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
            )
        return done.stdout


def missing(text: str) -> None:
    """A skip; with CI=true a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(text)
    pytest.skip(text)


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    return Harness(tmp_path_factory.mktemp("harness"))
