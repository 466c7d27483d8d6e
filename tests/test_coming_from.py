"""docs/coming-from.md: its program of ours is the example and runs; so does that of Civitas, its import renamed."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = dict(re.findall(r"^```python\n# (\w+)\n(.*?)^```$", (ROOT / "docs/coming-from.md").read_text(), re.S | re.M))


def test_all_four_are_programs_that_count_and_print_the_same() -> None:
    assert [*PROGRAMS] == ["celery", "ray", "civitas", "civitas_shm"]
    for name, source in PROGRAMS.items():
        imported = {node.module or "" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
        imported |= {a.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for a in node.names}
        assert name in imported
        assert '"words in", len(paths), "texts")' in source


def test_ours_is_the_example() -> None:
    assert PROGRAMS["civitas_shm"] == (ROOT / "examples/word_count/word_count.py").read_text()


@pytest.mark.parametrize("name", ["civitas", pytest.param("civitas_shm", marks=pytest.mark.process)])
def test_it_counts(name: str, tmp_path: Path) -> None:
    if name == "civitas_shm" and sys.platform != "linux":
        pytest.skip("transport: shm needs Linux")
    (tmp_path / "program.py").write_text(PROGRAMS[name].replace("from civitas import", "from civitas_shm import"))
    (tmp_path / "texts").mkdir()
    for n in range(20):
        (tmp_path / "texts" / f"{n}.txt").write_text("word " * n)
    roots = [str(ROOT), str(ROOT / "transports"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, roots))}
    command = [sys.executable, "program.py", "texts"]
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout) == (0, "190 words in 20 texts\n"), finished.stderr
