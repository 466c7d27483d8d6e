"""The agents of the benchmarks: a driver that measures from inside of its process, and what it talks to.

Everything that a user gets is switched on: names, envelope, trace ids, deadlines, mailboxes, cells, supervision.
"""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
import time
from array import array

from civitas_shm import AgentProcess, Message

PAYLOAD = {"data": bytes(64)}


class Echo(AgentProcess):
    """Answers with what it was sent."""

    async def handle(self, message: Message) -> Message:
        return self.reply(message.payload)


class Held(AgentProcess):
    """Keeps a message in hand until its process dies; its successor says when it got it again."""

    async def handle(self, message: Message) -> Message | None:
        at_ns = time.monotonic_ns()
        match message.type:
            case "hold" if os.getpid() == message.payload["pid"]:
                await asyncio.Future()
            case "hold" if "tell" in message.payload:
                await self.send(message.payload["tell"], {"at_ns": at_ns}, message_type="tell")
            case "hold":
                return self.reply({"at_ns": at_ns})
            case "hold_gil":
                ctypes.PyDLL(None).sleep(3600)  # a call into C that keeps the GIL
            case "tell":
                self.told = message.payload
            case "told":
                return self.reply(self.told)
            case _:
                if size_bytes := message.payload.get("grow_bytes", 0):
                    self.grown = bytearray(size_bytes)
                    self.grown[:: mmap.PAGESIZE] = b"\1" * (size_bytes // mmap.PAGESIZE)
                return self.reply({"pid": os.getpid()})
        return None


class Sink(AgentProcess):
    """Counts. Asked for its count, it has handled everything that the asker had sent before."""

    async def on_start(self) -> None:
        self.count = 0

    async def handle(self, message: Message) -> Message | None:
        if message.type == "count":
            count, self.count = self.count, 0
            return self.reply({"count": count})
        self.count += 1
        return None


class Teller(AgentProcess):
    """Streams as many chunks as it is asked for."""

    async def handle(self, message: Message) -> None:
        async with self.stream_reply() as out:
            for _ in range(message.payload["n"]):
                await out.send(PAYLOAD)


class Driver(AgentProcess):
    """Runs one measurement per message; answers with single times (packed, 8 bytes each) or with the count, and ns."""

    async def handle(self, message: Message) -> Message:
        payload = message.payload
        to, n = payload.get("to", ""), payload.get("n", 0)
        if message.type == "ask":
            return self.reply(await self.asks(to, n, payload["gap_s"]))
        if message.type == "one_way":
            return self.reply(await self.one_way(to, n))
        if message.type == "stream":
            return self.reply(await self.chunks(to, n))
        if message.type == "outstanding":
            return self.reply(await self.outstanding(to, n, payload["width"]))
        return self.reply({"pid": os.getpid(), "parent": os.getppid(), "cpus": sorted(os.sched_getaffinity(0))})

    async def asks(self, to: str, n: int, gap_s: float) -> dict[str, object]:
        """One ask after the other. With a gap, the pause before each is not part of its time."""
        clock, times = time.perf_counter_ns, array("q")
        for _ in range(n // 10):
            await self.ask(to, PAYLOAD)
        start = clock()
        for _ in range(n):
            if gap_s:
                await asyncio.sleep(gap_s)
            before = clock()
            await self.ask(to, PAYLOAD)
            times.append(clock() - before)
        return {"times": times.tobytes(), "elapsed_ns": clock() - start}

    async def one_way(self, to: str, n: int) -> dict[str, object]:
        """From the first send until the receiver's last handler has finished."""
        start = time.perf_counter_ns()
        for _ in range(n):
            await self.send(to, PAYLOAD)
        counted = await self.ask(to, {}, message_type="count", timeout=120)
        elapsed_ns = time.perf_counter_ns() - start
        if counted.payload["count"] != n:
            raise RuntimeError(f"{n} messages were sent to {to!r} and {counted.payload['count']} handled")
        return {"n": n, "elapsed_ns": elapsed_ns}

    async def chunks(self, to: str, n: int) -> dict[str, object]:
        """From the question until the last chunk has been taken."""
        start = time.perf_counter_ns()
        count = 0
        async for _ in self.stream(to, {"n": n}):
            count += 1
        elapsed_ns = time.perf_counter_ns() - start
        if count != n:
            raise RuntimeError(f"{n} chunks were wanted of {to!r}, and {count} came")
        return {"n": n, "elapsed_ns": elapsed_ns}

    async def outstanding(self, to: str, n: int, width: int) -> dict[str, object]:
        """`width` askers at once, each waiting for its own replies."""

        async def asker() -> None:
            for _ in range(n // width):
                await self.ask(to, PAYLOAD, timeout=120)

        start = time.perf_counter_ns()
        await asyncio.gather(*(asker() for _ in range(width)))
        return {"n": n // width * width, "elapsed_ns": time.perf_counter_ns() - start}
