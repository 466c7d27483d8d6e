"""The main job, tried again and again: exact totals under kills, and what a second worker is worth.

    python tests/torture/run_atlas.py exact DIR [--times 20] [--skip site-packages]   each run under --chaos kill=0.3s
    python tests/torture/run_atlas.py speed DIR [--times 5] [--skip site-packages]    one worker against two, in turn

`exact`: each run's report equals `examples/code_atlas/own_count.py`, and at least two processes died in it.
`speed`: medians of `run_started` to `run_stopped`; on two idle cores two workers are to be 1.7 times as fast.
Exit status 1 when anything is amiss.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ATLAS = ROOT / "examples/code_atlas"
DEATHS_WANTED = 2
SPEED_WANTED = 1.7


def run(path: str, skip: list[str], folder: Path, *options: str) -> tuple[int, list[dict[str, Any]]]:
    """One run as a user would start it: its exit code and its lifecycle events."""
    events = folder / "events"
    events.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "civitas_shm", "run", str(ATLAS / "topology.yaml"), "--quiet", "--fresh",
        "--name", f"atlas-{os.getpid()}", "--set", f"walker.path={path}", "--set", f"walker.skip=[{','.join(skip)}]",
        "--set", f"report.out={folder / 'report.json'}", "--events", str(events), *options,
    ]  # fmt: skip
    ended = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if ended.returncode:
        sys.stderr.buffer.write(ended.stderr)
    return ended.returncode, [json.loads(line) for line in events.read_text().splitlines()]


def exact(path: str, skip: list[str], times: int, folder: Path) -> bool:
    wrong = 0
    for number in range(1, times + 1):
        code, events = run(path, skip, folder, "--chaos", "kill=0.3s")
        deaths = sum(event["event"] == "process_died" for event in events)
        skips = [argument for name in skip for argument in ("--skip", name)]
        count = subprocess.run(
            [sys.executable, str(ATLAS / "own_count.py"), path, "--check", str(folder / "report.json"), *skips],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        good = code == 0 and count.returncode == 0 and deaths >= DEATHS_WANTED
        wrong += not good
        verdict = "exact" if good else "WRONG"
        print(f"{number:3}: {verdict}; {deaths} deaths; exit {code}; {count.stdout.strip()}", flush=True)
    print(f"{times - wrong} of {times} exact with at least {DEATHS_WANTED} deaths")
    return wrong == 0


def speed(path: str, skip: list[str], times: int, folder: Path) -> bool:
    took_s: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(times):
        for workers in took_s:
            code, events = run(path, skip, folder, "--workers", str(workers))
            if code:
                print(f"WRONG: {workers} workers ended with exit code {code}")
                return False
            at = {event["event"]: event["time"] for event in events}
            took_s[workers].append(at["run_stopped"] - at["run_started"])
    medians = {workers: statistics.median(seconds) for workers, seconds in took_s.items()}
    ratio = medians[1] / medians[2]
    print(f"one worker {medians[1]:.2f} s, two {medians[2]:.2f} s (medians of {times}): {ratio:.2f} times as fast")
    return ratio >= SPEED_WANTED


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["exact", "speed"])
    parser.add_argument("path")
    parser.add_argument("--times", type=int, default=None)
    parser.add_argument("--skip", action="append", default=[])
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="civitas-atlas-") as folder:
        if chosen.what == "exact":
            return not exact(chosen.path, chosen.skip, chosen.times or 20, Path(folder))
        return not speed(chosen.path, chosen.skip, chosen.times or 5, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
