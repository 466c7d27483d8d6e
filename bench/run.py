#!/usr/bin/env python3
"""Measure all cases in one run, interleaved, and write the raw results and the table.

The agents run the whole time and sleep while a rival is measured. One repetition measures every case once, in the order
of `cases.py`; the figures are medians over repetitions, so a slow minute of the machine touches all of them alike.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cases import CASES, CPUS, PARKED_GAP_S, WIDTH, Case
from figures import Figures
from local import TIMEOUT_S, figures_of
from machine import cpu_time_ns, describe, slug
from table import render

from civitas_shm import Runtime

BENCH = Path(__file__).resolve().parent
REPETITIONS = 7
IDLE_S = 60.0
SETTLE_S = 1.0
"""Between the last message and the measurement of idling; longer than any spin or timer of the runtime."""


def build_floor(directory: Path) -> Path:
    """Compile the floor. Needs gcc or any C11 compiler named by CC."""
    floor = directory / "floor"
    compiler = os.environ.get("CC", "gcc")
    subprocess.run([compiler, "-O2", "-std=c11", "-o", floor, BENCH / "native" / "floor.c"], check=True)
    return floor


async def alone(command: list[str]) -> Figures:
    """Run one case in a process of its own that prints its figures."""
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")
    figures: Figures = json.loads(output)
    return figures


async def measure(case: Case, n: int, runtime: Runtime, floor: Path) -> Figures:
    """One repetition of one case."""
    near, far = map(str, CPUS)
    if case.how == "floor":
        return await alone([str(floor), near, far, case.what, str(n)])
    if case.how == "rival":
        return await alone([sys.executable, str(BENCH / "rivals.py"), case.what, near, far, str(n)])
    if case.how == "local":
        return await alone([sys.executable, str(BENCH / "local.py"), case.what, case.to, near, str(n), str(WIDTH)])
    asked = {"to": case.to, "n": n, "width": WIDTH, "gap_s": PARKED_GAP_S if case.table == "parked" else 0.0}
    return figures_of(await runtime.ask("driver", asked, timeout=TIMEOUT_S, message_type=case.what))


async def idle(runtime: Runtime, seconds: float) -> dict[str, float]:
    """Per cent of a core that each worker takes while its agents wait, and the host while nothing happens."""
    near = (await runtime.ask("driver", {}, message_type="where")).payload
    far = (await runtime.ask("far_driver", {}, message_type="where")).payload
    if (near["cpus"], far["cpus"]) != ([CPUS[0]], [CPUS[1]]):
        raise RuntimeError(f"the workers run on cores {near['cpus']} and {far['cpus']}, not pinned to {CPUS}")
    pids = {"near worker": near["pid"], "far worker": far["pid"], "host": near["parent"]}
    await asyncio.sleep(SETTLE_S)
    before = {name: cpu_time_ns(pid) for name, pid in pids.items()}
    await asyncio.sleep(seconds)
    return {name: (cpu_time_ns(pid) - before[name]) / (seconds * 1e9) * 100 for name, pid in pids.items()}


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement; the value is what the results file holds."""
    machine = describe()
    repetitions: dict[str, list[Figures]] = {case.name: [] for case in CASES}
    scale = 0.05 if arguments.quick else 1.0
    with tempfile.TemporaryDirectory() as directory:
        floor = build_floor(Path(directory))
        async with Runtime.from_config(str(BENCH / "topology.yaml")) as runtime:
            for number in range(arguments.repetitions):
                for case in CASES:
                    print(f"{number + 1}/{arguments.repetitions} {case.name}", file=sys.stderr, flush=True)
                    n = max(int(case.n * scale), 100)
                    repetitions[case.name].append(await measure(case, n, runtime, floor))
            print(f"idle for {arguments.idle_s:g} s", file=sys.stderr, flush=True)
            idle_percent = await idle(runtime, arguments.idle_s)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "cpus": list(CPUS),
        "quick": arguments.quick,
        "payload_bytes": 64,
        "idle_s": arguments.idle_s,
        "idle_percent": idle_percent,
        "repetitions": repetitions,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure all cases in one run, interleaved.")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help=f"default {REPETITIONS}")
    parser.add_argument("--idle-s", type=float, default=IDLE_S, help=f"how long idling is watched (default {IDLE_S:g})")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the messages; prints, and keeps nothing")
    arguments = parser.parse_args()
    missing = set(CPUS) - os.sched_getaffinity(0)
    if missing:
        parser.error(f"the two sides are pinned to cores {CPUS}; this process may not use {sorted(missing)}")
    results = asyncio.run(run(arguments))
    table = render(results)
    print(table)
    if not arguments.quick:
        name = f"{results['date'][:10]}-{slug(results['machine'])}"
        path = BENCH / "results" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        (BENCH / "RESULTS.md").write_text(table)
        print(f"kept: bench/results/{name}.json, bench/RESULTS.md", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
