"""From a topology file to a `TopologySpec`, or to one TopologyError that names everything that is wrong with it.

The steps, each in a file of its own: `yaml12` reads text into data with positions, `variables` puts in `${VAR}`,
`build` with `schema` and `check` makes the plain values, `overrides` applies `--set`.

Rules of this file: only TopologyError comes out, whatever the text is. It is imported by the command line, the host and
`Runtime.from_config` only, never by a worker.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import TopologyError
from ..transport import known_transports
from . import overrides as overriding
from .build import Builder
from .check import Checker, path_text
from .model import TopologySpec
from .plain import plain_document
from .secrecy import private_variables, with_own_secrets
from .variables import Variables
from .yaml12 import Document, Problem, read

__all__ = ["load_topology", "load_topology_data", "load_topology_text", "read_topology"]


def load_topology(
    path: str | os.PathLike[str],
    overrides: Iterable[str] = (),
    *,
    agent_types: Collection[str] = (),
    environment: Mapping[str, str] | None = None,
    may_be_unset: bool = False,
) -> TopologySpec:
    """The topology in a file. Its directory becomes the first of `import_paths`.

    `overrides` are texts `AGENT.KEY=VALUE`; `agent_types` are words that may stand as `type:` without being import
    paths (the keys of `Runtime.from_config(agent_classes=...)`); `environment` is `os.environ` unless given;
    `may_be_unset`: a `${VAR}` that is not set is let pass, for checking a file where its secrets are not: the result is
    of no use then.
    """
    return read_topology(path, overrides, agent_types=agent_types, environment=environment, may_be_unset=may_be_unset)[
        0
    ]


def read_topology(
    path: str | os.PathLike[str],
    overrides: Iterable[str] = (),
    *,
    agent_types: Collection[str] = (),
    environment: Mapping[str, str] | None = None,
    may_be_unset: bool = False,
) -> tuple[TopologySpec, Document]:
    """As `load_topology`, and what was read: it knows where each key stands."""
    name = os.fspath(path)
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        raise TopologyError(
            [f"{name}: there is no such file; `civitas-shm init NAME` makes a project with one"]
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise TopologyError([f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}"]) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        raise TopologyError(
            [f"{name}:{line}:{column}: byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"]
        ) from None
    document = read(text)
    spec = _build(document, name, overrides, agent_types, environment, may_be_unset=may_be_unset)
    return replace(spec, import_paths=[str(Path(path).resolve().parent)]), document


def load_topology_text(
    text: str,
    filename: str = "<text>",
    overrides: Iterable[str] = (),
    *,
    agent_types: Collection[str] = (),
    environment: Mapping[str, str] | None = None,
) -> TopologySpec:
    """The topology in a text; `filename` is what the problems begin with. No directory is added to `import_paths`."""
    return _build(read(text), filename, overrides, agent_types, environment)


def load_topology_data(
    data: Any,
    overrides: Iterable[str] = (),
    *,
    agent_types: Collection[str] = (),
    environment: Mapping[str, str] | None = None,
) -> TopologySpec:
    """The topology in a dict, as a YAML or JSON parser makes it, `${VAR}` included. Problems have paths, no lines."""
    return _build(plain_document(data), "", overrides, agent_types, environment)


def _build(
    document: Document,
    filename: str,
    overrides: Iterable[str],
    agent_types: Collection[str],
    environment: Mapping[str, str] | None,
    *,
    may_be_unset: bool = False,
) -> TopologySpec:
    checker = Checker(document)
    variables = Variables(checker, os.environ if environment is None else environment, may_be_unset=may_be_unset)
    data = variables.put_in(document.data)
    broken = document.data is None and bool(document.problems)
    spec = TopologySpec() if broken else Builder(checker, agent_types, known_transports, _plugins).topology(data)
    spec = with_own_secrets(spec, variables.secrets())
    spec = replace(spec, private_variables=private_variables(spec, variables.private()))
    problems = [_problem_text(filename, problem) for problem in sorted(checker.problems, key=_by_position)]
    wanted: list[overriding.Override] = []
    for override in overrides:
        try:
            wanted.append(overriding.parse(override))
        except ValueError as error:
            problems.append(f"--set: {error}")
    if not problems:
        spec, problems = overriding.apply(spec, wanted)
    if problems:
        raise TopologyError(list(dict.fromkeys(problems)))
    return spec


def _by_position(problem: Problem) -> tuple[int, int]:
    return problem.mark


def _problem_text(filename: str, problem: Problem) -> str:
    path = f"{path_text(problem.path)}: " if problem.path else ""
    where = f"{filename}:{problem.mark.line}:{problem.mark.column}: " if filename else ""
    return f"{where}{path}{problem.text}"


def _plugins(kind: str) -> list[str]:
    """Plug-ins that other distributions bring."""
    from importlib.metadata import entry_points

    return [point.name for point in entry_points(group=f"civitas_shm.{kind}s")]
