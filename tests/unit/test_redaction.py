"""Which values are secret, and that a text comes out without them."""

from __future__ import annotations

from civitas_shm.redaction import redact, secret_values


def test_what_stands_behind_a_telling_key_is_secret_at_any_depth() -> None:
    config = {
        "api_key": "sk-1111111",
        "default_model": "m",
        "max_tokens": "8192",
        "nested": {"client_secret": "s-2222222"},
        "headers": [{"Authorization": "Bearer 33333333"}],
        "credentials": {"a": "c-4444444"},
    }
    assert set(secret_values(config)) == {"sk-1111111", "s-2222222", "Bearer 33333333", "c-4444444"}


def test_every_secret_is_removed_the_longest_first() -> None:
    assert redact("a=secret1 b=secret12", ["secret1", "secret12"]) == "a=*** b=***"


def test_what_is_too_short_to_be_a_secret_is_left() -> None:
    assert redact("none of these", ["none", "", None]) == "none of these"
