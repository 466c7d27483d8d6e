"""From a snapshot to the rows of the screen: pure, so that every number's form and every choice of rows has a test.

Rules of this file: no rich, no clock, no terminal; text only. The screen is calm: rows keep the order of the topology
whatever the numbers do, and when there is not room for all, those with something to say (not running, restarted, with a
queue) are kept and the rest is counted in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..snapshot import AgentSnapshot, ProcessSnapshot, RuntimeSnapshot

__all__ = [
    "AGENT_COLUMNS",
    "PROCESS_COLUMNS",
    "AgentSnapshot",
    "Column",
    "ProcessSnapshot",
    "RuntimeSnapshot",
    "Screen",
    "Table",
    "screen",
]

UNKNOWN = "–"
FIXED_LINES = 5
"""Title, an empty line, two table heads, an empty line between them."""
MIN_ROWS = 3
"""Each table keeps this many rows however small the terminal is."""

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its head, and whether its cells are numbers."""

    head: str
    number: bool = False


PROCESS_COLUMNS = (
    Column("process"),
    Column("pid", True),
    Column("cpus"),
    Column("cpu", True),
    Column("memory", True),
    Column("restarts", True),
    Column("state"),
)
AGENT_COLUMNS = (
    Column("agent"),
    Column("process"),
    Column("queue", True),
    Column("rate/s", True),
    Column("handler", True),
    Column("restarts", True),
    Column("state"),
)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text; `calm[i]` says that nothing in row i needs attention; `hidden` rows had no room."""

    rows: tuple[tuple[str, ...], ...]
    calm: tuple[bool, ...]
    hidden: int = 0


@dataclass(frozen=True, slots=True)
class Screen:
    """All that is drawn. Equal screens need not be drawn twice."""

    title: str
    processes: Table
    agents: Table


def screen(snapshot: RuntimeSnapshot, height: int) -> Screen:
    """What fits into `height` lines."""
    rows = max(height - FIXED_LINES, 2 * MIN_ROWS)
    for_processes = min(len(snapshot.processes), max(rows // 2, rows - len(snapshot.agents)))
    return Screen(
        title=_title(snapshot),
        processes=_table(snapshot.processes, for_processes, _process_row, _process_is_calm),
        agents=_table(snapshot.agents, rows - for_processes, _agent_row, _agent_is_calm),
    )


def _title(snapshot: RuntimeSnapshot) -> str:
    parts = [snapshot.name, snapshot.transport, uptime_text(snapshot.uptime_s)]
    if snapshot.shared_bytes is not None:
        parts.append(f"{bytes_text(snapshot.shared_bytes)} shared")
    return " · ".join(part for part in parts if part)


def _table(
    items: Sequence[Row], room: int, row: Callable[[Row], tuple[str, ...]], is_calm: Callable[[Row], bool]
) -> Table:
    shown = list(range(len(items)))
    if len(items) > room:
        # one line of the room is taken by the count of those left out; sorted() is stable, so order decides ties
        restless_first = sorted(shown, key=lambda index: is_calm(items[index]))
        shown = sorted(restless_first[: max(room - 1, 0)])
    return Table(
        rows=tuple(row(items[index]) for index in shown),
        calm=tuple(is_calm(items[index]) for index in shown),
        hidden=len(items) - len(shown),
    )


def _process_is_calm(process: ProcessSnapshot) -> bool:
    return process.state == "running" and process.restarts == 0


def _agent_is_calm(agent: AgentSnapshot) -> bool:
    return agent.state.lower() == "running" and agent.restarts == agent.queue == agent.dropped == 0


def _process_row(process: ProcessSnapshot) -> tuple[str, ...]:
    return (
        process.name,
        UNKNOWN if process.pid is None else str(process.pid),
        cpus_text(process.cpus),
        UNKNOWN if process.cpu_percent is None else f"{process.cpu_percent:.0f}%",
        UNKNOWN if process.rss_bytes is None else bytes_text(process.rss_bytes),
        str(process.restarts),
        process.state,
    )


def _agent_row(agent: AgentSnapshot) -> tuple[str, ...]:
    return (
        agent.name,
        agent.process or UNKNOWN,
        f"{agent.queue:,}" + (f", {agent.dropped:,} dropped" if agent.dropped else ""),
        UNKNOWN if agent.rate_per_s is None else f"{agent.rate_per_s:,.0f}",
        UNKNOWN if agent.handler_p50_us is None else duration_text(agent.handler_p50_us),
        str(agent.restarts),
        agent.state.lower(),
    )


def cpus_text(cpus: Sequence[int]) -> str:
    """Cores as a list of ranges, the form that `taskset -c` takes: 0-3,6."""
    if not cpus:
        return "any"
    ranges: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if ranges and cpu == ranges[-1][1] + 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def bytes_text(size_bytes: float) -> str:
    """Three digits and a binary unit."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    unit = 0
    while size_bytes >= 1000 and unit < len(units) - 1:
        size_bytes /= 1024
        unit += 1
    return f"{size_bytes:.0f} {units[unit]}" if unit == 0 or size_bytes >= 10 else f"{size_bytes:.1f} {units[unit]}"


def duration_text(duration_us: float) -> str:
    """Microseconds, milliseconds or seconds, whichever has the fewest digits."""
    for limit, divisor, unit in ((1e3, 1.0, "µs"), (1e6, 1e3, "ms")):
        if duration_us < limit:
            value = duration_us / divisor
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{duration_us / 1e6:.1f} s"


def uptime_text(uptime_s: float) -> str:
    """Hours, minutes, seconds; hours only when there are any."""
    minutes, seconds = divmod(int(uptime_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"
