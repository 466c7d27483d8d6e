"""Long runs of the simulation: pieces are kept, an interrupted run goes on, and nothing that failed is ever counted."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from civitas_shm.simulation import play

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def load() -> Any:
    spec = importlib.util.spec_from_file_location("run_seeds", HERE / "run_seeds.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run_seeds = load()


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Pieces of two seeds, played here; which ones."""
    asked: list[tuple[int, int]] = []

    def piece(first: int, seeds: int) -> dict[str, Any]:
        asked.append((first, seeds))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return play(range(first, first + seeds)).to_plain() | {"took_s": 1.0}

    monkeypatch.setattr(run_seeds, "PIECE", 2)
    monkeypatch.setattr(run_seeds, "play_piece", piece)
    return asked


def test_an_interrupted_run_plays_only_what_is_missing_and_comes_to_the_same_sum(
    played: list[tuple[int, int]], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_seeds.play(tmp_path, 10, 7, None)
    assert played == [(10, 2), (12, 2), (14, 2)]
    total = run_seeds.play(tmp_path, 10, 7, None)
    assert played[3:] == [(14, 2), (16, 1)]
    whole = play(range(10, 17)).to_plain()
    assert {name: total[name] for name in ("seeds", "events", "faults", "least")} == {
        name: whole[name] for name in ("seeds", "events", "faults", "least")
    }
    assert (total["first_seed"], total["took_s"]) == (10, 4.0)


def test_a_piece_that_failed_is_told_and_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = {"seed": 7, "violation": "one life: a1 twice", "tree": ["root"], "schedule": ["End(a1)"]}
    monkeypatch.setattr(run_seeds, "play_piece", lambda *_: {"failed": [failed]})
    assert run_seeds.main(["--seeds", "9", "--first", "0", "--results", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "seed 7: one life: a1 twice" in told
    assert "civitas-shm sim --seed 7 --seeds 1" in told
    assert not list(tmp_path.rglob("*.json"))


def test_the_line_goes_behind_the_last_one_of_its_table() -> None:
    document = (
        "# R\n\n| a |\n|---|\n\n## Simulation\n\ntext\n\n| date |\n|---|\n| old |\n\nend\n\n## Next\n| b |\n|---|\n"
    )
    assert run_seeds.with_row(document, "new") == document.replace("| old |\n", "| old |\n| new |\n")
    real = (ROOT / "docs" / "reliability.md").read_text()
    assert f"| {run_seeds.COLUMNS} |" in real, "the table that lines are added to"
    total = play(range(3)).to_plain() | {"first_seed": 0, "took_s": 2.0}
    line = run_seeds.row(total, "abc1234", "2026-01-02")
    assert line.count(" | ") == run_seeds.COLUMNS.count(" | ")
    assert run_seeds.with_row(real, line).count(line) == 1


def plays(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def command_of(process: psutil.Process) -> list[str]:
    """Of one that may end just now: none."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:  # a zombie, too
        return []


def test_when_it_is_ended_nothing_of_it_plays_on(tmp_path: Path) -> None:
    command = [sys.executable, run_seeds.__file__, "--seeds", "1000000", "--first", "0", "--results", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        me = psutil.Process(run.pid)
        while not any(plays(child) and "sim" in command_of(child) for child in me.children()):
            assert run.poll() is None
        below = me.children(recursive=True)
        run.send_signal(signal.SIGTERM)
        assert run.wait() == 128 + signal.SIGTERM
    while any(map(plays, below)):  # SIGKILL was sent; the watchdog says so if somebody lives on
        time.sleep(0.01)
