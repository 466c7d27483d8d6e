"""Every transport: what an agent's next incarnation finds in `state`, wherever it is kept, and whatever ended the last.

Death here is what every transport has: a handler that raises, or one that is cut by a stop. The death of a process is
in test_mailbox.py (one commit) and tests/process.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from civitas_shm.errors import AgentError, ErrorAction
from civitas_shm.messages import Message
from civitas_shm.process import AgentProcess
from civitas_shm.runner import AgentRunner
from civitas_shm.topology.model import AgentSpec

KEPT = ["in_memory", "shm"]


class Notes(AgentProcess):
    """Writes down the types of what it handles, and says what it has."""

    cut = False

    async def handle(self, message: Message) -> Message | None:
        if message.type == "look":
            return self.reply({"seen": list(self.state.get("seen", []))})
        self.state.setdefault("seen", []).append(f"{message.type}/{message.delivery}")
        if "now" in message.type:
            await self.checkpoint(now=True)
        elif "keep" in message.type:
            await self.checkpoint()
        if "hang" in message.type and message.delivery == 1:
            await asyncio.Event().wait()
        if "fail" in message.type:
            raise ValueError("seven")
        return self.reply({})

    async def on_error(self, exc: Exception, message: Message) -> ErrorAction:
        return ErrorAction.SKIP if "skip" in message.type else ErrorAction.ESCALATE

    async def on_stop(self) -> None:
        if self.config.get("saves_at_the_end"):
            await self.checkpoint()


async def begin(runner: AgentRunner, world: Any, kind: str, **config: Any) -> None:
    agent = Notes("notes", config=config)
    mailbox = world.mailbox("notes") if world.b.resolve("notes") < 0 else world.b.resolve("notes")
    assert await runner.start(agent, mailbox, AgentSpec("notes", "tests.Notes", state=kind))


async def seen(runner: AgentRunner) -> list[str]:
    found: list[str] = (await runner.bus.ask("notes", {}, "look")).payload["seen"]
    return found


async def gone(runner: AgentRunner) -> None:
    """After a crash: until it has ended."""
    while runner.agents:
        await asyncio.sleep(0)


async def cut(runner: AgentRunner, world: Any, kind: str) -> None:
    """Send a message whose handler hangs, and stop the agent in the middle of it."""
    await runner.bus.send("notes", {}, kind)
    while not world.b.stats(world.b.resolve("notes")).in_hand:
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)  # into the handler
    assert not await runner.stop("notes", timeout_s=0.01)


@pytest.mark.parametrize("kind", KEPT)
def test_a_checkpoint_outlives_its_agent_and_is_a_copy(play: Any, kind: str) -> None:
    async def scene(world: Any) -> None:
        runner = AgentRunner(world.b)
        await begin(runner, world, kind)
        await runner.bus.ask("notes", {}, "keep")
        runner.agents["notes"].state["seen"].append("after the handler")
        await runner.stop("notes")
        await begin(runner, world, kind)
        assert await seen(runner) == ["keep/1"]
        await runner.stop_all()

    play(scene)


def test_without_a_checkpoint_in_memory_keeps_nothing_and_shm_all(play: Any) -> None:
    async def scene(world: Any) -> None:
        for kind, kept in (("in_memory", []), ("shm", ["add/1"])):
            runner = AgentRunner(world.b)
            await begin(runner, world, kind)
            await runner.bus.ask("notes", {}, "add")
            await runner.stop("notes")
            await begin(runner, world, kind)
            assert await seen(runner) == kept
            await runner.stop_all()

    play(scene)


def test_state_none_keeps_nothing_whatever_is_asked_of_it(play: Any) -> None:
    async def scene(world: Any) -> None:
        runner = AgentRunner(world.b)
        await begin(runner, world, "none")
        await runner.bus.ask("notes", {}, "keep")
        await runner.bus.ask("notes", {}, "now")
        await runner.stop("notes")
        await begin(runner, world, "none")
        assert await seen(runner) == []
        await runner.stop_all()

    play(scene)


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize(("message", "kept"), [("keep and fail", []), ("now and fail", ["now and fail/1"])])
def test_a_handler_that_crashes_saves_only_what_it_saved_at_once(
    play: Any, kind: str, message: str, kept: list[str]
) -> None:
    async def scene(world: Any) -> None:
        runner = AgentRunner(world.b)
        await begin(runner, world, kind)
        with pytest.raises(AgentError):
            await runner.bus.ask("notes", {}, message)
        await gone(runner)
        await begin(runner, world, kind)
        assert await seen(runner) == kept
        await runner.stop_all()

    play(scene)


@pytest.mark.parametrize("kind", KEPT)
def test_a_message_that_is_skipped_is_finished_and_its_checkpoint_with_it(play: Any, kind: str) -> None:
    async def scene(world: Any) -> None:
        runner = AgentRunner(world.b)
        await begin(runner, world, kind)
        with pytest.raises(AgentError):
            await runner.bus.ask("notes", {}, "keep, fail and skip")
        await runner.stop("notes")
        await begin(runner, world, kind)
        assert await seen(runner) == ["keep, fail and skip/1"]
        await runner.stop_all()

    play(scene)


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize(
    ("message", "found"),
    [("keep and hang", ["keep and hang/2"]), ("now and hang", ["now and hang/1", "now and hang/2"])],
)
def test_a_message_that_comes_again_finds_the_state_before_it_or_the_one_saved_at_once(
    play: Any, kind: str, message: str, found: list[str]
) -> None:
    async def scene(world: Any) -> None:
        runner = AgentRunner(world.b)
        await begin(runner, world, kind, saves_at_the_end=True)
        await cut(runner, world, message)
        await begin(runner, world, kind)
        assert await seen(runner) == found
        await runner.stop("notes")
        await begin(runner, world, kind)
        assert await seen(runner) == found  # the second time it was handled to its end, and saved
        await runner.stop_all()

    play(scene)


def test_on_stop_may_save_after_a_stop_in_good_order(play: Any) -> None:
    async def scene(world: Any) -> None:
        runner = AgentRunner(world.b)
        await begin(runner, world, "in_memory", saves_at_the_end=True)
        await runner.bus.ask("notes", {}, "add")
        await runner.stop("notes")
        await begin(runner, world, "in_memory")
        assert await seen(runner) == ["add/1"]
        await runner.stop_all()

    play(scene)
