"""After a death: what `delivery.judge` says about the messages in hand, carried out in memory and in the dead letters.

Rules of this file: called between the repair of memory and the order for a successor, so that nothing is handed over
before it is judged; nothing is decided here but what is said. For each message: first the counters, which outlive this
host; then, of a convicted one, the letter; then its asker is told and the message is let go. A host that dies in
between is followed by one that finds either the message or its letter (`dead_letters.DeadLetterOffice.settle`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from ..dead_letters import DeadLetterOffice
from ..delivery import Blame, Verdict, judge
from ..letters import Note
from ..transport import InHand, RunMemory
from .reports import Death

__all__ = ["PROCESS_DIED", "Verdicts"]

PROCESS_DIED: Final = "ProcessDied"
"""Type name in the AgentError that an asker gets whose message is not handed over again after a death."""


class Verdicts:
    """The court of one run."""

    def __init__(self, memory: RunMemory, office: DeadLetterOffice) -> None:
        self._memory = memory
        self._office = office

    def settle(self, slots: Iterable[int]) -> None:
        """At the beginning, over what an earlier host left: finish what it was about to finish."""
        self._office.settle(entry for slot in slots for entry in self._memory.in_hand(slot))
        self._memory.finish_closing(lambda message: self._office.keep(message, Note(CLOSED)))
        self._office.collect()

    def after(
        self, in_hand: Sequence[InHand], blame: Blame, limits: Mapping[int, int], starting: bool, death: Death
    ) -> int:
        """Judge all that a dead process had in hand. How many were convicted: the cause of the death is gone then.

        `starting`: an agent of it had not yet started.
        """
        convicted = 0
        for verdict in judge(in_hand, blame, limits, others_active=starting):
            self._memory.judge(verdict.entry, verdict.strikes, verdict.kills, verdict.alone)
            if verdict.convicted:
                self._bury(verdict, verdict.why, death)
                convicted += 1
            elif verdict.entry.once:
                self._bury(verdict, "its process died while its handler ran, and delivery is at_most_once", death)
        self._office.collect()  # what it had given up itself
        return convicted

    def _bury(self, verdict: Verdict, why: str, death: Death) -> None:
        note = Note(f"{why}; process {death.process} (pid {death.pid}) died: {death.cause}", "\n".join(death.tail))
        self._office.convict(self._memory.read(verdict.entry), note, PROCESS_DIED)


CLOSED: Final = "its recipient was given up, and its mailbox closed"
