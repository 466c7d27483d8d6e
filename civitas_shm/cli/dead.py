"""`dead`: messages that no handler will finish: list, look at, put back, forget.

Rules of this file: of a live run over its control socket, of a dead one in its store, which is held meanwhile; many are
done in batches, the oldest first, and each that could not be done is named; exit code 1 when there was one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import rich_click as click

from .found import choose, count, table

if TYPE_CHECKING:
    from ..control.letters import LetterRequest
    from ..control.protocol import Reply

__all__ = ["command", "plain"]

run_option = click.option("--run", "run", metavar="RUN", help="Whose; not needed when only one has dead letters.")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")


@click.group("dead")
def command() -> None:
    """Dead letters: messages that no handler will finish, with the reason.

    ID is what `dead list` shows, or any beginning of it that only one has.
    """


@command.command("list")
@run_option
@json_option
def list_(run: str | None, as_json: bool) -> None:
    """List them, the newest first."""
    with _asking(run) as (name, ask):
        letters, evicted = _all(ask)
    if as_json:
        click.echo(json.dumps({"run": name, "letters": letters, "evicted": evicted}))
        return
    click.echo(listing(letters, time.time()) if letters else f"{name} has no dead letters.")
    if evicted:
        click.echo(f"{count(evicted, 'older one')} had to make room.", err=True)


@command.command("show")
@click.argument("id_", metavar="ID")
@run_option
@json_option
@click.pass_context
def show(ctx: click.Context, id_: str, run: str | None, as_json: bool) -> None:
    """Show one with its payload and traceback. Exit code 1 when no one, or more than one, begins so."""
    from ..control.protocol import DeadShow, Shown

    with _asking(run) as (name, ask):
        shown = _checked(ask(DeadShow(id=id_)), Shown, name)
    if len(shown.letters) != 1:
        begin = "no dead letter of" if not shown.letters else f"{len(shown.letters)} or more dead letters of"
        click.echo(f"There {'is' if not shown.letters else 'are'} {begin} {name} beginning with {id_!r}.", err=True)
        for letter in shown.letters:
            click.echo(f"  {letter['id']}", err=True)
        ctx.exit(1)
    if as_json:
        click.echo(json.dumps({"run": name, **shown.letters[0], "payload": plain(payload_of(shown.payload))}))
    else:
        click.echo(page(shown.letters[0], shown.payload))


@command.command("replay")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All of them, the oldest first.")
@run_option
@json_option
@click.pass_context
def replay(ctx: click.Context, ids: tuple[str, ...], everything: bool, run: str | None, as_json: bool) -> None:
    """Put copies back into their recipients' mailboxes; a letter goes when its copy is committed. Needs a live run."""
    from ..control.protocol import DeadReplay

    ctx.exit(_do(ids, everything, run, as_json, lambda batch: DeadReplay(ids=batch), "replayed"))


@command.command("drop")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@run_option
@json_option
@click.pass_context
def drop(ctx: click.Context, ids: tuple[str, ...], everything: bool, run: str | None, as_json: bool) -> None:
    """Forget them for good."""
    from ..control.protocol import DeadDrop

    ctx.exit(_do(ids, everything, run, as_json, lambda batch: DeadDrop(ids=batch), "dropped"))


def _do(
    ids: Sequence[str],
    everything: bool,
    run: str | None,
    as_json: bool,
    request: Callable[[list[str]], LetterRequest],
    done: str,
) -> int:
    """The exit code: 1 when one could not be done."""
    from ..control.protocol import IDS_MAX, Outcomes

    if bool(ids) == everything:
        raise click.UsageError("give one or more IDs, or --all")
    outcomes: dict[str, str | None] = {}
    with _asking(run) as (name, ask):
        wanted = [letter["id"] for letter in reversed(_all(ask)[0])] if everything else list(dict.fromkeys(ids))
        for start in range(0, len(wanted), IDS_MAX):
            outcomes |= _checked(ask(request(wanted[start : start + IDS_MAX])), Outcomes, name).outcomes
    problems = {id_: problem for id_, problem in outcomes.items() if problem is not None}
    if as_json:
        ok = [id_ for id_ in outcomes if id_ not in problems]
        click.echo(json.dumps({"run": name, done: ok, "problems": problems}))
    else:
        click.echo(f"{count(len(outcomes) - len(problems), 'dead letter')} of {name} {done}.")
        for id_, problem in problems.items():
            click.echo(f"{id_}: {problem}", err=True)
    return 1 if problems else 0


# --- asking -----------------------------------------------------------------------------------------------------------


@contextmanager
def _asking(run: str | None) -> Iterator[tuple[str, Callable[[LetterRequest], Reply]]]:
    """The name of the run that is meant, and a function that answers for it."""
    import sqlite3

    from ..control.client import ControlClient
    from ..control.letters import answer_letters
    from ..dead_letters import store_of
    from ..errors import RunNotAnswering
    from ..letters import count_letters
    from ..transport import load_transport

    transport = load_transport("shm")
    assert transport.find_runs is not None
    assert transport.is_held is not None
    assert transport.hold is not None
    found = [one for one in transport.find_runs() if one.path.name == one.name]
    if run is None:
        found = [one for one in found if count_letters(one.path) != 0]
    chosen = choose(found, run, "run with dead letters" if run is None else "run")
    with ExitStack() as stack:
        if chosen.state == "live":
            client = stack.enter_context(ControlClient(chosen.path, transport.is_held))
            yield chosen.name, client.reply
            return
        stack.enter_context(transport.hold(chosen.path))
        try:
            store = store_of(chosen.path, notes_drops=chosen.waiting != 0)
        except (OSError, sqlite3.Error) as error:
            raise RunNotAnswering(f"{chosen.name}: its dead letters cannot be read: {error}.") from None
        if store is not None:
            stack.callback(store.close)
        yield chosen.name, lambda request: answer_letters(request, store, None)


def _all(ask: Callable[[LetterRequest], Reply]) -> tuple[list[dict[str, Any]], int]:
    """Every letter, page by page, and how many older ones were pushed out; by id, as more may come meanwhile."""
    from ..control.protocol import LETTERS_PAGE_MAX, DeadList, Letters

    found: dict[str, dict[str, Any]] = {}
    skip, evicted = 0, 0
    while True:
        reply = _checked(ask(DeadList(skip=skip, limit=LETTERS_PAGE_MAX)), Letters, "the run")
        evicted = reply.evicted
        found |= {letter["id"]: letter for letter in reply.letters}
        skip += len(reply.letters)
        if len(reply.letters) < LETTERS_PAGE_MAX:
            return list(found.values()), evicted


def _checked(reply: Any, kind: Any, name: str) -> Any:
    from ..control.protocol import Refusal
    from ..errors import RunNotAnswering

    if isinstance(reply, Refusal):
        raise RunNotAnswering(f"{name}: {reply.text}.")
    assert isinstance(reply, kind)
    return reply


# --- words ------------------------------------------------------------------------------------------------------------


def listing(letters: Sequence[dict[str, Any]], now_s: float) -> str:
    """For people."""
    from .ps import ago

    rows = [["ID", "WHEN", "FROM", "TO", "TYPE", "DELIVERED", "CAUSE"]]
    for letter in letters:
        names = [str(letter[key]) or "-" for key in ("sender", "recipient", "type")]
        rows.append(
            [letter["id"], ago(now_s - letter["buried_s"]), *names, f"{letter['deliveries']}x", letter["cause"]]
        )
    return "\n".join(table(rows))


def page(letter: dict[str, Any], payload: bytes | None) -> str:
    """One letter for people."""
    lines = [
        f"id         {letter['id']}",
        f"from       {letter['sender']}",
        f"to         {letter['recipient']}",
        f"type       {letter['type']}",
        f"sent       {_when(letter['sent_s'])}",
        f"put aside  {_when(letter['buried_s'])}",
        f"delivered  {count(letter['deliveries'], 'time')}, retried {letter['attempts']}, replayed {letter['hops']}",
        f"cause      {letter['cause']}",
    ]
    if letter["traceback"]:
        lines += ["", letter["traceback"].rstrip()]
    lines += ["", f"payload, {letter['payload_bytes']:,} bytes:", _payload_text(payload, letter["payload_bytes"])]
    return "\n".join(lines)


def payload_of(payload: bytes | None) -> Any:
    """As the sender gave it; bytes as they are where that is not to be had."""
    from ..errors import DeserializationError
    from ..serializer import decode_plain

    if payload is None:
        return None
    try:
        return decode_plain(payload)
    except DeserializationError:
        return payload


def _payload_text(payload: bytes | None, size_bytes: int) -> str:
    if payload is None:
        return "(not kept)"
    if len(payload) < size_bytes:
        return f"{payload[:200]!r} … (the first of {size_bytes:,} bytes)"
    return json.dumps(plain(payload_of(payload)), indent=2, ensure_ascii=False)


def plain(value: Any) -> Any:
    """What JSON has no word for, as text."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, bytes | bytearray):
        return repr(bytes(value))
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def _when(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
