"""The screen on a terminal: drawn when it changes, log lines above it, the last frame stays."""

from __future__ import annotations

import asyncio
import io
import sys

import pytest
from rich.console import Console

from civitas_shm.dashboard.live import LiveScreen, can_show
from civitas_shm.snapshot import RuntimeSnapshot


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setenv("TERM", "xterm")
    return Console(file=io.StringIO(), force_terminal=True, width=80, height=24, color_system=None)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def frames(console: Console, name: str) -> int:
    return written(console).count(name)


def show(console: Console, snapshots: list[RuntimeSnapshot], log: str = "") -> None:
    """Show each snapshot once, the last one again at the end; write `log` in the middle."""

    async def scenario() -> None:
        all_seen = asyncio.Event()
        left = list(snapshots)

        def snapshot() -> RuntimeSnapshot:
            if len(left) > 1:
                return left.pop(0)
            all_seen.set()
            return left[0]

        async with LiveScreen(console, snapshot, interval_s=0.001):
            if log:
                print(log, file=sys.stderr)
            await all_seen.wait()

    asyncio.run(scenario())


def test_a_frame_that_says_the_same_is_not_drawn_again(terminal: Console) -> None:
    show(terminal, [RuntimeSnapshot("atlas", uptime_s=1.0 + i / 10) for i in range(9)])
    assert frames(terminal, "atlas") <= 2  # the first frame, and rich's own redraw at the end


def test_each_change_is_drawn(terminal: Console) -> None:
    show(terminal, [RuntimeSnapshot("atlas", uptime_s=float(i)) for i in range(5)])
    for second in range(5):
        assert f"00:0{second}" in written(terminal)


def test_log_lines_go_above_the_screen(terminal: Console) -> None:
    show(terminal, [RuntimeSnapshot("atlas", uptime_s=float(i)) for i in range(3)], log="a log line")
    text = written(terminal)
    assert "a log line\n" in text
    assert text.rindex("atlas") > text.index("a log line")


def test_stderr_is_given_back(terminal: Console) -> None:
    before = sys.stderr
    show(terminal, [RuntimeSnapshot("atlas")])
    assert sys.stderr is before


def test_no_screen_where_there_is_no_terminal() -> None:
    assert not can_show(Console(file=io.StringIO()))
    assert not can_show(Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"}))
    assert can_show(Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "xterm"}))
