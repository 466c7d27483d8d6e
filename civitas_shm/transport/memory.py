"""The contract of the host's hold on the memory of a run: mailboxes made, read, repaired, and let go.

Rules of this file: no implementation. Nothing here is on a hot path or waits for a process.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from .values import Buried, Delivery, InHand, MailboxSpec, MailboxStats, MemoryPlan, Wait

__all__ = ["Burials", "RunMemory"]


class Burials(Protocol):
    """Where messages lie that were given up, until their letters are stored: the RunMemory, or the Port in process."""

    def resolve(self, name: str) -> int:
        """The mailbox of an agent, or -1 when no record of that name exists."""
        ...

    def buried(self) -> list[Buried]:
        """The next ones, at most a few hundred; the same again until they are discarded. Empty: there are none."""
        ...

    def discard(self, mailbox: int, token: int) -> None:
        """Its letter is stored: a buried message, or one that a dead reader had in hand, is gone for good."""
        ...

    def answer_failed(self, header: bytes, payload: bytes, mailbox: int) -> None:
        """Tell who asks, if somebody does, that the message of this header failed; `payload` as `AgentError` fields."""
        ...

    def repost(self, mailbox: int, letter: Buried, sender: int) -> int:
        """Commit a copy of a letter: new id, one hop more, never an ask. An outcome as `Port.post` gives it."""
        ...


class DelayPort(Protocol):
    """Where orders of delayed messages come from, and what is due goes: the RunMemory, or the Port in process."""

    def resolve(self, name: str) -> int:
        """The mailbox of an agent, or -1 when no record of that name exists."""
        ...

    def open_delays(self, on_orders: Callable[[], None]) -> None:
        """Make the mailbox of orders, which this is the one reader of. `on_orders` is called on the loop when some may
        wait, and once soon after this call."""
        ...

    def take_order(self, done: int = -1) -> Delivery | None:
        """Release `done`, then take the next order; as `Port.take`."""
        ...

    def release_order(self, token: int) -> None:
        """It is stored."""
        ...

    def next_number(self) -> int:
        """A number that no message of this reader has had, nor of an earlier one. Never 0."""
        ...

    def fire(
        self, mailbox: int, header: bytes, payload: bytes, type: str, sender: str, priority: int, expires_ns: int,
        number: int,
    ) -> int:  # fmt: skip
        """Commit what is due, with an id of its own and the trace of its order's header. An outcome as `Port.post`."""
        ...

    def was_sent(self, mailbox: int, number: int) -> bool:
        """Whether a dead reader's `fire` of that number was committed there. Before anybody else runs, and only of the
        last number that it had."""
        ...


class RunMemory(Burials, DelayPort, Protocol):
    """The host's hold on the memory of one run. Not on a hot path; may take milliseconds, never waits for a process."""

    run_id: str
    name: str
    plan: MemoryPlan
    run_dir: Path
    """The run's own directory, which this host holds: for its control socket, its log, and its dead letters, which stay
    in it when all else goes (`letters.DIRECTORY`)."""
    told: list[str]
    """Sentences for the user about what was found at the beginning and what became of it."""

    def fds(self) -> list[int]:
        """Every file descriptor that a process of the run needs, in the order that `attach` expects."""
        ...

    def attach_spec(self, slot: int, incarnation: int, spin_ns: int) -> dict[str, Any]:
        """What `attach` needs beside the descriptors; plain values."""
        ...

    def incarnation(self, slot: int) -> int:
        """The last incarnation of a slot, 0 when it was never used: an adopted run goes on counting from it."""
        ...

    def begin_life(self, mailbox: int, incarnation: int) -> None:
        """This incarnation of the mailbox's agent is about to be started; the number that is kept only grows."""
        ...

    def last_incarnation(self) -> int:
        """The highest that `begin_life` was ever told, of any mailbox; 0: none. The next tree goes on from it."""
        ...

    def add_mailbox(self, spec: MailboxSpec) -> int:
        """Make a mailbox and publish its name. An open one of the same name (an adopted run) is returned as it is."""
        ...

    def set_readers(self, mailbox: int, slots: list[int]) -> None:
        """Who reads from now on. What dead earlier readers had in hand is handed to the first of `slots`."""
        ...

    def close_mailbox(self, mailbox: int, keep: Callable[[Buried], object] | None = None) -> list[InHand]:
        """Nothing can be committed after this. What waited is removed and returned; askers get AgentStopped at once.

        `keep` gets each before it is removed; a death in between and the successor's `finish_closing` gives it again.
        """
        ...

    def finish_closing(self, keep: Callable[[Buried], object]) -> list[InHand]:
        """Close for good what an earlier host died over while it closed it."""
        ...

    def post_notice(self, mailbox: int, type: str, data: bytes) -> int:
        """Commit news of the runtime (`notices`) to a mailbox's control lane. Returns as `Port.post`; never waits."""
        ...

    def slot_died(self, slot: int) -> list[InHand]:
        """Repair after proof of death (pidfd, lock): finish or undo half-taken messages, wake everybody.

        Returns what the dead process had in hand; it stays in hand and is redelivered to the successor.
        """
        ...

    def judge(self, entry: InHand, strikes: int, kills: int, alone: bool) -> None:
        """What the death of its reader means for one message: more strikes and kills, and whether it must run alone.

        Called for each that `slot_died` returned, before anything may be redelivered.
        """
        ...

    def read(self, entry: InHand) -> Buried:
        """The message of an entry whose reader is dead, complete."""
        ...

    def in_hand(self, slot: int) -> list[InHand]:
        """What a process holds just now."""
        ...

    def waiting(self, *, news: bool = False) -> dict[str, int]:
        """Messages that wait or are in hand, by agent; only agents that have some.

        News of the runtime (`notices`) only when asked for: they are about this life of the run, nobody has sent them,
        and no run is kept for them. In one that is kept for other reasons, or whose host died, they stay.
        """
        ...

    def stats(self) -> list[MailboxStats]:
        """All open mailboxes."""
        ...

    def stored_states(self) -> dict[str, int]:
        """Agents that have a state in this memory (`state: shm`), with its size in bytes."""
        ...

    def stored_state(self, name: str) -> tuple[bytes, bytes] | None:
        """As `Port.stored_state`, read while the agent may save: one whole state, or None."""
        ...

    def waits(self) -> list[Wait]:
        """What all processes noted by `Port.note_waits`; a wait that is being written just now is left out."""
        ...

    def probe(self, slot: int) -> None:
        """Ask whether the loop of a process turns; if it does, `answered` is true soon. Wakes it if it sleeps."""
        ...

    def answered(self, slot: int) -> bool:
        """Whether the last probe was answered."""
        ...

    def safety_poll(self) -> int:
        """Ring processes that sleep beside work; how many there were. Above 0 only if one was stopped mid-send
        or before it told those who wait for room that there is some."""
        ...

    def used_bytes(self) -> int:
        """Shared memory that is really taken."""
        ...

    def close(self, *, keep: bool) -> None:
        """Let go; `keep` leaves the segments for `--resume`, else nothing of the run remains. Idempotent."""
        ...
