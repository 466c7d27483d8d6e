#!/usr/bin/env python3
"""Asks from one process to another over one XSUB/XPUB proxy: by bare zmq.asyncio, and by a link.

    zmq_links.py [--asks N] [--repetitions N]

Rules of this file: both ways in one run, in turn, over the same proxy (a process of its own, tcp on this machine), 64
bytes, uvloop at both ends, nothing pinned. The bare way has PUB and SUB sockets and one standing topic for replies,
as a link has. A lost ask ends the run with an error.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import socket
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

import uvloop
import zmq
import zmq.asyncio

from civitas_shm.bridge.link import LinkSettings
from civitas_shm_transports.zmq import link as new_link
from civitas_shm_transports.zmq.proxy import Proxy

PAYLOAD = bytes(60)
LATE_S = 30.0


class Bare:
    """PUB and SUB with a topic each way."""

    async def open(self, addresses: dict[str, Any], mine: bytes, other: bytes) -> None:
        context = zmq.asyncio.Context()
        self.out, self.into = context.socket(zmq.PUB), context.socket(zmq.SUB)
        for made in (self.out, self.into):
            made.set(zmq.SNDHWM, 0)
            made.set(zmq.RCVHWM, 0)
            made.set(zmq.LINGER, 0)
        self.into.subscribe(mine)
        self.out.connect(addresses["pub_addr"])
        self.into.connect(addresses["sub_addr"])
        self.other = other

    async def send(self, body: bytes) -> None:
        await self.out.send(self.other + body)

    async def receive(self) -> bytes:
        return (await self.into.recv())[4:]


class Linked:
    """A link, and what a bridge would do for it."""

    async def open(self, addresses: dict[str, Any], mine: bytes, other: bytes) -> None:
        self.other = other.decode()
        self.came: asyncio.Queue[bytes] = asyncio.Queue()
        self.link = new_link(LinkSettings("zmq", mine.decode(), {**addresses, "start_proxy": False}))
        await self.link.open(self)

    async def send(self, body: bytes) -> None:
        while not self.link.publish_to_host(self.other, body, 0):
            await asyncio.sleep(0.001)

    async def receive(self) -> bytes:
        return await self.came.get()

    def received(self, frame: bytes) -> None:
        self.came.put_nowait(frame)

    def unroutable(self, key: int) -> None: ...

    def writable(self) -> None: ...

    def state_changed(self, state: str, why: str) -> None: ...


def echo(kind: type[Bare] | type[Linked], addresses: dict[str, Any], ready: Connection) -> None:
    async def main() -> None:
        end = kind()
        await end.open(addresses, b"echo", b"near")
        ready.send(True)
        while True:
            await end.send(await end.receive())

    uvloop.run(main())


async def asks(kind: type[Bare] | type[Linked], addresses: dict[str, Any], count: int, outstanding: int) -> list[float]:
    """How long each took, in seconds."""
    end = kind()
    await end.open(addresses, b"near", b"echo")
    while True:  # until both ways are there; the bare one has no other means
        await end.send(b"\xff\xff\xff\xff")
        try:
            async with asyncio.timeout(0.1):
                await end.receive()
                break
        except TimeoutError:
            pass
    await asyncio.sleep(0.3)
    sent: dict[int, float] = {}
    took: list[float] = []
    clock = time.perf_counter
    following = 0
    async with asyncio.timeout(LATE_S + count / 1000):
        while len(took) < count:
            while len(sent) < outstanding and following < count:
                sent[following] = clock()
                await end.send(following.to_bytes(4, "big") + PAYLOAD)
                following += 1
            number = int.from_bytes((await end.receive())[:4], "big")
            if number != 0xFFFFFFFF:
                took.append(clock() - sent.pop(number))
    if isinstance(end, Linked):
        counts = end.link.counts()
        assert counts["bad_frames"] == counts["dropped"] == 0, counts
        await end.link.close()
    return took


def measure(
    kind: type[Bare] | type[Linked], addresses: dict[str, Any], count: int, outstanding: int
) -> tuple[float, float]:
    """(p50 in microseconds, asks per second)."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=echo, args=(kind, addresses, theirs), daemon=True)
    process.start()
    ours.recv()
    began = time.perf_counter()
    took = uvloop.run(asks(kind, addresses, count, outstanding))
    lasted = time.perf_counter() - began
    process.kill()
    process.join()
    return statistics.median(took) * 1e6, count / lasted


def serve(addresses: dict[str, Any], ready: Connection) -> None:
    Proxy(addresses["pub_addr"], addresses["sub_addr"])
    ready.send(True)
    time.sleep(1e6)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--asks", type=int, default=10_000)
    parser.add_argument("--repetitions", type=int, default=5)
    given = parser.parse_args()
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    addresses = dict(
        zip(("pub_addr", "sub_addr"), (f"tcp://127.0.0.1:{one.getsockname()[1]}" for one in held), strict=True)
    )
    for one in held:
        one.close()
    ours, theirs = multiprocessing.Pipe()
    proxy = multiprocessing.get_context("spawn").Process(target=serve, args=(addresses, theirs), daemon=True)
    proxy.start()
    ours.recv()
    for outstanding in (1, 64):
        found: dict[str, list[tuple[float, float]]] = {"bare": [], "link": []}
        for _ in range(given.repetitions):
            for name, kind in (("bare", Bare), ("link", Linked)):
                found[name].append(measure(kind, addresses, given.asks, outstanding))
        p50 = {name: statistics.median(one[0] for one in all_of) for name, all_of in found.items()}
        rate = {name: statistics.median(one[1] for one in all_of) for name, all_of in found.items()}
        print(
            f"{outstanding} outstanding: bare {p50['bare']:.0f} µs, link {p50['link']:.0f} µs, "
            f"{p50['link'] / p50['bare']:.2f} times; {rate['bare']:.0f} and {rate['link']:.0f} asks a second, 0 lost"
        )
    proxy.kill()


if __name__ == "__main__":
    main()
