"""What a `Transport` of your own has to do, as tests: subclass, say how one is made, and pytest runs them all.

    class TestMyTransport(TransportContract):
        def new_transport(self, serializer):
            return MyTransport(serializer, "redis://localhost")

Rules of this file: plain methods, each with an event loop of its own; the only limits are on what must come. Whatever
must *not* come is told by something that is sent behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from ..errors import MessageRoutingError
from ..formats import MsgpackSerializer, Serializer
from ..messages import Message
from ..transport import Transport

__all__ = ["TransportContract"]

COMES_S: Final = 30.0
"""A watchdog for what has to come."""

AGENT: Final = "contract-agent"


class TransportContract:
    """Subclass it as `Test…` and give `new_transport`. Every test makes its transports anew."""

    def new_transport(self, serializer: Serializer) -> Transport:
        """A transport that is not started yet."""
        raise NotImplementedError("give new_transport(serializer)")

    # --- helpers ------------------------------------------------------------------------------------------------------

    def play(self, scene: Callable[[Transport], Awaitable[None]]) -> None:
        """Run a scene with a transport that is started, and stopped behind it."""

        async def run() -> None:
            transport = self.new_transport(MsgpackSerializer())
            await transport.start()
            try:
                async with asyncio.timeout(COMES_S):
                    await scene(transport)
            finally:
                await transport.stop()

        asyncio.run(run())

    @asynccontextmanager
    async def answering(self, transport: Transport, address: str = AGENT) -> Any:
        """A subscriber that sends each question back to its reply address."""
        serializer = MsgpackSerializer()

        async def answer(data: bytes) -> None:
            question = serializer.deserialize(data)
            assert question.reply_to is not None
            assert question.reply_to.startswith("_reply."), question.reply_to
            reply = Message(type="reply", sender=address, recipient=question.reply_to, payload=question.payload)
            await transport.publish(question.reply_to, serializer.serialize(reply))

        await transport.subscribe(address, answer)
        await transport.wait_ready()
        yield

    @staticmethod
    def question(number: int) -> bytes:
        """A message that asks."""
        return MsgpackSerializer().serialize(
            Message(type="ask", sender="contract", recipient=AGENT, payload={"n": number})
        )

    # --- what must hold -----------------------------------------------------------------------------------------------

    def test_it_has_every_method_of_the_protocol(self) -> None:
        assert isinstance(self.new_transport(MsgpackSerializer()), Transport)

    def test_what_is_published_arrives_unchanged_and_in_order(self) -> None:
        async def scene(transport: Transport) -> None:
            came: asyncio.Queue[bytes] = asyncio.Queue()
            await transport.subscribe(AGENT, came.put)
            await transport.wait_ready()
            sent = [bytes([number]) * (1 + number * 100) for number in range(100)]
            for data in sent:
                await transport.publish(AGENT, data)
            assert [await came.get() for _ in sent] == sent

        self.play(scene)

    def test_each_address_gets_what_is_meant_for_it(self) -> None:
        async def scene(transport: Transport) -> None:
            came: dict[str, asyncio.Queue[bytes]] = {name: asyncio.Queue() for name in ("a", "a.b", "a*", "a_b")}
            for name, queue in came.items():
                await transport.subscribe(name, queue.put)
            await transport.wait_ready()
            for name in came:
                await transport.publish(name, name.encode())
                await transport.publish(name, b"last")
            for name, queue in came.items():
                assert [await queue.get(), await queue.get()] == [name.encode(), b"last"]

        self.play(scene)

    def test_a_request_gets_the_reply_that_is_published_to_its_reply_address(self) -> None:
        async def scene(transport: Transport) -> None:
            async with self.answering(transport):
                reply = MsgpackSerializer().deserialize(await transport.request(AGENT, self.question(7), COMES_S))
                assert reply.payload == {"n": 7}

        self.play(scene)

    def test_requests_at_once_get_each_its_own_reply(self) -> None:
        async def scene(transport: Transport) -> None:
            async with self.answering(transport):
                asks = [transport.request(AGENT, self.question(number), COMES_S) for number in range(20)]
                replies = [MsgpackSerializer().deserialize(data) for data in await asyncio.gather(*asks)]
                assert [reply.payload["n"] for reply in replies] == list(range(20))

        self.play(scene)

    def test_a_request_that_nobody_answers_ends_with_a_timeout_error_and_its_late_reply_harms_nobody(self) -> None:
        async def scene(transport: Transport) -> None:
            serializer = MsgpackSerializer()
            asked: asyncio.Queue[str] = asyncio.Queue()

            async def silent(data: bytes) -> None:
                reply_to = serializer.deserialize(data).reply_to
                assert reply_to is not None
                assert transport.has_reply_address(reply_to)
                await asked.put(reply_to)

            await transport.subscribe("silent", silent)
            await transport.wait_ready()
            try:
                await transport.request("silent", self.question(1), 0.05)
            except TimeoutError:
                pass
            else:
                raise AssertionError("request() returned, though nobody has answered")
            reply_to = await asked.get()
            assert not transport.has_reply_address(reply_to)
            await transport.publish(reply_to, self.question(2))
            async with self.answering(transport):
                await transport.request(AGENT, self.question(3), COMES_S)

        self.play(scene)

    def test_a_handler_that_raises_ends_nothing(self) -> None:
        async def scene(transport: Transport) -> None:
            came: asyncio.Queue[bytes] = asyncio.Queue()

            async def handler(data: bytes) -> None:
                if data == b"bad":
                    raise ValueError("as the contract wants it")
                await came.put(data)

            await transport.subscribe(AGENT, handler)
            await transport.wait_ready()
            for data in (b"bad", b"good"):
                await transport.publish(AGENT, data)
            assert await came.get() == b"good"

        self.play(scene)

    def test_a_handler_that_waits_delays_no_other_address(self) -> None:
        async def scene(transport: Transport) -> None:
            began, goes_on, came = asyncio.Event(), asyncio.Event(), asyncio.Queue[bytes]()

            async def slow(data: bytes) -> None:
                began.set()
                await goes_on.wait()
                await came.put(data)

            await transport.subscribe("slow", slow)
            await transport.subscribe(AGENT, came.put)
            await transport.wait_ready()
            await transport.publish("slow", b"slow")
            await began.wait()
            await transport.publish(AGENT, b"other")
            assert await came.get() == b"other"
            async with self.answering(transport, "asked"):
                await transport.request("asked", self.question(1), COMES_S)
            goes_on.set()
            assert await came.get() == b"slow"

        self.play(scene)

    def test_a_handler_may_ask(self) -> None:
        async def scene(transport: Transport) -> None:
            came: asyncio.Queue[Any] = asyncio.Queue()

            async def asks(data: bytes) -> None:
                await came.put(MsgpackSerializer().deserialize(await transport.request(AGENT, data, COMES_S)).payload)

            await transport.subscribe("asks", asks)
            async with self.answering(transport):
                await transport.publish("asks", self.question(5))
                assert await came.get() == {"n": 5}

        self.play(scene)

    def test_a_large_message_and_an_empty_one_arrive_whole(self) -> None:
        async def scene(transport: Transport) -> None:
            came: asyncio.Queue[bytes] = asyncio.Queue()
            await transport.subscribe(AGENT, came.put)
            await transport.wait_ready()
            for data in (bytes(range(256)) * 4096, b""):
                await transport.publish(AGENT, data)
                assert await came.get() == data

        self.play(scene)

    def test_after_wait_ready_the_first_message_is_not_lost(self) -> None:
        async def scene(transport: Transport) -> None:
            for number in range(10):
                came: asyncio.Queue[bytes] = asyncio.Queue()
                await transport.subscribe(f"fresh-{number}", came.put)
                await transport.wait_ready()
                await transport.publish(f"fresh-{number}", b"first")
                assert await came.get() == b"first"

        self.play(scene)

    def test_what_it_has_of_the_optional_methods_works(self) -> None:
        async def scene(transport: Transport) -> None:
            came: asyncio.Queue[bytes] = asyncio.Queue()
            await transport.subscribe("leaves", came.put)
            await transport.subscribe(AGENT, came.put)
            await transport.wait_ready()
            wait_subscribed = getattr(transport, "wait_subscribed", None)
            if wait_subscribed is not None:
                await wait_subscribed("leaves", timeout=COMES_S)
            unsubscribe = getattr(transport, "unsubscribe", None)
            if unsubscribe is None:
                return
            await unsubscribe("leaves")
            await unsubscribe("nobody")
            with contextlib.suppress(MessageRoutingError):  # one that knows may say so
                await transport.publish("leaves", b"late")
            await transport.publish(AGENT, b"last")
            assert await came.get() == b"last"

        self.play(scene)

    def test_it_can_be_stopped_twice(self) -> None:
        async def scene(transport: Transport) -> None:
            await transport.stop()

        self.play(scene)
