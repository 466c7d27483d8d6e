"""The registry: who is there by name, and what each is capable of.

    entry = runtime.registry.lookup("planner")              # RoutingEntry, or None
    able = runtime.registry.find_by_capability("summarize")

`RunRegistry` is that of a run, as one process knows it: names come from the directory in the memory of the run and are
always true; capabilities come from the roster, which lags behind by a moment in other processes (`refresh` does not).
`LocalRegistry` is a table of its own, for what a program builds from parts (`components`).

Rules of this file: an unknown name is no error here, the answer is None or empty; listeners are told in tasks of their
own, in order, and what they raise is logged only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final, Literal, Protocol, runtime_checkable

from .directory import Directory
from .errors import ConfigurationError
from .roster import NO_TRAITS, Roster, Traits

__all__ = ["LocalRegistry", "Registry", "RegistryListener", "RoutingEntry", "RunRegistry"]

log: Final = logging.getLogger(__name__)

Match = Literal["any", "all"]


@dataclass(frozen=True, slots=True)
class RoutingEntry:
    """One name."""

    name: str
    address: str
    """Where its messages go; in a run, its name."""
    is_local: bool
    """It lives in this process."""
    capabilities: tuple[str, ...] = ()
    capability_metadata: dict[str, Any] = field(default_factory=dict)
    epoch: int = 0
    """Of what was registered as remote: grows with each registration of the name."""


class RegistryListener(Protocol):
    """`async def listener(name, capabilities, metadata, event)`."""

    async def __call__(
        self,
        name: str,
        capabilities: tuple[str, ...],
        metadata: dict[str, Any],
        event: Literal["register", "deregister"],
        /,
    ) -> None:
        """What it raises is logged."""
        ...


@runtime_checkable
class Registry(Protocol):
    """What a registry can do, at least."""

    def register(
        self,
        name: str,
        address: str | None = None,
        *,
        is_local: bool = True,
        capabilities: Iterable[str] | None = None,
        capability_metadata: dict[str, Any] | None = None,
    ) -> None:
        """Make a name known. ValueError when it is."""
        ...

    def deregister(self, name: str) -> None:
        """Forget it; nothing happens when it is not known."""
        ...

    def lookup(self, name: str) -> RoutingEntry | None:
        """The entry of that name, or None."""
        ...

    def lookup_all(self, pattern: str) -> list[RoutingEntry]:
        """By `fnmatch` pattern, sorted; names that begin with `_` only if the pattern does too."""
        ...

    def has(self, name: str) -> bool:
        """Whether it is known."""
        ...

    def all_names(self) -> list[str]:
        """Every name, those that begin with `_` too."""
        ...

    def find_by_capability(self, capability: str) -> list[RoutingEntry]:
        """Who has it, sorted by name."""
        ...


class _Listeners:
    """Told one change after the other."""

    def __init__(self) -> None:
        self._listeners: list[RegistryListener] = []
        self._last: asyncio.Task[None] | None = None

    def add(self, listener: RegistryListener) -> None:
        self._listeners.append(listener)

    def remove(self, listener: RegistryListener) -> None:
        if listener in self._listeners:
            self._listeners.remove(listener)

    def tell(self, name: str, traits: Traits, event: Literal["register", "deregister"]) -> None:
        """Begin to. Without a running loop nobody can listen."""
        if not self._listeners:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._last = loop.create_task(self._in_turn(self._last, list(self._listeners), name, traits, event))

    async def _in_turn(
        self,
        before: asyncio.Task[None] | None,
        listeners: list[RegistryListener],
        name: str,
        traits: Traits,
        event: Literal["register", "deregister"],
    ) -> None:
        if before is not None:
            await asyncio.wait([before])
        for listener in listeners:
            try:
                await listener(name, traits.capabilities, dict(traits.metadata), event)
            except Exception:
                log.exception("a registry listener failed on %s of %r", event, name)


def _matches(traits: Traits, wanted: Iterable[str], match: Match) -> bool:
    there = [tag in traits.capabilities for tag in wanted]
    return any(there) if match == "any" else all(there)


def _visible(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) and (pattern.startswith("_") or not name.startswith("_"))


class RunRegistry:
    """A run's, read only: who is there is decided by its supervision."""

    def __init__(self, directory: Directory, roster: Roster) -> None:
        self._directory = directory
        self._roster = roster
        self._listeners = _Listeners()
        self._refresh: Callable[[], Coroutine[Any, Any, Any]] = _nothing
        self.is_local: Callable[[str], bool] = _everybody
        """Whether an agent lives in this process; who runs agents sets it."""
        roster.listen(self._changed)

    # --- who is there -------------------------------------------------------------------------------------------------

    def lookup(self, name: str) -> RoutingEntry | None:
        """The entry of that name, or None."""
        return self._entry(name) if self.has(name) else None

    def lookup_all(self, pattern: str) -> list[RoutingEntry]:
        """By `fnmatch` pattern, sorted; names that begin with `_` only if the pattern does too."""
        return [self._entry(name) for name in self._directory.lookup_all(pattern)]

    def has(self, name: str) -> bool:
        """Whether it is known."""
        return self._directory.has(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.has(name)

    def all_names(self) -> list[str]:
        """Every name, those that begin with `_` too."""
        return self._directory.names()

    def find_by_capability(self, capability: str) -> list[RoutingEntry]:
        """Who has it, sorted by name."""
        return self.find_by_capabilities([capability])

    def find_by_capabilities(self, capabilities: Iterable[str], match: Match = "any") -> list[RoutingEntry]:
        """Who has one of them, or all."""
        wanted, there = list(capabilities), set(self.all_names())
        able = [name for name, traits in self._roster if name in there and _matches(traits, wanted, match)]
        return [self._entry(name) for name in sorted(able)]

    def _entry(self, name: str) -> RoutingEntry:
        traits = self._roster.of(name) or NO_TRAITS
        return RoutingEntry(name, name, self.is_local(name), traits.capabilities, dict(traits.metadata))

    # --- changes ------------------------------------------------------------------------------------------------------

    def refreshed_by(self, refresh: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """For who runs agents: how to ask for what the host knows."""
        self._refresh = refresh

    async def refresh(self) -> None:
        """Know what the host knows now; afterwards this process is told of every change."""
        await self._refresh()

    def add_listener(self, listener: RegistryListener) -> None:
        """Be told of every change from now on; in a worker process, once it has asked (`refresh`)."""
        self._listeners.add(listener)

    def remove_listener(self, listener: RegistryListener) -> None:
        """No longer be told; nothing happens when it was not."""
        self._listeners.remove(listener)

    def _changed(self, name: str, before: Traits | None, now: Traits | None) -> None:
        if now is None:
            self._listeners.tell(name, before or NO_TRAITS, "deregister")
        elif before is None or (before.capabilities, before.metadata) != (now.capabilities, now.metadata):
            self._listeners.tell(name, now, "register")

    def register(self, name: str, address: str | None = None, **traits: Any) -> None:
        """Refused: spawn an agent instead."""
        raise ConfigurationError(
            f"{name!r} cannot be registered: the names of a run are those of its agents. Declare or spawn one."
        )

    def deregister(self, name: str) -> None:
        """Refused: despawn it instead."""
        raise ConfigurationError(f"{name!r} cannot be deregistered: its supervision decides. Despawn it.")


async def _nothing() -> None:
    pass


def _everybody(name: str) -> bool:
    return True


class LocalRegistry:
    """A table of its own, for what a program builds from parts. Not safe for threads: use it on the loop's."""

    def __init__(self) -> None:
        self._entries: dict[str, RoutingEntry] = {}
        self._suspended: set[str] = set()
        self._listeners = _Listeners()

    def register(
        self,
        name: str,
        address: str | None = None,
        *,
        is_local: bool = True,
        capabilities: Iterable[str] | None = None,
        capability_metadata: dict[str, Any] | None = None,
    ) -> None:
        """Make a name known. ValueError when it is."""
        if name in self._entries:
            raise ValueError(f"the name {name!r} is registered already")
        self._put(RoutingEntry(name, address or name, is_local, tuple(capabilities or ()), capability_metadata or {}))

    def deregister(self, name: str) -> None:
        """Forget it; nothing happens when it is not known."""
        entry = self._entries.pop(name, None)
        self._suspended.discard(name)
        if entry is not None:
            self._listeners.tell(name, _traits(entry), "deregister")

    def register_remote(
        self, name: str, capabilities: Iterable[str] | None = None, capability_metadata: dict[str, Any] | None = None
    ) -> int:
        """An agent of another process; may be said again. Its epoch. ValueError when a local one has the name."""
        known = self._entries.get(name)
        if known is not None and known.is_local:
            raise ValueError(f"the name {name!r} belongs to an agent of this process")
        epoch = 1 if known is None else known.epoch + 1
        self._put(RoutingEntry(name, name, False, tuple(capabilities or ()), capability_metadata or {}, epoch))
        return epoch

    def deregister_remote(self, name: str, epoch: int | None = None) -> bool:
        """Forget it, unless it was registered again since that epoch. Whether it did."""
        known = self._entries.get(name)
        if known is None or known.is_local or (epoch is not None and epoch != known.epoch):
            return False
        self.deregister(name)
        return True

    def _put(self, entry: RoutingEntry) -> None:
        self._entries[entry.name] = entry
        self._listeners.tell(entry.name, _traits(entry), "register")

    # --- questions ----------------------------------------------------------------------------------------------------

    def lookup(self, name: str) -> RoutingEntry | None:
        """The entry of that name, or None."""
        return self._entries.get(name)

    def lookup_all(self, pattern: str) -> list[RoutingEntry]:
        """By `fnmatch` pattern, sorted; names that begin with `_` only if the pattern does too."""
        return [self._entries[name] for name in sorted(self._entries) if _visible(name, pattern)]

    def has(self, name: str) -> bool:
        """Whether it is known."""
        return name in self._entries

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def all_names(self) -> list[str]:
        """Every name, those that begin with `_` too."""
        return list(self._entries)

    def find_by_capability(self, capability: str) -> list[RoutingEntry]:
        """Who has it, sorted by name."""
        return self.find_by_capabilities([capability])

    def find_by_capabilities(self, capabilities: Iterable[str], match: Match = "any") -> list[RoutingEntry]:
        """Who has one of them, or all."""
        wanted = list(capabilities)
        able = [name for name, entry in self._entries.items() if _matches(_traits(entry), wanted, match)]
        return [self._entries[name] for name in sorted(able)]

    # --- suspended agents ---------------------------------------------------------------------------------------------

    def set_suspended(self, name: str, suspended: bool = True) -> None:
        """Note that its handlers do not run for now; for whoever asks."""
        (self._suspended.add if suspended else self._suspended.discard)(name)

    def is_suspended(self, name: str) -> bool:
        """Whether `set_suspended` said so last."""
        return name in self._suspended

    # --- listeners ----------------------------------------------------------------------------------------------------

    def add_listener(self, listener: RegistryListener) -> None:
        """Be told of every change from now on, in a task."""
        self._listeners.add(listener)

    def remove_listener(self, listener: RegistryListener) -> None:
        """No longer be told; nothing happens when it was not."""
        self._listeners.remove(listener)


def _traits(entry: RoutingEntry) -> Traits:
    return Traits("agent", entry.capabilities, entry.capability_metadata)
