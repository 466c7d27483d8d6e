"""Whether the classes of a topology can be found, before any process is started.

Rules of this file: no code of the user runs here (that is the workers' business): modules are looked up by the import
system's finders and read as text. Where reading cannot tell (a star import, a module's `__getattr__`, a compiled
module), the answer is "it may be there", and the worker that imports it has the last word.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

from ..errors import AgentImportError
from ..plugins.loader import check_packages
from ..topology.model import TopologySpec
from ..topology.suggest import did_you_mean

__all__ = ["check_classes"]


def check_classes(spec: TopologySpec) -> None:
    """AgentImportError with a sentence for every class, of agents and plug-ins, that surely is not there."""
    importlib.invalidate_caches()
    problems: list[str] = []
    path = [*spec.import_paths, *sys.path]
    for agent in spec.supervision.agents():
        problem = _problem(agent.type, path)
        if problem is not None:
            problems.append(f"agent {agent.name!r}: type {agent.type!r} cannot be imported: {problem}.")
    stores = [] if spec.plugins.state is None else [spec.plugins.state]
    for kind, plugins in (("model", spec.plugins.models), ("tool", spec.plugins.tools), ("state", stores)):
        for plugin in plugins:
            problem = _problem(plugin.type, path) if "." in plugin.type else None
            if problem is not None:
                problems.append(f"{kind} plug-in {plugin.label!r}: type {plugin.type!r} cannot be imported: {problem}.")
    problems += check_packages(spec.plugins)
    if problems:
        looked_in = ", ".join(spec.import_paths)
        where = f"Looked in {looked_in} and on sys.path." if looked_in else "Looked on sys.path."
        raise AgentImportError("\n".join([*problems, where]))


def _problem(dotted: str, path: Sequence[str]) -> str | None:
    """`module.Class`, `package.module.Class`, or a class within a class: the longest part that is a module counts."""
    parts = dotted.split(".")
    search: Sequence[str] = path
    module: ModuleSpec | None = None
    found = 0
    for length in range(1, len(parts)):
        spec = _find(".".join(parts[:length]), search if length > 1 else path, top=length == 1)
        if spec is None:
            break
        module, found = spec, length
        if spec.submodule_search_locations is None:
            break
        search = list(spec.submodule_search_locations)
    if module is None:
        return f"there is no module {parts[0]!r}"
    if module.origin is None and module.submodule_search_locations is not None:
        return f"there is no module {'.'.join(parts[: found + 1])!r}"  # a directory without __init__ holds modules only
    names = _names(module)
    if names is None:
        return None
    if isinstance(names, str):
        return names
    wanted = parts[found]
    if wanted in names:
        return None
    what = "class" if found == len(parts) - 1 else "module or class"
    return f"{'.'.join(parts[:found])!r} has no {what} {wanted!r}{did_you_mean(wanted, names)}"


def _find(name: str, path: Sequence[str], *, top: bool) -> ModuleSpec | None:
    # Finders of editable installs know their packages without a path.
    for where in (path, None) if top else (path,):
        for finder in sys.meta_path:
            spec = finder.find_spec(name, where)
            if spec is not None:
                return spec
    return None


def _names(module: ModuleSpec) -> set[str] | str | None:
    """What the module binds at its top level; a sentence when it does not compile; None when reading cannot tell."""
    if module.origin is None or not module.origin.endswith(".py"):
        return None
    try:
        tree = ast.parse(Path(module.origin).read_bytes())
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        return f"{module.origin}{f':{line}' if line else ''} is not valid Python: {getattr(error, 'msg', error)}"
    except OSError:
        return None
    names = set(_bound(tree))
    return None if names & {"*", "__getattr__", "__path__"} else names


def _bound(node: ast.AST) -> Iterator[str]:
    """Names that are bound at the top level, also below `if` and `try`; `*` for a star import."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child.name
        elif isinstance(child, (ast.Import, ast.ImportFrom)):
            for alias in child.names:
                yield alias.asname or alias.name.split(".")[0]
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id
        else:
            yield from _bound(child)
