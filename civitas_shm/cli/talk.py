"""What `ask` and `send` share: the payload from the command line, and the connection to the run.

Rules of this file: a payload is a JSON object, from the argument, from a file (`@FILE`) or from stdin (`-`); what is
wrong with it is a usage error, before anything is connected.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

if TYPE_CHECKING:
    from ..clients.blocking import BlockingClient

__all__ = ["client_of", "message_options", "plain_json", "read_payload"]

Command = Callable[..., Any]


def message_options(command: Command) -> Command:
    """The arguments and options of both."""
    for option in (
        click.option("--wait", "wait_s", type=click.FloatRange(0.0), default=0.0, metavar="SECONDS",
                     help="Wait so long for a run that is not there yet."),
        click.option("--priority", type=int, default=0, help="Above 0: overtakes what is not."),
        click.option("--type", "message_type", default="message", show_default=True, help="Message type."),
        click.argument("payload", default="{}", metavar="[JSON]"),
        click.argument("agent"),
        click.argument("run"),
    ):  # fmt: skip
        command = option(command)
    return command


def read_payload(text: str) -> dict[str, Any]:
    """The payload that an argument means."""
    where = "payload"
    if text == "-":
        text, where = sys.stdin.read(), "stdin"
    elif text.startswith("@"):
        where = text[1:]
        try:
            text = Path(where).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise click.UsageError(f"{where}: {error}") from None
    try:
        payload = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"{where} is no JSON: {error}") from None
    if not isinstance(payload, dict):
        raise click.UsageError(f'{where}: a payload is a JSON object like {{"n": 1}}, not {type(payload).__name__}')
    return payload


@contextmanager
def client_of(run: str, wait_s: float) -> Iterator[BlockingClient]:
    """A client of that run. A time that has passed is a sentence on stderr and exit code 1, as other errors."""
    from ..clients.blocking import connect_blocking
    from ..errors import CivitasError

    try:
        with connect_blocking(run, wait_s=wait_s) as client:
            yield client
    except TimeoutError as error:
        if isinstance(error, CivitasError):
            raise
        click.echo(str(error), err=True)
        sys.exit(1)


def plain_json(value: Any) -> str:
    """What a payload may hold, as JSON: bytes as base64, times as ISO 8601."""
    return json.dumps(value, default=_plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is nothing that a payload holds")
