"""`why`: what an agent is doing, or what keeps it from doing anything, in one paragraph with the evidence.

Rules of this file: what is true is decided in `inspection.why`; a stack is read by py-spy without stopping the
process, where py-spy is installed, and nothing is sent to the process otherwise. Exit codes: 0 told, 9 no agent of
that name, 7 no run.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any, Final

import rich_click as click

from .attach import INTERVAL_S, attached, name_option, two_readings, unknown_agent

if TYPE_CHECKING:
    from ..inspection import Finding

__all__ = ["EXIT_UNKNOWN_AGENT", "command", "page"]

EXIT_UNKNOWN_AGENT: Final = 9

STACK_S: Final = 10.0
"""How long py-spy may take."""

_GET_IT: Final = "the Python stack of that process: pip install py-spy, then run this again"


@click.command("why")
@click.argument("agent")
@name_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def command(ctx: click.Context, agent: str, run: str | None, as_json: bool) -> None:
    """Say what AGENT is doing, or why it does nothing, and what shows it.

    Reads shared memory and /proc for a second; nothing is asked of the agent or its process, so it also tells of one
    that hangs, is stopped, or is dead.
    """
    from ..inspection import find

    with attached(run) as looker:
        scene = two_readings(looker, INTERVAL_S)
    try:
        found = find(scene, agent)
    except KeyError:
        click.echo(unknown_agent(scene, agent), err=True)
        ctx.exit(EXIT_UNKNOWN_AGENT)
    stack = _stack(found)
    if as_json:
        click.echo(json.dumps(plain(scene.now.name, found, stack)))
    else:
        click.echo(page(found, stack))


def plain(run: str, found: Finding, stack: str | None) -> dict[str, Any]:
    """For `--json`; a stable form."""
    return {
        "run": run,
        "agent": found.agent,
        "kind": found.kind,
        "healthy": found.healthy,
        "word": found.word,
        "text": found.text,
        "chain": list(found.chain),
        "evidence": found.evidence,
        "stack": stack,
    }


def page(found: Finding, stack: str | None) -> str:
    """For people."""
    from textwrap import fill

    lines = [fill(found.text, 100), ""]
    evidence = found.evidence
    for process in evidence.get("processes", []):
        share = "" if process["cpu_share"] is None else f", {process['cpu_share']:.0%} of a core"
        turns = {True: "", False: ", its loop does not answer", None: ""}[process["loop_answers"]]
        pid = "no process" if process["pid"] is None else f"pid {process['pid']}, state {process['state'] or '?'}"
        lines.append(f"process   {process['name']}: {pid}{share}{turns}")
    if "waiting" in evidence:
        lines.append(
            f"mailbox   {evidence['waiting']:,} of {evidence['capacity']:,} wait, {evidence['in_hand']} in hand, "
            f"{evidence['handled']:,} handled"
        )
    if "message" in evidence:
        message = evidence["message"]
        lines.append(
            f"in hand   {message['id']} {message['type']!r} from {message['sender']}, "
            f"handed over {message['delivery']}x"
        )
    if found.chain:
        lines.append(f"waits     {' -> '.join(found.chain)}")
    for event in evidence.get("recent", []):
        lines.append(f"event     {event['event']}: {event.get('cause', '')}")
    if stack is not None:
        lines += ["", stack.rstrip()]
    elif found.kind in ("blocked", "blocked_by") and found.pid:
        lines += ["", f"To see {_GET_IT}."]
    return "\n".join(lines).rstrip()


def _stack(found: Finding) -> str | None:
    """Of the process that is named, read from its memory while it goes on; None: not to be had."""
    spy = shutil.which("py-spy")
    if spy is None or not found.pid or found.kind not in ("blocked", "blocked_by", "handling", "disk_wait"):
        return None
    try:
        told = subprocess.run(
            [spy, "dump", "--nonblocking", "--pid", str(found.pid)],
            capture_output=True, text=True, timeout=STACK_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout if told.returncode == 0 and told.stdout else None
