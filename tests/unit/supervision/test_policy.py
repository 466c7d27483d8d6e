"""Policy: the three tables in `policy`, cell by cell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from civitas_shm.supervision.policy import (
    Counted,
    Ending,
    Restart,
    Strategy,
    add_restart,
    first_fallen_group,
    is_restarted,
)


@pytest.mark.parametrize(
    ("ending", "restarted_modes"),
    [
        (Ending.FAILED, {"permanent", "transient"}),
        (Ending.FINISHED, {"permanent"}),
        (Ending.STOPPED, set()),
    ],
)
def test_who_is_restarted_after_which_ending(ending: Ending, restarted_modes: set[Restart]) -> None:
    modes: tuple[Restart, ...] = ("permanent", "transient", "temporary")
    assert {mode for mode in modes if is_restarted(mode, ending)} == restarted_modes


@pytest.mark.parametrize(("strategy", "first"), [("ONE_FOR_ONE", 5), ("ONE_FOR_ALL", 0), ("REST_FOR_ONE", 3)])
def test_who_falls_with_a_child_of_the_third_of_five_groups(strategy: Strategy, first: int) -> None:
    assert first_fallen_group(strategy, group=2, groups=5) == first


def test_max_restarts_are_allowed_and_the_next_is_not() -> None:
    counted: tuple[Counted, ...] = ()
    allowed = []
    for cause in range(4):
        counted, ok = add_restart(counted, now_s=10.0, cause=cause, max_restarts=3, restart_window_s=60.0)
        allowed.append(ok)
    assert allowed == [True, True, True, False]


def test_a_restart_exactly_as_old_as_the_window_still_counts() -> None:
    first = (Counted(100.0, 1),)
    assert add_restart(first, 160.0, 2, max_restarts=1, restart_window_s=60.0)[1] is False
    assert add_restart(first, 160.001, 2, max_restarts=1, restart_window_s=60.0) == ((Counted(160.001, 2),), True)


def test_max_restarts_0_allows_none() -> None:
    assert add_restart((), 0.0, 1, max_restarts=0, restart_window_s=1.0)[1] is False


def test_one_cause_is_counted_once() -> None:
    once, _ = add_restart((), 1.0, cause=7, max_restarts=1, restart_window_s=60.0)
    assert add_restart(once, 2.0, cause=7, max_restarts=1, restart_window_s=60.0) == (once, True)


@given(
    gaps_s=st.lists(st.integers(0, 20), max_size=30),
    max_restarts=st.integers(0, 5),
    window_s=st.integers(1, 30),
)
def test_the_window_is_that_of_otp(gaps_s: list[int], max_restarts: int, window_s: int) -> None:
    """`add_restart` of supervisor.erl, transcribed: restarts R with R >= Now - Period stay, Now is put before them."""
    counted: tuple[Counted, ...] = ()
    otp: list[int] = []
    now_s = 1000
    for cause, gap_s in enumerate(gaps_s):
        now_s += gap_s
        otp = [now_s, *(restart for restart in otp if restart >= now_s - window_s)]
        counted, allowed = add_restart(counted, float(now_s), cause, max_restarts, float(window_s))
        assert [restart.at_s for restart in counted] == sorted(otp)
        assert allowed == (len(otp) <= max_restarts)
