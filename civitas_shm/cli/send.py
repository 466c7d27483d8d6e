"""`send`: a message to an agent of a live run, now or later. When it returns, the message is committed."""

from __future__ import annotations

import json
from datetime import datetime

import rich_click as click

from .talk import client_of, message_options, read_payload

__all__ = ["command"]


@click.command("send")
@message_options
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0.0), default=30.0, show_default=True, metavar="SECONDS",
    help="How long to wait for room in a full mailbox. 0: for ever.",
)  # fmt: skip
@click.option("--ttl", "ttl_s", type=float, metavar="SECONDS", help="Its life; not handled after that.")
@click.option("--delay", "delay_s", type=float, metavar="SECONDS", help="It comes so much later.")
@click.option("--at", type=click.DateTime(), help="It comes at that time; without a zone: local time.")
@click.option("--every", "every_s", type=float, metavar="SECONDS", help="It comes again and again.")
@click.option("--key", help="The later message replaces that of the same key. [default with --every: AGENT/TYPE]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(
    run: str, agent: str, payload: str, message_type: str, priority: int, wait_s: float, timeout_s: float,
    ttl_s: float | None, delay_s: float | None, at: datetime | None, every_s: float | None, key: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Send a message to an agent of a run. It is committed when the command returns, and survives any kill.

    The payload is a JSON object, `@FILE` or `-` for stdin. One with --delay, --at or --every is kept by the run, which
    `civitas-shm delays` shows.
    Exit code 0: it is committed. 1: it is not; the mailbox stayed full. 7: there is no such run. 8: the run is silent.
    """
    message = read_payload(payload)
    with client_of(run, wait_s) as client:
        client.send(
            agent, message, message_type, timeout=timeout_s, priority=priority, ttl=ttl_s, delay=delay_s, at=at,
            every=every_s, key=key,
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps({"run": run, "agent": agent, "type": message_type, "sent": True}))
