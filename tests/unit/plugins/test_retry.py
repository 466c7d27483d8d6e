"""What is tried again, when, and how long nobody waits: the decision alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from civitas_shm.plugins.retry import Failure, RetryPolicy, asked_wait_s, is_retryable, next_wait_s

POLICY = RetryPolicy(max_retries=3, base_s=0.5, cap_s=30)
NOW_S = 1_795_262_400.0  # 2026-11-21 12:00:00 GMT


def failed(status: int | None = 429, **headers: str) -> Failure:
    return Failure("no", "x", status, {name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize("status", [None, 408, 409, 429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_tried_again(status: int | None) -> None:
    assert is_retryable(failed(status))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_what_will_not_pass_is_not(status: int) -> None:
    assert not is_retryable(failed(status))


def test_an_answer_that_was_paid_for_is_not_asked_for_twice() -> None:
    assert not is_retryable(Failure("no", "x", None, garbled=True))


def test_the_services_own_word_decides() -> None:
    assert is_retryable(failed(400, x_should_retry="true"))
    assert not is_retryable(failed(429, x_should_retry="false"))


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "Sat, 21 Nov 2026 12:00:30 GMT"}, 30),
        ({"retry-after": "Sat, 21 Nov 2026 11:00:00 GMT"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
    ],
)
def test_what_the_service_asks_for(headers: dict[str, str], wait_s: float | None) -> None:
    assert asked_wait_s(headers, NOW_S) == wait_s


def test_retry_after_is_waited_for_in_full_beyond_the_cap_too() -> None:
    assert next_wait_s(POLICY, failed(429, retry_after="45"), 0, 100, NOW_S, 0.5) == 45


def test_no_wait_would_pass_the_deadline() -> None:
    assert next_wait_s(POLICY, failed(429, retry_after="45"), 0, 45, NOW_S, 0.5) is None


def test_the_wait_doubles_and_half_of_it_is_chance() -> None:
    waits = [next_wait_s(RetryPolicy(9), failed(529), n, 1e9, NOW_S, 1.0) for n in range(8)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert next_wait_s(POLICY, failed(529), 1, 1e9, NOW_S, 0.0) == 0.5


@given(
    status=st.one_of(st.none(), st.integers(400, 599)),
    asked=st.one_of(st.none(), st.floats(0, 1e6)),
    retries=st.integers(0, 10),
    left_s=st.floats(-10, 1e6),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_it_is_bounded_whatever_comes(
    status: int | None, asked: float | None, retries: int, left_s: float, chance: float
) -> None:
    headers = {} if asked is None else {"retry-after": f"{asked:f}"}
    wait_s = next_wait_s(POLICY, Failure("no", "x", status, headers), retries, left_s, NOW_S, chance)
    if wait_s is not None:
        assert retries < POLICY.max_retries
        assert 0 <= wait_s < left_s
        if asked is not None:
            assert wait_s >= asked - 1e-6
