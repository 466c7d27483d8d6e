"""The messages of Runtime beside `send` and `ask`: the same as agents have."""

from __future__ import annotations

import asyncio

import pytest

from civitas_shm import AgentProcess, MailboxFull, Message, Retry, Runtime, Supervisor


class Squarer(AgentProcess):
    async def handle(self, message: Message) -> Message | None:
        return self.reply({"n": message.payload["n"] ** 2})


class Blocked(AgentProcess):
    entered: asyncio.Event
    gate: asyncio.Event

    async def handle(self, message: Message) -> None:
        self.entered.set()
        await self.gate.wait()


def test_a_program_asks_many() -> None:
    async def scene() -> None:
        async with Runtime(Supervisor("root", [Squarer("a"), Squarer("b")])) as runtime:
            replies = await runtime.ask_many(["a", "b"], ({"n": n} for n in range(20)), limit=4)
            assert [reply.payload["n"] for reply in replies] == [n * n for n in range(20)]

    asyncio.run(scene())


def test_a_program_tries_a_send_and_an_ask_again() -> None:
    async def scene() -> None:
        blocked = Blocked("blocked", mailbox_size=1)
        blocked.entered, blocked.gate = asyncio.Event(), asyncio.Event()
        async with Runtime(Supervisor("root", [blocked])) as runtime:
            await runtime.send("blocked", {})
            await blocked.entered.wait()
            await runtime.send("blocked", {})
            retry = Retry(attempts=2, backoff_base=0.0)
            with pytest.raises(MailboxFull) as caught:
                await runtime.send("blocked", {}, timeout=0.001, retry=retry)
            assert caught.value.__notes__ == ["after 2 attempts"]
            with pytest.raises(TimeoutError) as late:
                await runtime.ask("blocked", {}, 0.001, retry=retry)
            assert late.value.__notes__ == ["after 2 attempts"]
            blocked.gate.set()

    asyncio.run(scene())
