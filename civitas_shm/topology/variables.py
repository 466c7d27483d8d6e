"""`${VAR}` in the strings of a topology. `$${` stands for the two characters themselves.

Rules of this file: every string value, quoted or not, keys never; a variable that is not set is a problem, because an
empty text in its place would be found much later. What comes out is a `Variable`: the schema may read it as a number
where it wants one (quotes say nothing here: inside of braces YAML demands them); in an agent's `config` it is text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .check import Checker
from .schema import Variable
from .yaml12 import Path

__all__ = ["substitute"]

_REFERENCE = re.compile(r"\$(?P<escaped>\$\{)|\$\{(?P<name>[^}]*)(?P<end>\}?)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def substitute(data: Any, checker: Checker, environment: Mapping[str, str], path: Path = ()) -> Any:
    """The data with variables replaced; problems go to the checker."""
    if isinstance(data, dict):
        return {key: substitute(value, checker, environment, (*path, key)) for key, value in data.items()}
    if isinstance(data, list):
        return [substitute(value, checker, environment, (*path, index)) for index, value in enumerate(data)]
    if not isinstance(data, str) or "${" not in data:
        return data

    missing = [text for match in _REFERENCE.finditer(data) if (text := _problem(match, environment)) is not None]
    if missing:
        checker.at_value(path, "; ".join(dict.fromkeys(missing)))
        checker.unknown_values.add(path)
        return data
    return Variable(_REFERENCE.sub(lambda match: "${" if match["escaped"] else environment[match["name"]], data))


def _problem(match: re.Match[str], environment: Mapping[str, str]) -> str | None:
    name = match["name"]
    if match["escaped"] or (match["end"] and name in environment):
        return None
    if not match["end"] or not _NAME.match(name):
        return f"{match[0]!r} is no variable; write ${{NAME}}, or $${{ for the characters themselves"
    return f"the environment variable {name!r} is not set; export {name}=..."
