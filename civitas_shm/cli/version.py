"""`version`: what is installed, for bug reports."""

from __future__ import annotations

import json
import platform

import rich_click as click

__all__ = ["command"]


@click.command("version")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(as_json: bool) -> None:
    """Show the versions of the package, of its memory layout, and of Python."""
    from .. import __version__

    versions = {
        "civitas_shm": __version__,
        "native_layout": native_layout(),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    if as_json:
        click.echo(json.dumps(versions))
        return
    layout = versions["native_layout"]
    click.echo(f"civitas-shm {versions['civitas_shm']}")
    click.echo(f"memory layout {layout if layout is not None else '– (the compiled part is not installed)'}")
    click.echo(f"{versions['implementation']} {versions['python']} on {versions['system']}")


def native_layout() -> int | None:
    """Version of the layout of shared memory: processes of different ones share no run. None without native part."""
    from ..errors import TransportUnavailable
    from ..transport import load_transport

    try:
        return load_transport("shm").layout_version
    except TransportUnavailable:
        return None
