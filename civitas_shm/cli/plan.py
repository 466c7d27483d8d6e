"""`plan`: what `run` would do, without doing it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import rich_click as click

from .options import cores, topology_options, topology_path

if TYPE_CHECKING:
    from ..placement import MemoryEstimate, Placement

__all__ = ["command"]


@click.command("plan")
@topology_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(
    topology: str | None,
    topology_option: str | None,
    overrides: tuple[str, ...],
    transport: str | None,
    workers: int | None,
    as_json: bool,
) -> None:
    """Show processes, cores, agents and shared memory of a topology before anything runs."""
    from ..config import workers_of
    from ..placement import place, plan_bytes
    from .prepare import prepare

    spec = prepare(topology_path(topology, topology_option), overrides, transport)
    placement = place(spec, cores(), workers_of(os.environ) if workers is None else workers)
    memory = plan_bytes(placement.spec, placement)
    if as_json:
        click.echo(json.dumps(as_plain(placement, memory), indent=2))
    else:
        _show(placement, memory)


def as_plain(placement: Placement, memory: MemoryEstimate) -> dict[str, Any]:
    """The `--json` output; a stable form."""
    shared = placement.spec.transport.type == "shm"
    return {
        "name": placement.spec.name,
        "transport": placement.spec.transport.type,
        "processes": [
            {
                "name": process.name,
                "cpus": list(process.cpus),
                "nice": process.nice,
                "gpu": list(process.gpu),
                "numa": process.numa,
                "memory_limit_mb": process.memory_limit_mb,
                "threads": process.threads,
                "spin": process.spin,
                "agents": list(process.agents),
            }
            for process in placement.processes
        ],
        "standby": placement.standby,
        "shared_memory": {
            "reserved_bytes": memory.reserved_bytes if shared else 0,
            "expected_bytes": memory.expected_bytes if shared else 0,
            "mailboxes": memory.mailboxes,
        },
        "notes": list(placement.notes),
    }


def _show(placement: Placement, memory: MemoryEstimate) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..dashboard.words import bytes_text, cpus_text

    spec = placement.spec
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for head in ("process", "cpus", "nice", "limits", "agents"):
        table.add_column(head, justify="right" if head == "nice" else "left", overflow="fold")
    for process in placement.processes:
        limits = [f"gpu {cpus_text(process.gpu)}"] if process.gpu else []
        limits += [f"{process.memory_limit_mb} MiB"] if process.memory_limit_mb is not None else []
        cells = (process.name, cpus_text(process.cpus), str(process.nice), ", ".join(limits) or "–")
        table.add_row(*(Text(cell) for cell in cells), Text(", ".join(process.agents) or "–"))
    workers = len(placement.workers)
    console.print(Text(f"{spec.name} · {spec.transport.type} · {workers} workers, {placement.standby} standby\n"))
    console.print(table)
    if spec.transport.type == "shm":
        expected, reserved = bytes_text(memory.expected_bytes), bytes_text(memory.reserved_bytes)
        text = f"\nshared memory: {expected} at the start, {reserved} of address space ({memory.mailboxes} mailboxes)"
        console.print(Text(text))
    else:
        console.print(Text(f"\ntransport {spec.transport.type}: all agents run in this process; the above is for shm"))
    for note in placement.notes:
        console.print(Text(f"note: {note}"))
