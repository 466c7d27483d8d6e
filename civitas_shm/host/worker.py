"""A worker process, from its birth to its end: forked by the fork server, or `python -m civitas_shm.host.worker`.

Rules of this file:
- first of all it ties its life to the host's (`kernel`); then it says hello, and is a standby until it gets a slot,
  which rehearses meanwhile;
- what a slot means (cores, priority, environment, memory) is in effect before any user code is imported;
- it does what the host orders (`orders`) and leaves when told to, when its loop ends, or when the host is gone;
- it decides nothing about restarts, and its agents' messages never pass through here.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from ..current import AGENT
from ..plugins.installed import Plugins
from ..topology.model import PluginsSpec
from ..transport import Port, load_transport
from . import kernel, strays, wire
from .forkserver import WorkerFds, ignore_interrupts, keep_descriptors_here
from .logs import TakenOutput
from .loop import new_loop
from .orders import Orders
from .protocol import Assign, Hello, Leave, Ready, ToWorker
from .rehearsal import rehearse

__all__ = ["main"]

KEEPER_AFTER_S: Final = 0.25
"""What makes the next death short is made when this start is over: it takes 0.1 ms."""

wire.FrameDecoder[ToWorker](ToWorker)  # the fork server imports this module: its workers need not make it again


def main(fds: WorkerFds, host_pid: int) -> int:
    """Live. Returns the exit status; the caller ends the process with it, by the interpreter's usual way."""
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
            return _live(control, loops, output, fds.memory)
    finally:
        output.finish()
        os.close(death_fd)


def _live(control: socket.socket, loops: asyncio.Runner, output: TakenOutput, memory_fds: Sequence[int]) -> int:
    try:
        wire.send(control, Hello(os.getpid()))
        if not select.select([control], [], [], 0)[0]:
            rehearse(loops)
        assign, early = _await_slot(control)
    except (EOFError, ConnectionError):
        return 0  # never needed
    _settle_in(assign)
    output.set_levels(assign.log_level, assign.log_levels)
    return _run(assign, memory_fds or assign.memory_fds, control, early, loops)


def _take_standard_descriptors(fds: WorkerFds) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    for ours, standard in ((null, 0), (fds.stdout, 1), (fds.stderr, 2)):
        os.dup2(ours, standard)
        os.close(ours)


def _await_slot(control: socket.socket) -> tuple[Assign, list[ToWorker]]:
    """A standby's life: blocked in a read, its loop at rest, no memory mapped. Also what came behind the Assign."""
    decoder: wire.FrameDecoder[ToWorker] = wire.FrameDecoder(ToWorker)
    while True:
        messages, _ = wire.receive(control, decoder)
        if messages:
            first, *rest = messages
            if not isinstance(first, Assign):
                raise wire.WireError(f"a process without a slot was sent {type(first).__name__}")
            return first, rest


def _settle_in(assign: Assign) -> None:
    """Everything that must hold before user code is imported."""
    kernel.set_name(f"civ-{assign.process}")
    os.environ.update(assign.env)
    sys.path[:0] = [path for path in assign.import_paths if path not in sys.path]
    if assign.cpus:
        os.sched_setaffinity(0, assign.cpus)
    if assign.nice:
        os.setpriority(os.PRIO_PROCESS, 0, assign.nice)


def _run(
    assign: Assign, memory_fds: Sequence[int], control: socket.socket, early: list[ToWorker], loops: asyncio.Runner
) -> int:
    module = load_transport(assign.transport)
    if module.attach is None:
        raise RuntimeError(f"transport {assign.transport!r} does not reach other processes")
    port: Port = module.attach(assign.attach, list(memory_fds))
    return loops.run(_serve(assign, port, control, early, module.keep_memory))


async def _serve(
    assign: Assign,
    port: Port,
    control: socket.socket,
    early: list[ToWorker],
    keep_memory: Callable[[], int] | None,
) -> int:
    loop = asyncio.get_running_loop()
    left: asyncio.Future[int] = loop.create_future()

    def on_order(message: Any, fds: list[int]) -> None:
        if isinstance(message, Leave):
            if not left.done():
                left.set_result(0)
        else:
            orders.obey(message)

    def on_end(error: Exception | None) -> None:
        if not left.done():
            left.set_result(1)

    channel: wire.Channel[ToWorker] = wire.Channel(loop, control, ToWorker, on_order, on_end)
    port.start(loop)
    orders = Orders(port, channel.send, plugins=Plugins(PluginsSpec.from_plain(assign.plugins)), expected=assign.agents)
    channel.send(Ready(assign.slot))
    for message in early:
        on_order(message, [])
    if keep_memory is not None:
        loop.call_later(KEEPER_AFTER_S, keep_memory)
    try:
        return await left
    finally:
        await orders.close()
        port.stop()
        channel.close()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until `main` has its own handler
    keep_descriptors_here()
    numbers = [int(argument) for argument in sys.argv[1:]]
    sys.argv = ["civitas-shm worker"]
    sys.exit(main(WorkerFds.born_with(numbers[:5]), numbers[5]))
