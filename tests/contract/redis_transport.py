"""The custom transport of the seed's recipe (Writing a custom transport), with its gaps filled: Redis pub/sub."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable

import redis.asyncio as aioredis

from civitas_shm.formats import Serializer

Handler = Callable[[bytes], Awaitable[None]]


class RedisTransport:
    """A channel for each address, one connection that listens to all of them."""

    def __init__(self, serializer: Serializer, url: str) -> None:
        self._serializer = serializer
        self._url = url
        self._queues: dict[str, asyncio.Queue[bytes]] = {}
        self._readers: list[asyncio.Task[None]] = []
        self._confirmed: dict[str, asyncio.Event] = {}
        self._reply_queues: dict[str, asyncio.Future[bytes]] = {}
        self._listener: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._redis = aioredis.from_url(self._url)
        self._pubsub = self._redis.pubsub()
        self._inbox = f"inbox-{uuid.uuid4()}"  # of all replies to this process
        await self._pubsub.subscribe(f"civitas:{self._inbox}")
        self._listener = asyncio.create_task(self._listen())

    async def stop(self) -> None:
        if self._listener is None:
            return
        for task in (tasks := [self._listener, *self._readers]):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener = None
        self._readers.clear()
        await self._pubsub.aclose()  # type: ignore[no-untyped-call]
        await self._redis.aclose()

    async def subscribe(self, address: str, handler: Handler) -> None:
        queue = self._queues[address] = asyncio.Queue()  # so that one that waits delays nobody else
        self._readers.append(asyncio.create_task(self._read(address, queue, handler)))
        confirmed = self._confirmed[address] = asyncio.Event()
        await self._pubsub.subscribe(f"civitas:{address}")
        await confirmed.wait()

    async def publish(self, address: str, data: bytes) -> None:
        if address.startswith("_reply."):
            _, inbox, _ = address.split("/")
            data, address = f"{address}\n".encode() + data, inbox
        await self._redis.publish(f"civitas:{address}", data)

    async def request(self, address: str, data: bytes, timeout: float) -> bytes:
        message = self._serializer.deserialize(data)
        message.reply_to = f"_reply./{self._inbox}/{uuid.uuid4()}"
        reply = self._reply_queues[message.reply_to] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self.publish(address, self._serializer.serialize(message))
                return await reply
        finally:
            del self._reply_queues[message.reply_to]

    def has_reply_address(self, address: str) -> bool:
        return address in self._reply_queues

    async def wait_ready(self) -> None:
        pass  # subscribe() has waited

    async def _listen(self) -> None:
        async for event in self._pubsub.listen():  # type: ignore[no-untyped-call]
            address = event["channel"].decode().removeprefix("civitas:")
            if event["type"] == "subscribe":
                if address in self._confirmed:
                    self._confirmed[address].set()
            elif event["type"] == "message" and address == self._inbox:
                reply_to, _, data = event["data"].partition(b"\n")
                reply = self._reply_queues.get(reply_to.decode())
                if reply is not None and not reply.done():
                    reply.set_result(data)
            elif event["type"] == "message":
                self._queues[address].put_nowait(event["data"])

    async def _read(self, address: str, queue: asyncio.Queue[bytes], handler: Handler) -> None:
        while True:
            try:
                await handler(await queue.get())
            except Exception:
                logging.getLogger(__name__).exception("the handler of %r failed", address)
