"""`suspend` and `resume`: an agent of a live run takes no more messages, or takes them again.

Rules of this file: the host is asked over the control socket and begins at once; when it is done is seen in the status
of the run, because a handler may take its time before its agent is suspended.
"""

from __future__ import annotations

import time
from typing import Final

import rich_click as click

from .found import choose

__all__ = ["begin", "command"]

DONE_S: Final = 5.0
"""How long it is waited for; mostly it takes a millisecond."""
LOOK_S: Final = 0.11
"""As old as the numbers of the status may be."""


@click.command("suspend")
@click.argument("run")
@click.argument("agent")
@click.option("--reason", default="", metavar="TEXT", help="What is to be decided, or why.")
def command(run: str, agent: str, reason: str) -> None:
    """Let an agent of a run take no more messages after the one in hand; what is sent to it waits.

    Exit code 0: it is suspended, or will be when its handler ends. 1: it cannot be. 7: there is no such run.
    """
    from ..control.protocol import SuspendAgent

    if begin(run, SuspendAgent(name=agent, reason=reason), agent, suspended=True):
        click.echo(f"{agent} is suspended.")
    else:
        click.echo(f"{agent} will be suspended when its handler has ended.")


def begin(run: str, request: object, agent: str, *, suspended: bool) -> bool:
    """Ask for it. Whether it is so within DONE_S. CivitasError: why it cannot be."""
    from ..control.client import ControlClient
    from ..control.protocol import Refusal, RunStatus, Status, Steered
    from ..errors import CivitasError
    from ..transport import load_transport

    transport = load_transport("shm")
    assert transport.find_runs is not None
    assert transport.is_held is not None
    live = [one for one in transport.find_runs() if one.state == "live"]
    chosen = choose(live, run, "run that is alive")
    with ControlClient(chosen.path, transport.is_held) as client:
        reply = client.reply(request)  # type: ignore[arg-type]
        if isinstance(reply, Refusal):
            raise CivitasError(reply.text)
        assert isinstance(reply, Steered)
        until_s = time.monotonic() + DONE_S
        while (agent in client.ask(Status(), RunStatus).suspended) is not suspended:
            if time.monotonic() > until_s:
                return False
            time.sleep(LOOK_S)
    return True
