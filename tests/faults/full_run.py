"""A run whose /dev/shm is made full under load, and has room again; started by test_shm_full.py.

    python full_run.py SIZE FOLDER       prints one JSON object: what was seen; exit status 77: not permitted here

/dev/shm is a file system of SIZE in a mount namespace of this process and its children: nobody else sees it.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

from civitas_shm.errors import SharedMemoryFull
from civitas_shm.host.client import HostClient, HostOptions
from civitas_shm.topology.model import AgentSpec, PoolSpec, StopSpec, SupervisorSpec, TopologySpec, TransportSpec

CLONE_NEWNS = 0x20000
MS_PRIVATE_REC = 1 << 18 | 1 << 14
HERE = Path(__file__).parent


def have_a_small_shm(size: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if (
        libc.unshare(CLONE_NEWNS)
        or libc.mount(b"none", b"/", None, MS_PRIVATE_REC, None)
        or libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=" + size.encode())
    ):
        print(os.strerror(ctypes.get_errno()))
        sys.exit(77)


def free_bytes() -> int:
    stat = os.statvfs("/dev/shm")
    return stat.f_bavail * stat.f_frsize


async def keep_full(file: int) -> None:
    """The run takes what is left while it is taken from it, and gives some back."""
    while True:
        try:
            os.posix_fallocate(file, os.fstat(file).st_size, min(free_bytes(), 1 << 20) or 4096)
        except OSError:
            await asyncio.sleep(0.002)


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.005)


async def filled(folder: Path) -> dict[str, Any]:
    """What was seen. `k0` handles nothing while `hold` is there, so that its senders need more and more memory."""
    config = {"folder": str(folder), "sinks": ["k0"], "pad_bytes": 30_000, "pause_s": {"k0": 0.002}}
    agents = [
        AgentSpec("k0", "chaos_agents.Sink", process="p-k0", config=config),
        AgentSpec("s0", "chaos_agents.Source", process="p-s0", config=config | {"send_timeout_s": 0.3}),
    ]
    spec = TopologySpec(
        supervision=SupervisorSpec(children=agents, max_restarts=100, backoff_base_s=0.0),
        transport=TransportSpec("shm", arena_mb=64, mailboxes=64),
        pool=PoolSpec(size=1, pin=False),
        stop=StopSpec(drain="all", timeout_s=100),
        import_paths=[str(HERE.parent / "torture")],
    )
    events: list[dict[str, Any]] = []
    client = HostClient(spec, HostOptions(f"full-{os.getpid()}"), on_event=events.append)
    await client.start()
    await client.running()
    got, refused, hold = folder / "got-k0", folder / "refused-s0", folder / "hold"
    await until(lambda: got.exists() and got.stat().st_size > 500)

    seen: dict[str, Any] = {}
    bus = client.orders.runner.bus
    hold.touch()
    filler = os.open("/dev/shm/filler", os.O_RDWR | os.O_CREAT, 0o600)
    filling = asyncio.create_task(keep_full(filler))
    await until(refused.exists)
    seen["free_bytes"] = free_bytes()
    seen["refusals"] = refused.read_text().splitlines()
    try:  # the caller has an arena of its own
        while True:
            await bus.send("k0", {"data": bytes(500_000)}, timeout=0.2)
            seen["of_the_caller"] = seen.get("of_the_caller", 0) + 1
    except SharedMemoryFull as error:
        seen["caller_error"] = str(error)
    os.kill(next(e["pid"] for e in reversed(events) if e.get("process") == "p-k0" and "pid" in e), 9)
    await until(lambda: any(event["event"] == "process_recovered" for event in events))  # while it is full
    seen["free_bytes_then"] = free_bytes()
    hold.unlink()
    handled = got.stat().st_size
    await until(lambda: got.stat().st_size > handled + 200)  # on what the kernel has given before
    filling.cancel()
    os.close(filler)
    os.unlink("/dev/shm/filler")
    handled = got.stat().st_size
    await until(lambda: got.stat().st_size > handled + 1000)
    (folder / "enough").touch()
    await client.stop()
    seen["waiting"] = (await client.wait()).waiting
    deaths = [event for event in events if event["event"] == "process_died"]
    seen["deaths"] = [event["cause"] for event in deaths]
    seen["in_hand"] = sum(len(event.get("in_hand") or []) for event in deaths)
    seen["left"] = os.listdir("/dev/shm")
    return seen


if __name__ == "__main__":
    have_a_small_shm(sys.argv[1])
    print(json.dumps(asyncio.run(filled(Path(sys.argv[2])))))
