"""The main job, tried again and again: exact totals under kills, and what a second worker is worth.

    python tests/torture/run_atlas.py exact DIR [--times 20] [--skip site-packages]   each run under --chaos kill=0.3s
    python tests/torture/run_atlas.py host DIR [--times 20] [--skip site-packages]    and two hosts killed and resumed
    python tests/torture/run_atlas.py speed DIR [--times 5] [--skip site-packages]    one worker against two, in turn

`exact`: each run's report equals `examples/code_atlas/own_count.py`, and at least two processes died in it.
`host`: the same under `--chaos kill=0.1s,stop=0.3s/0.2s`; the host dies by SIGKILL while work waits, `run --resume`
goes on, its host dies too, and the third ends the work. At least one worker was stopped.
`speed`: medians of `run_started` to `run_stopped`; on two idle cores two workers are to be 1.7 times as fast.
Exit status 1 when anything is amiss.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
ATLAS = ROOT / "examples/code_atlas"
DEATHS_WANTED = 2
SPEED_WANTED = 1.7
HOSTS_KILLED = 2
CHAOS = "kill=0.1s,stop=0.3s/0.2s"


def command(path: str, skip: list[str], folder: Path, *options: str) -> list[str]:
    """A run as a user would start it."""
    return [
        sys.executable, "-m", "civitas_shm", "run", str(ATLAS / "topology.yaml"), "--quiet",
        "--name", f"atlas-{os.getpid()}", "--set", f"walker.path={path}", "--set", f"walker.skip=[{','.join(skip)}]",
        "--set", f"report.out={folder / 'report.json'}", "--events", str(folder / "events"), *options,
    ]  # fmt: skip


def run(path: str, skip: list[str], folder: Path, *options: str) -> tuple[int, list[dict[str, Any]]]:
    """One run: its exit code and its lifecycle events."""
    events = folder / "events"
    events.unlink(missing_ok=True)
    ended = subprocess.run(
        command(path, skip, folder, "--fresh", *options),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    if ended.returncode:
        sys.stderr.buffer.write(ended.stderr)
    return ended.returncode, [json.loads(line) for line in events.read_text().splitlines()]


def exact(path: str, skip: list[str], times: int, folder: Path) -> bool:
    wrong = 0
    for number in range(1, times + 1):
        code, events = run(path, skip, folder, "--chaos", "kill=0.3s")
        deaths = sum(event["event"] == "process_died" for event in events)
        counted, said = is_exact(path, skip, folder)
        good = code == 0 and counted and deaths >= DEATHS_WANTED
        wrong += not good
        print(f"{number:3}: {'exact' if good else 'WRONG'}; {deaths} deaths; exit {code}; {said}", flush=True)
    print(f"{times - wrong} of {times} exact with at least {DEATHS_WANTED} deaths")
    return wrong == 0


def is_exact(path: str, skip: list[str], folder: Path) -> tuple[bool, str]:
    """Whether the report equals the independent count, and what that said."""
    skips = [argument for name in skip for argument in ("--skip", name)]
    count = subprocess.run(
        [sys.executable, str(ATLAS / "own_count.py"), path, "--check", str(folder / "report.json"), *skips],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return count.returncode == 0, count.stdout.strip()


def host_of(caller: int) -> int | None:
    """Pid of the host that this `run` has started."""
    for child in psutil.Process(caller).children():
        if "civitas_shm.host.main" in child.cmdline():
            return child.pid
    return None


def run_and_kill_host(path: str, skip: list[str], folder: Path, after_s: float, *options: str) -> tuple[int, bool]:
    """A run whose host dies that long after its first worker was ready: exit code, and whether it died in time."""
    (folder / "events").unlink(missing_ok=True)
    started = subprocess.Popen(
        command(path, skip, folder, *options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while started.poll() is None:
        if (folder / "events").exists() and "process_started" in (folder / "events").read_text():
            break
        time.sleep(0.002)
    time.sleep(after_s)
    host = host_of(started.pid) if started.poll() is None else None
    if host is not None:
        os.kill(host, signal.SIGKILL)
    return started.wait(), host is not None


def host(path: str, skip: list[str], times: int, folder: Path, seed: int) -> bool:
    """The host dies twice and is resumed twice."""
    dice = random.Random(seed)
    wrong = 0
    for number in range(1, times + 1):
        (folder / "report.json").unlink(missing_ok=True)
        codes, killed, deaths, stops = [], 0, 0, 0
        for life in range(HOSTS_KILLED + 1):
            options = ("--chaos", CHAOS, "--fresh" if life == 0 else "--resume")
            if life < HOSTS_KILLED:
                code, in_time = run_and_kill_host(path, skip, folder, dice.uniform(0.1, 0.4), *options)
                killed += in_time
            else:
                ended = subprocess.run(
                    command(path, skip, folder, *options),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    check=False,
                )
                code = ended.returncode
            codes.append(code)
            told = [json.loads(line) for line in (folder / "events").read_text().splitlines()]
            deaths += sum(event["event"] == "process_died" for event in told)
            stops += sum(event["event"] == "process_stopped" for event in told)
        counted, said = is_exact(path, skip, folder)
        good = codes == [1] * HOSTS_KILLED + [0] and counted and killed == HOSTS_KILLED and stops > 0
        wrong += not good
        print(
            f"{number:3}: {'exact' if good else 'WRONG'}; {killed} hosts and {deaths} workers died, {stops} stops; "
            f"exits {codes}; {said}",
            flush=True,
        )
    print(f"{times - wrong} of {times} exact with {HOSTS_KILLED} hosts killed and resumed, seed {seed}")
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
    parser.add_argument("what", choices=["exact", "host", "speed"])
    parser.add_argument("path")
    parser.add_argument("--times", type=int, default=None)
    parser.add_argument("--skip", action="append", default=[])
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="civitas-atlas-") as folder:
        if chosen.what == "exact":
            return not exact(chosen.path, chosen.skip, chosen.times or 20, Path(folder))
        if chosen.what == "host":
            return not host(chosen.path, chosen.skip, chosen.times or 20, Path(folder), chosen.seed)
        return not speed(chosen.path, chosen.skip, chosen.times or 5, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
