#!/usr/bin/env python3
"""How long a death is felt: kills of workers and hosts with a real run, by the monotonic clock that all share.

    scripts/bench --recovery            all of it, about seven minutes; writes RECOVERY.md, and every figure into
                                        results/<date>-<machine>-recovery.json
    python bench/recovery.py --quick    a tenth of it, prints only

- *worker*: from `kill(pid, SIGKILL)` to the first instruction of the handler that gets the message in hand again, in
  the successor; `on_start` is empty and the agent's module is preloaded, as its standby has it;
- *host, workers gone*: from SIGKILL of the host to the moment when the pidfd of the last process under it says that it
  has ended; in one case a worker is stopped and another one holds the GIL in C;
- *host, resumed*: from SIGKILL of the host to the first instruction of the handler in the run that resumed it; a fresh
  host is started at once by the same program, so its imports are in the figure;
- *worker with 1 GiB*: the same, of one that has written to so much memory;
- *floor*: the same as *worker* with bare processes, which have our modules in memory and nothing else of ours
  (`bare_deaths.py`): what the kernel and the interpreter take on this machine;
- *start*: from the host's `run_started` to the last worker's `process_started`, of 100 workers without a standby.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from machine import describe, slug

from civitas_shm.errors import CivitasError
from civitas_shm.host.client import HostClient, HostOptions
from civitas_shm.topology.model import AgentSpec, PoolSpec, SupervisorSpec, TopologySpec, TransportSpec

BENCH = Path(__file__).resolve().parent
KILLS = 300
HOSTS = 20
STARTS = 5
SETTLE_S = 0.4
"""After each recovery: the next standby and the keeper are there, and everything sleeps."""
GROWN_BYTES = 1 << 30

BARS_MS: dict[str, dict[str, float]] = {
    "worker, with a standby": {"p50": 3.0, "p99": 15.0},
    "worker, without one": {"p50": 10.0, "p99": 40.0},
    "host, workers gone": {"max": 20.0},
    "host, workers gone, one stopped, one in C": {"max": 20.0},
    "host, resumed": {"max": 1000.0},
    "start of 100 workers": {"p50": 500.0},
}


class Run:
    """One run under a host of its own, started and ended by the one who measures."""

    def __init__(self, workers: int, standby: int, *, resume: bool = False) -> None:
        agents = [AgentSpec(f"a{n}", "agents.Held", process=f"w{n}") for n in range(workers)]
        spec = TopologySpec(
            supervision=SupervisorSpec(children=list(agents), max_restarts=1_000_000, backoff_base_s=0.0),
            transport=TransportSpec("shm", arena_mb=8, mailboxes=128),
            pool=PoolSpec(size=1, standby=standby, preload=["agents"]),
            import_paths=[str(BENCH)],
        )
        self.events: list[dict[str, Any]] = []
        options = HostOptions(f"bench-{os.getpid()}", resume=resume, fresh=not resume)
        self.client = HostClient(
            spec, options, on_line=lambda _: None, on_event=self.events.append, on_snapshot=lambda _: None
        )

    async def __aenter__(self) -> Run:
        await self.client.start()
        await self.client.running()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.stop(now=True)
        await self.left()

    async def left(self) -> None:
        try:
            await self.client.wait()
        except CivitasError:  # its host was killed: that is what this is about
            return

    async def ask(self, name: str, payload: dict[str, Any], kind: str) -> dict[str, Any]:
        bus = self.client.orders.runner.bus
        return dict((await bus.ask(name, payload, message_type=kind, timeout=60)).payload)

    async def in_hand(self, name: str) -> None:
        """Until a handler of that agent is at it."""
        port = self.client.port
        while not port.stats(port.resolve(name)).in_hand:
            await asyncio.sleep(0.0005)

    def below(self) -> list[int]:
        """Fork server, workers, standbys."""
        return [child.pid for child in psutil.Process(self.client.host_pid).children(recursive=True)]


async def worker_deaths(standby: int, kills: int, *, grown_bytes: int = 0) -> list[float]:
    took_ms = []
    async with Run(1, standby) as run:
        for _ in range(kills):
            pid = (await run.ask("a0", {"grow_bytes": grown_bytes}, "where"))["pid"]
            asked = asyncio.ensure_future(run.ask("a0", {"pid": pid}, "hold"))
            await run.in_hand("a0")
            await asyncio.sleep(SETTLE_S)
            killed_ns = time.monotonic_ns()
            os.kill(pid, signal.SIGKILL)
            took_ms.append(((await asked)["at_ns"] - killed_ns) / 1e6)
    return took_ms


async def bare_deaths(how: str, kills: int) -> list[float]:
    """In a fresh interpreter, for its children are copies of it."""
    program = [sys.executable, str(BENCH / "bare_deaths.py"), str(kills), how]
    process = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(program)} ended with {process.returncode}")
    return list(json.loads(said))


async def host_deaths(hosts: int, *, hard: bool) -> list[float]:
    took_ms = []
    for _ in range(hosts):
        async with Run(4, 1) as run:
            pids = [(await run.ask(f"a{n}", {}, "where"))["pid"] for n in range(4)]
            if hard:
                sender = run.client.orders.runner.bus
                await sender.send("a0", {}, message_type="hold_gil")
                await run.in_hand("a0")
                os.kill(pids[1], signal.SIGSTOP)
                await asyncio.sleep(0.05)
            took_ms.append(_until_all_are_gone(run))
            await run.left()
    async with Run(1, 0):  # with the name of the last one, whose segments nobody else would remove
        pass
    return took_ms


def _until_all_are_gone(run: Run) -> float:
    pidfds = [os.pidfd_open(pid) for pid in run.below()]
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    left = set(pidfds)
    killed_ns = time.monotonic_ns()
    os.kill(run.client.host_pid, signal.SIGKILL)
    while left:
        for pidfd, _ in poll.poll():
            poll.unregister(pidfd)
            left.discard(pidfd)
    gone_ns = time.monotonic_ns()
    for pidfd in pidfds:
        os.close(pidfd)
    return (gone_ns - killed_ns) / 1e6


async def host_resumes(hosts: int) -> list[float]:
    took_ms = []
    run = Run(2, 1)
    await run.__aenter__()
    for _ in range(hosts):
        pid = (await run.ask("a0", {}, "where"))["pid"]
        await run.client.orders.runner.bus.send("a0", {"pid": pid, "tell": "a1"}, message_type="hold")
        await run.in_hand("a0")
        killed_ns = time.monotonic_ns()
        os.kill(run.client.host_pid, signal.SIGKILL)
        await run.left()
        run = Run(2, 1, resume=True)
        await run.__aenter__()
        took_ms.append(((await run.ask("a1", {}, "told"))["at_ns"] - killed_ns) / 1e6)
    await run.__aexit__()
    return took_ms


async def run_starts(starts: int, workers: int) -> list[float]:
    took_ms = []
    for _ in range(starts):
        async with Run(workers, 0) as run:
            begun = next(event["time"] for event in run.events if event["event"] == "run_started")
            ready = [event["time"] for event in run.events if event["event"] == "process_started"]
            assert len(ready) == workers
            took_ms.append((max(ready) - begun) * 1e3)
    return took_ms


def figures(took_ms: list[float]) -> dict[str, float]:
    ordered = sorted(took_ms)
    at = lambda share: ordered[min(len(ordered) - 1, int(share * len(ordered)))]  # noqa: E731
    return {"n": len(ordered), "p50": at(0.5), "p99": at(0.99), "max": ordered[-1], "min": ordered[0]}


async def measure(scale: float, only: str) -> dict[str, list[float]]:
    kills, hosts, starts = (max(2, int(n * scale)) for n in (KILLS, HOSTS, STARTS))
    cases: dict[str, Callable[[], Awaitable[list[float]]]] = {
        "worker, with a standby": lambda: worker_deaths(1, kills),
        "worker, without one": lambda: worker_deaths(0, kills),
        "worker with 1 GiB, with a standby": lambda: worker_deaths(1, max(2, kills // 10), grown_bytes=GROWN_BYTES),
        "floor of these, with a standby": lambda: bare_deaths("standby", kills),
        "floor of these, without one": lambda: bare_deaths("fork", kills),
        "host, workers gone": lambda: host_deaths(hosts, hard=False),
        "host, workers gone, one stopped, one in C": lambda: host_deaths(hosts, hard=True),
        "host, resumed": lambda: host_resumes(hosts),
        "start of 100 workers": lambda: run_starts(starts, 100),
    }
    return {name: await case() for name, case in cases.items() if only in name}


def table(cases: dict[str, list[float]]) -> str:
    rows = [
        "| from the death | n | p50 ms | p99 ms | max ms | bar | |",
        "| --- | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for name, took_ms in cases.items():
        found, bars = figures(took_ms), BARS_MS.get(name, {})
        holds = all(found[which] <= most for which, most in bars.items())
        bar = ", ".join(f"{which} ≤ {most:g}" for which, most in bars.items())
        cells = [f"{found['n']:.0f}", *(f"{found[which]:.1f}" for which in ("p50", "p99", "max"))]
        rows.append(
            f"| {name} | {' | '.join(cells)} | {bar} | {('holds' if holds else '**does not hold**') if bars else ''} |"
        )
    return "\n".join(rows) + "\n"


def page(date: str, machine: dict[str, object], cases: dict[str, list[float]]) -> str:
    facts = ", ".join(f"{machine[key]}" for key in ("cpu", "kernel", "python"))
    return (
        f"# Recovery\n\nMade by `scripts/bench --recovery` on {date}: {facts}, {machine['cores']} cores, "
        f"load before {machine['load_before']:.2f}.\nWhat each row is: [recovery.py](recovery.py).\n\n"
        f"{table(cases)}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure how long deaths of workers and hosts are felt.")
    parser.add_argument("--quick", action="store_true", help="a tenth of it; prints, and keeps nothing")
    parser.add_argument("--only", default="", help="one case, by a part of its name")
    arguments = parser.parse_args()
    machine = describe()
    with tempfile.TemporaryDirectory() as directory:
        os.environ["CIVITAS_SHM_DIR"] = directory
        cases = asyncio.run(measure(0.1 if arguments.quick else 1.0, arguments.only))
    print(table(cases))
    if not arguments.quick and not arguments.only:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        path = BENCH / "results" / f"{now[:10]}-{slug(machine)}-recovery.json"
        path.write_text(json.dumps({"date": now, "machine": machine, "took_ms": cases}, indent=1) + "\n")
        (BENCH / "RECOVERY.md").write_text(page(now[:10], machine, cases))
        print(f"kept: {path.relative_to(BENCH.parent)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
