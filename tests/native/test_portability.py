"""The native core compiles for the systems that wheels are built for and this machine is not.

Compiled, not run: what only those processors do (weaker ordering on aarch64) is argued in atomics.h, where every access
that matters is sequentially consistent, and explored by the models.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "transports/civitas_shm_transports/shm/native"
COMPILERS = {"aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu", "musl-gcc": "musl-tools"}


@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_native_headers_compile_without_a_warning(
    compiler: str, need_tool: Callable[[str, str], str], tmp_path: Path
) -> None:
    program = tmp_path / "all.c"
    headers = "".join(f'#include "{name}"\n' for name in ("directory.h", "birth.h", "keeper.h"))
    main = "int main(void) { return sizeof(cv_port) == 0 || cv_fork_away().error || cv_keep_memory() < 0; }"
    program.write_text(f"#define _GNU_SOURCE\n{headers}{main}\n")
    warnings = ["-Wall", "-Wextra", "-Werror"]
    command = [need_tool(compiler, COMPILERS[compiler]), "-std=c11", "-O2", *warnings, f"-I{NATIVE}"]
    built = subprocess.run([*command, str(program), "-o", str(tmp_path / "all")], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
