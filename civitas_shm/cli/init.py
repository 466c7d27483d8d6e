"""`init NAME`: a project that runs as it is. Nothing that exists is written over."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from .options import run_name
from .scaffold import FILES

__all__ = ["command"]


@click.command("init")
@click.argument("name", type=click.Path(path_type=Path))
def command(name: Path) -> None:
    """Make a project in the directory NAME: a topology, two agents, a test, a README."""
    if name.exists() and not name.is_dir():
        raise click.UsageError(f"{name} exists and is no directory; choose another name")
    present = [file for file in FILES if (name / file).exists()]
    if present:
        raise click.UsageError(f"{name} has {', '.join(present)} already; choose another name, or remove them")
    project = run_name(str(name / "topology.yaml"))
    try:
        name.mkdir(parents=True, exist_ok=True)
        for file, text in FILES.items():
            (name / file).write_text(text.replace("@NAME@", project), encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"{name} cannot be written: {error.strerror}") from error
    click.echo(f"Made {name} with {', '.join(FILES)}. Next:\n\n    cd {name}\n    civitas-shm run")
