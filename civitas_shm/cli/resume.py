"""`resume`: the other half of `suspend`."""

from __future__ import annotations

import rich_click as click

from .suspend import begin

__all__ = ["command"]


@click.command("resume")
@click.argument("run")
@click.argument("agent")
@click.option("--by", "approver", required=True, metavar="NAME", help="Who approves it; the agent is told.")
@click.pass_context
def command(ctx: click.Context, run: str, agent: str, approver: str) -> None:
    """Let a suspended agent take messages again; what has waited comes first, in order.

    Exit code 0: it takes messages. 1: it cannot be resumed, or its `on_resume` failed. 7: there is no such run.
    """
    from ..control.protocol import ResumeAgent

    if not approver.strip():
        raise click.UsageError("--by is the name of somebody")
    if begin(run, ResumeAgent(name=agent, approver=approver), agent, suspended=False):
        click.echo(f"{agent} takes messages again.")
        return
    click.echo(f"{agent} is suspended still: its on_resume runs or has failed, which its log says.", err=True)
    ctx.exit(1)
