"""Which values are secret, and that a text comes out without them."""

from __future__ import annotations

import pytest

from civitas_shm import redaction
from civitas_shm.redaction import is_secret_name, redact, secret_values


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


@pytest.mark.parametrize(
    "name", ["api_key", "DB_PASSWORD", "token", "auth_token", "AWS_SECRET", "pwd", "Authorization"]
)
def test_a_name_says_that_it_is_secret(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["tokens", "max_tokens", "max_tokens_total", "token_count", "path", "name", "id"])
def test_a_name_says_that_it_is_none(name: str) -> None:
    assert not is_secret_name(name)


def test_a_process_keeps_what_it_was_told_out_of_its_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_kept", set())
    monkeypatch.setattr(redaction, "_kept_pattern", None)
    assert redaction.redacted("a canary-1") == "a canary-1"
    redaction.keep_secret(["canary-1", "", None, "x"])
    redaction.keep_secret(["canary-12"])
    assert redaction.redacted("a canary-1, a canary-12, a x") == "a ***, a ***, a x"


def test_every_secret_is_removed_the_longest_first() -> None:
    assert redact("a=secret1 b=secret12", ["secret1", "secret12"]) == "a=*** b=***"


def test_what_is_too_short_to_be_a_secret_is_left() -> None:
    assert redact("none of these", ["none", "", None]) == "none of these"
