"""`config show`: every setting that has one value for the whole run: what holds, and who said it.

Rules of this file: the order is option, environment, topology, default; a key or password is only said to be set.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import rich_click as click

from ..redaction import HIDDEN
from .found import table
from .options import topology_options, topology_path

if TYPE_CHECKING:
    from ..topology.model import TopologySpec
    from ..topology.yaml12 import Document

__all__ = ["Row", "command", "rows"]


class Row(NamedTuple):
    """One setting."""

    name: str
    value: Any
    origin: str
    """`option --workers`, `environment LOG_LEVEL`, `topology.yaml:3:12`, `default`."""


@click.group("config")
def command() -> None:
    """Show what holds: options, environment, topology and defaults together."""


@command.command("show")
@topology_options
@click.option("--name", metavar="NAME", help="Of the run, instead of the topology's.")
@click.option("-q", "--quiet", is_flag=True, help="As of run: only warnings and errors are logged.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="As of run.")
@click.option("--origin", is_flag=True, help="Say of each who said it: option, environment, topology or default.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, with origins.")
def show(
    topology: str | None,
    topology_option: str | None,
    overrides: tuple[str, ...],
    transport: str | None,
    workers: int | None,
    name: str | None,
    quiet: bool,
    log_format: str | None,
    origin: bool,
    as_json: bool,
) -> None:
    """Show the settings of a run as `run` with the same options would have them. Without a topology: its defaults."""
    from ..topology.load import read_topology
    from ..topology.model import TopologySpec
    from ..topology.yaml12 import Document

    path = topology_path(topology, topology_option)
    asked = topology is not None or topology_option is not None
    spec, document = (TopologySpec(), Document())
    if asked or Path(path).exists():
        spec, document = read_topology(path, overrides)
    flags = {"name": name, "transport.type": transport, "pool.size": workers, "logging.format": log_format}
    found = list(rows(spec, document, path, flags, os.environ, quiet=quiet))
    if as_json:
        plain = {row.name: {"value": row.value, "origin": row.origin} for row in found}
        click.echo(json.dumps({"settings": plain}, indent=2))
        return
    lines = [[row.name, _text(row.value), *([row.origin] if origin else [])] for row in found]
    click.echo("\n".join(table([["SETTING", "VALUE", *(["FROM"] if origin else [])], *lines])))


_OPTIONS = {
    "name": "--name", "transport.type": "--transport", "pool.size": "--workers", "logging.format": "--log-format",
}  # fmt: skip
_VARIABLES = {
    "transport.type": ("CIVITAS_SHM_TRANSPORT",),
    "pool.size": ("CIVITAS_SHM_WORKERS",),
    "logging.level": ("CIVITAS_SHM_LOG_LEVEL", "LOG_LEVEL"),
    "logging.format": ("CIVITAS_SHM_LOG_FORMAT",),
    "serializer": ("CIVITAS_SHM_SERIALIZER", "AGENCY_SERIALIZER"),
    "run directories": ("CIVITAS_SHM_DIR", "XDG_RUNTIME_DIR"),
    "otel_endpoint": ("OTEL_EXPORTER_OTLP_ENDPOINT",),
    "nats_url": ("NATS_URL",),
}
_KEYS = ("CIVITAS_STATE_KEY", "ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY", "FIDDLER_API_KEY")


def rows(
    spec: TopologySpec,
    document: Document,
    path: str,
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    *,
    quiet: bool = False,
) -> Iterator[Row]:
    """Every setting, in the order of the topology, then what only the environment says. ConfigurationError as `run`."""
    from ..config import Settings, with_environment, workers_of
    from .options import run_name
    from .run import logging_of

    effective = with_environment(spec, environ, flags["transport.type"])
    logged = logging_of(effective.logging, quiet, flags["logging.format"])
    size = flags["pool.size"] or workers_of(environ) or spec.pool.size
    values: dict[str, Any] = {"name": flags["name"] or spec.name or run_name(path)}
    for block in ("transport", "pool", "stop", "watch", "logging"):
        plain = getattr(effective, block)
        fields = plain.__dataclass_fields__
        values |= {f"{block}.{key}": getattr(plain, key) for key in fields if key not in ("options", "agents")}
    values |= {"pool.size": size, "logging.level": logged.level, "logging.format": logged.format}

    def origin(name: str) -> str:
        if flags.get(name) is not None:
            return f"option {_OPTIONS[name]}"
        if name == "logging.level" and logged.level != effective.logging.level:
            return "option --quiet"
        variable = next((one for one in _VARIABLES.get(name, ()) if environ.get(one)), None)
        if variable is not None:
            return f"environment {variable}"
        place = _place(name, document)
        return f"{path}:{place.line}:{place.column}" if place is not None else "default"

    yield from (Row(name, value, origin(name)) for name, value in values.items())
    settings = Settings(environ)
    yield Row("serializer", settings.serializer, origin("serializer"))
    yield Row("run directories", _run_directories(), origin("run directories"))
    yield Row("otel_endpoint", _without_password(settings.otel_endpoint), origin("otel_endpoint"))
    yield Row("nats_url", _without_password(settings.nats_url), origin("nats_url"))
    for key in _KEYS:
        yield Row(key, "set" if environ.get(key) else None, f"environment {key}" if environ.get(key) else "default")


def _place(name: str, document: Document) -> Any:
    """Where the topology says it, if it does: `transport: shm` is `transport.type`, `timeout` is `timeout_s`."""
    block, _, key = name.partition(".")
    paths: list[tuple[str, ...]] = [(block, key), (block, key.removesuffix("_s"))] if key else [(block,)]
    if name == "transport.type" and isinstance((document.data or {}).get("transport"), str):
        paths.append((block,))
    return next((document.values[one] for one in paths if one in document.values), None)


def _run_directories() -> str:
    from ..errors import TransportUnavailable
    from ..transport import load_transport

    try:
        directory = load_transport("shm").run_directory
    except TransportUnavailable:
        return ""
    return "" if directory is None else str(directory("x").parent)


def _without_password(url: str | None) -> str | None:
    return None if url is None else re.sub(r"//[^/@]*@", f"//{HIDDEN}@", url)


def _text(value: Any) -> str:
    if value is None or value == "":
        return "–"
    return value if isinstance(value, str) else json.dumps(value)
