"""What a death means for the messages in hand: each row of the table in `delivery`, and the properties behind it."""

from __future__ import annotations

import itertools

import pytest

from civitas_shm.delivery import KILLS_MAX, Blame, blame_of, judge
from civitas_shm.transport import InHand

LIMIT = 3


def entry(mailbox: int, *, running: bool = True, strikes: int = 0, kills: int = 0) -> InHand:
    return InHand(mailbox, 0, 2, 1, b"", "t", "a", 0, running=running, strikes=strikes, kills=kills)


def limits(*mailboxes: int, limit: int = LIMIT) -> dict[int, int]:
    return dict.fromkeys(mailboxes, limit)


@pytest.mark.parametrize("blame", [Blame.OUTSIDE, Blame.ITS_OWN])
def test_of_several_that_ran_nobody_is_struck_and_all_are_suspects(blame: Blame) -> None:
    in_hand = [entry(1), entry(2, strikes=2), entry(3, running=False)]
    verdicts = judge(in_hand, blame, limits(1, 2, 3))
    assert [(v.strikes, v.kills, v.alone, v.convicted) for v in verdicts] == [
        (0, 0, True, False),
        (0, 0, True, False),
        (0, 0, False, False),
    ]


def test_the_only_one_that_ran_is_struck_and_those_that_waited_are_not() -> None:
    struck, waited = judge([entry(1), entry(2, running=False)], Blame.ITS_OWN, limits(1, 2))
    assert (struck.strikes, struck.alone, struck.convicted) == (1, True, False)
    assert (waited.strikes, waited.alone, waited.convicted) == (0, False, False)


def test_the_strike_that_reaches_the_limit_convicts() -> None:
    for strikes in range(6):
        (verdict,) = judge([entry(1, strikes=strikes)], Blame.ITS_OWN, limits(1))
        assert verdict.convicted == (strikes + 1 >= LIMIT)
        assert bool(verdict.why) == verdict.convicted


def test_without_a_limit_nobody_is_ever_convicted() -> None:
    for strikes, kills in itertools.product((0, 3, 15), (0, 9, 15)):
        for blame in Blame:
            for mailboxes in ({}, limits(1, limit=0)):
                (verdict,) = judge([entry(1, strikes=strikes, kills=kills)], blame, mailboxes)
                assert not verdict.convicted


def test_kills_from_outside_have_a_limit_of_their_own() -> None:
    (verdict,) = judge([entry(1, strikes=LIMIT - 1, kills=0)], Blame.OUTSIDE, limits(1))
    assert (verdict.strikes, verdict.kills, verdict.convicted) == (0, 1, False)
    (verdict,) = judge([entry(1, kills=KILLS_MAX - 1)], Blame.OUTSIDE, limits(1))
    assert verdict.convicted
    (verdict,) = judge([entry(1, kills=KILLS_MAX - 2)], Blame.OUTSIDE, limits(1))
    assert not verdict.convicted


def test_deaths_of_our_doing_mean_nothing_for_anybody() -> None:
    in_hand = [entry(1, strikes=14, kills=14)]
    assert judge(in_hand, Blame.OURS, limits(1)) == judge([], Blame.OURS, {}) + judge(in_hand, Blame.OURS, limits(1))
    (verdict,) = judge(in_hand, Blame.OURS, limits(1))
    assert (verdict.strikes, verdict.kills, verdict.alone, verdict.convicted) == (0, 0, False, False)


def test_while_an_agent_was_starting_not_even_a_single_one_is_struck() -> None:
    (verdict,) = judge([entry(1, strikes=2)], Blame.ITS_OWN, limits(1), others_active=True)
    assert (verdict.strikes, verdict.alone, verdict.convicted) == (0, True, False)


@pytest.mark.parametrize(
    ("facts", "blame"),
    [
        ({"forgiven": True, "sigkill": True}, Blame.OURS),
        ({"killed_by_us": True, "sigkill": True}, Blame.OURS),
        ({"killed_by_us": True, "for_what_it_did": True, "sigkill": True}, Blame.ITS_OWN),
        ({"sigkill": True}, Blame.OUTSIDE),
        ({"sigkill": True, "out_of_memory": True}, Blame.ITS_OWN),
        ({}, Blame.ITS_OWN),
        ({"forgiven": True}, Blame.OURS),
    ],
)
def test_whose_doing_a_death_was(facts: dict[str, bool], blame: Blame) -> None:
    names = ("forgiven", "killed_by_us", "for_what_it_did", "sigkill", "out_of_memory")
    assert blame_of(**{name: facts.get(name, False) for name in names}) is blame


def test_the_poison_one_of_any_crowd_is_convicted_alone_and_no_innocent_is_struck() -> None:
    """The whole protocol, by hand: all run together, then the suspects one after the other, until nobody dies."""
    for crowd, poison in [(n, p) for n in range(1, 8) for p in range(n)]:
        strikes = dict.fromkeys(range(crowd), 0)
        handled: set[int] = set()
        dead: set[int] = set()
        alone = False
        for _ in range(100):
            left = [m for m in range(crowd) if m not in handled | dead]
            if not left:
                break
            # Together: all begin before the poison one ends its process. Alone: in turn, until the poison one's.
            running = {left[0]} if alone else set(left)
            if poison not in running:
                handled |= running
                continue
            in_hand = [entry(m, running=m in running, strikes=strikes[m]) for m in left]
            for verdict in judge(in_hand, Blame.ITS_OWN, limits(*range(crowd))):
                strikes[verdict.entry.mailbox] += verdict.strikes
                alone |= verdict.alone
                if verdict.convicted:
                    dead.add(verdict.entry.mailbox)
        assert dead == {poison}
        assert handled == set(range(crowd)) - {poison}
        assert {m for m, n in strikes.items() if n} == {poison}
        assert strikes[poison] == LIMIT
