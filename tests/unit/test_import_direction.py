"""The table of layers in docs/architecture.md is true: who imports whom, read from the sources.

Rules of this file:
- the layers and what they may import are parsed from the document, so that document and code cannot part ways;
- an import inside a function counts as one at the top; only those under `if TYPE_CHECKING` do not run, so do not count;
- a module that the table does not name fails, so nobody adds one without deciding where it belongs.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE, TRANSPORTS = "civitas_shm", "civitas_shm_transports"
ROOTS = {CORE: ROOT / CORE, TRANSPORTS: ROOT / "transports" / TRANSPORTS}
DOCUMENT = ROOT / "docs" / "architecture.md"

THIRD_PARTY = {
    "msgspec", "msgpack", "yaml", "pydantic", "rich", "rich-click", "click", "psutil", "uvloop", "posix_ipc", "pytest",
    "zmq", "nats",
}  # fmt: skip
"""Words of the table's last column that name a package; `rich-click` is imported as `rich_click`."""

DOORS = {CORE, f"{CORE}.__main__"}
"""The package's own file hands out names of every layer, `__main__` starts the command line; nobody imports them."""

FORBIDDEN = {
    "pickle": "received bytes are never unpickled",
    "marshal": "received bytes are never unmarshalled",
    "shelve": "is pickle",
    "multiprocessing": "its connections pickle and its resource tracker unlinks segments that others still use",
}


# --- the table ---------------------------------------------------------------------------------------------------


@dataclass
class Layer:
    name: str
    number: int | None
    """None: the transports, which stand beside the numbered layers."""
    modules: set[str]
    reach: int
    """Highest numbered layer that it may import, besides its own."""
    packages: set[str] = field(default_factory=set)
    only_in: dict[str, set[str]] = field(default_factory=dict)
    """Package -> the modules that may import it, where these are fewer than the layer."""


def _layers(text: str) -> list[Layer]:
    section = text.split("## Layers")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")
    ]
    layers: list[Layer] = []
    for name, its_modules, may in rows[2:]:
        number = int(name.split()[0]) if name[0].isdigit() else None
        numbers = [int(n) for n in re.findall(r"\d", may.split("never")[0])]
        only_in = {
            package: {f"{CORE}.{module}" for module in re.findall(r"`([\w.]+)`", modules)}
            for package, modules in re.findall(r"([\w-]+) only in ((?:`[\w.]+`(?:, )?)+)", may)
        }
        layers.append(
            Layer(
                name=name,
                number=number,
                modules={m.strip("/").removesuffix(".*") for m in re.findall(r"`([^`]+)`", its_modules)},
                reach=max(numbers, default=-1),
                packages=(set(re.findall(r"[\w-]+", may)) & THIRD_PARTY) - set(only_in),
                only_in=only_in,
            )
        )
    return layers


LAYERS = _layers(DOCUMENT.read_text())


def _layer_of(module: str) -> Layer | None:
    head = module.split(".")[1] if module.startswith(f"{CORE}.") else module.split(".")[0]
    return next((layer for layer in LAYERS if head in layer.modules), None)


# --- the sources -------------------------------------------------------------------------------------------------


def _modules() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for package, directory in ROOTS.items():
        for path in sorted([*directory.rglob("*.py"), *directory.rglob("*.pyi")]):  # .pyi: the C extension
            parts = [package, *path.relative_to(directory).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _nodes(tree: ast.AST, *, functions: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements that run, in document order; those inside functions only when asked for."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from _nodes(other, functions=functions)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _nodes(node, functions=functions)


def imports_of(module: str, source: str, *, is_package: bool, functions: bool = True) -> set[str]:
    """Full names of the modules that a source imports; `from x import y` names `x.y` where that is a module."""
    found: set[str] = set()
    for node in _nodes(ast.parse(source), functions=functions):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
            continue
        base = node.module or ""
        if node.level:
            parts = module.split(".")
            parts = parts[: len(parts) - node.level + (1 if is_package else 0)]
            base = ".".join([*parts, node.module] if node.module else parts)
        for alias in node.names:
            full = f"{base}.{alias.name}"
            found.add(full if full in MODULES else base)
    return found


@functools.cache
def _imports(module: str, *, functions: bool = True) -> set[str]:
    path = MODULES[module]
    return imports_of(module, path.read_text(), is_package=path.name == "__init__.py", functions=functions)


def _ours(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] in ROOTS}


# --- the claims --------------------------------------------------------------------------------------------------


def test_the_table_was_understood() -> None:
    assert [layer.number for layer in LAYERS] == [0, 1, 2, 3, 4, None]
    assert {"errors", "messages", "clock"} <= LAYERS[0].modules
    assert LAYERS[0].packages == {"msgspec"}
    assert LAYERS[1].only_in == {"pydantic": {f"{CORE}.topology.{part}" for part in ("schema", "keytypes", "check")}}
    assert [layer.reach for layer in LAYERS] == [-1, 0, 1, 2, 3, 1]
    assert LAYERS[5].modules == {TRANSPORTS}


def test_imports_are_found_wherever_they_hide() -> None:
    source = (
        "from __future__ import annotations\nimport os.path, json as j\nfrom . import errors\nfrom .. import clock\n"
        "from ..errors import MailboxFull\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import rich\n"
        "try:\n    import uvloop\nexcept ImportError:\n    pass\nasync def f():\n    with a:\n        import yaml\n"
    )
    module = f"{CORE}.topology.model"
    found = imports_of(module, source, is_package=False)
    core = {f"{CORE}.topology", f"{CORE}.clock", f"{CORE}.errors"}
    assert found == core | {"__future__", "os.path", "json", "typing", "uvloop", "yaml"}
    assert "yaml" not in imports_of(module, source, is_package=False, functions=False)
    assert imports_of(CORE, "from .errors import A", is_package=True) == {f"{CORE}.errors"}


def test_modules_import_only_from_their_own_layer_and_those_above_it_in_the_table() -> None:
    wrong = [sentence for module in sorted(set(MODULES) - DOORS) for sentence in _beyond_its_layer(module)]
    assert not wrong, "\n".join(wrong)


def _beyond_its_layer(module: str) -> Iterator[str]:
    layer = _layer_of(module)
    if layer is None:
        yield f"{module} is in no layer: name it in the table of docs/architecture.md"
        return
    for imported in sorted(_ours(_imports(module))):
        if imported == CORE:  # `from . import x` of the package itself: the version, say
            continue
        other = _layer_of(imported)
        if other is None:
            yield f"{module} imports {imported}, which is in no layer"
        elif not (other is layer or (other.number is not None and other.number <= layer.reach)):
            yield f"{module} ({layer.name}) imports {imported} ({other.name})"


def test_modules_import_only_the_packages_that_their_layer_may() -> None:
    wrong = []
    for module in sorted(set(MODULES) - DOORS):
        layer = _layer_of(module)
        assert layer is not None
        below = [o for o in LAYERS if o is layer or (o.number is not None and o.number <= layer.reach)]
        allowed = {package.replace("-", "_") for other in below for package in other.packages}
        allowed |= {package for other in below for package, only in other.only_in.items() if module in only}
        outside = {name.split(".")[0] for name in _imports(module)} - set(ROOTS) - set(sys.stdlib_module_names)
        if not outside <= allowed:
            wrong.append(f"{module} ({layer.name}) imports {sorted(outside - allowed)}")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_what_is_forbidden_everywhere() -> None:
    found = {
        (module, name): FORBIDDEN[name.split(".")[0]]
        for module in sorted(MODULES)
        for name in _imports(module)
        if name.split(".")[0] in FORBIDDEN
    }
    assert not found


def test_transports_never_import_each_other() -> None:
    for module in (m for m in MODULES if m.startswith(f"{TRANSPORTS}.")):
        own = ".".join(module.split(".")[:2])
        for imported in (name for name in _imports(module) if name.startswith(f"{TRANSPORTS}.")):
            assert imported == own or imported.startswith(f"{own}."), f"{module} imports {imported}"


def test_only_the_table_in_transport_loading_names_a_transports_module() -> None:
    for module in (m for m in MODULES if m.split(".")[0] == CORE and m != f"{CORE}.transport.loading"):
        nodes = list(ast.walk(ast.parse(MODULES[module].read_text())))
        prose = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        constants = [node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in prose]
        named = [text for text in constants if isinstance(text, str) and f"{TRANSPORTS}." in text]
        assert not named, f"{module} names {named}; load_transport finds it"


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph = {
        module: _ours(_imports(module, functions=False)) & set(MODULES) - {CORE} for module in set(MODULES) - DOORS
    }
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in finished:
            for imported in sorted(graph.get(module, ())):
                # A package's `__init__` and its own modules are one door: importing the parent is implied anyway.
                if not module.startswith(f"{imported}."):
                    visit(imported, (*path, module))
            finished.add(module)

    for module in sorted(graph):
        visit(module, ())


@pytest.mark.skipif(f"{CORE}.host.worker" not in MODULES, reason="civitas_shm/host/worker.py is not written yet")
def test_workers_import_neither_pydantic_nor_rich_nor_the_command_line() -> None:
    heavy = ["pydantic", "rich", "rich_click", "click", f"{CORE}.cli", f"{CORE}.dashboard", f"{CORE}.runtime"]
    script = f"import sys; import {CORE}.host.worker; print(*sorted(set(sys.modules) & set({heavy!r})))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
