"""An agent's `state`: when it is saved, where, and what the next incarnation finds.

    state: none        never saved
    state: in_memory   when `checkpoint()` says so; survives a restart of the agent in a living process
    state: store       when `checkpoint()` says so, in what `plugins.state` names (sqlite, redis, one of your own);
                       survives whatever the store survives. Without `plugins.state` it is in_memory. The default
    state: shm         at the end of every handler that changed it, too; survives process and host

Guarantees:
- what is saved at the end of a handler is saved after its answer was posted and before its message is released, so a
  state that is restored is never behind a message that is gone;
- with `shm` and `store` the state and the identity of its message are stored as one, so a message that is handed over
  again after its state was saved is recognised and not handled twice: the state is never ahead of it either;
- `checkpoint(now=True)` inside a handler saves at once and *without* that identity: its message counts as not handled
  yet. If the process dies before the handler's end, the message is handled again, upon the state as it was saved then.
  A handler that does so has to find in `state` how far it came; one that adds to a total and saves it at once adds
  twice;
- a store that cannot be reached loses no message: the one in hand stays in hand for the next incarnation;
- of a store that can tell (`FencedStateStore`), nobody's record is written over by one who has not seen it;
- the saved state is a copy: nothing that the agent does to `self.state` later changes it.
"""

from __future__ import annotations

import asyncio
import copy
import os
import time
from collections.abc import Collection, Mapping
from typing import Any, Final, Literal, Protocol, runtime_checkable

from .errors import SharedMemoryFull, StateTooLarge
from .serializer import decode, encode
from .transport import NO_MEMORY, NO_MESSAGE, SAME_MESSAGE, SENT, Port

__all__ = ["MESSAGE_KEY", "FencedStateStore", "InMemoryStateStore", "StateKeeper", "StateKind", "StateStore", "fenced"]

STATE_ROOM_S: Final = 30.0
"""How long a state may wait for memory before the agent crashes; as long as a `send` waits for room."""

MESSAGE_KEY: Final = "_civitas.message"
"""In a stored record: the id of the message whose effect the state has, or of no message, as 32 hexadecimal digits.
Agents never see it."""

ID_BYTES: Final = 16

StateKind = Literal["none", "in_memory", "store", "shm"]


@runtime_checkable
class StateStore(Protocol):
    """Where checkpoints go when they do not go to shared memory; the interface of Civitas' stores.

    What `get` returns belongs to the caller, and `set` keeps nothing of what it is given but a copy. A `set` that has
    returned is kept; one that has raised may have happened or not, but never half. A TransientError says that the
    store may work again later.
    """

    async def get(self, agent_name: str) -> dict[str, Any] | None:
        """The last state that was set, or None."""
        ...

    async def set(self, agent_name: str, state: dict[str, Any]) -> None:
        """Keep a copy in place of the last one."""
        ...

    async def delete(self, agent_name: str) -> None:
        """Forget it. Unknown names are ignored."""
        ...

    async def list_agents(self) -> list[str]:
        """Names with a state, sorted."""
        ...

    async def close(self) -> None:
        """Give back what it holds: connections, files. Idempotent."""
        ...


@runtime_checkable
class FencedStateStore(StateStore, Protocol):
    """A store that tells whether a record is still the one that was seen: by a tag that each write changes.

    So the late write of one who was thought dead, or of another run with the same names, is an error of that writer
    and destroys nothing.
    """

    async def read(self, agent_name: str) -> tuple[dict[str, Any] | None, bytes]:
        """As `get`, with the tag; empty when there is no record."""
        ...

    async def write(self, agent_name: str, state: dict[str, Any], tag: bytes, after: Collection[bytes]) -> None:
        """As `set`, under a new tag. StateConflict when the record's tag is none of `after` (and not `tag`: an earlier
        try of the same write got through)."""
        ...

    async def set_many(self, states: Mapping[str, dict[str, Any]]) -> None:
        """As `set` of each, but all of them or none."""
        ...


def fenced(store: StateStore) -> FencedStateStore | None:
    """The store as one that tells, if it does. A wrapper says so by `is_fenced`."""
    return store if isinstance(store, FencedStateStore) and getattr(store, "is_fenced", True) else None


class InMemoryStateStore:
    """Deep copies in this process: whatever `copy.deepcopy` can copy, for as long as the process lives."""

    def __init__(self) -> None:
        self._states: dict[str, dict[str, Any]] = {}

    async def get(self, agent_name: str) -> dict[str, Any] | None:
        return copy.deepcopy(self._states.get(agent_name))

    async def set(self, agent_name: str, state: dict[str, Any]) -> None:
        self._states[agent_name] = copy.deepcopy(state)

    async def delete(self, agent_name: str) -> None:
        self._states.pop(agent_name, None)

    async def list_agents(self) -> list[str]:
        return sorted(self._states)

    async def close(self) -> None:
        self._states.clear()


class Stateful(Protocol):
    """What a keeper needs of an agent."""

    name: str
    state: dict[str, Any]


class StateKeeper:
    """Saves and restores the state of one incarnation."""

    __slots__ = ("_agent", "_committed", "_kind", "_mailbox", "_port", "_records", "_store", "committed_id", "due")

    def __init__(self, agent: Stateful, mailbox: int, kind: StateKind, port: Port, store: StateStore) -> None:
        """`store`: of `in_memory` and `store`."""
        self._agent = agent
        self._mailbox = mailbox
        self._kind = kind
        self._port = port
        self._store = store
        self._records: _Records | None = None
        """Made when it is needed: most agents never save."""
        self._committed: bytes | None = b""
        """With `shm`: what is stored, so that a state that did not change is not stored again. None: store anyway."""
        self.committed_id = b""
        """The message whose effect the stored state has, or an id of none; with `in_memory` always empty."""
        self.due = kind == "shm"
        """Whether the end of the running handler has to save."""

    async def restore(self) -> None:
        """Before `on_start`. DeserializationError when what is stored cannot be read; else what the store raises."""
        if self._kind == "shm":
            stored = self._port.stored_state(self._mailbox)
            if stored is not None:
                self._committed, self.committed_id = stored
                self._agent.state = decode(self._committed)
            return
        found: dict[str, Any] | None = None
        if self._kind == "in_memory":
            found = await self._store.get(self._agent.name)
        elif self._kind == "store":
            found, self.committed_id = await self._in_store().load()
        if found is not None:
            self._agent.state = found

    def listening(self) -> None:
        """Behind the port's `listen`, before the first message."""
        if self._kind == "store":
            self._port.state_elsewhere(self._mailbox, self.committed_id)

    async def handler_ended(self, token: int, message_id: bytes) -> None:
        """Save, if it is due, as the effect of the message in hand.

        MessageValidationError: it cannot be encoded; SharedMemoryFull, StateTooLarge: it has no room; else what the
        store raises: of a TransientError or a StateConflict the message is not to blame. Then nothing was saved, or it
        is not known.
        """
        if self._kind != "shm":
            self.due = False
            await self._save(message_id)
            return
        encoded = encode(self._agent.state, "state")
        if encoded != self._committed:
            await self._commit(encoded, token)
            self._committed = encoded
            self.committed_id = message_id

    async def checkpoint(self, now: bool, handling: bool) -> None:
        """`AgentProcess.checkpoint`; `handling`: a handler of this agent runs. Raises as `handler_ended` does.

        Outside of a handler the state keeps the identity that it has: the message may still come again.
        """
        if self._kind == "none":
            return
        if handling and not now:
            self.due = True
        elif self._kind == "shm":
            encoded = encode(self._agent.state, "state")
            await self._commit(encoded, NO_MESSAGE if handling else SAME_MESSAGE)
            # The end of this handler has to say whose effect the state is, even if it changes nothing any more.
            self._committed = None if handling else encoded
            if handling:
                self.committed_id = b""
        else:
            await self._save(os.urandom(ID_BYTES) if handling else self.committed_id)

    async def _save(self, id_: bytes) -> None:
        """In a store. The id goes with the state, so that after a death the two are found together or not at all."""
        if self._kind != "store":
            id_ = b""
        await self._in_store().save(self._agent.state, id_)
        self.committed_id = id_
        if self._kind == "store":
            self._port.state_elsewhere(self._mailbox, id_)

    def _in_store(self) -> _Records:
        if self._records is None:
            self._records = _Records(self._agent.name, self._store)
        return self._records

    async def amend(self, fields: dict[str, Any]) -> None:
        """Add to what is stored, which keeps its identity, and leave out what a failed handler has made of the state.

        With `in_memory` and `none` they are stored apart. Raises as `handler_ended` does.
        """
        if self._kind == "shm":
            stored = self._port.stored_state(self._mailbox)
            state = decode(stored[0]) if stored is not None and stored[0] else {}
            await self._commit(encode({**state, **fields}, "state"), SAME_MESSAGE)
        elif self._kind == "store":
            found, id_ = await self._in_store().load()
            await self._in_store().save({**(found or {}), **fields}, id_)
        else:
            await self._commit(encode(fields, "state"), SAME_MESSAGE)

    async def commit_apart(self, encoded: bytes, token: int) -> None:
        """Store what is kept for the agent beside a state that is kept elsewhere (not with `shm`), with its message."""
        await self._commit(encoded, token)

    async def _commit(self, encoded: bytes, token: int) -> None:
        began = time.monotonic()
        while (outcome := self._port.commit_state(self._mailbox, token, encoded)) == NO_MEMORY:
            left_s = began + STATE_ROOM_S - time.monotonic()
            try:
                async with asyncio.timeout(left_s):
                    await self._port.room(self._mailbox)
            except TimeoutError:
                raise SharedMemoryFull(
                    f"the state of {self._agent.name!r} ({len(encoded):,} bytes) found no memory for {STATE_ROOM_S:g} s"
                ) from None
        if outcome != SENT:
            raise StateTooLarge(self._agent.name, len(encoded), self._port.state_max_bytes)


class _Records:
    """One agent's record in a store. Its writes happen one after the other."""

    __slots__ = ("_fenced", "_name", "_seen", "_store", "_turn")

    def __init__(self, name: str, store: StateStore) -> None:
        self._name = name
        self._store = store
        self._fenced = fenced(store)
        self._seen = [b""]
        """Tags that the record may have by our own doing: the last one, and those of writes that failed since."""
        self._turn = asyncio.Lock()

    async def load(self) -> tuple[dict[str, Any] | None, bytes]:
        """The state, and the id that it was saved with."""
        if self._fenced is None:
            found = await self._store.get(self._name)
        else:
            found, tag = await self._fenced.read(self._name)
            self._seen = [tag]
        if found is None:
            return None, b""
        return found, _id_of(found.pop(MESSAGE_KEY, ""))

    async def save(self, state: dict[str, Any], id_: bytes) -> None:
        record = {**state, MESSAGE_KEY: id_.hex()} if id_ else state
        if self._turn.locked():
            record = copy.deepcopy(record)  # it waits, and its agent goes on
        async with self._turn:
            if self._fenced is None:
                await self._store.set(self._name, record)
                return
            tag = os.urandom(8)
            try:
                await self._fenced.write(self._name, record, tag, self._seen)
            except BaseException:
                self._seen.append(tag)
                raise
            self._seen = [tag]


def _id_of(marked: Any) -> bytes:
    """Empty for whatever is no id: then a message that comes again is handled again."""
    try:
        id_ = bytes.fromhex(marked)
    except (TypeError, ValueError):
        return b""
    return id_ if len(id_) == ID_BYTES else b""
