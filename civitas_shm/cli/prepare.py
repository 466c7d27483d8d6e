"""From the command line to a checked `TopologySpec`: what `run` and `plan` have in common."""

from __future__ import annotations

import os
from dataclasses import replace

import rich_click as click

from ..config import with_environment
from ..topology.load import load_topology
from ..topology.model import TopologySpec
from ..topology.suggest import did_you_mean
from ..transport import known_transports
from .classes import check_classes
from .options import run_name

__all__ = ["prepare"]


def prepare(path: str, overrides: tuple[str, ...], transport: str | None, name: str | None = None) -> TopologySpec:
    """The topology as the options want it, with a name, its classes looked for."""
    spec = load_topology(path, overrides)
    if transport is not None and "." not in transport and transport not in (known := known_transports()):
        text = f"the transport {transport!r} is unknown{did_you_mean(transport, known)}"
        raise click.BadParameter(text, param_hint="--transport")
    spec = with_environment(spec, os.environ, transport)
    spec = replace(spec, name=name or spec.name or run_name(path))
    check_classes(spec)
    return spec
