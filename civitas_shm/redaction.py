"""Keys and passwords kept out of texts: which values of a configuration are secret, and a text without them.

Rules of this file:
- what cannot be told apart from a secret is one; short values are left alone, because removing `x` from a sentence
  would hide nothing and ruin the sentence;
- what a process has been told to keep (`keep_secret`) it leaves out of whatever it says by `redacted`: reports,
  tracebacks, answers about failures. What an agent sends on purpose is its own business.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

__all__ = ["HIDDEN", "SHORTEST", "is_secret_name", "keep_secret", "redact", "redacted", "secret_values"]

HIDDEN: Final = "***"
SHORTEST: Final = 6
"""Characters. `none`, `test` and `EMPTY` stand for keys of local servers that want none."""

_SECRET_NAME: Final = re.compile(r"key|token|secret|passw|pwd|credential|authorization", re.IGNORECASE)
_NO_SECRET_NAME: Final = re.compile(
    r"^(max_|min_)?tokens(_.*)?$|_tokens$|^token_(count|limit|budget|usage)$", re.IGNORECASE
)

_kept: set[str] = set()
"""Of this process: what its agents were given. It never shrinks: a late traceback may still hold an old key."""
_kept_pattern: re.Pattern[str] | None = None


def is_secret_name(name: str) -> bool:
    """Whether what is called so is a secret: `api_key`, `DB_PASSWORD`, but not `max_tokens`."""
    return bool(_SECRET_NAME.search(name)) and not _NO_SECRET_NAME.search(name)


def secret_values(config: Mapping[str, Any]) -> list[str]:
    """Texts that stand, at any depth, behind a key that names something secret."""
    found: list[str] = []
    for key, value in config.items():
        secret = is_secret_name(str(key))
        if isinstance(value, Mapping):
            found += [str(text) for text in value.values()] if secret else secret_values(value)
        elif isinstance(value, str) and secret:
            found.append(value)
        elif isinstance(value, list):
            found += [text for item in value if isinstance(item, Mapping) for text in secret_values(item)]
    return found


def redact(text: str, secrets: Iterable[str | None]) -> str:
    """The text with every secret replaced, the longest first, so that none leaves a rest of another."""
    pattern = _pattern(secrets)
    return text if pattern is None else pattern.sub(HIDDEN, text)


def keep_secret(values: Iterable[str | None]) -> None:
    """From now on `redacted` of this process leaves these out."""
    global _kept_pattern
    new = {value for value in values if value} - _kept
    if new:
        _kept.update(new)
        _kept_pattern = _pattern(_kept)


def redacted(text: str) -> str:
    """The text without what this process keeps secret. Costs nothing where it keeps nothing."""
    return text if _kept_pattern is None else _kept_pattern.sub(HIDDEN, text)


def _pattern(secrets: Iterable[str | None]) -> re.Pattern[str] | None:
    words = sorted({one for one in secrets if one and len(one) >= SHORTEST}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, words))) if words else None
