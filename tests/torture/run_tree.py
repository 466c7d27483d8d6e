"""A whole tree killed from outside, again and again: nobody is left, and after `gc --yes` no segment.

    python tests/torture/run_tree.py --times 1000 [--seed S]

Caller, host, fork server, workers and standby die by SIGKILL in a random order with random pauses, at a random moment
from the start of the run on. Prints one line; exit status 1 when anything is left.
"""

from __future__ import annotations

import argparse
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
MARK = "CIVITAS_SHM_TREE"
"""In the environment of everybody below: whoever bears it and lives is an orphan."""

GRACE_S = 5.0
PROCESSES = 6
"""Caller, host, fork server, two workers, standby. How many of them are there when they are killed is drawn."""

TOPOLOGY = """
transport: {{type: shm, arena_mb: 8}}
pool: {{size: 2, standby: 1}}
supervision:
  children:
    - agent: {{name: k0, type: chaos_agents.Sink, config: {{folder: "{folder}"}}}}
    - agent: {{name: s0, type: chaos_agents.Source, config: {{folder: "{folder}", sinks: [k0]}}}}
"""


def family(mark: str) -> list[psutil.Process]:
    """Everybody who bears the mark and lives."""
    found = []
    for process in psutil.process_iter():
        try:
            if f"{MARK}={mark}".encode() in Path(f"/proc/{process.pid}/environ").read_bytes():
                found.append(process)
        except OSError:  # gone, or not ours
            continue
    return found


def once(folder: Path, name: str, dice: random.Random) -> tuple[int, int, int]:
    """How many were killed, how many lived on, how many segments were left after gc."""
    topology = folder / "topology.yaml"
    topology.write_text(TOPOLOGY.format(folder=folder))
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, MARK: name}
    caller = subprocess.Popen(
        [sys.executable, "-m", "civitas_shm", "run", str(topology), "--quiet", "--fresh", "--name", name],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
    )  # fmt: skip
    wanted = dice.randint(2, PROCESSES)
    while len(family(name)) < wanted and caller.poll() is None:
        time.sleep(0.01)
    time.sleep(dice.choice([0, dice.uniform(0, 0.5)]))
    victims = family(name)
    dice.shuffle(victims)
    for victim in victims:
        try:
            victim.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
        if dice.random() < 0.3:
            time.sleep(dice.uniform(0, 0.01))
    until_s = time.monotonic() + GRACE_S
    caller.kill()  # it may not have borne the mark yet
    caller.wait()
    while (orphans := family(name)) and time.monotonic() < until_s:
        time.sleep(0.01)
    subprocess.run(
        [sys.executable, "-m", "civitas_shm", "gc", "--yes", name], stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    segments = [entry for entry in os.listdir("/dev/shm") if f"-{name}-" in entry]
    return len(victims), len(orphans), len(segments)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--times", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    chosen = parser.parse_args()
    dice = random.Random(chosen.seed)
    killed = orphans = segments = 0
    with tempfile.TemporaryDirectory(prefix="civitas-tree-") as folder:
        os.environ["CIVITAS_SHM_DIR"] = f"{folder}/runs"
        for number in range(chosen.times):
            here = Path(folder) / str(number)
            here.mkdir()
            some = once(here, f"tree-{os.getpid()}-{number}", dice)
            killed, orphans, segments = killed + some[0], orphans + some[1], segments + some[2]
        rest = [str(path) for path in Path(folder, "runs").iterdir()] if Path(folder, "runs").exists() else []
    print(
        f"tree: {chosen.times} killed, {orphans} orphans, {segments} segments, {len(rest)} run directories left; "
        f"{killed} processes, seed {chosen.seed}"
    )
    return 1 if orphans or segments or rest or killed < 2 * chosen.times else 0


if __name__ == "__main__":
    sys.exit(main())
