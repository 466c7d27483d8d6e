"""The contract of a process's door to the mailboxes of a run, operation by operation. The hot path.

Rules of this file: no implementation. Each operation says what it promises, what it returns, and what then holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from ..messages import Cause
from .values import Delivery, MailboxStats, Reply, Wait

__all__ = ["Port", "Sink"]


class Sink(Protocol):
    """Stands in place of the future of an ask for what gets more than one reply. Called on the loop, must not raise."""

    def done(self) -> bool:
        """Whether it wants no more."""
        ...

    def set_result(self, reply: Reply, /) -> object: ...

    def set_exception(self, error: BaseException, /) -> object:
        """The process leaves the run: TransportClosed."""
        ...

    def exception(self) -> BaseException | None: ...


class Port(Protocol):
    """One process's door. All operations run on the thread of the loop given to `start`; none blocks.

    The hot operations take their arguments by position, so that they may be native functions.

    Guarantees: a post that returned SENT is committed: it survives the death of this and any other process.
    Messages of one sender to one mailbox and lane with one reader are handed over in the order of their posts.
    """

    slot: int
    payload_max_bytes: int
    """Largest payload that a post can ever commit; above it, TOO_LARGE."""
    state_max_bytes: int
    """The same of `commit_state`."""

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to receive on `loop`. Called once."""
        ...

    def stop(self, why: str = "") -> None:
        """Leave: pending asks and waits for room fail with TransportClosed, later operations too. Idempotent.

        `why`: what these errors say, for those who want to know what has become of the run.

        Messages in hand stay in hand for the successor.
        """
        ...

    def resolve(self, name: str) -> int:
        """The mailbox of an agent, or -1 when no record of that name exists. Cheap after the first time."""
        ...

    def names(self) -> list[str]:
        """All names in the directory whose mailboxes are open."""
        ...

    def post(
        self,
        mailbox: int,
        payload: bytes,
        type: str,
        sender: int | str,
        cause: Cause | None = None,
        lane: int = 2,
        priority: int = 0,
        expires_ns: int = 0,
        /,
    ) -> int:
        """Commit one message. Returns SENT, FULL, CLOSED, NO_MEMORY or TOO_LARGE; the bytes are copied.

        `expires_ns`: from then on (CLOCK_MONOTONIC; 0: never) no handler gets it any more, see `take`.
        `sender` is the sender's own mailbox; or the name of an agent of another host, then the message keeps the id
        that its `cause` has (`messages.foreign_header`), and type and name have 4,000 bytes at most.
        `cause` is the header of the message being handled: trace id and parent span are taken from it.
        """
        ...

    def post_ask(
        self,
        mailbox: int,
        payload: bytes,
        type: str,
        sender: int | str,
        future: asyncio.Future[Reply] | Sink,
        deadline_ns: int,
        cause: Cause | None = None,
        lane: int = 2,
        priority: int = 0,
        seq: int = 0,
    ) -> int:
        """Commit a question. Returns a correlation (> 0), or an outcome as `post` does (then the future is untouched).

        The future gets the Reply, or TransportClosed. The caller owns the deadline: at its end it calls `forget`. In
        place of the future may stand a `Sink`. `seq` goes into the header.
        """
        ...

    def new_correlation(self) -> int:
        """One that nothing else of this process has; for `keep`, when others are to answer without being asked."""
        ...

    def keep(self, correlation: int, sink: Sink, /) -> None:
        """The next reply of that correlation goes to `sink`, unless `forget` comes first.

        It is removed before it is called, as a future is; who wants more calls this again from `set_result`.
        """
        ...

    def forget(self, correlation: int) -> None:
        """Nobody waits any more: a late reply is counted and dropped. Unknown correlations are ignored."""
        ...

    def post_reply(
        self, cause: Cause, payload: bytes, type: str, sender: int | str, failed: bool = False, seq: int = 0, /
    ) -> bool:
        """Answer the message whose header is `cause`. Never waits: the asker keeps a place for it.

        False when the asker is gone, its deadline has passed, or the message was no ask: the reply was dropped.
        PayloadTooLarge, SharedMemoryFull: somebody still waits and this reply cannot be stored; a smaller one may be.
        """
        ...

    def reply_room(self, cause: Cause) -> asyncio.Future[None]:
        """As `room`, for a `post_reply` to `cause` that raised SharedMemoryFull."""
        ...

    def lives(self, cause: Cause) -> bool:
        """Whether the process that waits for replies to `cause` lives, as far as is known. False is final."""
        ...

    on_death: Callable[[], object] | None
    """Called on the loop soon after any process of the run has died: ask `lives` of those that matter. A hint."""

    on_stranger: Callable[[Reply], object] | None
    """Called with each reply that nobody waits for any more."""

    def take(self, mailbox: int, done: int = -1, /) -> Delivery | None:
        """Release `done` (a token of this mailbox, or -1), then take the next message: redelivered first, then by lane.

        The message is in hand from here on: if this process dies before `release`, its successor gets it again with
        the delivery count raised. A delivery count of 0: it has outlived its `expires_ns`; the reader buries it, and it
        is counted as dropped. None = nothing waits; `on_ready` will be called when something does.
        """
        ...

    def release(self, mailbox: int, token: int, /) -> None:
        """The handler has finished with the message; it is gone for good."""
        ...

    def begin(self, mailbox: int, token: int, /) -> int:
        """The handler of a suspected message (negative count) begins now; its delivery count, raised by this.

        A death from here on may be its doing; before, it waited and cannot be blamed.
        """
        ...

    def forgo(self, mailbox: int, token: int, /) -> bool:
        """At-most-once, before the handler: the message is never handed over again, whatever dies.

        It stays in hand until `release` or `bury`; found there after a death it goes to the dead letters.
        """
        ...

    def strike(self, mailbox: int, token: int, /) -> int:
        """The handler failed, and the message stays in hand for the successor. How many strikes it has now."""
        ...

    def bury(self, mailbox: int, token: int, header: bytes, note: bytes, /) -> int:
        """Instead of `release`: the message goes to the dead letters with `note`. SENT, FULL or NO_MEMORY.

        After SENT neither message nor note is lost by any death, and no handler gets the message again. FULL and
        NO_MEMORY: nothing was done, because there is no room for the note; later there may be, and an empty note
        always finds room.
        """
        ...

    def commit_state(self, mailbox: int, token: int, state: bytes, /) -> int:
        """Store the agent's state together with the identity of the message in hand, by one word.

        After it, a redelivery of that message is recognised (`stored_state` carries its id); with a token of NO_MESSAGE
        of none, with SAME_MESSAGE of the one that the last state has. SENT, NO_MEMORY or TOO_LARGE. Only for mailboxes
        with one reader.
        """
        ...

    def stored_state(self, mailbox: int, /) -> tuple[bytes, bytes] | None:
        """(state, id of the message it was committed with), or None when none was ever committed."""
        ...

    def note_suspended(self, mailbox: int, since_ns: int, /) -> None:
        """Let all who look know since when (wall clock) the agent of this mailbox is suspended; 0: it is not."""
        ...

    def state_elsewhere(self, mailbox: int, id: bytes, /) -> None:
        """The agent's state lies in a store, under this id of 16 bytes; empty: none does.

        Said behind `listen`, before the first `take`, and after each save. What a handler sends belongs to the state
        that lay there then: a handler that is run again upon that state repeats it, and upon a later one does not.
        """
        ...

    def listen(self, mailbox: int, on_ready: Callable[[], None]) -> None:
        """Become a reader: `on_ready` is called on the loop when messages may wait, and once soon after this call.

        It is a hint: it may come when nothing waits. The reader calls `take` until None, or again later.
        """
        ...

    def unlisten(self, mailbox: int, comes_back: bool = False) -> None:
        """Stop calling `on_ready`. Waiting messages stay where they are, and with `comes_back` those in hand too."""
        ...

    def room(self, mailbox: int) -> asyncio.Future[None]:
        """A future that resolves when a post that returned FULL or NO_MEMORY may be worth another try. A hint too."""
        ...

    def collect(self) -> None:
        """Whatever has come by now for those who wait here, replies and news of room, resolves its future at once."""
        ...

    def note_waits(self, waits: Sequence[Wait]) -> None:
        """What the handlers of this process wait for, for others to read; it replaces what was noted before."""
        ...

    def held(self) -> tuple[int, list[tuple[str, int]], str]:
        """(bytes that all messages of this process may take, [(receiver, bytes that it has not given back)], why the
        kernel gave no more the last time, with the way out; empty where it did).

        The largest first, five at most; for the text of an error. Slow.
        """
        ...

    def stats(self, mailbox: int) -> MailboxStats:
        """One reading, from anywhere, at no cost to the agent."""
        ...
