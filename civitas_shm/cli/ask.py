"""`ask`: a question to an agent of a live run, and its answer on stdout; with `--stream` chunk by chunk."""

from __future__ import annotations

import rich_click as click

from .talk import client_of, message_options, plain_json, read_payload

__all__ = ["command"]


@click.command("ask")
@message_options
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0.0), default=30.0, show_default=True, metavar="SECONDS",
    help="For everything: the queue, the handler, the way back. 0: for ever.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The whole reply as one JSON object, not its payload alone.")
@click.option(
    "--stream", is_flag=True,
    help="Read the answer in chunks, one JSON object on a line each, as they come. The timeout is then for the first.",
)  # fmt: skip
def command(
    run: str, agent: str, payload: str, message_type: str, priority: int, wait_s: float, timeout_s: float,
    as_json: bool, stream: bool,
) -> None:  # fmt: skip
    """Ask an agent of a run; the payload of its reply is printed as JSON.

    The payload of the question is a JSON object, `@FILE` or `-` for stdin.
    Exit code 0: it has answered. 1: it failed, or the time has passed. 7: there is no such run. 8: the run is silent.
    """
    question = read_payload(payload)
    if stream and (as_json or priority):
        raise click.UsageError("--stream goes with neither --json nor --priority: a stream has chunks, and no priority")
    with client_of(run, wait_s) as client:
        if stream:
            for chunk in client.stream(agent, question, message_type, timeout=timeout_s):
                click.echo(plain_json(chunk))
            return
        reply = client.ask(agent, question, timeout_s, message_type, priority=priority)
    click.echo(plain_json(reply.to_dict() if as_json else reply.payload))
