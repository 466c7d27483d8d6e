"""`send`: a message to an agent of a live run. When it returns, the message is committed."""

from __future__ import annotations

import json

import rich_click as click

from .talk import client_of, message_options, read_payload

__all__ = ["command"]


@click.command("send")
@message_options
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0.0), default=30.0, show_default=True, metavar="SECONDS",
    help="How long to wait for room in a full mailbox. 0: for ever.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(
    run: str, agent: str, payload: str, message_type: str, priority: int, wait_s: float, timeout_s: float, as_json: bool
) -> None:
    """Send a message to an agent of a run. It is committed when the command returns, and survives any kill.

    The payload is a JSON object, `@FILE` or `-` for stdin.
    Exit code 0: it is committed. 1: it is not; the mailbox stayed full. 7: there is no such run. 8: the run is silent.
    """
    message = read_payload(payload)
    with client_of(run, wait_s) as client:
        client.send(agent, message, message_type, timeout=timeout_s, priority=priority)
    if as_json:
        click.echo(json.dumps({"run": run, "agent": agent, "type": message_type, "sent": True}))
