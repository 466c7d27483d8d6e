"""What is measured: every case, how often, and what it is compared with. Data only.

A case is measured by the `driver` agent of the running topology (`ours`), by a process of its own that runs agents on
the in_process transport (`local`), or by a process of its own that uses nothing of this project (`rival`, `floor`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["BARS", "CASES", "CPUS", "IDLE_BAR_PERCENT", "Bar", "Case"]

CPUS = (0, 1)
"""Cores of the two sides; `topology.yaml` pins to the same."""

PARKED_GAP_S = 0.003
"""Pause before a parked round trip; `rivals.py` has the same. Far longer than any receiver spins."""
WIDTH = 64
"""Asks that are outstanding at once."""


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the tables."""

    name: str
    table: Literal["hot", "parked", "one_way", "outstanding"]
    title: str
    how: Literal["ours", "local", "rival", "floor"]
    what: str
    """Message type for `driver`, or name of the case in `rivals.py` or `floor.c`."""
    n: int
    to: str = ""
    """Agent that the driver talks to."""


CASES = (
    Case("floor_round_trip", "hot", "C, two processes spinning on a cache line", "floor", "round_trip", 200_000),
    Case("ask_hot", "hot", "**ask, two pinned processes**", "ours", "ask", 20_000, "far_echo"),
    Case("ask_near", "hot", "ask, both agents in one process", "ours", "ask", 20_000, "near_echo"),
    Case("ask_local", "hot", "ask, in_process transport", "local", "ask", 20_000, "near_echo"),
    Case("pipe_round_trip", "hot", "multiprocessing.Pipe, send_bytes", "rival", "pipe_round_trip", 10_000),
    Case("zmq_round_trip", "hot", "pyzmq, raw bytes, PAIR over ipc", "rival", "zmq_round_trip", 10_000),
    Case("eventfd_round_trip", "hot", "uvloop, bare eventfd", "rival", "eventfd_round_trip", 10_000),
    Case("eventfd_parked", "parked", "uvloop, bare eventfd", "rival", "eventfd_parked", 1_000),
    Case("ask_parked", "parked", "**ask, two pinned processes**", "ours", "ask", 1_000, "far_echo"),
    Case("floor_one_way", "one_way", "C, ring of 1024 places", "floor", "one_way", 5_000_000),
    Case("zmq_one_way", "one_way", "pyzmq, raw bytes, PUSH to PULL over ipc", "rival", "zmq_one_way", 500_000),
    Case("pipe_one_way", "one_way", "multiprocessing.Pipe, send_bytes", "rival", "pipe_one_way", 300_000),
    Case("send_far", "one_way", "**send, two pinned processes**", "ours", "one_way", 300_000, "far_sink"),
    Case("send_near", "one_way", "send, both agents in one process", "ours", "one_way", 300_000, "near_sink"),
    Case("send_local", "one_way", "send, in_process transport", "local", "one_way", 200_000, "near_sink"),
    Case("asks_far", "outstanding", "**ask, two pinned processes**", "ours", "outstanding", 128_000, "far_echo"),
    Case("asks_near", "outstanding", "ask, both agents in one process", "ours", "outstanding", 128_000, "near_echo"),
    Case("asks_local", "outstanding", "ask, in_process transport", "local", "outstanding", 64_000, "near_echo"),
)


@dataclass(frozen=True, slots=True)
class Bar:
    """What must hold: a ratio of two cases of one run, because times alone depend on the machine."""

    claim: str
    case: str
    reference: str
    at_most: float | None = None
    at_least: float | None = None
    or_at_most_us: float | None = None
    """A median time that is good enough whatever the ratio."""

    def holds(self, value: float, p50_us: float | None = None) -> bool:
        """Whether the ratio is on the right side, or the case's time (None for a rate) good enough without it."""
        if self.or_at_most_us is not None and p50_us is not None and p50_us <= self.or_at_most_us:
            return True
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)


BARS = (
    # The floor is 0.4 µs between two cores and 0.1 µs between two threads of one, which a virtual machine may be given
    # without a word; the interpreter's instructions, nearly all of an ask, do not get faster with it.
    Bar(
        "a hot ask takes at most 20 × the C floor, or 8 µs",
        "ask_hot",
        "floor_round_trip",
        at_most=20.0,
        or_at_most_us=8.0,
    ),
    Bar("a parked ask takes at most 1.3 × a bare eventfd in uvloop", "ask_parked", "eventfd_parked", at_most=1.3),
    Bar("one way is at least 0.7 × raw pyzmq PUSH to PULL", "send_far", "zmq_one_way", at_least=0.7),
)

IDLE_BAR_PERCENT = 0.05
"""Of one core, for a worker whose agents wait for messages."""
