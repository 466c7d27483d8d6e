"""Every transport: answers that come later, and types that nobody may answer with."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from civitas_shm import Retry
from civitas_shm.errors import AgentError, ErrorAction, MessageValidationError, TransientError
from civitas_shm.messages import Message
from civitas_shm.process import AgentProcess
from civitas_shm.runner import AgentRunner
from civitas_shm.serializer import encode
from civitas_shm.topology.model import AgentSpec
from civitas_shm.typed import payload_type


async def started(world: Any, agent: AgentProcess, **spec: Any) -> AgentRunner:
    runner = AgentRunner(world.b)
    mailbox = world.b.resolve(agent.name)
    if mailbox < 0:
        mailbox = world.mailbox(agent.name)
    assert await runner.start(agent, mailbox, AgentSpec(agent.name, "tests.Agent", **spec))
    return runner


class Later(AgentProcess):
    """Answers the question before when the next message comes."""

    asked: Message | None = None
    outcomes: list[bool]

    async def handle(self, message: Message) -> Message | None:
        if message.type == "question":
            self.asked = message
            return None
        assert self.asked is not None
        self.outcomes = [await self.reply_to(self.asked, {"answer": 42, "type": "later"}) for _ in range(2)]
        return None


def test_an_answer_may_come_after_the_handler_has_returned_and_only_once(play: Any) -> None:
    async def scene(world: Any) -> None:
        later = Later("later")
        runner = await started(world, later)
        bus = world.bus
        asking = asyncio.create_task(bus.ask("later", {}, "question"))
        while later.asked is None:
            await asyncio.sleep(0)
        assert not asking.done()
        await bus.send("later", {})
        reply = await asking
        assert (reply.type, reply.payload["answer"], reply.sender) == ("later", 42, "later")
        assert reply.trace_id == later.asked.trace_id
        await runner.stop_all("all")
        assert later.outcomes[0]

    play(scene)


def test_an_answer_that_nobody_waits_for_is_reported_as_such(play: Any) -> None:
    async def scene(world: Any) -> None:
        agent = AgentProcess("agent")
        runner = await started(world, agent)
        sent = Message(sender="other", payload={})
        foreign = Message(sender="other", correlation_id="0190-of-another-system")
        assert [await agent.reply_to(one, {}) for one in (sent, foreign)] == [False, False]
        asked = Message(correlation_id="0000000000000001")
        with pytest.raises(ValueError, match=r"payload\.fn: function cannot be sent"):
            await agent.reply_to(asked, {"fn": play})
        await runner.stop_all()

    play(scene)


class Keeper(AgentProcess):
    """Keeps the question in its state, and answers in its next life."""

    async def on_start(self) -> None:
        if "asked" in self.state:
            assert await self.reply_to(Message.from_dict(self.state["asked"]), {"from": "the next life"})

    async def handle(self, message: Message) -> None:
        self.state["asked"] = message.to_dict()


def test_a_question_that_is_kept_in_the_state_can_be_answered_by_the_next_life(play: Any) -> None:
    async def scene(world: Any) -> None:
        world.need("succession")
        await started(world, Keeper("keeper"), state="shm")
        asking = asyncio.create_task(world.bus.ask("keeper", {}))
        mailbox = world.b.resolve("keeper")
        while world.b.stored_state(mailbox) is None:
            await asyncio.sleep(0)
        world.successor()
        runner = await started(world, Keeper("keeper"), state="shm")
        assert (await asking).payload == {"from": "the next life"}
        await runner.stop_all()

    play(scene)


@pytest.mark.parametrize("how", ["reply", "by hand", "afterwards", "reply_to"])
def test_defect_25_no_answer_can_bear_a_type_of_the_runtime(play: Any, how: str) -> None:
    class Bad(AgentProcess):
        async def handle(self, message: Message) -> Message | None:
            reserved = {"type": "_agency.shutdown"}
            if how == "reply":
                return self.reply(reserved)
            if how == "reply_to":
                await self.reply_to(message, reserved)
                return None
            if how == "by hand":
                return Message(type="_agency.shutdown", payload={})
            answer = self.reply({})
            answer.type = "_agency.shutdown"
            return answer

    async def scene(world: Any) -> None:
        runner = await started(world, Bad("bad"))
        with pytest.raises(AgentError, match=r"'_agency\.shutdown' is kept for the runtime"):
            await world.bus.ask("bad", {})
        await runner.stop_all()

    play(scene)


@payload_type
@dataclass
class Quote:
    cents: int


class Order(msgspec.Struct):
    sku: str
    count: int = 1


class Till(AgentProcess):
    async def handle(self, message: Message[Order]) -> Message | None:
        return self.reply(Quote(message.payload.count * 250))


def test_objects_arrive_as_what_they_were_and_what_does_not_fit_is_told_to_the_asker(play: Any) -> None:
    async def scene(world: Any) -> None:
        runner = await started(world, Till("till"))
        bus = world.bus
        assert (await bus.ask("till", Order("tea", 2))).payload == Quote(500)
        assert (await bus.ask("till", {"sku": "tea"})).payload == Quote(250)
        for wrong, words in ((Quote(1), "Quote; the handler is annotated to take"), ({"sku": 7}, "at `$.sku`")):
            with pytest.raises(AgentError, match=re.escape(words)) as caught:
                await bus.ask("till", wrong)
            assert caught.value.type_name == "DeserializationError"
        assert (await bus.ask("till", Order("tea"))).payload == Quote(250)  # it goes on
        await runner.stop_all()

    play(scene)


class Squarer(AgentProcess):
    async def handle(self, message: Message) -> Message | None:
        if message.payload["n"] < 0:
            raise ArithmeticError("negative")
        return self.reply({"n": message.payload["n"] ** 2})


class Chief(AgentProcess):
    """Asks many from its handler."""

    async def handle(self, message: Message) -> Message | None:
        payloads = ({"n": n} for n in range(message.payload["count"]))
        replies = await self.ask_many(["s1", "s2"], payloads, limit=8)
        return self.reply({"squares": [reply.payload["n"] for reply in replies]})


def test_an_agent_asks_many_of_a_pool(play: Any) -> None:
    async def scene(world: Any) -> None:
        runners = [await started(world, agent) for agent in (Squarer("s1"), Squarer("s2"), Chief("chief"))]
        reply = await world.bus.ask("chief", {"count": 40})
        assert reply.payload["squares"] == [n * n for n in range(40)]
        for runner in reversed(runners):
            await runner.stop_all()

    play(scene)


class Shaky(AgentProcess):
    """Fails with an error that is worth another try, as often as it is told."""

    failures = 0

    async def on_error(self, exc: Exception, message: Message) -> ErrorAction:
        return ErrorAction.SKIP

    async def handle(self, message: Message) -> Message | None:
        self.failures += 1
        if self.failures <= message.payload["times"]:
            raise TransientError("not yet")
        return self.reply({"attempts": self.failures})


class Patient(AgentProcess):
    async def handle(self, message: Message) -> Message | None:
        retry = Retry(attempts=3, backoff_base=0.0)
        return self.reply((await self.ask("shaky", message.payload, retry=retry)).payload)


def test_an_ask_is_tried_again_by_its_policy(play: Any) -> None:
    async def scene(world: Any) -> None:
        runners = [await started(world, agent) for agent in (Shaky("shaky"), Patient("patient"))]
        assert (await world.bus.ask("patient", {"times": 2})).payload == {"attempts": 3}
        with pytest.raises(AgentError, match="not yet"):
            await world.bus.ask("shaky", {"times": 9})
        for runner in reversed(runners):
            await runner.stop_all()

    play(scene)


class Sender(AgentProcess):
    async def handle(self, message: Message) -> Message | None:
        await self.send("small", {}, timeout=0.01, retry=Retry(attempts=1000, backoff="CONSTANT", backoff_base=0.001))
        return self.reply({})


def test_a_send_into_a_full_mailbox_is_tried_again_by_its_policy(play: Any) -> None:
    async def scene(world: Any) -> None:
        small = world.mailbox("small", capacity=1)
        runner = await started(world, Sender("sender"))
        bus = world.bus
        await bus.send("small", {})
        asking = asyncio.create_task(bus.ask("sender", {}))
        await asyncio.sleep(0.03)
        assert not asking.done()  # several attempts have failed by now, or none: both are right
        world.b.listen(small, lambda: None)
        while (delivery := world.b.take(small, -1)) is None:
            await asyncio.sleep(0)
        world.b.release(small, delivery[0])
        await asking
        await runner.stop_all()

    play(scene)


class Noter(AgentProcess):
    def __init__(self, name: str, **rest: Any) -> None:
        super().__init__(name, **rest)
        self.seen: list[Message] = []

    async def handle(self, message: Message) -> None:
        self.seen.append(message)


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_ttl_what_has_outlived_it_gets_no_handler_and_is_buried_with_the_reason(play: Any) -> None:
    async def scene(world: Any) -> None:
        mailbox = world.mailbox("noter")
        bus = world.bus
        await bus.send("noter", {"n": 1}, "old", ttl_s=0.001)
        await bus.send("noter", {"n": 2}, "fresh", ttl_s=3600.0)
        await bus.send("noter", {"n": 3})
        await asyncio.sleep(0.005)
        noter = Noter("noter")
        runner = await started(world, noter)
        await until(lambda: len(noter.seen) == 2)
        assert [message.payload["n"] for message in noter.seen] == [2, 3]
        assert noter.seen[0].ttl == pytest.approx(
            3600.0, abs=60
        )  # two clocks are read, and the process may be held up in between
        assert noter.seen[1].ttl is None
        (buried,) = world.admin.buried()
        assert (buried.type, buried.payload) == ("old", encode({"n": 1}))
        assert b"s after the end of its ttl" in buried.note
        assert world.b.stats(mailbox).dropped == 1
        await runner.stop_all()

    play(scene)


@pytest.mark.parametrize("ttl", [0, -1.0, float("nan"), 1e12])
def test_a_ttl_that_cannot_be_is_refused(play: Any, ttl: float) -> None:
    async def scene(world: Any) -> None:
        world.mailbox("noter")
        with pytest.raises(MessageValidationError, match="ttl is"):
            await world.bus.send("noter", {}, ttl_s=ttl)

    play(scene)
