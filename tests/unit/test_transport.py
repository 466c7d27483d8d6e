"""What the contract's values can say of themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from civitas_shm.transport import MailboxStats

IDLE = MailboxStats(
    name="a", capacity=1, waiting=0, in_hand=0, handled=0, sent=0, redelivered=0, dropped=0, garbage=0, busy_since_ns=0
)


@pytest.mark.parametrize(
    ("histogram", "median"),
    [((), None), ((0, 0), None), ((4,), 0.5), ((0, 0, 2), 3.0), ((1, 1), 1.0), ((0, 0, 0, 1, 3), 10.666666666666666)],
)
def test_a_median_lies_inside_its_bucket(histogram: tuple[int, ...], median: float | None) -> None:
    assert replace(IDLE, handler_ns=histogram).handler_p50_us == median
