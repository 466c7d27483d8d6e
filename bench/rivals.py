#!/usr/bin/env python3
"""The rivals: the same 64 bytes between the same two pinned cores by other means, raw, with nothing around them.

    rivals.py CASE CPU_A CPU_B N

Rules of this file: each case is one process that forks its peer before it opens anything; the parent is pinned to CPU_A
and measures, the child to CPU_B; a one-way case ends when the child has said that it has everything. Prints JSON.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from figures import Figures, from_rate, from_times

PAYLOAD = bytes(64)
PARKED_GAP_S = 0.003
"""Pause before a parked round trip: far longer than any receiver spins (tens of microseconds)."""


def forked(cpu_parent: int, cpu_child: int, child: Callable[[], None], parent: Callable[[], Figures]) -> Figures:
    """Run both sides pinned; the child cannot outlive the parent."""
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        os.sched_setaffinity(0, {cpu_child})
        child()
        os._exit(0)
    os.sched_setaffinity(0, {cpu_parent})
    figures = parent()
    _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError(f"the peer ended with wait status {status}")
    return figures


def timed(n: int, once: Callable[[], object]) -> Figures:
    """Time `once` n times, after a tenth as many that do not count."""
    for _ in range(n // 10):
        once()
    clock, times = time.perf_counter_ns, [0] * n
    before = start = clock()
    for number in range(n):
        once()
        after = clock()
        times[number] = after - before
        before = after
    return from_times(times, before - start)


# --- multiprocessing.Pipe -----------------------------------------------------------------------------------------


def pipe_round_trip(cpus: tuple[int, int], n: int) -> Figures:
    here, there = multiprocessing.Pipe()

    def child() -> None:
        while data := there.recv_bytes():
            there.send_bytes(data)

    def once() -> None:
        here.send_bytes(PAYLOAD)
        here.recv_bytes()

    def parent() -> Figures:
        figures = timed(n, once)
        here.send_bytes(b"")
        return figures

    return forked(*cpus, child, parent)


def pipe_one_way(cpus: tuple[int, int], n: int) -> Figures:
    here, there = multiprocessing.Pipe()

    def child() -> None:
        for _ in range(n):
            there.recv_bytes()
        there.send_bytes(b"all")

    return forked(*cpus, child, lambda: _one_way(n, here))


def _one_way(n: int, here: Connection) -> Figures:
    start = time.perf_counter_ns()
    for _ in range(n):
        here.send_bytes(PAYLOAD)
    here.recv_bytes()
    return from_rate(n, time.perf_counter_ns() - start)


# --- pyzmq, raw bytes over ipc ------------------------------------------------------------------------------------


def zmq_round_trip(cpus: tuple[int, int], n: int) -> Figures:
    import zmq

    with tempfile.TemporaryDirectory() as directory:

        def child() -> None:
            socket = zmq.Context().socket(zmq.PAIR)
            socket.connect(f"ipc://{directory}/pair")
            while data := socket.recv():
                socket.send(data)
            socket.close(linger=0)

        def parent() -> Figures:
            socket = zmq.Context().socket(zmq.PAIR)
            socket.bind(f"ipc://{directory}/pair")

            def once() -> None:
                socket.send(PAYLOAD)
                socket.recv()

            figures = timed(n, once)
            socket.send(b"")
            socket.close(linger=1000)
            return figures

        return forked(*cpus, child, parent)


def zmq_one_way(cpus: tuple[int, int], n: int) -> Figures:
    """PUSH to PULL with the default high-water mark: a full queue makes PUSH wait, so nothing is lost."""
    import zmq

    with tempfile.TemporaryDirectory() as directory:

        def child() -> None:
            context = zmq.Context()
            pull, done = context.socket(zmq.PULL), context.socket(zmq.PUSH)
            pull.connect(f"ipc://{directory}/work")
            done.connect(f"ipc://{directory}/done")
            done.send(b"here")
            for _ in range(n):
                pull.recv()
            done.send(b"all")
            pull.close(linger=0)
            done.close()
            context.term()  # waits until "all" has left

        def parent() -> Figures:
            context = zmq.Context()
            push, done = context.socket(zmq.PUSH), context.socket(zmq.PULL)
            push.bind(f"ipc://{directory}/work")
            done.bind(f"ipc://{directory}/done")
            done.recv()
            start = time.perf_counter_ns()
            for _ in range(n):
                push.send(PAYLOAD)
            done.recv()
            return from_rate(n, time.perf_counter_ns() - start)

        return forked(*cpus, child, parent)


# --- eventfd in a uvloop: what sleeping and waking cost, with no message at all -----------------------------------


class EventfdPeer:
    """Wakes and is woken by the other process; `add_reader` once for its whole life, as any loop would do it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, mine: int, theirs: int) -> None:
        self._loop, self._mine, self._theirs = loop, mine, theirs
        self._woken: asyncio.Future[None] | None = None
        loop.add_reader(mine, self._on_readable)

    def _on_readable(self) -> None:
        os.eventfd_read(self._mine)
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    async def woken(self) -> None:
        self._woken = self._loop.create_future()
        await self._woken

    async def round_trip(self) -> None:
        os.eventfd_write(self._theirs, 1)
        await self.woken()


def eventfd_round_trip(cpus: tuple[int, int], n: int, gap_s: float = 0.0) -> Figures:
    import uvloop

    to_child, to_parent = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    warm_up = n // 10

    async def answer() -> None:
        peer = EventfdPeer(asyncio.get_running_loop(), to_child, to_parent)
        for _ in range(warm_up + n):
            await peer.woken()
            os.eventfd_write(to_parent, 1)

    async def ask() -> Figures:
        peer = EventfdPeer(asyncio.get_running_loop(), to_parent, to_child)
        await asyncio.sleep(0.2)  # the child is in its loop
        clock, times = time.perf_counter_ns, []
        start = clock()
        for number in range(warm_up + n):
            if gap_s:
                await asyncio.sleep(gap_s)
            before = clock()
            await peer.round_trip()
            if number >= warm_up:
                times.append(clock() - before)
        return from_times(times, clock() - start)

    return forked(*cpus, lambda: uvloop.run(answer()), lambda: uvloop.run(ask()))


def eventfd_parked(cpus: tuple[int, int], n: int) -> Figures:
    return eventfd_round_trip(cpus, n, PARKED_GAP_S)


CASES: dict[str, Callable[[tuple[int, int], int], Figures]] = {
    "pipe_round_trip": pipe_round_trip,
    "pipe_one_way": pipe_one_way,
    "zmq_round_trip": zmq_round_trip,
    "zmq_one_way": zmq_one_way,
    "eventfd_round_trip": eventfd_round_trip,
    "eventfd_parked": eventfd_parked,
}

if __name__ == "__main__":
    case, cpu_a, cpu_b, count = sys.argv[1:]
    print(json.dumps(CASES[case]((int(cpu_a), int(cpu_b)), int(count))))
