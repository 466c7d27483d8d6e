"""One mapping against one model: every deviation becomes a sentence with the position of what is wrong.

Rules of this file: it knows pydantic's error kinds and nothing of what the blocks mean; a problem with a key stands at
the key, a problem with a value at the value, a missing key at the mapping it is missing from.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import ValidationError

from .schema import Block
from .suggest import did_you_mean
from .yaml12 import Document, Path, Problem

__all__ = ["Checker", "path_text"]

Model = TypeVar("Model", bound=Block)

_KINDS = {
    "string_type": "should be text",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "bool_type": "should be true or false",
    "list_type": "should be a list",
    "dict_type": "should be a mapping",
    "finite_number": "should be a finite number",
}


def path_text(path: Path) -> str:
    """`supervision.children[1].agent.type`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def value_text(value: Any) -> str:
    """The value as the reader of the file would call it."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text {value[:60]!r}"
        case list():
            return "a list"
        case _:
            return "a mapping"


class Checker:
    """Collects the problems of one document."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = list(document.problems)
        self.unknown_values: set[Path] = set()
        """Places whose value could not be had: nothing more is said about them."""

    def at_value(self, path: Path, text: str) -> None:
        """A problem with a value."""
        if path in self.unknown_values:
            return
        self.problems.append(Problem(self.document.mark(path), path, text))

    def at_key(self, path: Path, text: str) -> None:
        """A problem with the key itself."""
        self.problems.append(Problem(self.document.key_mark(path), path, text))

    def unknown_key(self, path: Path, allowed: Iterable[str], not_yet: Iterable[str] = ()) -> None:
        """A key that the mapping around it does not have."""
        key = str(path[-1])
        if key in not_yet:
            self.at_key(path, f"{key!r} is not supported yet; remove it")
        else:
            self.at_key(path, f"unknown key {key!r}{did_you_mean(key, allowed)}")

    def mapping(self, data: Any, path: Path) -> dict[Any, Any] | None:
        """The value as a mapping; nothing behind the key is an empty one. None with a problem for anything else."""
        if data is None:
            return {}
        if isinstance(data, dict):
            return data
        self.at_value(path, f"should be a mapping (key: value), not {value_text(data)}")
        return None

    def block(self, model: type[Model], data: Any, path: Path, hidden: Iterable[str] = ()) -> Model | None:
        """The mapping as a model, or None when it has problems. `hidden` keys are looked at by the caller."""
        mapping = self.mapping(data, path)
        if mapping is None:
            return None
        seen = {str(key) if isinstance(key, int) else key: value for key, value in mapping.items() if key not in hidden}
        try:
            return model.model_validate(seen)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                self._pydantic(model, mapping, path, detail)
            return None

    def _pydantic(self, model: type[Block], mapping: dict[Any, Any], path: Path, detail: Any) -> None:
        kind: str = detail["type"]
        below = _without_markers(detail["loc"], mapping)
        where = (*path, *below)
        if kind == "extra_forbidden":
            self._extra(model, mapping, where)
        elif kind == "missing":
            self.at_value(path, f"the key {detail['loc'][-1]!r} is missing")
        elif kind == "value_error":
            self.at_value(where, str(detail["ctx"]["error"]))
        elif kind == "literal_error":
            allowed = [word.strip(" '") for word in detail["ctx"]["expected"].replace(" or ", ",").split(",")]
            given = detail["input"]
            hint = did_you_mean(given, allowed) if isinstance(given, str) else f"; allowed: {', '.join(allowed)}"
            self.at_value(where, f"{value_text(given)} is not allowed here{hint}")
        elif detail["loc"][-1] == "[key]":
            self.at_key(where, f"a key here {_KINDS.get(kind, detail['msg'])}, not {value_text(detail['input'])}")
        elif kind in _KINDS:
            quote = "; put it in quotes" if kind == "string_type" and isinstance(detail["input"], (int, float)) else ""
            self.at_value(where, f"{_KINDS[kind]}, not {value_text(detail['input'])}{quote}")
        else:
            what = detail["msg"].removeprefix("Input ").lower()
            self.at_value(where, f"{what}; it is {value_text(detail['input'])}")

    def _extra(self, model: type[Block], mapping: dict[Any, Any], where: Path) -> None:
        key = where[-1]
        for twin in (f"{key}_s", str(key).removesuffix("_s")):
            if twin != key and twin in mapping and key in model.allowed():
                self.at_key(where, f"{key!r} and {twin!r} are the same setting; keep one of them")
                return
        if key in model.NEVER:
            self.at_key(where, f"{key!r} says nothing here: {model.NEVER[str(key)]}; remove it")
            return
        self.unknown_key(where, model.allowed(), model.NOT_YET)


def _without_markers(loc: tuple[str | int, ...], mapping: dict[Any, Any]) -> Path:
    """pydantic's location less what is no part of the text: it marks a bad key by a last part `[key]`."""
    path: list[str | int] = []
    here: Any = mapping
    for part in loc:
        if part == "[key]" and not (isinstance(here, dict) and part in here):
            continue
        if isinstance(here, dict) and part not in here and isinstance(part, str) and part.lstrip("-").isdigit():
            part = int(part)
        path.append(part)
        try:
            here = here[part]
        except (KeyError, IndexError, TypeError):
            here = None
    return tuple(path)
