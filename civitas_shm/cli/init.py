"""`init NAME`: a project that runs as it is. Nothing that exists is written over."""

from __future__ import annotations

import json
from pathlib import Path

import rich_click as click

from .options import run_name
from .scaffold import FILES, SCHEMA

__all__ = ["command"]


@click.command("init")
@click.argument("name", type=click.Path(path_type=Path))
@click.option("-d", "--dir", "parent", type=click.Path(path_type=Path), help="Where the directory NAME is made.")
def command(name: Path, parent: Path | None) -> None:
    """Make a project in the directory NAME: a topology and its schema, two agents, a program, tests, a README."""
    from ..topology.json_schema import json_schema

    files = FILES | {SCHEMA: json.dumps(json_schema(), indent=1) + "\n"}
    if parent is not None:
        name = parent / name
    if name.exists() and not name.is_dir():
        raise click.UsageError(f"{name} exists and is no directory; choose another name")
    present = [file for file in files if (name / file).exists()]
    if present:
        raise click.UsageError(f"{name} has {', '.join(present)} already; choose another name, or remove them")
    project = run_name(str(name / "topology.yaml"))
    try:
        name.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (name / file).write_text(text.replace("@NAME@", project), encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"{name} cannot be written: {error.strerror}") from error
    click.echo(f"Made {name} with {', '.join(files)}. Next:\n\n    cd {name}\n    civitas-shm run")
