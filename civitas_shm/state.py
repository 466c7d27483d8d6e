"""An agent's `state`: when it is saved, where, and what the next incarnation finds.

    state: none        never saved
    state: in_memory   when `checkpoint()` says so; survives a restart of the agent in a living process
    state: shm         at the end of every handler that changed it, too; survives process and host

Guarantees:
- what is saved at the end of a handler is saved after its answer was posted and before its message is released, so a
  state that is restored is never behind a message that is gone;
- with `shm` the state and the identity of its message are stored by one word, so a message that is handed over again
  after its state was saved is recognised and not handled twice: the state is never ahead of it either;
- `checkpoint(now=True)` inside a handler saves at once and *without* that identity: its message counts as not handled
  yet. If the process dies before the handler's end, the message is handled again, upon the state as it was saved then.
  A handler that does so has to find in `state` how far it came; one that adds to a total and saves it at once adds
  twice.
- the saved state is a copy: nothing that the agent does to `self.state` later changes it.
"""

from __future__ import annotations

import asyncio
import copy
import time
from typing import Any, Final, Literal, Protocol, runtime_checkable

from .errors import SharedMemoryFull, StateTooLarge
from .serializer import decode, encode
from .transport import NO_MEMORY, SENT, Port

__all__ = ["InMemoryStateStore", "StateKeeper", "StateKind", "StateStore"]

STATE_ROOM_S: Final = 30.0
"""How long a state may wait for memory before the agent crashes; as long as a `send` waits for room."""

StateKind = Literal["none", "in_memory", "shm"]


@runtime_checkable
class StateStore(Protocol):
    """Where checkpoints go when they do not go to shared memory; the interface of Civitas' stores.

    What `get` returns belongs to the caller, and `set` keeps nothing of what it is given but a copy.
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
        """Nothing is kept any more. Idempotent."""
        ...


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

    __slots__ = ("_agent", "_committed", "_kind", "_mailbox", "_port", "_store", "committed_id", "due")

    def __init__(self, agent: Stateful, mailbox: int, kind: StateKind, port: Port, store: StateStore) -> None:
        self._agent = agent
        self._mailbox = mailbox
        self._kind = kind
        self._port = port
        self._store = store
        self._committed: bytes | None = b""
        """With `shm`: what is stored, so that a state that did not change is not stored again. None: store anyway."""
        self.committed_id = b""
        """With `shm`: the message whose effect the stored state has."""
        self.due = kind == "shm"
        """Whether the end of the running handler has to save."""

    async def restore(self) -> None:
        """Before `on_start`. DeserializationError when what is stored cannot be read; else what the store raises."""
        if self._kind == "shm":
            stored = self._port.stored_state(self._mailbox)
            if stored is not None:
                self._committed, self.committed_id = stored
                self._agent.state = decode(self._committed)
        elif self._kind == "in_memory":
            found = await self._store.get(self._agent.name)
            if found is not None:
                self._agent.state = found

    async def handler_ended(self, token: int, message_id: bytes) -> None:
        """Save, if it is due, as the effect of the message in hand.

        MessageValidationError: it cannot be encoded; SharedMemoryFull, StateTooLarge: it has no room; else what the
        store raises. Then nothing was saved.
        """
        if self._kind != "shm":
            self.due = False
            await self._store.set(self._agent.name, self._agent.state)
            return
        encoded = encode(self._agent.state, "state")
        if encoded != self._committed:
            await self._commit(encoded, token)
            self._committed = encoded
            self.committed_id = message_id

    async def checkpoint(self, now: bool, handling: bool) -> None:
        """`AgentProcess.checkpoint`; `handling`: a handler of this agent runs. Raises as `handler_ended` does."""
        if self._kind == "none":
            return
        if handling and not now:
            self.due = True
        elif self._kind == "in_memory":
            await self._store.set(self._agent.name, self._agent.state)
        else:
            encoded = encode(self._agent.state, "state")
            await self._commit(encoded, -1)
            # The end of this handler has to say whose effect the state is, even if it changes nothing any more.
            self._committed = None if handling else encoded
            self.committed_id = b""

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
