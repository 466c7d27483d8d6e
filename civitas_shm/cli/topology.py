"""`topology`: check a file, show a tree, compare two, print the schema; of a file or of a run that is alive.

Rules of this file: nothing is started and no code of the user is imported; what is secret is shown as `***`, and still
compared; a word is a run's name unless there is a file of that name, or it looks like one.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import rich_click as click

from .options import DEFAULT_TOPOLOGY

if TYPE_CHECKING:
    from ..control.protocol import AgentState
    from ..topology.diff import Change

__all__ = ["command"]

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
files = click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path())


@click.group("topology")
def command() -> None:
    """Check, show and compare topologies, and print their JSON Schema for editors."""


@command.command("validate")
@files
@click.option("--unset-ok", is_flag=True, help="Let ${VAR} pass where VAR is not set: for checking without secrets.")
@click.option("--classes", is_flag=True, help="Look for the classes too, without importing them (exit code 4).")
@json_option
@click.pass_context
def validate(ctx: click.Context, files: tuple[str, ...], unset_ok: bool, classes: bool, as_json: bool) -> None:
    """Check files; topology.yaml unless given. Exit code 3: one is invalid; every problem of all of them is printed."""
    from ..errors import AgentImportError, TopologyError
    from ..topology.load import load_topology
    from .classes import check_classes

    found: list[dict[str, Any]] = []
    code = 0
    for file in files or (DEFAULT_TOPOLOGY,):
        problems: list[str] = []
        said = ""
        try:
            spec = load_topology(file, may_be_unset=unset_ok)
            supervisors = len(spec.supervision.all_supervisors())
            said = f"{len(spec.supervision.agents())} agents, {supervisors} supervisors, {spec.transport.type}"
            if classes:
                check_classes(spec)
        except TopologyError as error:
            problems, code = error.problems, code or error.exit_code
        except AgentImportError as error:
            problems, code = str(error).splitlines(), code or error.exit_code
        found.append({"file": file, "valid": not problems, "problems": problems})
        if not as_json and problems:
            click.echo("\n".join(problems), err=True)
        elif not as_json:
            click.echo(f"{file} is valid: {said}.")
    if as_json:
        click.echo(json.dumps({"files": found}))
    ctx.exit(code)


@command.command("show")
@click.argument("what", required=False, metavar="[FILE|RUN]")
@json_option
def show(what: str | None, as_json: bool) -> None:
    """Show the supervision tree of a file as declared, or of a live run as it is; topology.yaml unless given."""
    from ..topology.shown import as_text
    from .tree_text import declared_tree, running_tree

    one = _look(what or DEFAULT_TOPOLOGY)
    if as_json:
        agents = None if one.agents is None else [_plain(agent) for agent in one.agents]
        click.echo(json.dumps({"source": one.kind, "topology": as_text(one.shown), "agents": agents}, indent=2))
        return
    lines = declared_tree(one.shown) if one.agents is None else running_tree(one.shown, one.agents)
    click.echo("\n".join(lines))


@command.command("diff")
@click.argument("before", metavar="FILE|RUN")
@click.argument("after", metavar="FILE|RUN")
@click.option("--exit-code", "with_code", is_flag=True, help="Exit code 1 when they differ.")
@json_option
@click.pass_context
def diff(ctx: click.Context, before: str, after: str, with_code: bool, as_json: bool) -> None:
    """Say what is different: files, or live runs as they were started. Order and defaults make no difference."""
    from ..topology.diff import diff as differences

    salt = os.urandom(8).hex()
    changes = differences(_look(before, salt).shown, _look(after, salt).shown)
    if as_json:
        plain = [_shown(change) for change in changes]
        click.echo(json.dumps({"before": before, "after": after, "changes": plain}))
    else:
        click.echo("\n".join(map(_line, changes)) if changes else f"{before} and {after} are the same system.")
    ctx.exit(1 if changes and with_code else 0)


@command.command("schema")
def schema() -> None:
    """Print the JSON Schema of topologies. Above a file: `# yaml-language-server: $schema=./topology.schema.json`."""
    from ..topology.json_schema import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


# --- what is meant, and what it is ------------------------------------------------------------------------------------


class _Side(NamedTuple):
    kind: str
    shown: dict[str, Any]
    agents: list[AgentState] | None = None
    """Of a run."""


def _is_file(name: str) -> bool:
    return Path(name).exists() or os.sep in name or name.endswith((".yaml", ".yml", ".json"))


def _look(name: str, salt: str = "") -> _Side:
    if _is_file(name):
        from ..topology.load import load_topology
        from ..topology.shown import show as shown_of

        return _Side("file", shown_of(load_topology(name), salt))
    from ..control.client import ControlClient
    from ..control.protocol import RunTopology, Topology
    from ..transport import load_transport
    from .found import choose

    transport = load_transport("shm")
    assert transport.find_runs is not None
    assert transport.is_held is not None
    run = choose([one for one in transport.find_runs() if one.state == "live"], name, "file, nor live run,")
    with ControlClient(run.path, transport.is_held) as client:
        reply = client.ask(Topology(salt=salt), RunTopology)
    return _Side("run", reply.topology, reply.agents)


# --- as text --------------------------------------------------------------------------------------------------------

_SIGNS = {"added": "+", "removed": "-", "moved": ">", "changed": "~"}


def _line(change: Change) -> str:
    from ..topology.shown import as_text

    before, after = as_text(change.before), as_text(change.after)
    what = f"{_SIGNS[change.kind]} {change.what} {change.name}"
    if change.kind == "moved":
        return f"{what}: from below {before} to below {after}"
    if change.kind == "changed":
        return f"{what}: {change.key} {_value(before)} → {_value(after)}"
    said = after if change.kind == "added" else before
    return f"{what}: {', '.join(f'{key} {_value(value)}' for key, value in said.items())}"


def _value(value: Any) -> str:
    return (
        "–" if value is None else value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    )


def _shown(change: Change) -> dict[str, Any]:
    from ..topology.shown import as_text

    return {key: as_text(value) for key, value in asdict(change).items()}


def _plain(agent: AgentState) -> dict[str, Any]:
    return {field: getattr(agent, field) for field in agent.__struct_fields__}
