"""Monitors and links: the table in `supervision.watch`."""

from __future__ import annotations

import pytest

from civitas_shm.supervision.watch import CRASHED, DESPAWNED, FINISHED, KILLED, STOPPED, Fall, Life, Tell, Watches

A, B, C = Life("a", 1), Life("b", 1), Life("c", 1)
LINKED = "it is linked with 'b', which crashed: boom"


@pytest.mark.parametrize(("why", "falls"), [(CRASHED, 1), (KILLED, 1), (FINISHED, 0), (STOPPED, 0), (DESPAWNED, 0)])
def test_every_end_is_told_and_only_a_crash_fells_the_peer(why: str, falls: int) -> None:
    _, tells, fallen = Watches().monitor("w", "b").link(A, B).ended(B, "b", why)
    assert tells == [Tell("w", "b", why)]
    assert [fall.life for fall in fallen] == [A] * falls


def test_a_monitor_holds_over_restarts_and_tells_of_each_end_once() -> None:
    watches = Watches().monitor("w", "b").monitor("w", "b")
    for incarnation in (1, 2):
        watches, tells, _ = watches.ended(Life("b", incarnation), "b", CRASHED, "boom")
        assert tells == [Tell("w", "b", "crashed: boom")]
    assert watches.demonitor("w", "b").ended(B, "b", CRASHED)[1] == []


def test_a_replica_is_named_and_the_monitor_is_of_the_agent() -> None:
    assert Watches().monitor("w", "b").ended(B, "b#1", KILLED)[1] == [Tell("w", "b#1", "killed")]


def test_a_link_has_no_direction_and_goes_with_the_first_of_its_ends() -> None:
    for one, other in ((A, B), (B, A)):
        watches, _, falls = Watches().link(one, other).ended(B, "b", CRASHED, "boom")
        assert falls == [Fall(A, LINKED)]
        assert watches == Watches()
    watches, _, falls = Watches().link(A, B).ended(B, "b", STOPPED)
    assert (watches, falls) == (Watches(), [])


def test_a_link_is_between_two_lives_and_says_nothing_of_the_next() -> None:
    watches = Watches().link(A, B)
    assert watches.ended(Life("b", 2), "b", CRASHED)[2] == []


def test_who_monitors_its_peer_is_told_and_goes_on_and_the_others_fall() -> None:
    watches = Watches().link(A, B).link(B, C).monitor("a", "b")
    watches, tells, falls = watches.ended(B, "b", CRASHED, "boom")
    assert tells == [Tell("a", "b", "crashed: boom")]
    assert falls == [Fall(C, LINKED)]


def test_setting_twice_and_taking_back_what_is_not_there_change_nothing() -> None:
    watches = Watches().link(A, B).monitor("w", "b")
    assert watches.link(B, A).link(A, A).monitor("w", "b") == watches
    assert watches.unlink(A, C).demonitor("a", "c") == watches
    assert watches.unlink(B, A).demonitor("w", "b") == Watches()


def test_who_is_gone_neither_watches_nor_is_watched() -> None:
    watches = Watches().monitor("w", "b").monitor("b", "w").monitor("x", "b").monitor("w", "x")
    assert watches.gone("b") == Watches().monitor("w", "x")
    assert watches.gone("w") == Watches().monitor("x", "b")
