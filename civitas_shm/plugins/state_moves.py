"""States seen from outside of a run: which store a text means, and all of one store into another.

    sqlite:/data/state.db    state.db    redis://host/0    redis://host/0#prefix:    encrypted+sqlite:/data/state.db
    topology.yaml            (what its `plugins.state` says, keys included)

Guarantees of `migrate`:
- the source is only read;
- the destination has all of it or is as it was: stores that can write many records at once do, of others what was
  written is taken back when anything fails;
- it says that it has succeeded after each record was read back from the destination and found equal, and the source
  was found unchanged since it was read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import CivitasError, ConfigurationError, StateMigrationRefused
from ..state import StateStore, fenced
from .loader import load_plugin

__all__ = ["Moved", "is_there", "migrate", "store_of", "users_of"]

_SQLITE: Final = re.compile(r"(?:sqlite:(?://)?(?P<path>.+)|(?P<file>.+\.(?:db|sqlite3?)|:memory:))\Z")
_REDIS: Final = re.compile(r"(?P<url>(?:rediss?|unix)://[^#]+)(?:#(?P<prefix>.*))?\Z")
_TOPOLOGY: Final = re.compile(r".+\.ya?ml\Z")


@dataclass
class Moved:
    """What a migration has done, or would do."""

    agents: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    """Of these, those that the destination had already."""
    done: bool = False


def store_of(text: str) -> StateStore:
    """The store that is meant. ConfigurationError when it is none; TopologyError for a topology with problems."""
    if text.startswith("encrypted+"):
        from .encrypted_store import EncryptingStateStore

        return EncryptingStateStore(store_of(text.removeprefix("encrypted+")))
    if (match := _REDIS.match(text)) is not None:
        prefix = {} if match["prefix"] is None else {"prefix": match["prefix"]}
        return _loaded("redis", {"url": match["url"], **prefix})
    if _TOPOLOGY.match(text):
        return _of_topology(text)
    if (match := _SQLITE.match(text)) is not None:
        return _loaded("sqlite", {"db_path": match["path"] or match["file"]})
    raise ConfigurationError(
        f"{text.partition('//')[0]!r} names no store; write sqlite:PATH, PATH.db, redis://HOST/0#PREFIX, "
        "encrypted+STORE, or a topology's file."
    )


def _of_topology(path: str) -> StateStore:
    from ..topology.load import load_topology

    spec = load_topology(path).plugins.state
    if spec is None or spec.type == "in_memory":
        raise ConfigurationError(f"{path} names no store that outlives its run: it has no plugins: {{state: ...}}.")
    return _loaded(spec.type, spec.config)


def _loaded(kind: str, config: Mapping[str, Any]) -> StateStore:
    store: StateStore = load_plugin("state", kind, config)
    return store


def is_there(store: StateStore) -> bool:
    """Whether it exists, so that looking does not make it: of a file; True for what cannot tell."""
    ask = getattr(store, "exists", None)
    return True if ask is None else bool(ask())


async def users_of(store: StateStore) -> list[str]:
    """Who else uses it just now, as the store can tell. Asked before anything is read from it."""
    ask = getattr(store, "users", None)
    found: list[str] = [] if ask is None else await ask()
    return found


async def migrate(
    source: StateStore, destination: StateStore, *, execute: bool, replace: bool = False, in_use: bool = False
) -> Moved:
    """Copy every record. StateMigrationRefused, and whatever the stores raise: then the destination is as it was.

    `execute`: else nothing is written, and the result says what would be. `replace`: records that the destination has
    already may be replaced. `in_use`: although other processes use one of the two.
    """
    for store, which in ((source, "source"), (destination, "destination")):
        users = await users_of(store)
        if users and not in_use:
            raise StateMigrationRefused(
                f"The {which} is in use by {', '.join(users)}. Stop the run first, or say --in-use: what its agents "
                "save meanwhile is then not copied, or is lost."
            )
    records = await _all(source)
    held = {name: await _held(destination, name) for name in await destination.list_agents()}
    before = {name: state for name, state in held.items() if state is not None}
    common = sorted(records.keys() & before.keys())
    if common and not replace:
        raise StateMigrationRefused(f"The destination has {', '.join(common)} already. --replace replaces them.")
    moved = Moved(sorted(records), common)
    if not execute:
        return moved
    await _write(destination, records, before)
    try:
        await _verify(source, destination, records)
    except BaseException:
        await _take_back(destination, records, before)
        raise
    moved.done = True
    return moved


async def _all(store: StateStore) -> dict[str, dict[str, Any]]:
    records = {}
    for name in await store.list_agents():
        state = await store.get(name)
        if state is not None:
            records[name] = state
    return records


async def _held(store: StateStore, name: str) -> dict[str, Any] | None:
    """What the destination has, for taking back. A record that cannot be read stands in nobody's way but its own."""
    try:
        return await store.get(name)
    except CivitasError as error:
        raise StateMigrationRefused(f"The destination's state of {name!r} cannot be read: {error}") from None


async def _write(
    store: StateStore, records: Mapping[str, dict[str, Any]], before: Mapping[str, dict[str, Any]]
) -> None:
    at_once = fenced(store)
    if at_once is not None:
        await at_once.set_many(records)
        return
    written: dict[str, dict[str, Any]] = {}
    try:
        for name, state in records.items():
            written[name] = state
            await store.set(name, state)
    except BaseException:
        await _take_back(store, written, before)
        raise


async def _take_back(
    store: StateStore, written: Mapping[str, dict[str, Any]], before: Mapping[str, dict[str, Any]]
) -> None:
    for name in written:
        if name in before:
            await store.set(name, before[name])
        else:
            await store.delete(name)


async def _verify(source: StateStore, destination: StateStore, records: Mapping[str, dict[str, Any]]) -> None:
    different = sorted([name for name, state in records.items() if await destination.get(name) != state])
    if different:
        raise StateMigrationRefused(
            f"The destination gives back {', '.join(different)} otherwise than it was given. All was taken back; that "
            "store cannot hold what is in these states."
        )
    now = await _all(source)
    changed = sorted(name for name in {*records, *now} if records.get(name) != now.get(name))
    if changed:
        raise StateMigrationRefused(
            f"{', '.join(changed)} changed in the source meanwhile. All was taken back; stop the run, and try again."
        )
