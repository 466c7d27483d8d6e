"""The arithmetic of the benchmarks: what a percentile, a median and a bar are."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "bench"


def load(name: str) -> ModuleType:
    """A module of bench/, which is no package: its files run as programs."""
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


figures = load("figures")
cases = load("cases")


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, 1), (0.001, 1), (0.5, 50), (0.501, 51), (0.99, 99), (0.999, 100), (1.0, 100)]
)
def test_a_percentile_is_the_nearest_rank(fraction: float, expected: int) -> None:
    assert figures.percentile(range(1, 101), fraction) == expected


def test_a_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no percentile"):
        figures.percentile([], 0.5)


def test_times_become_microseconds_and_a_rate() -> None:
    found = figures.from_times([3_000, 1_000, 2_000], elapsed_ns=6_000)
    assert found == {"n": 3, "p50_us": 2.0, "p99_us": 3.0, "p999_us": 3.0, "per_s": 500_000.0}


def test_medians_are_taken_figure_by_figure_and_only_of_what_all_repetitions_have() -> None:
    repetitions = [{"n": 1, "per_s": 10.0}, {"n": 1, "per_s": 30.0, "p50_us": 1.0}, {"n": 1, "per_s": 20.0}]
    assert figures.median_of(repetitions) == {"n": 1, "per_s": 20.0}


def test_a_ratio_is_of_times_where_both_have_one_and_else_of_rates() -> None:
    timed, rated = {"p50_us": 8.0, "per_s": 100.0}, {"per_s": 50.0}
    assert figures.ratio(timed, {"p50_us": 2.0, "per_s": 1.0}) == 4.0
    assert figures.ratio(timed, rated) == 2.0


def test_bars_name_cases_that_are_measured_and_hold_on_their_side() -> None:
    names = {case.name for case in cases.CASES}
    assert len(names) == len(cases.CASES)
    for bar in cases.BARS:
        assert {bar.case, bar.reference} <= names
        limit = bar.at_most if bar.at_most is not None else bar.at_least
        assert bar.holds(limit)
        missed = limit * (1.1 if bar.at_most is not None else 0.9)
        assert not bar.holds(missed)
        assert bar.holds(missed, bar.or_at_most_us) == (bar.or_at_most_us is not None)
        assert not bar.holds(missed, 8.1)


def test_the_page_that_is_kept_is_made_from_the_results_that_are_kept() -> None:
    kept = [path for path in (BENCH / "results").glob("*.json") if not path.stem.endswith("-recovery")]
    page = BENCH / "RESULTS.md"
    if not kept and not page.exists():
        pytest.skip("nothing has been measured here yet: scripts/bench")
    newest = max(kept, key=lambda path: json.loads(path.read_text())["date"])
    made = subprocess.run(
        [sys.executable, BENCH / "table.py", newest], capture_output=True, text=True, encoding="utf-8", check=True
    )
    assert made.stdout == page.read_text(encoding="utf-8")


def test_the_page_of_deaths_is_made_from_the_results_that_are_kept() -> None:
    newest = max((BENCH / "results").glob("*-recovery.json"), key=lambda path: json.loads(path.read_text())["date"])
    kept = json.loads(newest.read_text())
    made = subprocess.run(
        [sys.executable, "-c", "import json, sys, recovery; print(recovery.page(*json.load(sys.stdin)), end='')"],
        input=json.dumps([kept["date"][:10], kept["machine"], kept["took_ms"]]),
        capture_output=True, text=True, encoding="utf-8", check=True, cwd=BENCH,
    )  # fmt: skip
    assert made.stdout == (BENCH / "RECOVERY.md").read_text(encoding="utf-8")
