"""Verdicts: the table row by row, and what follows when."""

from __future__ import annotations

import pytest

from civitas_shm.host.watch import GRACE_S, Busy, Observation, ProcessWatch, Reading, Verdict, verdict_of

LONG = Busy("a", for_s=60.0)
LATE = Busy("a", for_s=3.1, timeout_s=1.0, attempts=4)
LOST = Busy("a", for_s=13.0, timeout_s=1.0, attempts=4)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (Observation(alive=False), Verdict.DEAD),
        (Observation(state="Z"), Verdict.DEAD),
        (Observation(state="T"), Verdict.STOPPED),
        (Observation(state="T", answered=False, busy=(LOST,)), Verdict.STOPPED),
        (Observation(state="T", traced=True), Verdict.TRACED),
        (Observation(state="t", traced=True), Verdict.TRACED),
        (Observation(state="D", answered=False), Verdict.KERNEL_WAIT),
        (Observation(state="D"), Verdict.IDLE),
        (Observation(state="R", answered=False), Verdict.BLOCKED),
        (Observation(state="S", answered=False, busy=(LATE,)), Verdict.BLOCKED),
        (Observation(busy=(LATE,)), Verdict.BUSY),
        (Observation(busy=(LONG, LOST)), Verdict.STUCK),
        (Observation(busy=(LONG,)), Verdict.BUSY),
        (Observation(waiting=3), Verdict.BUSY),
        (Observation(), Verdict.IDLE),
    ],
)
def test_the_table(seen: Observation, expected: Verdict) -> None:
    assert verdict_of(seen) is expected


def readings(watch: ProcessWatch, seen: Observation, seconds: int, start_s: float = 0.0) -> list[Reading]:
    return [watch.look(seen, start_s + second) for second in range(seconds)]


def test_an_idle_process_is_never_asked_and_never_news() -> None:
    assert not any(one.probe or one.report or one.kill for one in readings(ProcessWatch(30), Observation(), 100))


def test_only_a_handler_that_runs_long_or_messages_that_nobody_handles_give_reason_to_ask() -> None:
    assert not ProcessWatch(30).look(Observation(busy=(Busy("a", 0.9),), waiting=5), 0).probe
    assert ProcessWatch(30).look(Observation(busy=(Busy("a", 1.0),)), 0).probe
    assert ProcessWatch(30).look(Observation(waiting=1), 0).probe


def test_a_stop_is_news_at_once_is_killed_after_its_time_and_going_on_is_news_too() -> None:
    watch = ProcessWatch(5)
    stopped = readings(watch, Observation(state="T"), 7)
    assert [one.report for one in stopped] == [True, *[False] * 6]
    assert [bool(one.kill) for one in stopped] == [False] * 5 + [True] * 2
    assert "watch.stopped_timeout_s is 5" in stopped[5].kill
    assert watch.look(Observation(), 7).report
    assert watch.told is None


@pytest.mark.parametrize(("timeout_s", "traced"), [(0.0, False), (5.0, True)])
def test_who_is_traced_or_has_no_limit_is_not_killed(timeout_s: float, traced: bool) -> None:
    assert not any(one.kill for one in readings(ProcessWatch(timeout_s), Observation(state="T", traced=traced), 100))


def test_a_host_that_was_stopped_itself_blames_nobody_for_the_time() -> None:
    watch = ProcessWatch(30)
    watch.look(Observation(state="T"), 0)
    assert not watch.look(Observation(state="T"), 1000.0).kill


def test_a_blocked_loop_is_news_after_two_seconds_and_left_alone_without_a_limit() -> None:
    blocked = readings(ProcessWatch(30), Observation(state="R", answered=False, busy=(LONG,)), 10)
    assert [one.report for one in blocked] == [False, False, True, *[False] * 7]
    assert not any(one.kill for one in blocked)


def test_a_blocked_loop_is_killed_when_a_handler_in_it_is_late_and_its_only_one_is_convicted() -> None:
    *early, last = readings(ProcessWatch(30), Observation(state="R", answered=False, busy=(LATE,)), 3)
    assert not any(one.kill for one in early)
    assert "handle of 'a' has run for 3.1 s" in last.kill
    assert last.convicted == "a"
    both = readings(ProcessWatch(30), Observation(state="R", answered=False, busy=(LATE, Busy("b", 9.0))), 3)[-1]
    assert "busy too: 'b'" in both.kill
    assert both.convicted == ""


def test_a_handler_is_late_only_after_its_loop_had_the_time_to_cancel_it() -> None:
    assert not Busy("a", 1.0 + GRACE_S, 1.0).late
    assert not Busy("a", 1e9).late


@pytest.mark.parametrize("answered", [True, False])
def test_a_clock_that_jumps_an_hour_kills_nobody_and_forgives_nobody(answered: bool) -> None:
    """A machine that slept, a tree that was frozen: all clocks go on by an hour between two readings."""
    watch = ProcessWatch(30)

    def look(second: int, jumped_s: float, since_s: int = 0) -> Reading:
        busy = Busy("a", second + jumped_s - since_s, 1.0, 4, since_ns=1 + since_s)
        return watch.look(Observation(state="S", answered=answered, busy=(busy,)), second + jumped_s)

    assert not any(look(second, 0).kill for second in range(2))
    assert not look(2, 3600.0).kill
    assert not look(3, 3600.0, since_s=3).kill, "another handler: the loop goes on"
    killed = [second for second in range(4, 30) if look(second, 3600.0, since_s=3).kill]
    assert killed[0] in ((6, 7) if not answered else range(12, 18)), "late, or lost, by the time that was covered"


def test_a_death_is_not_told_from_here() -> None:
    assert not any(one.report for one in readings(ProcessWatch(30), Observation(state="X"), 5))
