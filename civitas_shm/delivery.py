"""What the death of a process means for the messages that it had in hand: who is struck, who is suspect, who convicted.

| a process died                              | exactly one message ran    | several ran       | none ran |
|---------------------------------------------|----------------------------|-------------------|----------|
| by our doing: chaos, stop, deploy           | nothing                    | nothing           | nothing  |
| of a SIGKILL that nobody here can explain   | one kill, limit KILLS_MAX  | all are suspects  | nothing  |
| of anything else (signal, exit code, OOM,   | one strike, limit          | all are suspects  | nothing  |
| memory limit, stuck handler)                | `max_deliveries`           |                   |          |

- *ran*: its handler had begun and had not ended. What only waited in hand is never blamed.
- While an agent of the process was starting, a death may be that agent's: then nobody is struck, who ran is suspect.
- A *suspect* is handed over again, but its handler begins when no other runs in its process, and while it runs none
  begins (`alone`). So the next death has exactly one running message: the poison one is convicted, not its neighbours.
- *Convicted*: the limit is reached. The message goes to the dead letters with the cause; its asker is told.
- The death of the host counts for nobody: it takes everybody with it.
- The limit is that of the message's recipient; 0 is no limit: then it comes back for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from .transport import InHand

__all__ = ["KILLS_MAX", "Blame", "Verdict", "blame_of", "judge"]

KILLS_MAX: Final = 10
"""Somebody's hand or another program's, most likely; but a message that is hit ten times while it runs alone is its
cause (it exhausts the machine, say, and an operator answers)."""


class Blame(Enum):
    """Whose doing a death was."""

    OURS = "ours"
    """The host killed it for reasons of its own, or told it to end."""
    OUTSIDE = "outside"
    """SIGKILL, and neither the host nor the kernel's out-of-memory killer sent it."""
    ITS_OWN = "its own"
    """It crashed, exited, ran out of memory, or was killed for what a handler did."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """On one message in hand."""

    entry: InHand
    strikes: int = 0
    """To be added."""
    kills: int = 0
    alone: bool = False
    convicted: bool = False
    why: str = ""
    """Of a conviction, one sentence; the cause of the death follows it."""


def blame_of(*, forgiven: bool, killed_by_us: bool, for_what_it_did: bool, sigkill: bool, out_of_memory: bool) -> Blame:
    """`forgiven`: chaos, or the run was stopping. `for_what_it_did`: the host killed it for what a handler did."""
    if forgiven or (killed_by_us and not for_what_it_did):
        return Blame.OURS
    if sigkill and not out_of_memory and not killed_by_us:
        return Blame.OUTSIDE
    return Blame.ITS_OWN


def judge(
    in_hand: Sequence[InHand], blame: Blame, limits: Mapping[int, int], *, others_active: bool = False
) -> list[Verdict]:
    """One verdict for each, in the same order. `limits`: `max_deliveries` by mailbox (0 or absent: none).

    `others_active`: code other than handlers may have run (an agent was starting), so not even a single one is struck.
    """
    running = [entry for entry in in_hand if entry.running]
    if blame is Blame.OURS or not running:
        return [Verdict(entry) for entry in in_hand]
    if len(running) > 1 or others_active:
        return [Verdict(entry, alone=entry.running) for entry in in_hand]
    return [
        _struck(entry, blame, limits.get(entry.mailbox, 0)) if entry.running else Verdict(entry) for entry in in_hand
    ]


def _struck(entry: InHand, blame: Blame, limit: int) -> Verdict:
    """The only one that ran. It runs alone from now on, so that the next death is as clear."""
    if blame is Blame.OUTSIDE:
        kills = entry.kills + 1
        convicted = bool(limit) and kills >= KILLS_MAX
        why = f"its process was killed from outside {kills} times while it ran" if convicted else ""
        return Verdict(entry, kills=1, alone=True, convicted=convicted, why=why)
    strikes = entry.strikes + 1
    convicted = 0 < limit <= strikes
    why = (
        f"it ended its process {strikes} time{'s' if strikes != 1 else ''}, and nothing else ran there"
        if convicted
        else ""
    )
    return Verdict(entry, strikes=1, alone=True, convicted=convicted, why=why)
