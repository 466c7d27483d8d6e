"""The screen as text, 80 columns wide."""

from __future__ import annotations

import io

from rich.console import Console

from civitas_shm.dashboard.model import screen
from civitas_shm.dashboard.view import draw
from civitas_shm.snapshot import AgentSnapshot, ProcessSnapshot, RuntimeSnapshot

SNAPSHOT = RuntimeSnapshot(
    "code-atlas",
    "shm",
    uptime_s=75,
    shared_bytes=3_500_000,
    processes=(
        ProcessSnapshot("host", 4000, (), 1.0, 20 << 20),
        ProcessSnapshot("w1", 4001, (0,), 97.3, 31 << 20),
        ProcessSnapshot("w2", None, (0, 1, 2, 5), None, None, "waiting", 3),
    ),
    agents=(
        AgentSnapshot("walker", "w1", 0, 10, 120.4, 12.5),
        AgentSnapshot("a-very-long-agent-name-that-does-not-fit", "w1,w2", 1234, 10, 12345, 2400.0, 2, "CRASHED"),
        AgentSnapshot("[bold]report[/bold]", "main"),
    ),
)

GOLDEN = """\
code-atlas · shm · 01:15 · 3.3 MiB shared

process                    pid  cpus         cpu  memory  restarts  state
host                      4000  any           1%  20 MiB         0  running
w1                        4001  0            97%  31 MiB         0  running
w2                           –  0-2,5          –       –         3  waiting

agent                  process     queue  rate/s  handler  restarts  state
walker                 w1              0     120    12 µs         0  running
a-very-long-agent-na…  w1,w2       1,234  12,345   2.4 ms         2  crashed
[bold]report[/bold]    main            0       –        –         0  running
"""


def drawn(height: int, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), record=True, color_system=None)
    console.print(draw(screen(SNAPSHOT, height)))
    return "".join(f"{line.rstrip()}\n" for line in console.export_text().splitlines())


def test_the_screen_at_width_80() -> None:
    assert drawn(24) == GOLDEN


def test_rows_without_room_are_counted() -> None:
    many = RuntimeSnapshot("r", agents=tuple(AgentSnapshot(f"a{i}") for i in range(9)))
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(draw(screen(many, 11)))
    assert console.export_text().splitlines()[-1].rstrip() == "… and 4 more agents"


def test_no_line_is_wider_than_the_terminal() -> None:
    for width in (40, 60, 80, 200):
        assert max(len(line) for line in drawn(24, width).splitlines()) <= width
