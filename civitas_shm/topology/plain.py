"""A dict of a program as a document: the same data that a file would have given, or what is wrong with it, by its path.

Rules of this file: what YAML could not have said (a tuple, a class, a dict within itself) is a problem; work is bounded
as `yaml12`'s is; what is given is copied, never kept.
"""

from __future__ import annotations

from typing import Any, Final

from .yaml12 import DEPTH_MAX, VALUES_MAX, Document, Mark, Path, Problem

__all__ = ["plain_document"]

_SCALARS: Final = (str, int, float, bool, type(None))


class _Broken(Exception):
    """It goes on for ever, or nearly."""


def plain_document(data: Any) -> Document:
    """The data with its problems. Never raises."""
    copier = _Copier()
    try:
        copier.document.data = copier.copy(data, ())
    except _Broken as broken:
        copier.problem((), str(broken))
    return copier.document


class _Copier:
    def __init__(self) -> None:
        self.document = Document()
        self._count = 0

    def problem(self, path: Path, text: str) -> None:
        self.document.problems.append(Problem(Mark(1, 1), path, text))

    def copy(self, value: Any, path: Path) -> Any:
        self._count += 1
        if self._count > VALUES_MAX:
            raise _Broken(f"more than {VALUES_MAX:,} values")
        if len(path) > DEPTH_MAX:
            raise _Broken(f"nests deeper than {DEPTH_MAX} levels; does it contain itself?")
        self.document.values[path] = Mark(1, 1)
        if isinstance(value, dict):
            return {key: self.copy(item, (*path, key)) for key, item in value.items() if self._is_key(key, path)}
        if isinstance(value, list):
            return [self.copy(item, (*path, index)) for index, item in enumerate(value)]
        if type(value) not in _SCALARS:
            self.problem(
                path, f"should be text, a number, true, false, nothing, a list or a dict, not {type(value).__name__}"
            )
            return None
        return value

    def _is_key(self, key: Any, path: Path) -> bool:
        if type(key) in (str, int):
            return True
        self.problem(path, f"a key is a word or a whole number, not {type(key).__name__}")
        return False
