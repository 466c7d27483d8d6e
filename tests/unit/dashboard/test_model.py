"""What the screen of `run` shows: which rows, and every number's form."""

from __future__ import annotations

import pytest

from civitas_shm.dashboard.model import bytes_text, cpus_text, duration_text, screen, uptime_text
from civitas_shm.snapshot import AgentSnapshot, ProcessSnapshot, RuntimeSnapshot


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KiB"), (10240, "10 KiB"), (3_500_000, "3.3 MiB"), (5 << 40, "5.0 TiB")],
)
def test_bytes_have_a_binary_unit(value: int, text: str) -> None:
    assert bytes_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.3, "0.3 µs"), (12.5, "12 µs"), (2400, "2.4 ms"), (88_000, "88 ms"), (1_250_000, "1.2 s")]
)
def test_durations_have_the_unit_with_the_fewest_digits(value: float, text: str) -> None:
    assert duration_text(value) == text


@pytest.mark.parametrize(
    ("cpus", "text"), [((), "any"), ((3,), "3"), ((0, 1, 2, 5), "0-2,5"), ((5, 0, 1), "0-1,5"), ((1, 3), "1,3")]
)
def test_cores_are_ranges_that_taskset_takes(cpus: tuple[int, ...], text: str) -> None:
    assert cpus_text(cpus) == text


@pytest.mark.parametrize(("value", "text"), [(0, "00:00"), (75.9, "01:15"), (3661, "1:01:01")])
def test_uptime_has_hours_only_when_there_are_any(value: float, text: str) -> None:
    assert uptime_text(value) == text


def agents(*restless: int, count: int = 20) -> tuple[AgentSnapshot, ...]:
    return tuple(AgentSnapshot(f"a{i}", restarts=1 if i in restless else 0) for i in range(count))


def test_rows_keep_the_order_of_the_topology() -> None:
    shown = screen(RuntimeSnapshot("r", agents=agents(7, 3, count=10)), height=40).agents
    assert [row[0] for row in shown.rows] == [f"a{i}" for i in range(10)]
    assert shown.hidden == 0


def test_without_room_those_with_something_to_say_are_kept_in_their_order() -> None:
    shown = screen(RuntimeSnapshot("r", agents=agents(19, 11)), height=11).agents
    assert [row[0] for row in shown.rows] == ["a0", "a1", "a2", "a11", "a19"]
    assert shown.calm == (True, True, True, False, False)
    assert shown.hidden == 15


def test_what_a_full_mailbox_has_dropped_stands_beside_what_waits_and_is_not_calm() -> None:
    shown = screen(
        RuntimeSnapshot("r", agents=(AgentSnapshot("a", queue=10, dropped=1234), AgentSnapshot("b"))), 40
    ).agents
    assert [row[2] for row in shown.rows] == ["10, 1,234 dropped", "0"]
    assert shown.calm == (False, True)


@pytest.mark.parametrize("height", [1, 5, 12, 24, 60])
@pytest.mark.parametrize("processes", [0, 1, 3, 40])
def test_the_screen_is_never_higher_than_the_terminal_but_for_the_least_rows(height: int, processes: int) -> None:
    snapshot = RuntimeSnapshot(
        "r", processes=tuple(ProcessSnapshot(f"w{i}") for i in range(processes)), agents=agents()
    )
    shown = screen(snapshot, height)
    lines = 5 + sum(len(table.rows) + bool(table.hidden) for table in (shown.processes, shown.agents))
    assert lines <= max(height, 11)
    assert len(shown.processes.rows) + shown.processes.hidden == processes
    assert len(shown.agents.rows) + shown.agents.hidden == 20


def test_what_is_not_known_is_a_dash_and_never_zero() -> None:
    snapshot = RuntimeSnapshot("r", processes=(ProcessSnapshot("w", state="waiting"),), agents=(AgentSnapshot("a"),))
    shown = screen(snapshot, 24)
    assert shown.processes.rows == (("w", "–", "any", "–", "–", "0", "waiting"),)
    assert shown.agents.rows == (("a", "–", "0", "–", "–", "0", "running"),)


def test_equal_snapshots_make_equal_screens_so_that_nothing_is_drawn_twice() -> None:
    snapshot = RuntimeSnapshot("r", uptime_s=1.2, agents=agents())
    assert screen(snapshot, 24) == screen(RuntimeSnapshot("r", uptime_s=1.7, agents=agents()), 24)
    assert screen(snapshot, 24) != screen(RuntimeSnapshot("r", uptime_s=2.0, agents=agents()), 24)
