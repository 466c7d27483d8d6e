#!/usr/bin/env python3
"""Raw results to a page: table.py RESULTS.json > RESULTS.md. A ratio always stands beside what it is a ratio to."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from cases import BARS, CASES, IDLE_BAR_PERCENT, PARKED_GAP_S, WIDTH
from figures import Figures, median_of, ratio

__all__ = ["render"]

TABLES = {
    "hot": ("Round trip, one after the other", "floor_round_trip"),
    "parked": (f"Round trip after a pause of {PARKED_GAP_S * 1000:g} ms: both sides sleep", "eventfd_parked"),
    "one_way": ("One way, messages per second", "zmq_one_way"),
    "outstanding": (f"Asks per second, {WIDTH} outstanding", "asks_local"),
}
"""Title of each table, and the case that its ratios are to."""


def render(results: dict[str, Any]) -> str:
    """The page, as Markdown."""
    repetitions: dict[str, list[Figures]] = results["repetitions"]
    medians = {name: median_of(each) for name, each in repetitions.items()}
    parts = ["# Results", _method(results)]
    parts += [_table(key, medians, repetitions) for key in TABLES]
    parts += [_idle(results), _bars(results, medians)]
    return "\n\n".join(parts) + "\n"


def _method(results: dict[str, Any]) -> str:
    machine = results["machine"]
    count = max(len(repetitions) for repetitions in results["repetitions"].values())
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines = [
        "Written by `bench/run.py`; what the cases are and how they are measured: [README.md](README.md).",
        "",
        f"- {results['date']}, {machine['cpu']}, {machine['cores']} cores{', virtual' if machine['virtual'] else ''}, "
        f"{machine['memory_gib']} GiB, Linux {machine['kernel']}, cpuidle driver {machine['cpuidle']}",
        f"- Python {machine['python']}, {packages}",
        f"- load before the run {machine['load_before']:.2f}; sides pinned to cores "
        f"{results['cpus'][0]} and {results['cpus'][1]}; payload {results['payload_bytes']} B",
        f"- medians of {count} interleaved repetitions, with the lowest and the highest of them",
    ]
    if results["quick"]:
        lines.append("- **a quick run: a twentieth of the messages; not to be quoted**")
    return "\n".join(lines)


def _table(key: str, medians: dict[str, Figures], repetitions: dict[str, list[Figures]]) -> str:
    title, reference = TABLES[key]
    cases = [case for case in CASES if case.table == key]
    against = next(case.title.strip("*") for case in CASES if case.name == reference)
    timed = all("p50_us" in medians[case.name] for case in cases)
    head = ["", "p50 µs", "range", "p99 µs", "p99.9 µs"] if timed else ["", "per second", "range"]
    rows = [[*head, f"× {against}"], ["---"] + ["---:"] * len(head)]
    for case in cases:
        figures, each = medians[case.name], repetitions[case.name]
        if timed:
            spread = sorted(one["p50_us"] for one in each)
            cells = [_time(figures["p50_us"]), f"{_time(spread[0])}–{_time(spread[-1])}"]
            cells += [_time(figures["p99_us"]), _time(figures["p999_us"])]
        else:
            spread = sorted(one["per_s"] for one in each)
            cells = [f"{figures['per_s']:,.0f}", f"{spread[0]:,.0f}–{spread[-1]:,.0f}"]
        rows.append([case.title, *cells, f"{ratio(figures, medians[reference]):.2f}"])
    return f"## {title}\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _time(us: float) -> str:
    return f"{us:.2f}" if us < 100 else f"{us:,.0f}"


def _idle(results: dict[str, Any]) -> str:
    rows = ["| process | % of a core |", "| --- | ---: |"]
    rows += [f"| {name} | {percent:.4f} |" for name, percent in results["idle_percent"].items()]
    return f"## Idle for {results['idle_s']:g} s\n\n" + "\n".join(rows)


def _bars(results: dict[str, Any], medians: dict[str, Figures]) -> str:
    rows = ["| bar | measured | |", "| --- | ---: | --- |"]
    for bar in BARS:
        value = ratio(medians[bar.case], medians[bar.reference])
        p50_us = medians[bar.case].get("p50_us")
        measured = f"{value:.2f}" + (f", {p50_us:.2f} µs" if bar.or_at_most_us and p50_us else "")
        rows.append(f"| {bar.claim} | {measured} | {_verdict(bar.holds(value, p50_us))} |")
    workers = max(percent for name, percent in results["idle_percent"].items() if name != "host")
    holds = _verdict(workers <= IDLE_BAR_PERCENT)
    rows.append(f"| a parked worker takes at most {IDLE_BAR_PERCENT} % of a core | {workers:.4f} % | {holds} |")
    return "## Bars\n\n" + "\n".join(rows)


def _verdict(holds: bool) -> str:
    return "holds" if holds else "**does not hold**"


if __name__ == "__main__":
    sys.stdout.write(render(json.loads(Path(sys.argv[1]).read_text())))
