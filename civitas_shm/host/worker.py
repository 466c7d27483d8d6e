"""A worker process, from its birth to its end: forked by the fork server, or `python -m civitas_shm.host.worker`.

Rules of this file:
- first of all it ties its life to the host's (`kernel`); then it says hello, and is a standby until it gets a slot:
  rehearsed, the run's memory mapped, at rest in its loop;
- from there on it is on duty (`duty`), does what the host orders (`orders`), and leaves when told to, when its loop
  ends, or when the host is gone;
- it decides nothing about restarts, and its agents' messages never pass through here.
"""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import socket
import sys

from ..current import AGENT
from . import kernel, strays, wire
from .duty import Duty, Entrance
from .forkserver import WorkerFds, ignore_interrupts, keep_descriptors_here
from .logs import TakenOutput
from .loop import new_loop
from .protocol import Hello, ToWorker
from .rehearsal import rehearse

__all__ = ["main"]

wire.FrameDecoder[ToWorker](ToWorker)  # the fork server imports this module: its workers need not make it again


def main(fds: WorkerFds, host_pid: int, transport: str = "") -> int:
    """Live. Returns the exit status; the caller ends the process with it, by the interpreter's usual way.

    `transport`: its name, where that is known before there is a slot.
    """
    kernel.set_name("civ-standby")
    kernel.die_with_parent(host_pid)
    death_fd = kernel.arm_death_pipe(fds.death)
    _take_standard_descriptors(fds)
    ignore_interrupts()
    strays.mark_worker()
    control = socket.socket(fileno=fds.control)
    output = TakenOutput(socket.socket(fileno=fds.records), AGENT.get)
    try:
        with asyncio.Runner(loop_factory=new_loop) as loops:
            return _live(control, loops, output, transport, Entrance(transport, fds.memory))
    finally:
        output.finish()
        os.close(death_fd)


def _live(
    control: socket.socket, loops: asyncio.Runner, output: TakenOutput, transport: str, entrance: Entrance
) -> int:
    try:
        wire.send(control, Hello(os.getpid()))
    except ConnectionError:
        return 0  # never needed
    if not select.select([control], [], [], 0)[0]:  # a standby, which has time
        rehearse(loops, transport or "in_process", output.set_levels)
        entrance.go_ahead()
        gc.collect()  # nor shall a collection fall into its start
    return loops.run(_serve(control, output, entrance))


async def _serve(control: socket.socket, output: TakenOutput, entrance: Entrance) -> int:
    return await Duty(control, entrance.enter, output.set_levels, entrance.keep_memory).served()


def _take_standard_descriptors(fds: WorkerFds) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    for ours, standard in ((null, 0), (fds.stdout, 1), (fds.stderr, 2)):
        os.dup2(ours, standard)
        os.close(ours)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until `main` has its own handler
    keep_descriptors_here()
    numbers = [int(argument) for argument in sys.argv[1:]]
    sys.argv = ["civitas-shm worker"]
    sys.exit(main(WorkerFds.born_with(numbers[:5]), numbers[5]))
