"""The promise, tried from outside: numbers from one process to another under SIGKILLs of anybody but host and caller.

    python tests/torture/run_numbers.py --count 100000 --kills 40 [--seed S] [--pause 0.2]

A source appends n to a file after `send(n)` has returned; a sink in another process appends what it handles. Meanwhile
random processes of the run die by SIGKILL: workers, standbys, the fork server. Afterwards every n in the first file
must be in the second, first arrivals in order, and doubles at most the messages in hand at the kills (as --events tells
them) and what their sender sent again because it died between commit and note. Exit status 1 when anything is amiss.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

HERE = Path(__file__).parent

TOPOLOGY = """
transport: {{type: shm}}
pool: {{size: 2, standby: 1}}
supervision:
  max_restarts: {budget}
  restart_window: 3600
  backoff_base: 0
  children:
    - agent: {{name: sink, type: number_agents.Sink, process: w2, config: {{got: {got}}}}}
    - agent:
        {{name: source, type: number_agents.Source, process: w1,
         config: {{sent: {sent}, count: {count}, pause_s: {pace}}}}}
    - agent: {{name: starter, type: number_agents.Starter, process: w2, state: shm}}
"""


def victims(host: int) -> list[psutil.Process]:
    """Everything under the host: workers, standbys, fork server; keepers of memory are none."""
    try:
        return [child for child in psutil.Process(host).children(recursive=True) if child.name() != "civ-keeper"]
    except psutil.NoSuchProcess:
        return []


def host_of(caller: int) -> int | None:
    try:
        for child in psutil.Process(caller).children():
            if "civitas_shm.host.main" in " ".join(child.cmdline()):
                return child.pid
    except psutil.NoSuchProcess:
        pass
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--pause", type=float, default=0.2, help="mean seconds between kills")
    parser.add_argument("--pace", type=float, default=0.012, help="seconds that the source waits after 100 numbers")
    parser.add_argument("--seed", type=int, default=None)
    chosen = parser.parse_args()
    seed = chosen.seed if chosen.seed is not None else random.randrange(1 << 32)
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="civitas-numbers-") as folder:
        return run(Path(folder), chosen.count, chosen.kills, chosen.pause, chosen.pace, dice, seed)


def run(folder: Path, count: int, kills: int, pause_s: float, pace_s: float, dice: random.Random, seed: int) -> int:
    sent, got, events = folder / "sent", folder / "got", folder / "events"
    sent.touch()
    got.touch()
    topology = folder / "topology.yaml"
    topology.write_text(TOPOLOGY.format(budget=10 * kills + 10, got=got, sent=sent, count=count, pace=pace_s))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    began = time.monotonic()
    caller = subprocess.Popen(
        [sys.executable, "-m", "civitas_shm", "run", str(topology), "--name", f"numbers-{os.getpid()}", "--fresh",
         "--events", str(events)],
        env=environment,
    )  # fmt: skip
    killed: dict[str, int] = {}
    while caller.poll() is None and sum(killed.values()) < kills:
        time.sleep(dice.uniform(0.2, 1.8) * pause_s)
        host = host_of(caller.pid)
        alive = victims(host) if host else []
        if len(alive) < 3 or not sent.stat().st_size:
            continue
        victim = dice.choice(alive)
        try:
            kind = victim.name()
            victim.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
        killed[kind] = killed.get(kind, 0) + 1
    code = caller.wait()
    return verdict(sent, got, events, code, killed, kills, time.monotonic() - began, seed)


def verdict(
    sent: Path, got: Path, events: Path, code: int, killed: dict[str, int], kills: int, took_s: float, seed: int
) -> int:
    noted = [int(line) for line in sent.read_bytes().split()]
    arrived = [int(line) for line in got.read_bytes().split()]
    told = [json.loads(line) for line in events.read_text().splitlines()]
    deaths = [entry for entry in told if entry["event"] == "process_died"]
    in_hand = sum(len(entry.get("in_hand") or []) for entry in deaths)
    first: dict[int, int] = {}
    for place, n in enumerate(arrived):
        first.setdefault(n, place)
    lost = sorted(set(noted) - set(first))
    order = [n for n, _ in sorted(first.items(), key=lambda item: item[1])]
    doubles = len(arrived) - len(first)
    # A source that died between commit and note sends that number again: one double for each of its deaths at most.
    allowed = in_hand + len(deaths)
    print(
        f"seed {seed}: {len(noted):,} noted, {len(arrived):,} arrived, {doubles} doubled (at most {allowed}: {in_hand} "
        f"in hand at {len(deaths)} deaths), {len(lost)} lost; killed {killed}; exit {code}; {took_s:.1f} s"
    )
    wrong = []
    if code:
        wrong.append(f"the run ended with exit code {code}")
    if lost:
        wrong.append(f"lost: {lost[:10]}")
    if order != sorted(order):
        wrong.append("first arrivals are out of order")
    if doubles > allowed:
        wrong.append("more doubles than messages in hand")
    if sum(killed.values()) < kills:
        wrong.append(f"only {sum(killed.values())} of {kills} kills happened before the run ended")
    for sentence in wrong:
        print(f"WRONG: {sentence}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
