"""When a failed call of a model is worth another try, and after how long: pure, no clock, no sleep.

Rules:
- tried again: no answer (connection refused, cut, timed out), 408, 409, 429, and 5xx, 529 (overloaded) included;
  the service's own `x-should-retry` decides over that;
- what the service asks for (`retry-after-ms`, `Retry-After` in seconds or as a date) is waited for in full, never less;
- otherwise the wait doubles from `base_s`, half of it random, up to `cap_s`;
- never more than `max_retries` tries again, and never a wait that would pass the deadline: then it fails at once.
"""

from __future__ import annotations

import email.utils
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC
from typing import Final

__all__ = ["Failure", "RetryPolicy", "asked_wait_s", "is_retryable", "next_wait_s"]

_RETRYABLE: Final = frozenset([408, 409, 429])


@dataclass(frozen=True, slots=True)
class Failure:
    """How one try failed, in no vendor's words."""

    text: str
    type_name: str
    status: int | None = None
    """HTTP status; None: there was no answer."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of the answer; names in lower case."""
    request_id: str = ""
    garbled: bool = False
    """There was an answer, paid for, that could not be understood: not tried again."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounds."""

    max_retries: int = 3
    base_s: float = 0.5
    cap_s: float = 30.0


def is_retryable(failure: Failure) -> bool:
    """Whether the same request may succeed later."""
    if failure.garbled:
        return False
    word = failure.headers.get("x-should-retry")
    if word in ("true", "false"):
        return word == "true"
    return failure.status is None or failure.status in _RETRYABLE or failure.status >= 500


def asked_wait_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """How long the service asks to wait; None when it does not say. `now_s`: since 1970."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("retry-after")
    seconds = _number(text)
    if seconds is not None or not text:
        return seconds
    try:
        when = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, when.timestamp() - now_s)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


def next_wait_s(
    policy: RetryPolicy, failure: Failure, retries: int, left_s: float, now_s: float, chance: float
) -> float | None:
    """Seconds until the next try, or None: it has failed for good.

    `retries` were made already; `left_s` until the deadline; `now_s` since 1970; `chance` from [0, 1).
    """
    if retries >= policy.max_retries or not is_retryable(failure):
        return None
    wait_s = asked_wait_s(failure.headers, now_s)
    if wait_s is None:
        longest_s = min(policy.cap_s, policy.base_s * 2.0 ** min(retries, 32))
        wait_s = longest_s * (0.5 + chance / 2)
    return wait_s if wait_s < left_s else None
