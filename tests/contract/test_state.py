"""Every transport: what an agent's next incarnation finds in `state`, wherever it is kept, and whatever ended the last.

Death here is what every transport has: a handler that raises, or one that is cut by a stop. The death of a process is
in test_mailbox.py (one commit) and tests/process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from civitas_shm.errors import AgentError, ErrorAction, StateConflict, StateStoreUnavailable, TransportClosed
from civitas_shm.events import AgentFailed, DeadLetter
from civitas_shm.messages import Message
from civitas_shm.plugins.installed import Plugins
from civitas_shm.plugins.sqlite_store import SQLiteStateStore
from civitas_shm.process import AgentProcess
from civitas_shm.runner import AgentRunner
from civitas_shm.topology.model import AgentSpec, PluginSpec, PluginsSpec

KEPT = ["in_memory", "store", "shm"]
OUTLIVE_PROCESSES = ["store", "shm"]


class Ends(SQLiteStateStore):
    """A store in whose calls the process may end: before anything was done, or after everything was."""

    before: Callable[[], None] | None = None
    after: Callable[[], None] | None = None

    async def write(self, *arguments: Any) -> None:
        if self.before is not None:
            self.before()
            raise TransportClosed("the process is dead")
        await super().write(*arguments)
        if self.after is not None:
            self.after()


@pytest.fixture
def on(tmp_path: Path) -> Iterator[Callable[[Any], AgentRunner]]:
    """`on(world)`: a process that runs agents. All have the same file of states."""
    stores: list[Ends] = []

    def make(world: Any) -> AgentRunner:
        stores.append(Ends(tmp_path / "states.db"))
        return AgentRunner(world.b, plugins=Plugins(state_store=stores[-1]))

    yield make
    for store in stores:
        asyncio.run(store.close())


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
def test_a_checkpoint_outlives_its_agent_and_is_a_copy(play: Any, on: Any, kind: str) -> None:
    async def scene(world: Any) -> None:
        runner = on(world)
        await begin(runner, world, kind)
        await runner.bus.ask("notes", {}, "keep")
        runner.agents["notes"].state["seen"].append("after the handler")
        await runner.stop("notes")
        await begin(runner, world, kind)
        assert await seen(runner) == ["keep/1"]
        await runner.stop_all()

    play(scene)


def test_without_a_checkpoint_in_memory_keeps_nothing_and_shm_all(play: Any, on: Any) -> None:
    async def scene(world: Any) -> None:
        for kind, kept in (("in_memory", []), ("shm", ["add/1"])):
            runner = on(world)
            await begin(runner, world, kind)
            await runner.bus.ask("notes", {}, "add")
            await runner.stop("notes")
            await begin(runner, world, kind)
            assert await seen(runner) == kept
            await runner.stop_all()

    play(scene)


def test_state_none_keeps_nothing_whatever_is_asked_of_it(play: Any, on: Any) -> None:
    async def scene(world: Any) -> None:
        runner = on(world)
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
    play: Any, on: Any, kind: str, message: str, kept: list[str]
) -> None:
    async def scene(world: Any) -> None:
        runner = on(world)
        await begin(runner, world, kind)
        with pytest.raises(AgentError):
            await runner.bus.ask("notes", {}, message)
        await gone(runner)
        await begin(runner, world, kind)
        assert await seen(runner) == kept
        await runner.stop_all()

    play(scene)


@pytest.mark.parametrize("kind", KEPT)
def test_a_message_that_is_skipped_is_finished_and_its_checkpoint_with_it(play: Any, on: Any, kind: str) -> None:
    async def scene(world: Any) -> None:
        runner = on(world)
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
    play: Any, on: Any, kind: str, message: str, found: list[str]
) -> None:
    async def scene(world: Any) -> None:
        runner = on(world)
        await begin(runner, world, kind, saves_at_the_end=True)
        await cut(runner, world, message)
        await begin(runner, world, kind)
        assert await seen(runner) == found
        await runner.stop("notes")
        await begin(runner, world, kind)
        assert await seen(runner) == found  # the second time it was handled to its end, and saved
        await runner.stop_all()

    play(scene)


def test_on_stop_may_save_after_a_stop_in_good_order(play: Any, on: Any) -> None:
    async def scene(world: Any) -> None:
        runner = on(world)
        await begin(runner, world, "in_memory", saves_at_the_end=True)
        await runner.bus.ask("notes", {}, "add")
        await runner.stop("notes")
        await begin(runner, world, "in_memory")
        assert await seen(runner) == ["add/1"]
        await runner.stop_all()

    play(scene)


# --- the process dies between the store's commit and the release --------------------------------------------------


class Tally(AgentProcess):
    """Counts, and tells somebody of each. Its state is saved as it is told to be."""

    async def on_start(self) -> None:
        if self.config.get("saves_at_the_start"):
            await self.checkpoint()

    async def handle(self, message: Message) -> Message | None:
        if message.type == "look":
            return self.reply({"n": self.state.get("n", 0)})
        if message.type == "many":
            while self.state.get("n", 0) < message.payload["to"]:
                await self.send("heard", {"tick": "tock"})
                self.state["n"] = self.state.get("n", 0) + 1
                await self.checkpoint(now=True)
            return None
        self.state["n"] = self.state.get("n", 0) + 1
        await self.send("heard", {"n": self.state["n"]})
        await self.checkpoint()
        return None


async def tally(runner: AgentRunner, world: Any, kind: str, **config: Any) -> None:
    mailbox = world.mailbox("tally") if world.b.resolve("tally") < 0 else world.b.resolve("tally")
    assert await runner.start(Tally("tally", config=config), mailbox, AgentSpec("tally", "tests.Tally", state=kind))


def waiting(world: Any, name: str) -> int:
    count: int = world.a.stats(world.a.resolve(name)).waiting
    return count


async def died(world: Any) -> None:
    """The reading process, by the store's doing."""
    while not world.b._stopped:
        await asyncio.sleep(0)
    world.successor()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at_start", [False, True])
def test_a_handler_has_its_effect_on_the_state_exactly_once_whenever_its_process_dies(
    play: Any, on: Any, when: str, at_start: bool
) -> None:
    """Before the store's commit the message is handled again; after it, it is only released: also when `on_start` has
    saved the state again meanwhile."""

    async def scene(world: Any) -> None:
        world.need("succession")
        world.mailbox("heard")
        first = on(world)
        await tally(first, world, "store")
        await world.bus.send("tally", {}, "add")
        while waiting(world, "heard") < 1 or waiting(world, "tally"):
            await asyncio.sleep(0)
        setattr(first.plugins.state_store(), when, world.b.stop)
        await world.bus.send("tally", {}, "add")
        await died(world)
        second = on(world)
        await tally(second, world, "store", saves_at_the_start=at_start)
        assert (await world.bus.ask("tally", {}, "look")).payload == {"n": 2}
        assert world.b.stats(world.b.resolve("tally")).redelivered == 1
        assert waiting(world, "heard") == 2, "what was sent before the death is not sent again"
        await second.stop_all()

    play(scene)


@pytest.mark.parametrize("kind", OUTLIVE_PROCESSES)
def test_a_state_that_on_start_saves_still_has_its_message(play: Any, on: Any, kind: str) -> None:
    async def scene(world: Any) -> None:
        world.need("succession")
        world.mailbox("heard")
        first = on(world)
        await tally(first, world, kind)
        if kind == "store":
            first.plugins.state_store().after = world.b.stop
        else:
            commit = world.b.commit_state
            world.b.commit_state = lambda *arguments: (commit(*arguments), world.b.stop())[0]
        await world.bus.send("tally", {}, "add")
        await died(world)
        await tally(on(world), world, kind, saves_at_the_start=True)
        world.b.stop()  # before it has taken any message
        await died(world)
        third = on(world)
        await tally(third, world, kind)
        assert (await world.bus.ask("tally", {}, "look")).payload == {"n": 1}
        await third.stop_all()

    play(scene)


@pytest.mark.parametrize(("when", "dies_at"), [("before", 3), ("after", 3), ("after", 1)])
def test_a_handler_that_goes_on_from_a_stored_state_loses_and_doubles_nothing(
    play: Any, on: Any, when: str, dies_at: int
) -> None:
    """All that it sends is equal, so that only the state tells what is new: the memory of what it sent goes with it."""

    async def scene(world: Any) -> None:
        world.need("succession")
        world.mailbox("heard")
        first = on(world)
        await tally(first, world, "store")
        left = dies_at

        def end() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                world.b.stop()

        store = first.plugins.state_store()
        if when == "after":
            store.after = end
        else:
            write = store.write

            async def write_or_die(*arguments: Any) -> None:
                end()
                if left == 0:
                    raise TransportClosed("the process is dead")
                await write(*arguments)

            store.write = write_or_die
        await world.bus.send("tally", {"to": 5}, "many")
        await died(world)
        second = on(world)
        await tally(second, world, "store")
        assert (await world.bus.ask("tally", {}, "look")).payload == {"n": 5}
        assert waiting(world, "heard") == 5
        await second.stop_all()

    play(scene)


# --- a store that does not work -----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [StateStoreUnavailable("away"), StateConflict("tally", "there")])
def test_a_store_that_is_away_at_the_end_of_a_handler_keeps_the_message_for_later(
    play: Any, on: Any, error: Exception
) -> None:
    async def scene(world: Any) -> None:
        events: list[Any] = []
        world.mailbox("heard")
        runner = on(world)
        runner._on_event = events.append
        store = runner.plugins.state_store()
        await tally(runner, world, "store")

        async def away(*arguments: Any) -> None:
            raise error

        write, store.write = store.write, away
        await world.bus.send("tally", {}, "add")
        await gone(runner)
        failed = [event for event in events if isinstance(event, AgentFailed)]
        assert [(one.during, one.type) for one in failed] == [("state", type(error).__name__)]
        assert not [event for event in events if isinstance(event, DeadLetter)]
        store.write = write
        await tally(runner, world, "store")
        assert (await world.bus.ask("tally", {}, "look")).payload == {"n": 1}
        await runner.stop_all()

    play(scene)


def test_a_store_that_is_away_at_the_start_fails_the_start_and_says_so(play: Any, on: Any, tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        events: list[Any] = []
        for given, text in (
            (PluginsSpec(state=PluginSpec("sqlite", {"db_path": str(tmp_path / "no" / "s.db")})), "mkdir -p"),
            (PluginsSpec(state=PluginSpec("encrypted", {"inner": {"type": "sqlite"}})), "CIVITAS_STATE_KEY"),
        ):
            runner = AgentRunner(world.b, plugins=Plugins(given), on_event=events.append)
            mailbox = world.mailbox("tally") if world.b.resolve("tally") < 0 else world.b.resolve("tally")
            assert not await runner.start(Tally("tally"), mailbox, AgentSpec("tally", "tests.Tally"))
            assert (events[-1].during, text in events[-1].text) == ("on_start", True)
            await runner.plugins.close()

    play(scene)


@pytest.mark.parametrize("replicas", [1, 2])
def test_state_store_without_a_store_and_of_replicas_is_in_memory(play: Any, on: Any, replicas: int) -> None:
    async def scene(world: Any) -> None:
        runner = AgentRunner(world.b) if replicas == 1 else on(world)
        mailbox = world.mailbox("notes")
        for found in ([], ["keep/1"]):
            assert await runner.start(Notes("notes"), mailbox, AgentSpec("notes", "tests.Notes", replicas=replicas))
            assert runner.agents["notes"].store is runner.store
            assert await seen(runner) == found
            await runner.bus.ask("notes", {}, "keep")
            await runner.stop("notes")
        assert await runner.store.list_agents() == ["notes"]

    play(scene)
