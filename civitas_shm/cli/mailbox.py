"""`mailbox`: what lies in the mailbox of an agent, without taking it out.

Rules of this file: copies are made of what lies there; what is behind a key that names something secret is hidden, and
the rest of a long payload is not read. Exit codes: 0 told, 9 no agent of that name, 7 no run.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import rich_click as click

from .attach import attached, name_option, unknown_agent
from .found import count, table
from .why import EXIT_UNKNOWN_AGENT

if TYPE_CHECKING:
    from ..transport import MailboxStats, Peeked

__all__ = ["command", "listing", "plain_message"]

PAYLOAD_MAX: Final = 1 << 20
"""Of a longer one only the beginning is read, as bytes."""
SHOWN_MAX: Final = 400
"""Characters of a payload, for people."""

_LANES: Final = ("control", "priority", "normal")


@click.command("mailbox")
@click.argument("agent")
@name_option
@click.option("--peek", "most", type=click.IntRange(0, 4096), default=10, show_default=True, metavar="N",
              help="How many messages to show: what is in hand, then what is served next.")  # fmt: skip
@click.option("--headers", is_flag=True, help="No payloads.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def command(ctx: click.Context, agent: str, run: str | None, most: int, headers: bool, as_json: bool) -> None:
    """Show what AGENT has in hand and what waits for it, of a live run or a dead one. Nothing is taken out.

    In payloads, what stands behind keys like `api_key` or `password` is shown as ***.
    """
    from ..inspection import Scene

    with attached(run) as looker:
        scene = Scene(None, looker.look())
        stats = scene.stats.get(agent)
        found = [] if stats is None else looker.reader.peek(stats.mailbox, most, 0 if headers else PAYLOAD_MAX)
    if stats is None:
        click.echo(unknown_agent(scene, agent), err=True)
        ctx.exit(EXIT_UNKNOWN_AGENT)
    messages = [plain_message(one, scene.process_name(one.reader), payloads=not headers) for one in found]
    if as_json:
        click.echo(
            json.dumps(
                {
                    "run": scene.now.name,
                    "agent": agent,
                    "alive": scene.now.alive,
                    "closed": stats.closed,
                    "waiting": stats.waiting,
                    "in_hand": stats.in_hand,
                    "capacity": stats.capacity,
                    "overflow": stats.overflow,
                    "messages": messages,
                }
            )
        )
    else:
        click.echo(listing(agent, stats, messages, time.time(), alive=scene.now.alive))


def plain_message(one: Peeked, process: str, *, payloads: bool) -> dict[str, Any]:
    """One message; times in seconds since 1970."""
    from ..messages import HEADER
    from .dead import payload_of, plain

    fields = HEADER.unpack(one.header)
    whole = len(one.payload) == fields[2]
    shown: Any = None
    if payloads:
        shown = hidden(plain(payload_of(one.payload))) if whole else repr(one.payload[:200])
    return {
        "where": one.where,
        "lane": _LANES[one.lane],
        "id": str(uuid.UUID(bytes=fields[11])),
        "type": one.type,
        "sender": one.sender,
        "sent_s": fields[16] / 1e9,
        "delivery": one.deliveries,
        "process": process if one.reader else None,
        "strikes": one.strikes,
        "is_ask": bool(fields[14]),
        "payload_bytes": fields[2],
        "payload": shown,
        "payload_whole": whole if payloads else None,
    }


def hidden(value: Any) -> Any:
    """The same without what stands behind keys that name something secret."""
    from ..redaction import HIDDEN, is_secret_name, redacted

    if isinstance(value, dict):
        return {key: HIDDEN if is_secret_name(str(key)) and each else hidden(each) for key, each in value.items()}
    if isinstance(value, list):
        return [hidden(each) for each in value]
    return redacted(value) if isinstance(value, str) else value


def listing(agent: str, stats: MailboxStats, messages: Sequence[dict[str, Any]], now_s: float, *, alive: bool) -> str:
    """For people."""
    from .ps import ago

    end = "" if alive else " (its run is dead)"
    lines = [
        f"{agent}{end}: {stats.in_hand} in hand, {count(stats.waiting, 'message')} of {stats.capacity:,} waiting"
        f"{', closed' if stats.closed else ''}, when full: {stats.overflow}"
    ]
    if not messages:
        return lines[0]
    rows = [["WHERE", "LANE", "SENT", "FROM", "TYPE", "BYTES", "DELIVERED", "ID"]]
    for one in messages:
        rows.append(
            [one["where"] if one["where"] != "running" else "in hand", one["lane"], ago(now_s - one["sent_s"]),
             one["sender"], one["type"], f"{one['payload_bytes']:,}", f"{one['delivery']}x", one["id"]]
        )  # fmt: skip
    titles, *rest = table(rows)
    lines += ["", titles]
    for line, one in zip(rest, messages, strict=True):
        lines.append(line)
        if one["payload_whole"] is not None:
            text = json.dumps(one["payload"], ensure_ascii=False)
            lines.append(f"    {text[:SHOWN_MAX]}{' …' if len(text) > SHOWN_MAX or not one['payload_whole'] else ''}")
    return "\n".join(lines)
