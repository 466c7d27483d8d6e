"""The floor of bench/recovery.py: what the death of a process costs with nothing of ours but its modules in it.

    python bench/bare_deaths.py KILLS standby|fork

A parent in a uvloop, as the host is; a child with the same modules in memory, its own uvloop, and a socket. The child
is killed; the parent sees it by its pidfd, and says one byte to a second child that waits in its loop already
(`standby`), or forks one (`fork`); that one notes the time. Prints the milliseconds of each kill as JSON.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import signal
import socket
import struct
import sys
import time

import uvloop

for name in ("civitas_shm.host.worker", "civitas_shm_transports.shm"):
    importlib.import_module(name)

SETTLE_S = 0.1
"""As in recovery.py: everything sleeps before the next kill."""


def born() -> tuple[int, socket.socket]:
    """A child in a loop of its own, which answers each byte with the monotonic time, in nanoseconds."""
    mine, its = socket.socketpair()
    pid = os.fork()
    if pid:
        its.close()
        return pid, mine
    mine.close()
    loop = uvloop.new_event_loop()

    def asked() -> None:
        if its.recv(1):
            its.send(struct.pack("q", time.monotonic_ns()))
        else:
            os._exit(0)

    loop.add_reader(its, asked)
    loop.run_forever()
    raise AssertionError("its loop has no end")


async def deaths(kills: int, *, standby: bool) -> list[float]:
    loop = asyncio.get_running_loop()
    took_ms = []
    victim, line = born()
    for _ in range(kills):
        next_one = born() if standby else None
        gone = loop.create_future()
        pidfd = os.pidfd_open(victim)
        loop.add_reader(pidfd, gone.set_result, None)
        await asyncio.sleep(SETTLE_S)
        killed_ns = time.monotonic_ns()
        os.kill(victim, signal.SIGKILL)
        await gone
        line.close()
        victim, line = next_one or born()
        line.send(b"?")
        loop.remove_reader(pidfd)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)
        line.setblocking(False)
        at_ns = struct.unpack("q", await loop.sock_recv(line, 8))[0]
        took_ms.append((at_ns - killed_ns) / 1e6)
    os.kill(victim, signal.SIGKILL)
    os.waitpid(victim, 0)
    return took_ms


if __name__ == "__main__":
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(deaths(int(sys.argv[1]), standby=sys.argv[2] == "standby"))))
