"""The views of `top`, and the screen of `run`: from a snapshot and what the user has chosen to the lines of a terminal.

Rules of this file: pure, text only; a view is a table of rows (`ROWS`), everything else is the same for all of them.
Rows keep the order of the topology unless the user sorts; when there is not room for all, those with something to say
are kept and the rest is counted in one line (the overview), or the list is scrolled (all others).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..snapshot import AgentSnapshot, ProcessSnapshot, RuntimeSnapshot, SupervisorSnapshot
from .layout import Column, choose_columns, fit, line_of
from .words import UNKNOWN, bytes_text, cpus_text, duration_text, rate_text, since_text, uptime_text

__all__ = ["VIEWS", "Choice", "Line", "Row", "View", "lines_of", "press"]

HELP = "1-7 view  / filter  s sort  S reverse  space pause  j k scroll  ? help  q quit"

KEYS = (
    ("1 … 7, tab", "choose a view"),
    ("/", "filter: rows in which the text stands (a regular expression); enter ends it, esc drops it"),
    ("s, S", "sort by the next column, turn the order round"),
    ("j k, arrows, page", "scroll; g to the first row, G to the last"),
    ("space", "pause, and go on"),
    ("left, right", "of a recording: one reading back or on"),
    ("? , q", "this page; leave"),
)

WELL = frozenset({"", "idle", "working", "handling", "waits_reply", "starting", "stopping"})
"""Kinds of `inspection.why` that need nobody's attention."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the screen. `style`: `title`, `head`, `plain`, `alarm`, `dim`."""

    text: str
    style: str = "plain"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a view; `calm`: nothing in it needs attention."""

    cells: tuple[str, ...]
    calm: bool = True
    keys: tuple[float | str, ...] = ()
    """To sort by, one for each cell; empty: by the text."""


@dataclass(frozen=True, slots=True)
class View:
    """One page of `top`."""

    name: str
    columns: tuple[Column, ...]
    rows: Callable[[RuntimeSnapshot], list[Row]]
    empty: str


@dataclass(frozen=True, slots=True)
class Choice:
    """What the user has chosen."""

    view: int = 0
    filter: str = ""
    typing: bool = False
    """The filter is being typed."""
    sort: int = -1
    """Column; -1: as they come."""
    reverse: bool = False
    paused: bool = False
    top: int = 0
    """First row that is shown."""
    help: bool = False
    quit: bool = False
    step: int = 0
    """Of a recording: readings to go."""


AGENTS = (
    Column("agent"),
    Column("process", rank=5),
    Column("queue", True),
    Column("rate/s", True),
    Column("in handler", True, 1),
    Column("p50", True, 3),
    Column("p99", True, 4),
    Column("restarts", True, 2),
    Column("lag", True, 6),
    Column("doing"),
)
PROCESSES = (
    Column("process"),
    Column("pid", True),
    Column("cpus", rank=3),
    Column("core", True, 6),
    Column("cpu", True),
    Column("memory", True, 1),
    Column("threads", True, 7),
    Column("lag", True, 2),
    Column("restarts", True, 4),
    Column("state"),
)
TREE = (Column("supervision"), Column("strategy", rank=2), Column("restarts", True), Column("window", True, 3),
        Column("state"), Column("last", rank=1))  # fmt: skip
MAILBOXES = (
    Column("mailbox"),
    Column("waiting", True),
    Column("capacity", True, 1),
    Column("in hand", True, 2),
    Column("bytes/s", True, 5),
    Column("dropped", True, 3),
    Column("redelivered", True, 6),
    Column("garbage", True, 7),
    Column("full:", rank=4),
)
EVENTS = (Column("when"), Column("event"), Column("who"), Column("cause"))
LETTERS = (Column("when"), Column("from", rank=2), Column("to"), Column("type", rank=1), Column("cause"))


def _agents(snapshot: RuntimeSnapshot) -> list[Row]:
    return [_agent(one) for one in snapshot.agents]


def _agent(one: AgentSnapshot) -> Row:
    word = one.doing or one.state.lower()
    if one.doing and one.kind == "handling" and one.message:
        word = f"handles {one.message!r}"
    if one.dropped:
        word += f", {one.dropped:,} dropped"
    calm = one.restarts == one.dropped == 0 and one.kind in WELL and (bool(one.doing) or one.state.lower() == "running")
    cells = (
        one.name, one.process or UNKNOWN, f"{one.queue:,}", rate_text(one.rate_per_s), since_text(one.in_handler_s),
        duration_text(one.handler_p50_us), duration_text(one.handler_p99_us), str(one.restarts), since_text(one.lag_s
        or None), word,
    )  # fmt: skip
    keys = (
        one.name, one.process, float(one.queue), _number(one.rate_per_s), _number(one.in_handler_s),
        _number(one.handler_p50_us), _number(one.handler_p99_us), float(one.restarts), _number(one.lag_s), word,
    )  # fmt: skip
    return Row(cells, calm, keys)


def _processes(snapshot: RuntimeSnapshot) -> list[Row]:
    return [_process(one) for one in snapshot.processes]


def _process(one: ProcessSnapshot) -> Row:
    cpu = UNKNOWN if one.cpu_percent is None else f"{one.cpu_percent:.0f}%"
    cells = (
        one.name, _count(one.pid), cpus_text(one.cpus), _count(one.core), cpu, bytes_text(one.rss_bytes),
        _count(one.threads), since_text(one.lag_s or None), str(one.restarts), one.state,
    )  # fmt: skip
    keys = (
        one.name, float(one.pid or 0), cells[2], _number(one.core), _number(one.cpu_percent), _number(one.rss_bytes),
        _number(one.threads), _number(one.lag_s), float(one.restarts), one.state,
    )  # fmt: skip
    return Row(cells, one.state == "running" and one.restarts == 0, keys)


def _tree(snapshot: RuntimeSnapshot) -> list[Row]:
    below: dict[str, list[SupervisorSnapshot]] = {}
    for one in snapshot.supervisors:
        below.setdefault(one.parent, []).append(one)
    last: dict[str, str] = {}
    for event in snapshot.events:
        if event.get("event") in ("agent_failed", "agent_given_up", "supervisor_gave_up", "supervisor_shut_down"):
            who = event.get("supervisor") if "supervisor" in str(event["event"]) else event.get("agent")
            last[str(who)] = f"{_ago(snapshot, event)}: {event.get('cause', '')}"
    rows: list[Row] = []

    def add(one: SupervisorSnapshot, indent: str) -> None:
        kind = "dyn" if one.dynamic else "sup"
        state = {"up": "running", "gone": "gave up"}.get(one.state, one.state)
        rows.append(
            Row(
                (
                    f"{indent}[{kind}] {one.name}", one.strategy, f"{one.restarts_in_window} of {one.max_restarts}",
                    f"{one.window_s:g} s", state, last.get(one.name, ""),
                ),
                one.state == "up" and not one.restarts_in_window,
            )
        )  # fmt: skip
        for agent in snapshot.agents:
            if agent.supervisor == one.name:
                word = agent.state if agent.state != "running" else agent.doing or "running"
                cells = (f"{indent}  {agent.name}", "", str(agent.restarts), "", word, last.get(agent.name, ""))
                rows.append(Row(cells, agent.restarts == 0 and agent.kind in WELL))
        for child in below.get(one.name, []):
            add(child, indent + "  ")

    for root in below.get("", []):
        add(root, "")
    return rows


def _mailboxes(snapshot: RuntimeSnapshot) -> list[Row]:
    rows = []
    for one in snapshot.agents:
        full = one.capacity is not None and one.queue >= one.capacity
        cells = (
            one.name, f"{one.queue:,}", UNKNOWN if one.capacity is None else f"{one.capacity:,}",
            UNKNOWN if one.in_hand is None else str(one.in_hand), bytes_text(one.in_bytes_per_s), f"{one.dropped:,}",
            f"{one.redelivered:,}", f"{one.garbage:,}", one.overflow,
        )  # fmt: skip
        keys = (
            one.name, float(one.queue), _number(one.capacity), _number(one.in_hand), _number(one.in_bytes_per_s),
            float(one.dropped), float(one.redelivered), float(one.garbage), one.overflow,
        )  # fmt: skip
        rows.append(Row(cells, not (full or one.dropped or one.garbage), keys))
    for process in snapshot.processes:
        if process.arena_bytes is not None and process.arena_most_bytes:
            share = process.arena_bytes / process.arena_most_bytes
            name = (
                f"arena of {process.name}: {bytes_text(process.arena_bytes)} of {bytes_text(process.arena_most_bytes)}"
            )
            rows.append(Row((name, *[""] * (len(MAILBOXES) - 1)), share < 0.9))
    return rows


def _events(snapshot: RuntimeSnapshot) -> list[Row]:
    rows = []
    for event in reversed(snapshot.events):
        who = event.get("agent") or event.get("process") or event.get("supervisor") or event.get("run") or ""
        kind, when = str(event["event"]), _ago(snapshot, event)
        cause = event.get("cause") or event.get("verdict") or event.get("reason") or ""
        calm = kind not in (
            "process_died",
            "agent_failed",
            "agent_given_up",
            "supervisor_gave_up",
            "deadlock",
            "verdict",
        )
        rows.append(Row((when, kind, str(who), str(cause)), calm, (-float(event["time"]), kind, str(who), str(cause))))
    return rows


def _letters(snapshot: RuntimeSnapshot) -> list[Row]:
    rows = []
    for one in snapshot.letters:
        when = _since(snapshot, float(one["buried_s"]))
        names = (str(one["sender"]), str(one["recipient"]), str(one["type"]), str(one["cause"]))
        rows.append(Row((when, *names), True, (-float(one["buried_s"]), *names)))
    return rows


VIEWS = (
    View("overview", AGENTS, _agents, "No agent is known yet."),
    View("agents", AGENTS, _agents, "No agent is known yet."),
    View("tree", TREE, _tree, "The tree is not known: the host of this run has left no chart."),
    View("processes", PROCESSES, _processes, "No process is known yet."),
    View("mailboxes", MAILBOXES, _mailboxes, "There is no mailbox yet."),
    View("events", EVENTS, _events, "Nothing has happened."),
    View("dead letters", LETTERS, _letters, "There are no dead letters."),
)


# --- the screen -------------------------------------------------------------------------------------------------------


def lines_of(snapshot: RuntimeSnapshot, choice: Choice, width: int, height: int, *, keys: bool = True) -> list[Line]:
    """All of it: at most `height` lines of at most `width` cells. `keys`: with tabs and the line of keys."""
    head = [Line(fit(_title(snapshot), width), "title" if snapshot.state in ("", "running") else "alarm")]
    foot: list[Line] = []
    if keys:
        head.append(Line(fit(_tabs(choice), width), "dim"))
        said = f"/{choice.filter}{'_' if choice.typing else ''}  " if choice.filter or choice.typing else ""
        foot = [Line(fit(("PAUSED  " if choice.paused else "") + said + HELP, width), "dim")]
    room = max(1, height - len(head) - len(foot))
    if choice.help:
        body = [Line(fit(f"{key:<18} {what}", width)) for key, what in KEYS]
    elif choice.view == 0:
        body = _overview(snapshot, choice, width, room)
    else:
        body = _page(VIEWS[choice.view], snapshot, choice, width, room)
    lines = [*head, *body[:room]]
    if keys:
        lines += [Line("")] * (height - len(lines) - len(foot))
    return (lines + foot)[: max(1, height)]


def _title(snapshot: RuntimeSnapshot) -> str:
    state = snapshot.state if snapshot.state not in ("", "running") else ""
    parts = [snapshot.name, state.upper(), snapshot.transport, uptime_text(snapshot.uptime_s)]
    if snapshot.shared_bytes is not None:
        parts.append(f"{bytes_text(snapshot.shared_bytes)} shared")
    rates = [one.rate_per_s for one in snapshot.agents if one.rate_per_s is not None]
    if rates:
        parts.append(f"{sum(rates):,.0f} msg/s")
    waiting = sum(one.queue for one in snapshot.agents)
    if waiting:
        parts.append(f"{waiting:,} waiting")
    if snapshot.dead_letters:
        parts.append(f"{snapshot.dead_letters:,} dead letters")
    return " · ".join(part for part in parts if part)


def _tabs(choice: Choice) -> str:
    return "  ".join(
        f"[{at} {view.name}]" if at == choice.view + 1 else f"{at} {view.name}" for at, view in enumerate(VIEWS, 1)
    )


def _overview(snapshot: RuntimeSnapshot, choice: Choice, width: int, room: int) -> list[Line]:
    """Processes and agents on one page; rows that need attention are kept when there is not room for all."""
    processes, agents = _chosen(_processes(snapshot), choice), _chosen(_agents(snapshot), choice)
    rows = max(room - 4, 6)
    for_processes = min(len(processes), max(rows // 3, rows - len(agents)))
    lines = [Line("")]
    if processes:
        lines += [*_table(PROCESSES, processes, for_processes, width, "processes"), Line("")]
    return [*lines, *_table(AGENTS, agents, rows - for_processes, width, "agents")]


def _table(columns: Sequence[Column], rows: list[Row], room: int, width: int, what: str) -> list[Line]:
    shown = list(range(len(rows)))
    if len(rows) > room:
        # one line of the room is taken by the count of those left out; sorted() is stable, so order decides ties
        restless_first = sorted(shown, key=lambda at: rows[at].calm)
        shown = sorted(restless_first[: max(room - 1, 0)])
    lines = _drawn(columns, [rows[at] for at in shown], width)
    hidden = len(rows) - len(shown)
    return [*lines, Line(fit(f"… and {hidden} more {what}", width), "dim")] if hidden else lines


def _page(view: View, snapshot: RuntimeSnapshot, choice: Choice, width: int, room: int) -> list[Line]:
    rows = _chosen(view.rows(snapshot), choice)
    if not rows:
        said = "Nothing fits the filter." if choice.filter else view.empty
        return [Line(""), Line(fit(said, width), "dim")]
    if 0 <= choice.sort < len(view.columns):
        rows.sort(key=lambda row: _key(row, choice.sort), reverse=choice.reverse)
    top = max(0, min(choice.top, len(rows) - max(1, room - 2)))
    shown = rows[top : top + max(1, room - 2)]
    lines = _drawn(view.columns, shown, width, choice.sort)
    left = len(rows) - top - len(shown)
    if top or left:
        lines.append(Line(fit(f"{top} above, {left} below", width), "dim"))
    return lines


def _key(row: Row, at: int) -> tuple[int, float | str]:
    value = row.keys[at] if row.keys else row.cells[at]
    return (0, value) if isinstance(value, float) else (1, value)


def _chosen(rows: list[Row], choice: Choice) -> list[Row]:
    if not choice.filter:
        return rows
    try:
        wanted = re.compile(choice.filter, re.IGNORECASE)
    except re.error:
        wanted = re.compile(re.escape(choice.filter), re.IGNORECASE)
    return [row for row in rows if wanted.search(" ".join(row.cells))]


def _drawn(columns: Sequence[Column], rows: Sequence[Row], width: int, sort: int = -1) -> list[Line]:
    heads = tuple(column.head + ("*" if at == sort else "") for at, column in enumerate(columns))
    named = tuple(replace(column, head=head) for column, head in zip(columns, heads, strict=True))
    widths = choose_columns(named, [row.cells for row in rows], width)
    lines = [Line(line_of(named, heads, widths, width), "head")]
    return lines + [Line(line_of(named, row.cells, widths, width), "plain" if row.calm else "alarm") for row in rows]


def _count(value: int | None) -> str:
    return UNKNOWN if value is None else str(value)


def _number(value: float | None) -> float:
    return -1.0 if value is None else float(value)


def _ago(snapshot: RuntimeSnapshot, event: dict[str, object]) -> str:
    return _since(snapshot, float(str(event["time"])))


def _since(snapshot: RuntimeSnapshot, moment_s: float) -> str:
    if snapshot.time_s is None:
        return UNKNOWN
    return f"{since_text(max(0.0, snapshot.time_s - moment_s))} ago"


# --- keys -------------------------------------------------------------------------------------------------------------


def press(choice: Choice, key: str, page: int = 10) -> Choice:
    """What the user has chosen after a key (`terminal.read_keys`)."""
    if choice.typing:
        return _typed(choice, key)
    if choice.help:
        return replace(choice, help=False, quit=key in ("q", "ctrl-c"))
    if key in "1234567" and key:
        return replace(choice, view=int(key) - 1, sort=-1, top=0)
    columns = len(VIEWS[choice.view].columns)
    down = {"j": 1, "down": 1, "k": -1, "up": -1, "page-down": page, "page-up": -page, "g": -(1 << 30), "G": 1 << 20}
    match key:
        case "q" | "ctrl-c":
            return replace(choice, quit=True)
        case "tab":
            return replace(choice, view=(choice.view + 1) % len(VIEWS), sort=-1, top=0)
        case "/":
            return replace(choice, typing=True, filter="")
        case "esc":
            return replace(choice, filter="", top=0)
        case "s":
            return replace(choice, sort=choice.sort + 1 if choice.sort + 1 < columns else -1)
        case "S":
            return replace(choice, reverse=not choice.reverse)
        case " ":
            return replace(choice, paused=not choice.paused)
        case "?":
            return replace(choice, help=True)
        case "left" | "right":
            return replace(choice, step=1 if key == "right" else -1, paused=True)
        case _ if key in down:
            return replace(choice, top=max(0, min(choice.top + down[key], 1 << 20)))
        case _:
            return choice


def _typed(choice: Choice, key: str) -> Choice:
    match key:
        case "enter":
            return replace(choice, typing=False, top=0)
        case "esc" | "ctrl-c":
            return replace(choice, typing=False, filter="", top=0)
        case "backspace":
            return replace(choice, filter=choice.filter[:-1])
        case _ if len(key) == 1:
            return replace(choice, filter=choice.filter + key)
        case _:
            return choice
