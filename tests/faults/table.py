"""The faults that must each be seen to have fired: what provokes them, what proves that they came, what must hold then.

Rules of this file: one entry for each class of fault; its tests bear the marker `fault(CLASS)` wherever they lie, and
say `fired(…)` with the evidence. A marked test in which nothing has fired fails, whatever it asserts
(tests/conftest.py); an entry without a test fails too (test_table.py). docs/reliability.md has the table for people.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NoReturn

import pytest

__all__ = ["FAULTS", "Fault", "Fired"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One class."""

    provoked: str
    proof: str
    """What shows that it came: an event, a count, the kernel's word."""
    holds: str
    """What must hold afterwards."""


FAULTS: Final[dict[str, Fault]] = {
    "kill": Fault(
        "SIGKILL of workers, standbys and fork server from outside, under load",
        "`process_died` with SIGKILL, and messages in hand at that moment",
        "nothing lost, order per sender, doubles at most what was in hand",
    ),
    "stop and continue": Fault(
        "SIGSTOP and SIGCONT of workers, fork server and host, under load",
        "state T in /proc; the verdict `stopped`",
        "nothing lost or doubled, nobody killed who goes on in time",
    ),
    "slow consumer": Fault(
        "a receiver that takes longer than its senders",
        "its mailbox is full and its sender waits for room, as the cells say",
        "its senders wait, others go on; nothing lost, dropped or doubled",
    ),
    "mailbox full": Fault(
        "more sends than the mailbox holds while its handler hangs",
        "MailboxFull",
        "the error names capacity, holder and time; the run goes on",
    ),
    "arena full": Fault(
        "more bytes than the sender's arena holds, unhandled",
        "ArenaFull",
        "the error names limit and holders; other receivers are served from the rest",
    ),
    "/dev/shm full": Fault(
        "a tmpfs of a few MiB in a mount namespace of its own, filled up under a live run",
        "ENOSPC: the file system has no free block, and the error carries the kernel's refusal",
        "no SIGBUS, no process dies; the error names who holds what; with room again the run goes on",
    ),
    "fd exhaustion": Fault(
        "RLIMIT_NOFILE reached in a worker, in the host and in the caller",
        "EMFILE counted where it happens",
        "messages go on; a process that cannot be made is tried again, and the end says limit and way out",
    ),
    "clock step": Fault(
        "CLOCK_REALTIME a day forward and two back in every process of a run, through a library that is loaded first",
        "each process reads the other date",
        "no deadline, window, backoff or timer notices",
    ),
    "poison message": Fault(
        "a message whose handler ends its process, among innocent ones",
        "deaths by SIGSEGV or exit code, one strike each, kept in shared memory",
        "it alone is convicted, also when the host is killed in between; its asker is told",
    ),
    "start-up failure": Fault(
        "`on_start` that raises, ends its process, hangs or blocks",
        "`agent_failed`, or the end of its process",
        "counted, tried again or given up by the budget; the run says what it was",
    ),
    "host kill": Fault(
        "SIGKILL of the host under load, then `--resume`",
        "the caller ends with RunFailed, workers are gone",
        "the run is adopted with every message; order, and doubles at most what was in hand",
    ),
    "host kill while adopting": Fault(
        "SIGKILL of the host before each line of adopting, and at random moments of its start under load",
        "deaths counted before the first agent ran",
        "the next host adopts what the dead ones left; nothing lost",
    ),
}


class Fired:
    """The evidence of one test: `fired(count, "what was counted")`."""

    def __init__(self, fault: str) -> None:
        if fault not in FAULTS:
            raise ValueError(f"{fault!r} is no class of tests/faults/table.py")
        self.fault = fault
        self.evidence: list[str] = []

    def __call__(self, count: object, what: str) -> None:
        """Note that it came. AssertionError when the count says that it did not."""
        assert count, f"{self.fault}: {what}: none"
        self.evidence.append(f"{count} {what}")

    def skip(self, why: str) -> NoReturn:
        """It cannot be played here: the test is skipped, and asked for no evidence."""
        self.evidence.append(f"skipped: {why}")
        pytest.skip(why)

    def missing(self) -> str:
        """Why the test has failed though all that it asserts holds; empty when the fault was seen."""
        return "" if self.evidence else f"the fault {self.fault!r} was never seen to fire: this test has shown nothing"
