"""`state`: what agents have saved in a store: list, show, clear, and all of it into another store.

Rules of this file: it reads and writes the store itself, whether a run uses it or not; what takes something away is
asked for once more, or `--force` says it; states of `state: shm` live in their run's memory: its host shows them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from .dead import plain
from .found import count, table
from .options import DEFAULT_TOPOLOGY

if TYPE_CHECKING:
    from ..control.protocol import RunStates
    from ..state import StateStore

__all__ = ["command"]

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])


def store_options(function: Function) -> Function:
    """Which store is meant."""
    for decorate in reversed(
        [
            click.option(
                "-t", "--topology", metavar="FILE", help=f"Of this topology; {DEFAULT_TOPOLOGY} unless given."
            ),
            click.option("--store", metavar="STORE", help="sqlite:PATH, redis://HOST/0#PREFIX, or encrypted+ either."),
            click.option("--db", metavar="PATH", help="A file of SQLite; the same as --store sqlite:PATH."),
            click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout."),
        ]
    ):
        function = decorate(function)
    return function


@click.group("state")
def command() -> None:
    """States that agents have saved in a store (`plugins: {state: ...}`).

    A store that is encrypted shows what is in it only with its key: by the topology that names it, or by
    encrypted+STORE and CIVITAS_STATE_KEY.
    """


run_option = click.option("--run", metavar="RUN", help="What lies in the memory of this live run (state: shm).")


@command.command("list")
@run_option
@store_options
def list_(run: str | None, topology: str | None, store: str | None, db: str | None, as_json: bool) -> None:
    """List the agents that have a state."""
    if run is not None:
        _list_of_run(run, (topology, store, db), as_json)
        return
    where = _where(topology, store, db)

    async def read(opened: StateStore) -> list[dict[str, Any]]:
        return [_row(name, await _got(opened, name)) for name in await opened.list_agents()]

    rows = _with(where, read)
    if as_json:
        click.echo(json.dumps({"store": _shown(where), "agents": rows}))
        return
    if not rows:
        click.echo(f"There are no states in {_shown(where)}.")
        return
    cells = [[row["agent"], f"{row['size_bytes']:,}", row["problem"] or _keys_text(row)] for row in rows]
    click.echo("\n".join(table([["AGENT", "BYTES", "WHAT"], *cells])))


@command.command("show")
@click.argument("agent")
@run_option
@store_options
@click.pass_context
def show(
    ctx: click.Context,
    agent: str,
    run: str | None,
    topology: str | None,
    store: str | None,
    db: str | None,
    as_json: bool,
) -> None:
    """Show the state of one agent. Exit code 1 when there is none, or its key is missing."""
    from ..state import MESSAGE_KEY

    found: dict[str, Any] | Exception | None
    if run is None:
        where = _where(topology, store, db)
        found = _with(where, lambda opened: _got(opened, agent))
    else:
        where = f"the memory of {run}"
        found = _state_of_run(run, (topology, store, db), agent)
    if found is None:
        click.echo(f"There is no state of {agent!r} in {_shown(where)}.", err=True)
        ctx.exit(1)
    if isinstance(found, Exception) or _key_id(found) is not None:
        text = str(found) if isinstance(found, Exception) else _locked_text(agent, found)
        click.echo(text, err=True)
        ctx.exit(1)
    message = found.pop(MESSAGE_KEY, None)
    if as_json:
        click.echo(json.dumps({"store": _shown(where), "agent": agent, "message": message, "state": plain(found)}))
    else:
        click.echo(json.dumps(plain(found), indent=2, ensure_ascii=False))


@command.command("clear")
@click.argument("agent", required=False)
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@store_options
@click.pass_context
def clear(
    ctx: click.Context,
    agent: str | None,
    force: bool,
    topology: str | None,
    store: str | None,
    db: str | None,
    as_json: bool,
) -> None:
    """Forget the state of one agent, or of all. An agent that runs begins anew when it saves next."""
    from ..plugins.state_moves import users_of

    where = _where(topology, store, db)

    async def look(opened: StateStore) -> tuple[list[str], list[str]]:
        users = await users_of(opened)
        return [name for name in await opened.list_agents() if agent in (None, name)], users

    names, users = _with(where, look)
    if names and not force:
        used = f" It is in use by {', '.join(users)}." if users else ""
        what = f"the state of {names[0]}" if len(names) == 1 else f"{len(names)} states ({', '.join(names)})"
        if not click.confirm(f"Forget {what} in {_shown(where)}?{used}", err=True):
            ctx.exit(1)

    async def forget(opened: StateStore) -> None:
        for name in names:
            await opened.delete(name)

    _with(where, forget)
    if as_json:
        click.echo(json.dumps({"store": _shown(where), "cleared": names}))
    elif not names:
        click.echo(f"There is no state {f'of {agent!r} ' if agent else ''}in {_shown(where)}.")
    else:
        click.echo(f"{count(len(names), 'state')} forgotten: {', '.join(names)}.")


@command.command("migrate")
@click.argument("source")
@click.argument("destination")
@click.option("--dry-run/--execute", "dry", default=True, help="Only say what would be done (the default), or do it.")
@click.option("--replace", is_flag=True, help="Replace states that the destination has already.")
@click.option("--in-use", is_flag=True, help="Although a run uses one of the two.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def migrate_(source: str, destination: str, dry: bool, replace: bool, in_use: bool, as_json: bool) -> None:
    """Copy all states from SOURCE to DESTINATION, all of them or none.

    Each is sqlite:PATH, redis://HOST/0#PREFIX, encrypted+ one of these (with CIVITAS_STATE_KEY), or a topology's file:
    what its plugins.state says. From a store to itself with a new key first, by two topologies, is how keys change
    (--replace).
    """
    from ..plugins.state_moves import Moved, is_there, migrate, store_of
    from ..state import InMemoryStateStore

    async def move(read: StateStore) -> Moved:
        written = store_of(destination)
        if dry and not is_there(written):
            written = InMemoryStateStore()  # looking makes no file
        try:
            return await migrate(read, written, execute=not dry, replace=replace, in_use=in_use)
        finally:
            await written.close()

    moved = _with(source, move)
    if as_json:
        click.echo(json.dumps({"agents": moved.agents, "replaced": moved.replaced, "done": moved.done}))
        return
    verb = "copied and read back" if moved.done else "would be copied"
    replaced = f", {len(moved.replaced)} in place of older ones" if moved.replaced else ""
    click.echo(f"{count(len(moved.agents), 'state')} {verb}{replaced}: {', '.join(moved.agents) or 'none'}.")
    if dry:
        click.echo("Nothing was written; --execute does it.", err=True)


# --- a run's memory ---------------------------------------------------------------------------------------------------


def _asked(run: str, others: tuple[str | None, ...], agent: str = "") -> RunStates:
    from ..control.client import ControlClient
    from ..control.protocol import RunStates, States
    from ..transport import load_transport
    from .found import choose

    if any(other is not None for other in others):
        raise click.UsageError("--run is about a run's memory, the others about a store; give one of them")
    transport = load_transport("shm")
    assert transport.find_runs is not None
    assert transport.is_held is not None
    chosen = choose([one for one in transport.find_runs() if one.state == "live"], run, "live run")
    with ControlClient(chosen.path, transport.is_held) as client:
        return client.ask(States(agent=agent), RunStates)


def _list_of_run(run: str, others: tuple[str | None, ...], as_json: bool) -> None:
    sizes = _asked(run, others).size_bytes
    if as_json:
        rows = [{"agent": agent, "size_bytes": sizes[agent]} for agent in sorted(sizes)]
        click.echo(json.dumps({"run": run, "agents": rows}))
    elif not sizes:
        click.echo(f"There are no states in the memory of {run}.")
    else:
        click.echo("\n".join(table([["AGENT", "BYTES"], *([agent, f"{sizes[agent]:,}"] for agent in sorted(sizes))])))


def _state_of_run(run: str, others: tuple[str | None, ...], agent: str) -> dict[str, Any] | Exception | None:
    from ..errors import DeserializationError
    from ..serializer import decode_plain
    from ..state import MESSAGE_KEY

    reply = _asked(run, others, agent)
    if reply.state is None:
        size_bytes = reply.size_bytes.get(agent)
        return None if size_bytes is None else ValueError(f"It has {size_bytes:,} bytes: too many to be shown.")
    try:
        return {**decode_plain(reply.state), MESSAGE_KEY: reply.message.hex()}
    except DeserializationError as error:
        return error


# --- which store ------------------------------------------------------------------------------------------------------


def _where(topology: str | None, store: str | None, db: str | None) -> str:
    """The one store that the options mean."""
    given = [text for text in (topology, store, None if db is None else f"sqlite:{db}") if text is not None]
    if len(given) > 1:
        raise click.UsageError("give one of --topology, --store and --db")
    if not given and not os.path.exists(DEFAULT_TOPOLOGY):
        raise click.UsageError(f"there is no {DEFAULT_TOPOLOGY} here; name a store: --store sqlite:PATH, say")
    return given[0] if given else DEFAULT_TOPOLOGY


def _shown(where: str) -> str:
    import re

    return re.sub(r"//[^@/]*@", "//***@", where)


def _with(where: str, work: Callable[[StateStore], Awaitable[T]]) -> T:
    """What `work` makes of the store, which is there and is closed afterwards."""
    import asyncio

    from ..errors import StateStoreUnavailable
    from ..plugins.state_moves import is_there, store_of

    async def go() -> T:
        opened = store_of(where)
        if not is_there(opened):
            raise StateStoreUnavailable(f"There is no such file, so there are no states in it: {_shown(where)}.")
        try:
            return await work(opened)
        finally:
            await opened.close()

    return asyncio.run(go())


# --- what is in it ----------------------------------------------------------------------------------------------------


async def _got(store: StateStore, agent: str) -> dict[str, Any] | Exception | None:
    """A record that cannot be read is shown as such: others can."""
    from ..errors import DeserializationError, StateDecryptionError

    try:
        return await store.get(agent)
    except (DeserializationError, StateDecryptionError) as error:
        return error


def _row(agent: str, found: dict[str, Any] | Exception | None) -> dict[str, Any]:
    from ..serializer import encode
    from ..state import MESSAGE_KEY

    row = {"agent": agent, "size_bytes": 0, "keys": [], "key_id": None, "problem": ""}
    if isinstance(found, Exception):
        return {**row, "key_id": getattr(found, "key_id", None), "problem": str(found)}
    if found is None:
        return {**row, "problem": "it was removed meanwhile"}
    size_bytes = len(encode(found, "state"))
    if (key_id := _key_id(found)) is not None:
        return {**row, "size_bytes": size_bytes, "key_id": key_id}
    return {**row, "size_bytes": size_bytes, "keys": [str(key) for key in found if key != MESSAGE_KEY]}


def _keys_text(row: dict[str, Any]) -> str:
    return f"encrypted with the key {row['key_id']!r}" if row["key_id"] is not None else ", ".join(row["keys"])


def _key_id(record: dict[str, Any]) -> str | None:
    """Of a record that is encrypted: the id of its key."""
    return str(record.get("key_id")) if "_civitas.encrypted" in record else None


def _locked_text(agent: str, record: dict[str, Any]) -> str:
    return (
        f"The state of {agent!r} is encrypted with the key {_key_id(record)!r}. Name the topology that has the key "
        "(-t), or write --store encrypted+... and set CIVITAS_STATE_KEY."
    )
