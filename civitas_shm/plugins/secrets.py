"""Keys and passwords kept out of texts: which values of a configuration are secret, and a text without them.

Rule of this file: what cannot be told apart from a secret is one. Short values are left alone, because removing `x`
from a sentence would hide nothing and ruin the sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

__all__ = ["HIDDEN", "redact", "secret_values"]

HIDDEN: Final = "***"
SHORTEST: Final = 6
"""Characters. `none`, `test` and `EMPTY` stand for keys of local servers that want none."""

_SECRET_KEY: Final = re.compile(r"key|token|secret|password|credential|authorization", re.IGNORECASE)
_NO_SECRET_KEY: Final = re.compile(r"^(max_|min_)?tokens?(_.*)?$|_tokens$", re.IGNORECASE)


def secret_values(config: Mapping[str, Any]) -> list[str]:
    """Texts that stand, at any depth, behind a key that names something secret."""
    found: list[str] = []
    for key, value in config.items():
        secret = bool(_SECRET_KEY.search(str(key))) and not _NO_SECRET_KEY.search(str(key))
        if isinstance(value, Mapping):
            found += [str(text) for text in value.values()] if secret else secret_values(value)
        elif isinstance(value, str) and secret:
            found.append(value)
        elif isinstance(value, list):
            found += [text for item in value if isinstance(item, Mapping) for text in secret_values(item)]
    return found


def redact(text: str, secrets: Iterable[str | None]) -> str:
    """The text with every secret replaced, the longest first, so that none leaves a rest of another."""
    for secret in sorted({one for one in secrets if one and len(one) >= SHORTEST}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text
