#!/usr/bin/env python3
"""Asks from one run to another over a ZeroMQ proxy, one after the other: 0 lost; beside them bare zmq.asyncio.

    python -m tests.torture.run_zmq [ASKS]    from the root, with PYTHONPATH=.:transports; 100,000 are a few minutes

Rules of this file: the bare asks go over the same proxy, before and after the others, so that a slow minute of the
machine touches both. Each ask has to be answered with its own number, and the counter has to have seen each number
once, in order.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

from civitas_shm import AgentProcess, Message, Runtime, Supervisor
from civitas_shm.errors import MessageRoutingError

sys.path.append(str(Path(__file__).parents[2] / "bench"))


class Counter(AgentProcess):
    """Expects 0, 1, 2 …"""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.expected = 0
        self.wrong = 0

    async def handle(self, message: Message) -> Message:
        if message.type == "result":
            return self.reply({"handled": self.expected, "wrong": self.wrong})
        self.wrong += message.payload["n"] != self.expected
        self.expected = message.payload["n"] + 1
        return self.reply({"n": message.payload["n"]})


async def asks(addresses: dict[str, str], count: int) -> list[float]:
    near = Runtime(Supervisor("root"), transport="zmq", name=f"near-{os.getpid()}", **addresses)
    children = [Counter("counter")]
    distant = Runtime(
        Supervisor("root", children=children), transport="zmq", name=f"distant-{os.getpid()}", **addresses
    )
    took: list[float] = []
    from zmq_links import Bare, measure

    async with near, distant:
        while True:
            try:
                await near.ask("counter", {}, message_type="result")
                break
            except MessageRoutingError:
                await asyncio.sleep(0.01)
        plain = {"pub_addr": addresses["zmq_pub_addr"], "sub_addr": addresses["zmq_sub_addr"]}
        bare = [(await asyncio.to_thread(measure, Bare, plain, 3000, 1))[0]]
        for number in range(count):
            began = time.perf_counter()
            reply = await near.ask("counter", {"n": number})
            took.append(time.perf_counter() - began)
            assert reply.payload == {"n": number}, reply.payload
        result = (await near.ask("counter", {}, message_type="result")).payload
        assert result == {"handled": count, "wrong": 0}, result
        bare.append((await asyncio.to_thread(measure, Bare, plain, 3000, 1))[0])
    p50 = statistics.median(took) * 1e6
    print(
        f"{count} asks between two runs, 0 lost: p50 {p50:.0f} µs; bare zmq.asyncio over the same proxy "
        f"{bare[0]:.0f} and {bare[1]:.0f} µs: {p50 / statistics.mean(bare):.2f} times"
    )
    return took


def main() -> None:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    first, second = (f"tcp://127.0.0.1:{one.getsockname()[1]}" for one in held)
    for one in held:
        one.close()
    os.environ.setdefault("CIVITAS_SHM_DIR", tempfile.mkdtemp(prefix="zmq-asks-"))
    asyncio.run(
        asks({"zmq_pub_addr": first, "zmq_sub_addr": second}, int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
    )


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
