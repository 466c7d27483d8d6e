"""Deadlocks between agents of one process: who gets the error, what it says, and who is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from civitas_shm import AgentProcess, DeadlockError, Message, Runtime, Supervisor
from civitas_shm.errors import ErrorAction


class Asker(AgentProcess):
    """Passes what it is asked on to the next one and answers with what came of it; `config["to"]` names that one."""

    async def on_error(self, exc: Exception, message: Message) -> ErrorAction:
        return ErrorAction.SKIP

    async def handle(self, message: Message) -> Message | None:
        steps = message.payload.get("steps", 0)
        if steps > 2:  # a question that failed as the youngest still waits here, as after any timeout
            return self.reply({})
        try:
            reply = await self.ask(self.config["to"], {"steps": steps + 1}, "go_on", timeout=30)
        except DeadlockError as error:
            return self.reply({"by": self.name, "error": str(error), "cycle": [list(wait) for wait in error.cycle]})
        return self.reply(reply.payload)


class Plain(AgentProcess):
    """The same in a thread of its own."""

    def handle(self, message: Message) -> Message | None:  # type: ignore[override]
        reply: Any = self.ask(self.config["to"], {}, "go_on", timeout=30)
        return self.reply(reply.payload)


class Slow(AgentProcess):
    async def handle(self, message: Message) -> Message | None:
        await asyncio.sleep(0.7)
        return self.reply({"slow": True})


class Background(AgentProcess):
    """Asks back while it answers: no deadlock, because its handler does not wait for that."""

    async def handle(self, message: Message) -> Message | None:
        if message.type == "go_on":
            self.answered = asyncio.ensure_future(self.ask(self.config["to"], {}, "back", timeout=30))
            await asyncio.sleep(0.7)
        return self.reply({})


class Self(AgentProcess):
    async def handle(self, message: Message) -> Message | None:
        if message.type == "inner":
            return self.reply({"inner": True})
        try:
            if message.payload["how"] == "handler":
                reply = await self.ask(self.name, {}, "inner", timeout=30)
            elif message.payload["how"] == "send":
                for n in range(self.mailbox_size + 1):
                    await self.send(self.name, {"n": n}, "inner")
                return self.reply({})
            else:
                self.task = asyncio.ensure_future(self.ask(self.name, {}, "inner", timeout=30))
                return self.reply({})
        except DeadlockError as error:
            return self.reply({"error": str(error)})
        return self.reply(reply.payload)


class Filler(AgentProcess):
    """Fills the mailbox of another one, from which it gets as many."""

    async def handle(self, message: Message) -> Message | None:
        if message.type != "fill":
            return None
        try:
            for n in range(20):
                await self.send(self.config["to"], {"n": n}, "filling", timeout=60)
                await asyncio.sleep(0.01)
        except DeadlockError as error:
            self.config["found"].append((self.name, error.cycle))
        return None


def play(agents: list[AgentProcess], scene: Callable[[Runtime], Awaitable[None]]) -> None:
    async def run() -> None:
        async with Runtime(Supervisor("root", agents)) as runtime:
            await scene(runtime)

    asyncio.run(run())


def test_defect_36_two_that_ask_each_other_get_an_error_for_the_younger_ask_that_names_both() -> None:
    async def scene(runtime: Runtime) -> None:
        reply = await runtime.ask("a", {}, timeout=20)
        assert reply.payload["by"] == "b"
        assert [wait[:4] for wait in reply.payload["cycle"]] == [["a", "b", "ask", "go_on"], ["b", "a", "ask", "go_on"]]
        assert all(0 < wait[4] < 20 for wait in reply.payload["cycle"])

    play([Asker("a", config={"to": "b"}), Asker("b", config={"to": "a"})], scene)


def test_a_circle_of_three_is_named_whole_and_one_that_waits_for_it_is_not_in_it() -> None:
    async def scene(runtime: Runtime) -> None:
        reply = await runtime.ask("outside", {"steps": -1}, timeout=20)
        assert sorted(wait[0] for wait in reply.payload["cycle"]) == ["a", "b", "c"]

    names = {"outside": "a", "a": "b", "b": "c", "c": "a"}
    play([Asker(name, config={"to": to}) for name, to in names.items()], scene)


def test_a_handler_that_is_blocked_in_its_thread_counts_too() -> None:
    async def scene(runtime: Runtime) -> None:
        reply = await runtime.ask("a", {}, timeout=20)
        assert reply.payload["by"] == "a"

    class First(Asker):
        async def handle(self, message: Message) -> Message | None:
            if message.type == "message":
                await asyncio.sleep(0.2)
            return await super().handle(message)

    # The thread asks first and waits for `a`, which is busy and then asks it: the younger one.
    async def both(runtime: Runtime) -> None:
        thread = asyncio.ensure_future(runtime.ask("thread", {}, timeout=20))
        await scene(runtime)
        assert (await thread).payload is not None

    play([First("a", config={"to": "thread"}), Plain("thread", config={"to": "a"})], both)


def test_slow_is_not_stuck() -> None:
    async def scene(runtime: Runtime) -> None:
        assert (await runtime.ask("a", {}, timeout=20)).payload == {"slow": True}

    play([Asker("a", config={"to": "b"}), Asker("b", config={"to": "slow"}), Slow("slow")], scene)


def test_what_a_task_beside_the_handler_asks_does_not_count() -> None:
    class Front(AgentProcess):
        async def handle(self, message: Message) -> Message | None:
            if message.type != "back":
                await self.ask("behind", {}, "go_on", timeout=30)
            return self.reply({"fine": True})

    behind = Background("behind", config={"to": "front"})

    async def scene(runtime: Runtime) -> None:
        assert (await runtime.ask("front", {}, timeout=20)).payload == {"fine": True}
        assert (await behind.answered).payload == {"fine": True}

    play([Front("front"), behind], scene)


class Gathers(AgentProcess):
    """Asks several at once, and awaits them in the way that its config names."""

    async def on_error(self, exc: Exception, message: Message) -> ErrorAction:
        return ErrorAction.SKIP

    async def handle(self, message: Message) -> Message | None:
        if message.type != "message":
            return self.reply({"by": self.name})
        asks = [asyncio.ensure_future(self.ask(to, {}, "go_on", timeout=30)) for to in self.config["to"]]
        if self.config["how"] == "gather":
            try:
                await asyncio.gather(*asks)
            except DeadlockError as error:
                return self.reply({"cycle": [list(wait[:4]) for wait in error.cycle]})
            finally:
                for ask in asks:
                    ask.cancel()
        else:
            await asyncio.wait(asks, return_when=asyncio.FIRST_COMPLETED)
        return self.reply({"answered": True})


class AsksBack(AgentProcess):
    """Answers with what it was answered itself, late enough for the one who asks to wait for it."""

    async def on_error(self, exc: Exception, message: Message) -> ErrorAction:
        return ErrorAction.SKIP

    async def handle(self, message: Message) -> Message | None:
        reply = await self.ask(self.config["to"], {}, "back", timeout=30)
        return self.reply(reply.payload)


def test_a_circle_through_one_of_several_asks_that_a_handler_gathers_is_found() -> None:
    async def scene(runtime: Runtime) -> None:
        reply = await runtime.ask("front", {}, timeout=30)
        circle = [["back", "front", "ask", "back"], ["front", "back", "ask", "go_on"]]
        assert sorted(reply.payload["cycle"]) == circle

    front = Gathers("front", config={"to": ["slow", "back"], "how": "gather"})
    play([front, AsksBack("back", config={"to": "front"}), Slow("slow")], scene)


def test_a_race_that_is_won_by_another_ask_is_no_deadlock() -> None:
    async def scene(runtime: Runtime) -> None:
        assert (await runtime.ask("front", {}, timeout=30)).payload == {"answered": True}

    front = Gathers("front", config={"to": ["slow", "back"], "how": "race"})
    play([front, AsksBack("back", config={"to": "front"}), Slow("slow")], scene)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("handler", {"error": "'me' waits for the answer of 'me' to 'inner': it waits for itself."}),
        ("send", {"error": "'me' waits for room in the full mailbox of 'me' for 'inner': it waits for itself."}),
        ("task", {}),
    ],
)
def test_who_asks_itself_in_its_handler_is_told_at_once(how: str, expected: dict[str, Any]) -> None:
    async def scene(runtime: Runtime) -> None:
        assert (await runtime.ask("me", {"how": how}, timeout=20)).payload == expected

    play([Self("me", mailbox_size=3)], scene)


def test_two_that_wait_for_room_with_each_other_get_an_error_for_the_younger() -> None:
    found: list[Any] = []

    async def scene(runtime: Runtime) -> None:
        for name in ("a", "b"):
            await runtime.send(name, {}, "fill")
        while not found:
            await asyncio.sleep(0.01)
        ((name, cycle),) = found
        assert cycle[1][0] == name
        assert [wait[2:4] for wait in cycle] == [("room", "filling"), ("room", "filling")]
        while runtime.waiting():
            await asyncio.sleep(0.01)
        assert len(found) == 1

    config = {"found": found}
    agents = [Filler("a", mailbox_size=2, config={"to": "b", **config})]
    play([*agents, Filler("b", mailbox_size=2, config={"to": "a", **config})], scene)
