"""docs/api.md shows every public name, and each says something: `scripts/docs` builds the page of docstrings."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import civitas_shm

DOCUMENT = Path(__file__).parents[2] / "docs" / "api.md"
SHOWN = re.findall(r"^::: ([\w.]+)$", DOCUMENT.read_text(), re.MULTILINE)


def found(path: str) -> Any:
    """A module, or what has that name in one."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)


def exports(path: str) -> list[Any]:
    """What stands below one line of the document."""
    value = found(path)
    return [getattr(value, name) for name in value.__all__] if isinstance(value, ModuleType) else [value]


def silent(value: Any) -> Iterator[str]:
    """The names of what has no docstring: a function, a class, its public methods and properties."""
    if not isinstance(value, type):
        if inspect.isroutine(value) and not inspect.getdoc(value):
            yield value.__name__
        return
    if not value.__dict__.get("__doc__"):
        yield value.__qualname__
    for name in dir(value):
        member = inspect.getattr_static(value, name)
        member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        ours = (getattr(member, "__module__", None) or "").startswith("civitas_shm")
        shown = ours and not name.startswith(("_", "test_"))  # what a test is says its name
        if shown and callable(member) and not inspect.getdoc(getattr(value, name)):
            yield f"{value.__qualname__}.{name}"


@pytest.mark.parametrize("path", SHOWN)
def test_what_is_shown_is_there_and_all_of_it_says_what_it_is(path: str) -> None:
    assert [name for value in exports(path) for name in silent(value)] == []


def test_every_export_of_the_door_is_shown() -> None:
    shown = [value for path in SHOWN for value in exports(path)]
    missing = [name for name in civitas_shm.__all__ if getattr(civitas_shm, name) not in shown]
    assert not missing, f"docs/api.md lacks a line `::: civitas_shm.NAME` for {missing}"


def test_a_name_without_a_docstring_is_found() -> None:
    class Says:
        """Something."""

        def nothing(self) -> None: ...

        @property
        def neither(self) -> int:
            return 1

        def _private(self) -> None: ...

    for member in (Says.nothing, Says.neither.fget, Says._private):
        member.__module__ = "civitas_shm.example"  # type: ignore[union-attr]
    assert [name.rpartition(".")[2] for name in silent(Says)] == ["neither", "nothing"]
