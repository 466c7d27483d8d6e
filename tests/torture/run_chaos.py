"""Whole runs under torture: workers, standbys, fork server and host killed, stopped, continued at random, under load.

    python tests/torture/run_chaos.py --kills 1000 --hosts 15 --stops 50 [--seed S] [--keep DIR]

A run of three sources and three sinks, each in its own process, beside one standby. When enough of its processes are
dead, the host dies too, every third time while it still adopts; `run --resume` goes on. At the end the sources are told
that it is enough, the run drains, and `history.py` says whether anything was lost, doubled beyond what was in hand,
reordered or invented. Prints one line; exit status 1 when anything is amiss, or when too little has happened.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from history import faults, read  # noqa: E402

SOURCES = ("s0", "s1", "s2")
SINKS = ("k0", "k1", "k2")
PAUSE_S = 0.02
"""Mean time between two blows, unless `--pause` says otherwise."""
STOP_S = 0.05
IN_HAND_SHARE = 0.3
WORKERS_MIN = 3
"""With fewer workers there are no kills, so that somebody handles messages."""
WEIGHTS = {"civ-standby": 0.3, "civ-fork": 0.1}
"""How often these are chosen, beside 1 for each worker."""

AGENT = """
    - agent:
        {{name: {name}, type: chaos_agents.{kind}, process: p-{name}, mailbox_size: 100{more}, config: {config}}}"""

TOPOLOGY = """
transport: {{type: shm, arena_mb: 16}}
pool: {{size: 1, standby: 1, pin: false}}
stop: {{drain: all, timeout_s: 60}}
supervision:
  max_restarts: 100000
  restart_window: 3600
  backoff_base: 0
  children:{children}
"""


@dataclass
class Blows:
    """What was done."""

    kills: Counter[str] = field(default_factory=Counter)
    """By kind of process: worker, standby, fork server, host, host at its start."""
    stops: int = 0
    in_hand_kills: int = 0
    """Deaths of workers that had a message in hand, as the host saw them."""
    in_hand: int = 0
    """Messages that were in hand at deaths, at most."""

    def total(self) -> int:
        return sum(self.kills.values())


def topology(folder: Path) -> Path:
    from civitas_shm.topology import schema

    # A message that is in hand at many kills is no poison here: without a limit it is handled in the end.
    limited = "max_deliveries" not in getattr(schema.Agent, "NOT_YET", ())
    more = ", max_deliveries: 0" if limited else ""
    children = "".join(
        AGENT.format(name=name, kind=kind, more=more, config=json.dumps({"folder": str(folder), "sinks": list(SINKS)}))
        for kind, names in (("Sink", SINKS), ("Source", SOURCES))
        for name in names
    )
    path = folder / "topology.yaml"
    path.write_text(TOPOLOGY.format(children=children))
    return path


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def segments() -> list[Path]:
    """Of this run. Held open between two hosts, they are no rests to others on this machine who tidy up: a `gc` that
    has another run directory, the test run's look after each test."""
    return list(Path("/dev/shm").glob(f"civitas-{os.getuid()}-chaos-{os.getpid()}-*"))


def children_of(pid: int) -> dict[int, str]:
    """Pid and name of each but keepers of memory, who run nothing."""
    found: dict[int, str] = {}
    try:
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if (name := Path(f"/proc/{child}/comm").read_text().strip()) != "civ-keeper":
                found[int(child)] = name
    except OSError:  # gone meanwhile
        pass
    return found


def host_of(caller: int) -> int | None:
    for pid in children_of(caller):
        try:
            if b"civitas_shm.host.main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        except OSError:
            continue
    return None


def strike(pid: int, number: int) -> bool:
    """A signal to a process that is there; through a pidfd, so that it is no other one."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


class Life:
    """One caller with its host."""

    def __init__(
        self, path: Path, folder: Path, number: int, blows: Blows, dice: random.Random, pause_s: float
    ) -> None:
        self._pause_s = pause_s
        self.events = folder / f"events-{number}"
        self._blows, self._dice = blows, dice
        self._stopped: dict[int, float] = {}
        self._folder = folder
        self.run_ids: set[str] = set()
        self.kept: dict[str, int] = {}
        """What waited when it ended in order."""
        self.failures: list[str] = []
        """Agents that raised, messages that were given up: nobody here is told to do either."""
        self._sizes = {name: _size(folder / name) for name in os.listdir(folder)}
        self.log = folder / f"log-{number}"
        with self.log.open("wb") as log:
            self.caller = subprocess.Popen(
                [sys.executable, "-m", "civitas_shm", "run", str(path), "--quiet", "--name", f"chaos-{os.getpid()}",
                 "--events", str(self.events), "--resume" if number else "--fresh"],
                stdout=log, stderr=log,
                env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])},
            )  # fmt: skip
        self.host = 0

    def find_host(self) -> bool:
        while not self.host and self.caller.poll() is None:
            self.host = host_of(self.caller.pid) or 0
            time.sleep(0.001)
        return bool(self.host)

    def until_all_run(self) -> None:
        """Until each source and each sink has noted something in this life."""
        notes = [*(f"sent-{name}" for name in SOURCES), *(f"got-{name}" for name in SINKS)]
        while self.caller.poll() is None and any(
            _size(self._folder / name) <= self._sizes.get(name, 0) for name in notes
        ):
            time.sleep(0.005)

    def torture(self, kills: int, stops: int) -> None:
        """So many of each, of what is under the host."""
        plan = ["kill"] * kills + ["stop"] * stops
        self._dice.shuffle(plan)
        for what in plan:
            done = False
            while not done and self.caller.poll() is None:
                time.sleep(self._dice.uniform(0.2, 1.8) * self._pause_s)
                self._continue(time.monotonic())
                done = self._kill() if what == "kill" else self._stop()
        self._continue(float("inf"))

    def _kill(self) -> bool:
        victims = children_of(self.host)
        weights = [WEIGHTS.get(name, 1.0) for name in victims.values()]
        if sum(name.startswith("civ-p-") for name in victims.values()) < WORKERS_MIN:
            return False  # who kills each fork server before it can fork proves nothing but that
        [pid] = self._dice.choices(list(victims), weights)
        kind = {"civ-standby": "standby", "civ-fork": "fork server"}.get(victims[pid], "worker")
        if victims[pid].startswith("civ-") and strike(pid, signal.SIGKILL):
            self._blows.kills[kind] += 1
            return True
        return False

    def _stop(self) -> bool:
        victims = [pid for pid in (self.host, *children_of(self.host)) if pid not in self._stopped]
        pid = self._dice.choice(victims)
        if not strike(pid, signal.SIGSTOP):
            return False
        self._stopped[pid] = time.monotonic() + STOP_S
        self._blows.stops += 1
        return True

    def _continue(self, now_s: float) -> None:
        for pid, until_s in list(self._stopped.items()):
            if until_s <= now_s:
                strike(pid, signal.SIGCONT)
                del self._stopped[pid]

    def kill_host(self, kind: str) -> bool:
        """False: it had ended by itself, which nobody has told it to."""
        struck = strike(self.host, signal.SIGKILL)
        if struck:
            self._blows.kills[kind] += 1
            self._blows.in_hand += len(SINKS)  # each may have one
        self.caller.wait()
        return struck

    def last_words(self) -> str:
        events = self.events.read_text().splitlines() if self.events.exists() else []
        return f"{self.log.read_text()[-600:].strip()}; its last events: {events[-3:]}"

    def count(self) -> None:
        """What its host saw: deaths with a message in hand."""
        lines = self.events.read_text().splitlines() if self.events.exists() else []
        for line in lines:
            event = json.loads(line)
            if event["event"] == "run_started":
                self.run_ids.add(event["run_id"])
            if event["event"] == "run_stopped":
                self.kept = event.get("waiting") or {}
            if event["event"] in ("agent_failed", "dead_letter"):
                self.failures.append(f"{event['event']} of {event['agent']}: {event['cause']}")
            if event["event"] == "process_died":
                self._blows.in_hand_kills += bool(event.get("in_hand"))
                self._blows.in_hand += sum(entry["agent"] in SINKS for entry in event.get("in_hand") or [])


def play(
    folder: Path, kills: int, hosts: int, stops: int, seed: int, pause_s: float = PAUSE_S
) -> tuple[str, list[str]]:
    """The line that says what happened, and what is wrong."""
    dice, blows, wrong = random.Random(seed), Blows(), list[str]()
    path = topology(folder)
    runs: set[str] = set()
    held: list[int] = []
    began_s = time.monotonic()
    lives = hosts + 1
    for number in range(lives):
        life = Life(path, folder, number, blows, dice, pause_s)
        last = number == hosts
        if killed := life.find_host():
            if not last and number % 3 == 1:
                time.sleep(dice.uniform(0.0, 0.4))  # it imports, adopts, or starts its first agents
                killed = life.kill_host("host at its start")
            else:
                life.until_all_run()
                held += [os.open(path, os.O_RDONLY) for path in segments()]
                left = [n for n in range(number, lives) if n == hosts or n % 3 != 1]
                life.torture(
                    max(0, kills - (hosts - number) - blows.total()) // len(left),
                    max(0, stops - blows.stops) // len(left) + 1,
                )
                if last:
                    (folder / "enough").touch()
                    life.caller.send_signal(signal.SIGTERM)
                else:
                    killed = life.kill_host("host")
        code = life.caller.wait()
        life.count()
        runs |= life.run_ids
        if last and life.kept:  # they are not lost, but the drain has ended too early, or not at all
            wrong.append(f"the last life was to drain and kept {life.kept}")
        wrong += [f"life {number}: {failure}" for failure in life.failures[:5]]
        if code != (0 if last else 1) or not killed:
            wrong.append(f"life {number} ended with exit code {code}: {life.last_words()}")
            if code not in (0, 1):
                break  # refused: it would be the next time too
    for fd in held:
        os.close(fd)
    if len(runs) > 1:
        wrong.append(f"the run was made anew: {len(runs)} run ids; did somebody remove its segments (gc --yes)?")
    history = read(folder, SOURCES, SINKS, blows.in_hand)
    found, doubles = faults(history)
    returned = sum(len(sent.returned) for sent in history.sent.values())
    wrong += found[:10]
    if found:
        wrong.append(f"the last life said: {life.last_words()}")
    share = blows.in_hand_kills / max(1, blows.total())
    hosts_killed = blows.kills["host"] + blows.kills["host at its start"]
    for what, count, wanted in (("kills", blows.total(), kills), ("hosts", hosts_killed, hosts),
                                ("stops", blows.stops, stops)):  # fmt: skip
        if count < wanted:
            wrong.append(f"only {count} {what} happened, of {wanted}")
    if share < IN_HAND_SHARE:
        wrong.append(f"only {share:.0%} of the kills found a message in hand")
    by_kind = ", ".join(f"{count} {kind}" for kind, count in sorted(blows.kills.items()))
    line = (
        f"chaos: {blows.total()} kills ({by_kind}; {share:.0%} with a message in hand), {blows.stops} stops, "
        f"{returned:,} messages, {len(found)} faults, {doubles} doubles of {blows.in_hand} in hand, "
        f"seed {seed}, {time.monotonic() - began_s:.0f} s"
    )
    return line, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--hosts", type=int, default=15)
    parser.add_argument("--stops", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--pause", type=float, default=PAUSE_S, metavar="SECONDS", help="mean time between two blows")
    parser.add_argument("--keep", type=Path, help="where notes, events and logs of a run with faults are kept")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="civitas-chaos-") as folder:
        os.environ["CIVITAS_SHM_DIR"] = f"{folder}/runs"
        line, wrong = play(Path(folder), chosen.kills, chosen.hosts, chosen.stops, chosen.seed, chosen.pause)
        if wrong and chosen.keep:
            shutil.copytree(
                folder, chosen.keep / f"seed-{chosen.seed}-{os.getpid()}", ignore=shutil.ignore_patterns("control")
            )
        if wrong:
            subprocess.run(
                [sys.executable, "-m", "civitas_shm", "gc", "--yes", f"chaos-{os.getpid()}"],
                stdout=subprocess.DEVNULL,
                check=False,
            )
    print(line)
    for sentence in wrong:
        print(f"WRONG: {sentence}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
