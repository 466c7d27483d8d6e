"""Backoff: the table in `backoff`, line by line, and a generator that is what it says it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from civitas_shm.supervision.backoff import Backoff, backoff_s, next_random

ALMOST_ONE = 1 - 2.0**-53


@pytest.mark.parametrize("kind", ["CONSTANT", "LINEAR", "EXPONENTIAL"])
def test_the_first_restart_in_a_window_is_immediate(kind: Backoff) -> None:
    assert backoff_s(kind, base_s=5.0, max_s=60.0, number=1, random01=ALMOST_ONE) == 0.0


@pytest.mark.parametrize(
    ("kind", "waits_s"),
    [
        ("CONSTANT", [0.0, 2.0, 2.0, 2.0, 2.0]),
        ("LINEAR", [0.0, 2.0, 4.0, 6.0, 7.0]),
        ("EXPONENTIAL", [0.0, 2.0, 4.0, 7.0, 7.0]),
    ],
)
def test_waits_grow_from_the_base_to_the_cap(kind: Backoff, waits_s: list[float]) -> None:
    longest_s = [backoff_s(kind, 2.0, 7.0, count, random01=1.0) for count in range(1, 6)]
    assert longest_s == waits_s


def test_constant_and_linear_have_no_jitter() -> None:
    for kind in ("CONSTANT", "LINEAR"):
        assert backoff_s(kind, 2.0, 7.0, 3, random01=0.0) == backoff_s(kind, 2.0, 7.0, 3, random01=ALMOST_ONE)


def test_full_jitter_is_spread_over_the_whole_wait_at_the_cap_too() -> None:
    assert backoff_s("EXPONENTIAL", 1.0, 8.0, 20, random01=0.0) == 0.0
    assert backoff_s("EXPONENTIAL", 1.0, 8.0, 20, random01=0.25) == 2.0


def test_a_cap_below_the_base_holds() -> None:
    for kind in ("CONSTANT", "LINEAR", "EXPONENTIAL"):
        assert backoff_s(kind, 10.0, 3.0, 2, random01=1.0) == 3.0


@given(
    kind=st.sampled_from(["CONSTANT", "LINEAR", "EXPONENTIAL"]),
    base_s=st.floats(0, 1e300),
    max_s=st.floats(0, 1e300),
    count=st.integers(1, 10**6),
    random01=st.floats(0, ALMOST_ONE),
)
def test_no_wait_is_negative_or_above_the_cap(
    kind: Backoff, base_s: float, max_s: float, count: int, random01: float
) -> None:
    assert 0.0 <= backoff_s(kind, base_s, max_s, count, random01) <= max_s


def test_the_generator_is_splitmix64() -> None:
    """First outputs for seed 1234567 as published with the reference implementation (Vigna, prng.di.unimi.it)."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    seed, drawn = 1234567, []
    for _ in expected:
        seed, random01 = next_random(seed)
        drawn.append(random01)
    assert drawn == [(word >> 11) * 2.0**-53 for word in expected]


@given(st.integers(0, 2**64 - 1))
def test_draws_are_in_the_half_open_unit_interval_and_the_seed_stays_one_word(seed: int) -> None:
    following, random01 = next_random(seed)
    assert 0.0 <= random01 < 1.0
    assert 0 <= following < 2**64
