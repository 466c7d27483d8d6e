"""docs/contract.md against the code: every row is true as far as a reader of files can tell, and no export is missing.

Rules of this file: tests are found by parsing the files, never by running them; what is not there yet must say so.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import civitas_shm

TESTS = Path(__file__).parents[1]
DOCUMENT = TESTS.parent / "docs" / "contract.md"

PARTS = {"talk", "behave", "flow", "stores", "topo", "outside", "defects"}
LATER = {"mcp, a later issue", "security, a later issue", "nats, a later issue", "telemetry, a later issue"}
"""What may stand behind `not yet:`: the parts of the work that is going on, and what is not of it."""

CLASSES = ("AgentProcess", "DynamicSupervisor", "Message", "Runtime", "Supervisor")
"""Those whose every public attribute has a row."""

_MISSING = object()


@dataclass(frozen=True)
class Row:
    line: int
    section: str
    modules: tuple[str, ...]
    names: tuple[str, ...]
    """Without their backticks; words that had none have a leading space."""
    holds: str
    test: str

    @property
    def not_yet(self) -> str | None:
        return self.test.removeprefix("not yet: ") if self.test.startswith("not yet") else None

    @property
    def tests(self) -> list[str]:
        return re.findall(r"`([^`]+)`", self.test)

    def __str__(self) -> str:
        return f"line {self.line}"


def rows_of(text: str) -> list[Row]:
    section, modules = "", ()
    found: list[Row] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("## "):
            section, modules = line[3:], ()
        elif line.startswith("Modules: "):
            modules = tuple(re.findall(r"`([^`]+)`", line))
        elif line.startswith("|") and not re.match(r"\|( name \||---)", line):
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
            assert len(cells) == 3, f"line {number} has {len(cells)} cells, not 3"
            name, holds, test = (cell.strip() for cell in cells)
            found.append(
                Row(number, section, modules, tuple(re.findall(r"`([^`]+)`", name)) or (f" {name}",), holds, test)
            )
    return found


ROWS = rows_of(DOCUMENT.read_text())


@cache
def names_of_tests(file: str) -> frozenset[str]:
    """Names of the tests in a file, those in classes as `Class::test`."""
    path = TESTS / file
    if not path.is_file():
        return frozenset()
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{one.name}" for one in node.body if isinstance(one, _FUNCTIONS)}
        elif isinstance(node, _FUNCTIONS):
            found.add(node.name)
        elif isinstance(node, ast.Assign):  # TestX = Machine.TestCase, of hypothesis
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return frozenset(name for name in found if name.rpartition("::")[2].lower().startswith("test"))


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def is_code(name: str) -> bool:
    """Whether a name of a row is one that can be looked up: `Runtime`, `Runtime.ask(name)`, `_uuid7()`."""
    head = name.partition("(")[0]
    return re.fullmatch(r"[A-Za-z_][\w.]*", head) is not None and (head != head.lower() or "(" in name)


def find(head: str, modules: tuple[str, ...]) -> Any:
    """What has that name below one of the modules, or _MISSING; an annotation of a class counts as an attribute."""
    first, *rest = head.split(".")
    for module in modules:
        try:
            value: Any = getattr(importlib.import_module(module), first, _MISSING)
        except ModuleNotFoundError:
            continue
        for part in rest:
            if value is not _MISSING:
                annotated = any(part in vars(one).get("__annotations__", {}) for one in getattr(value, "__mro__", ()))
                value = getattr(value, part, None if annotated else _MISSING)
        if value is not _MISSING:
            return value
    return _MISSING


def signature_problem(name: str, value: Any) -> str | None:
    """Where the call that is written down differs from the signature, or None."""
    head, _, arguments = name.partition("(")
    written = ast.parse(f"def _({arguments}: ...").body[0]
    assert isinstance(written, ast.FunctionDef)
    given = [one.arg for one in written.args.args]
    defaults = [_MISSING] * (len(given) - len(written.args.defaults)) + list(
        map(ast.literal_eval, written.args.defaults)
    )
    signature = inspect.signature(value.__init__ if isinstance(value, type) else value)
    actual = [one for one in signature.parameters.values() if one.name != "self"]
    positional = [one for one in actual if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    if [one.name for one in positional[: len(given)]] != given:
        return f"{head} takes ({', '.join(one.name for one in positional)}), not ({', '.join(given)})"
    for parameter, default in zip(positional, defaults, strict=False):
        real = _MISSING if parameter.default is parameter.empty else parameter.default
        if real is not default and real != default:
            return f"{head}: the default of {parameter.name} is {real!r}, not {default!r}"
    needed = [one.name for one in actual if one.default is one.empty and one.name not in given and one.kind not in _ANY]
    return f"{head} needs {', '.join(needed)} as well" if needed else None


_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def problems_of(row: Row) -> list[str]:
    said: list[str] = []
    if row.not_yet is not None:
        if row.not_yet not in PARTS | LATER:
            said.append(f"not yet: {row.not_yet!r} is no part of the work")
    elif not row.tests or re.sub(r"`[^`]+`", "", row.test).strip():
        said.append(f"{row.test!r} is no list of tests in backticks")
    for test in row.tests:
        file, _, name = test.partition("::")
        if name not in names_of_tests(file):
            said.append(f"there is no test {test}")
    for name in filter(is_code, row.names if row.modules and row.not_yet is None else ()):
        value = find(name.partition("(")[0], row.modules)
        if value is _MISSING:
            said.append(f"{name} is in none of {', '.join(row.modules)}")
        elif "(" in name:
            said.append(signature_problem(name, value) or "")
    return [one for one in said if one]


def test_every_row_is_true() -> None:
    assert len(ROWS) > 150
    said = [f"{DOCUMENT.name}:{row.line}: {problem}" for row in ROWS for problem in problems_of(row)]
    assert not said, "\n".join(said)


def test_no_name_stands_twice() -> None:
    counted = Counter(name.partition("(")[0] if is_code(name) else name for row in ROWS for name in row.names)
    assert [name for name, count in counted.items() if count > 1] == []


def test_every_export_and_every_attribute_of_the_main_classes_has_a_row() -> None:
    listed = {name.partition("(")[0] for row in ROWS for name in row.names}
    wanted = set(civitas_shm.__all__)
    for name in CLASSES:
        cls = getattr(civitas_shm, name)
        for base in cls.__mro__:
            if base is not cls and base.__name__ in CLASSES:
                break
            if base.__module__.startswith("civitas_shm"):
                attributes = {*vars(base), *vars(base).get("__annotations__", {})}
                wanted |= {f"{name}.{attribute}" for attribute in attributes if not attribute.startswith("_")}
    assert sorted(wanted - listed) == []


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("| `Runtime.ask(name, payload, timeout=30.0)` | | `unit/test_contract.py::test_no_name_stands_twice` |", ""),
        ("| `Runtime.ask(name, payload, timeout=5.0)` | | not yet: talk |", ""),
        ("| `Runtime` | | `unit/test_contract.py::test_gone` |", "there is no test unit/test_contract.py::test_gone"),
        ("| `Runtime` | | unit/test_contract.py::test_gone |", "is no list of tests"),
        ("| `Runtime` | | |", "is no list of tests"),
        ("| `Runtime` | | not yet: tomorrow |", "'tomorrow' is no part of the work"),
        ("| `Runtime.gone` | | `unit/test_contract.py::test_every_row_is_true` |", "Runtime.gone is in none of"),
        (
            "| `Runtime.ask(name, timeout=30.0)` | | `unit/test_contract.py::test_every_row_is_true` |",
            "Runtime.ask takes (name, payload, timeout, message_type), not (name, timeout)",
        ),
        (
            "| `Runtime.ask(name, payload, timeout=5.0)` | | `unit/test_contract.py::test_every_row_is_true` |",
            "Runtime.ask: the default of timeout is 30.0, not 5.0",
        ),
        (
            "| `Runtime.ask(name)` | | `unit/test_contract.py::test_every_row_is_true` |",
            "Runtime.ask needs payload as well",
        ),
    ],
)
def test_a_row_that_is_wrong_is_found(row: str, problem: str) -> None:
    (parsed,) = rows_of(f"## 1.5\n\nModules: `civitas_shm.runtime`\n\n{row}")
    said = problems_of(parsed)
    assert len(said) == bool(problem), said
    assert problem in "".join(said)
