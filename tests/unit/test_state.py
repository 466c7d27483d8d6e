"""The keeper of one agent's state and the store in memory, without an agent that runs."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from civitas_shm.errors import (
    DeserializationError,
    SharedMemoryFull,
    StateConflict,
    StateStoreUnavailable,
    StateTooLarge,
)
from civitas_shm.plugins.sqlite_store import SQLiteStateStore
from civitas_shm.serializer import encode
from civitas_shm.state import MESSAGE_KEY, InMemoryStateStore, StateKeeper, StateStore
from civitas_shm.transport import NO_MEMORY, SAME_MESSAGE, SENT, TOO_LARGE


class Port:
    """Remembers what was committed; answers with the outcomes it is given, then SENT."""

    state_max_bytes = 1000

    def __init__(self, *outcomes: int, stored: tuple[bytes, bytes] | None = None) -> None:
        self.outcomes = list(outcomes)
        self.stored = stored
        self.commits: list[tuple[int, bytes]] = []
        self.elsewhere: list[bytes] = []

    def commit_state(self, mailbox: int, token: int, state: bytes) -> int:
        outcome = self.outcomes.pop(0) if self.outcomes else SENT
        if outcome == SENT:
            self.commits.append((token, state))
        return outcome

    def stored_state(self, mailbox: int) -> tuple[bytes, bytes] | None:
        return self.stored

    def state_elsewhere(self, mailbox: int, id: bytes) -> None:
        self.elsewhere.append(id)

    def room(self, mailbox: int) -> asyncio.Future[None]:
        future = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future


def keeper(port: Any, kind: Any = "shm", store: Any = None) -> tuple[StateKeeper, Any]:
    agent = SimpleNamespace(name="a", state={})
    return StateKeeper(agent, 5, kind, port, store or InMemoryStateStore()), agent


def test_a_checkpoint_inside_a_handler_waits_for_its_end_and_says_whose_effect_it_is() -> None:
    async def scene() -> None:
        port = Port()
        it, agent = keeper(port)
        agent.state["n"] = 1
        await it.checkpoint(now=False, handling=True)
        assert port.commits == []
        await it.handler_ended(7, b"id")
        assert port.commits == [(7, encode({"n": 1}))]
        assert it.committed_id == b"id"

    asyncio.run(scene())


def test_the_end_after_a_checkpoint_at_once_commits_again_with_the_message() -> None:
    async def scene() -> None:
        port = Port()
        it, agent = keeper(port)
        agent.state["n"] = 1
        await it.checkpoint(now=True, handling=True)
        assert port.commits == [(-1, encode({"n": 1}))]
        assert it.committed_id == b""
        await it.handler_ended(7, b"id")  # nothing has changed since, but whose effect it is has
        assert port.commits[1:] == [(7, encode({"n": 1}))]
        await it.handler_ended(8, b"next")
        assert len(port.commits) == 2

    asyncio.run(scene())


def test_a_checkpoint_between_handlers_is_stored_at_once_and_not_again() -> None:
    async def scene() -> None:
        port = Port()
        it, agent = keeper(port)
        agent.state["n"] = 1
        await it.checkpoint(now=False, handling=False)
        await it.handler_ended(7, b"id")
        assert port.commits == [(SAME_MESSAGE, encode({"n": 1}))]

    asyncio.run(scene())


def test_what_is_stored_comes_back_with_the_message_whose_effect_it_is() -> None:
    async def scene() -> None:
        port = Port(stored=(encode({"n": 3}), b"id"))
        it, agent = keeper(port)
        await it.restore()
        assert (agent.state, it.committed_id) == ({"n": 3}, b"id")
        await it.handler_ended(7, b"next")
        assert port.commits == []
        damaged, _ = keeper(Port(stored=(b"\xc1", b"id")))
        with pytest.raises(DeserializationError):
            await damaged.restore()

    asyncio.run(scene())


def test_a_state_waits_for_memory_and_gives_up_with_words(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        port = Port(NO_MEMORY, NO_MEMORY)
        it, agent = keeper(port)
        agent.state["n"] = 1
        await it.handler_ended(7, b"id")
        assert len(port.commits) == 1
        too_large, agent = keeper(Port(TOO_LARGE))
        agent.state["n"] = 1
        with pytest.raises(StateTooLarge):
            await too_large.handler_ended(7, b"id")
        monkeypatch.setattr("civitas_shm.state.STATE_ROOM_S", 0.01)
        full = Port(*[NO_MEMORY] * 1000)
        full.room = lambda mailbox: asyncio.get_running_loop().create_future()  # type: ignore[method-assign]
        it, agent = keeper(full)
        agent.state["n"] = 1
        with pytest.raises(SharedMemoryFull, match="state of 'a'"):
            await it.handler_ended(7, b"id")
        assert full.commits == []

    asyncio.run(scene())


def test_defect_31_the_store_in_memory_keeps_deep_copies_and_gives_copies() -> None:
    async def scene() -> None:
        store = InMemoryStateStore()
        assert isinstance(store, StateStore)
        state = {"nested": [1], "object": {2}}  # a set cannot be sent, but can be copied
        await store.set("a", state)
        state["nested"].append(2)
        found = await store.get("a")
        assert found == {"nested": [1], "object": {2}}
        found["nested"].append(3)
        assert await store.get("a") == {"nested": [1], "object": {2}}
        await store.set("b", {})
        assert await store.list_agents() == ["a", "b"]
        await store.delete("a")
        await store.delete("nobody")
        assert (await store.get("a"), await store.list_agents()) == (None, ["b"])
        await store.close()
        assert await store.list_agents() == []

    asyncio.run(scene())


def test_in_memory_saves_only_what_is_due() -> None:
    async def scene() -> None:
        store = InMemoryStateStore()
        it, agent = keeper(Port(), "in_memory", store)
        agent.state["n"] = 1
        assert not it.due
        await it.checkpoint(now=False, handling=True)
        assert it.due
        assert await store.get("a") is None
        await it.handler_ended(7, b"id")
        assert (await store.get("a"), it.due) == ({"n": 1}, False)
        agent.state["n"] = 2
        await it.checkpoint(now=True, handling=True)
        assert await store.get("a") == {"n": 2}

    asyncio.run(scene())


ID, NEXT = b"i" * 16, b"j" * 16


def test_the_record_in_a_store_carries_the_message_whose_effect_it_is() -> None:
    async def scene() -> None:
        store, port = InMemoryStateStore(), Port()
        it, agent = keeper(port, "store", store)
        await it.restore()
        it.listening()
        agent.state["n"] = 1
        await it.checkpoint(now=False, handling=True)
        assert (await store.get("a"), it.due) == (None, True)
        await it.handler_ended(7, ID)
        assert await store.get("a") == {"n": 1, MESSAGE_KEY: ID.hex()}
        assert (it.due, it.committed_id, agent.state) == (False, ID, {"n": 1})
        second, agent = keeper(port, "store", store)
        await second.restore()
        second.listening()
        assert (second.committed_id, agent.state) == (ID, {"n": 1})
        assert port.elsewhere == [b"", ID, ID]
        await second.checkpoint(now=False, handling=False)  # in on_start, say: the message may still come again
        assert await store.get("a") == {"n": 1, MESSAGE_KEY: ID.hex()}
        await second.checkpoint(now=True, handling=True)
        third, _ = keeper(port, "store", store)
        await third.restore()
        assert third.committed_id not in (b"", ID, NEXT), "of no message, and unlike the one before"
        assert port.elsewhere[-1] == third.committed_id
        await third.handler_ended(8, NEXT)
        assert (await store.get("a") or {})[MESSAGE_KEY] == NEXT.hex()
        await store.set("a", {"n": 2, MESSAGE_KEY: "no id"})
        await third.restore()
        assert third.committed_id == b""

    asyncio.run(scene())


def test_who_has_not_seen_a_record_does_not_write_over_it(tmp_path: Any) -> None:
    async def scene() -> None:
        store, other = SQLiteStateStore(tmp_path / "s.db"), SQLiteStateStore(tmp_path / "s.db")
        old, agent = keeper(Port(), "store", store)
        await old.restore()
        agent.state["n"] = 1
        await old.handler_ended(1, ID)
        new, after = keeper(Port(), "store", other)
        await new.restore()
        after.state["n"] = 2
        await new.handler_ended(2, NEXT)
        agent.state["n"] = 100
        with pytest.raises(StateConflict, match=r"state of 'a' in .*s\.db was changed"):
            await old.handler_ended(3, ID)
        assert await store.get("a") == {"n": 2, MESSAGE_KEY: NEXT.hex()}
        await other.delete("a")
        with pytest.raises(StateConflict):
            await new.handler_ended(4, ID)
        await store.close()
        await other.close()

    asyncio.run(scene())


def test_a_write_whose_end_is_not_known_does_not_stand_in_the_way_of_the_next(tmp_path: Any) -> None:
    class Lossy(SQLiteStateStore):
        """Does it, and loses the answer."""

        loses = False

        async def write(self, *arguments: Any) -> None:
            await super().write(*arguments)
            if self.loses:
                raise StateStoreUnavailable("the answer was lost")

    async def scene() -> None:
        store = Lossy(tmp_path / "s.db")
        it, agent = keeper(Port(), "store", store)
        await it.restore()
        await it.checkpoint(now=True, handling=True)
        store.loses = True
        for n in range(2):
            agent.state["n"] = n
            with pytest.raises(StateStoreUnavailable):
                await it.checkpoint(now=True, handling=True)
        store.loses = False
        agent.state["n"] = 7
        await it.handler_ended(1, ID)
        assert await store.get("a") == {"n": 7, MESSAGE_KEY: ID.hex()}
        await store.close()

    asyncio.run(scene())


def test_saves_of_one_agent_keep_their_order_and_are_copies() -> None:
    class Slow(InMemoryStateStore):
        sets = 0

        async def set(self, agent_name: str, state: dict[str, Any]) -> None:
            self.sets += 1
            for _ in range(20 if self.sets == 1 else 0):
                await asyncio.sleep(0)
            await super().set(agent_name, state)

    async def scene() -> None:
        store = Slow()
        it, agent = keeper(Port(), "store", store)
        agent.state["nested"] = [1]
        first = asyncio.create_task(it.checkpoint(now=True, handling=False))
        await asyncio.sleep(0)
        agent.state["nested"].append(2)
        second = asyncio.create_task(it.checkpoint(now=True, handling=False))
        await asyncio.sleep(0)
        agent.state["nested"].append(3)
        await asyncio.gather(first, second)
        assert (await store.get("a") or {})["nested"] == [1, 2]

    asyncio.run(scene())
