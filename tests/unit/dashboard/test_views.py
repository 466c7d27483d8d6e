"""What the screens show at every size, and what keys do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from civitas_shm.dashboard.layout import width_of
from civitas_shm.dashboard.terminal import decode_keys, styled
from civitas_shm.dashboard.views import VIEWS, Choice, Line, lines_of, press
from civitas_shm.dashboard.words import bytes_text, cpus_text, duration_text, since_text, uptime_text
from civitas_shm.snapshot import AgentSnapshot, ProcessSnapshot, RuntimeSnapshot, SupervisorSnapshot

SIZES = [(80, 24), (120, 40), (200, 60)]

NAMES = (
    "walker",
    "a-very-long-agent-name-that-does-not-fit-anywhere-at-all",
    "[bold]markup[/bold]",
    "名前",
    "x\x1b[2Jy",
)

FULL = RuntimeSnapshot(
    "code-atlas", "shm", uptime_s=75, shared_bytes=3_500_000, state="running", time_s=1000.0, dead_letters=2,
    processes=(
        ProcessSnapshot("host", 4_000_000, (), 1.0, 20 << 20, slot=0, arena_bytes=1 << 20, arena_most_bytes=256 << 20),
        ProcessSnapshot("w1", 4_000_001, (0, 1, 2, 5), 1297.3, 31 << 30, "blocked loop", 312, 2, 17, 3, 4242.0),
        ProcessSnapshot("w2", None, (0,), None, None, "waiting", 3),
    ),
    agents=tuple(
        AgentSnapshot(
            name, "w1,w2", 123_456, 10, 1_234_567.8, 12.5, 2, "running", "root", 77, 1_048_576, 3, 98_765_432.0,
            4242.0, "civitas.some.type", "someone", 1.0, 1e9, 12, 3, "drop_oldest", 4242.0, "blocked", "holds its loop",
        )
        for name in NAMES
    ),
    supervisors=(SupervisorSnapshot("root", "", "ONE_FOR_ONE", "up", 2, 3, 60.0), SupervisorSnapshot("low", "root")),
    events=({"event": "agent_failed", "time": 900.0, "agent": "walker", "cause": "ValueError: \nboom"},),
    letters=({"buried_s": 990.0, "sender": "a", "recipient": "b", "type": "t", "cause": "c" * 300},),
)  # fmt: skip


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("view", range(len(VIEWS)))
def test_nothing_wraps_and_nothing_is_higher_than_the_terminal(view: int, width: int, height: int) -> None:
    many = replace(FULL, agents=FULL.agents * 30, events=FULL.events * 200, letters=FULL.letters * 100)
    for snapshot in (FULL, many, RuntimeSnapshot("r")):
        lines = lines_of(snapshot, Choice(view=view), width, height)
        assert len(lines) == height
        assert max(width_of(line.text) for line in lines) <= width
        assert all(line.text.isprintable() for line in lines)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_no_number_is_cut(width: int, height: int) -> None:
    text = "\n".join(line.text for line in lines_of(FULL, Choice(view=1), width, height))
    assert text.count("123,456") == len(NAMES)
    assert text.count("1,234,568") == len(NAMES)
    for view in range(len(VIEWS)):
        columns = VIEWS[view].columns
        rows = VIEWS[view].rows(FULL)
        numbers = {row.cells[at] for row in rows for at, column in enumerate(columns) if column.number}
        for line in lines_of(FULL, Choice(view=view), width, height)[2:-1]:
            for word in line.text.split("  "):
                if word.strip().endswith("…"):
                    assert word.strip()[:-1] not in {number[: len(word.strip()) - 1] for number in numbers if number}


def test_where_there_is_room_all_columns_are_shown_and_where_not_the_most_needed() -> None:
    wide = lines_of(FULL, Choice(view=1), 200, 24)[2].text
    narrow = lines_of(FULL, Choice(view=1), 80, 24)[2].text
    assert [column.head for column in VIEWS[1].columns if column.head not in wide] == []
    assert {"agent", "queue", "rate/s", "doing"} <= set(narrow.split())
    assert "lag" not in narrow


def test_rows_without_room_are_counted_and_those_with_something_to_say_are_kept() -> None:
    calm = tuple(AgentSnapshot(f"a{n}", kind="idle", doing="idle") for n in range(100))
    ill = replace(calm[70], kind="stopped", doing="stopped (SIGSTOP)")
    lines = lines_of(RuntimeSnapshot("r", agents=(*calm[:70], ill, *calm[71:])), Choice(), 80, 24)
    text = [line.text for line in lines]
    assert any("a70" in line and "stopped" in line for line in text)
    assert any(line.startswith("… and ") and line.endswith(" more agents") for line in text)
    assert next(line.style for line in lines if "a70" in line.text) == "alarm"


def test_a_filter_a_sort_and_a_scroll() -> None:
    agents = tuple(AgentSnapshot(f"agent-{n}", queue=n, kind="idle", doing="idle") for n in range(50))
    snapshot = RuntimeSnapshot("r", agents=agents)
    choice = Choice(view=1)
    for key in (*"/agent-4", "enter", *"sss", "S"):
        choice = press(choice, key)
    shown = [line.text for line in lines_of(snapshot, choice, 80, 24)]
    assert shown[3].startswith("agent-49")
    assert not any("agent-39" in line for line in shown)
    assert "/agent-4" in shown[-1]
    down = press(press(press(Choice(view=1), "j"), "page-down", 20), "k")
    assert down.top == 20
    assert "agent-20" in lines_of(snapshot, down, 80, 24)[3].text
    assert lines_of(snapshot, press(down, "G"), 80, 24)[-2].text.endswith("0 below")
    assert press(down, "g").top == 0
    assert lines_of(snapshot, replace(choice, filter="("), 80, 24)  # no pattern: taken as text


def test_keys_choose_views_and_pause_and_leave() -> None:
    assert [press(Choice(), key).view for key in "1234567"] == list(range(7))
    assert press(Choice(view=6), "tab").view == 0
    assert press(Choice(), " ").paused
    assert "PAUSED" in lines_of(FULL, press(Choice(), " "), 80, 24)[-1].text
    assert press(Choice(), "q").quit
    assert press(Choice(), "ctrl-c").quit
    assert press(press(Choice(), "/"), "q") == Choice(typing=True, filter="q")
    helped = press(Choice(), "?")
    assert any("leave" in line.text for line in lines_of(FULL, helped, 80, 24))
    assert press(helped, "x") == Choice()
    assert press(Choice(), "right").step == 1


def test_keys_as_terminals_send_them() -> None:
    assert decode_keys(b"\x1b[Aj\x1bOB\x1b[5~ q\r\t\x7f\x03") == [
        "up", "j", "down", "page-up", " ", "q", "enter", "tab", "backspace", "ctrl-c",
    ]  # fmt: skip
    assert decode_keys(b"\x1b") == ["esc"]
    assert decode_keys("é名".encode()) == ["é", "名"]
    assert decode_keys(b"\x1b[99;99~") == []
    assert decode_keys(b"\xff\xfe") == []


def test_without_colour_the_same_words_are_there() -> None:
    assert "\x1b[33m" in styled(Line("x", "alarm"), color=True)
    assert "33" not in styled(Line("x", "alarm"), color=False)


def test_what_is_not_known_is_a_dash_and_never_zero() -> None:
    snapshot = RuntimeSnapshot("r", processes=(ProcessSnapshot("w", state="waiting"),), agents=(AgentSnapshot("a"),))
    text = [line.text.split() for line in lines_of(snapshot, Choice(), 200, 24, keys=False)]
    assert ["w", "–", "any", "–", "–", "–", "–", "–", "0", "waiting"] in text
    assert ["a", "–", "0", "–", "–", "–", "–", "0", "–", "running"] in text


def test_equal_snapshots_make_equal_screens_so_that_nothing_is_drawn_twice() -> None:
    later = [replace(FULL, uptime_s=seconds) for seconds in (75.2, 75.9, 76.0)]
    first, same, other = (lines_of(snapshot, Choice(), 80, 24) for snapshot in later)
    assert first == same != other


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
    assert since_text(3661) == "1:01:01"
    assert since_text(0.0042) == "4.2 ms"
