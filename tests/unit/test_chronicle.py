"""What a host leaves in the run directory for those who look: bounded, readable after any death, and nothing else."""

from __future__ import annotations

from pathlib import Path

import msgspec

from civitas_shm.chart import FILE as CHART
from civitas_shm.chart import Chart, ChartChild, encode_chart, read_chart, write_chart
from civitas_shm.chronicle import FILE, Chronicle, read_events


def line(n: int, event: str = "process_died") -> bytes:
    return msgspec.json.encode({"event": event, "time": 1000.0 + n, "n": n}) + b"\n"


def test_the_last_events_are_kept_in_two_bounded_files(tmp_path: Path) -> None:
    kept = Chronicle(tmp_path, bytes_max=2000)
    for n in range(500):
        kept.note("process_died", line(n))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 4000
    kept.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE, f"{FILE}.1"]
    numbers = [event["n"] for event in read_events(tmp_path)]
    assert numbers == list(range(numbers[0], 500))
    assert len(numbers) > 2000 // len(line(499))
    assert [event["n"] for event in read_events(tmp_path, most=3)] == [497, 498, 499]


def test_a_run_that_goes_on_writes_behind_what_was_there_and_dead_letters_push_nothing_out(tmp_path: Path) -> None:
    for n in range(2):
        kept = Chronicle(tmp_path)
        kept.note("process_died", line(n))
        kept.note("dead_letter", line(9, "dead_letter"))
        kept.close()
    assert [event["n"] for event in read_events(tmp_path)] == [0, 1]


def test_what_cannot_be_understood_is_left_out(tmp_path: Path) -> None:
    whole, half = line(1), line(1)[:9]
    (tmp_path / FILE).write_bytes(b'{"event": 1, "time": 2}\nnoise\n[]\n{"event": "x", "time": "y"}\n' + whole + half)
    assert [event["n"] for event in read_events(tmp_path)] == [1]
    assert read_events(tmp_path / "nowhere") == []


def test_a_chart_is_replaced_as_a_whole(tmp_path: Path) -> None:
    assert read_chart(tmp_path) is None
    chart = Chart("r", "0" * 32, children=(ChartChild("a", "a"),))
    write_chart(tmp_path, encode_chart(chart))
    write_chart(tmp_path, encode_chart(Chart("r", "1" * 32)))
    write_chart(tmp_path, encode_chart(chart))
    assert read_chart(tmp_path) == chart
    assert [path.name for path in tmp_path.iterdir()] == [CHART]
    (tmp_path / CHART).write_bytes(b"{")
    assert read_chart(tmp_path) is None
