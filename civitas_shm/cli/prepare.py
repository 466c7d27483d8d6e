"""From the command line to a checked `TopologySpec`: what `run` and `plan` have in common."""

from __future__ import annotations

import os
from dataclasses import replace

import rich_click as click

from ..config import with_environment
from ..topology.bridged import LINKS
from ..topology.load import load_topology
from ..topology.model import TopologySpec
from ..topology.parts import SUPERVISOR, groups_of, part_of
from ..topology.suggest import did_you_mean
from ..transport import known_transports, load_transport
from .classes import check_classes
from .options import run_name

__all__ = ["prepare"]


def prepare(
    path: str,
    overrides: tuple[str, ...],
    transport: str | None,
    name: str | None = None,
    nats_url: str | None = None,
    process: str | None = None,
    *,
    everything: bool = True,
) -> TopologySpec:
    """The topology as the options want it, with a name, its classes looked for.

    `process`, or not `everything`: one part of a system whose groups are started apart (`part_of`).
    """
    spec = load_topology(path, overrides)
    if transport is not None and "." not in transport and transport not in (known := [*known_transports(), *LINKS]):
        text = f"the transport {transport!r} is unknown{did_you_mean(transport, known)}"
        raise click.BadParameter(text, param_hint="--transport")
    spec = with_environment(spec, os.environ, transport, nats_url)
    spec = replace(spec, name=name or spec.name or run_name(path))
    if process is not None or (spec.bridge is not None and spec.bridge.groups and not everything):
        whole, spec = spec, part_of(spec, process)
        if process not in (None, SUPERVISOR):
            spec = replace(spec, name=name or _free_name(f"{spec.name}-{process}", spec.transport.type))
        elif groups := groups_of(whole):
            click.echo(
                f"waits for {', '.join(groups)}: `civitas-shm run --process {groups[0]}`, here or elsewhere; "
                "`--all` starts all of it in this run", err=True,
            )  # fmt: skip
    check_classes(spec)
    return spec


def _free_name(name: str, transport: str) -> str:
    """The first of NAME, NAME-2 … that is no run which lives: a group may be started several times."""
    module = load_transport(transport)
    number = 1
    while module.is_held is not None and module.run_directory is not None:
        candidate = name if number == 1 else f"{name}-{number}"
        if not module.is_held(module.run_directory(candidate)):
            return candidate
        number += 1
    return name
