"""What is known of the agents of a run beside their names: of which kind they are, and what they are capable of.

An agent's class says it, the topology may overrule it; so it is known from the specification where it stands there, and
from the agent itself when it has started. It outlives every restart, and ends when the agent is gone for good.

Rules of this file: a table and whoever wants to hear of its changes; under a host, the host's is the truth, and a
process that wants to know is told (`host/heralds`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from msgspec import Struct, field

from .errors import ConfigurationError

__all__ = ["NO_TRAITS", "Roster", "Told", "Traits"]


class Traits(Struct, frozen=True, omit_defaults=True):
    """Of one agent."""

    kind: str = "agent"
    """`agent`, `srv` (a GenServer), `eval` (an EvalAgent)."""
    capabilities: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    supervisor: str = ""
    """The dynamic supervisor that it was spawned below; empty: it was declared."""

    @classmethod
    def of(cls, agent: str, kind: str, capabilities: Iterable[str], metadata: dict[str, Any]) -> Traits:
        """Checked. ConfigurationError when they cannot be told to other processes."""
        if not capabilities and not metadata and kind == "agent":
            return NO_TRAITS
        tags = (capabilities,) if isinstance(capabilities, str) else tuple(capabilities)
        for tag in tags:
            if type(tag) is not str or not tag or isinstance(capabilities, str):
                raise ConfigurationError(
                    f"capabilities of agent {agent!r} are {capabilities!r}; they must be a list of texts."
                )
        _check_plain(metadata, f"capability_metadata of agent {agent!r}")
        return cls(kind, tags, metadata)


NO_TRAITS: Final = Traits()

Told = Callable[[str, Traits | None, Traits | None], None]
"""(agent, what it was, what it is); None: not there."""


class Roster:
    """One run's, as one process knows it."""

    def __init__(self) -> None:
        self._traits: dict[str, Traits] = {}
        self._told: list[Told] = []

    def __iter__(self) -> Iterator[tuple[str, Traits]]:
        return iter(list(self._traits.items()))

    def __contains__(self, agent: object) -> bool:
        return agent in self._traits

    def __len__(self) -> int:
        return len(self._traits)

    def of(self, agent: str) -> Traits | None:
        """None: nothing is known of it."""
        return self._traits.get(agent)

    def capable(self, capability: str) -> list[str]:
        """Names of the agents that have it."""
        return [name for name, traits in self._traits.items() if capability in traits.capabilities]

    def put(self, agent: str, traits: Traits) -> None:
        """It is there, and so. What was known already is told to nobody."""
        before = self._traits.get(agent)
        if before != traits:
            self._traits[agent] = traits
            self._tell(agent, before, traits)

    def drop(self, agent: str) -> None:
        """It is gone for good."""
        before = self._traits.pop(agent, None)
        if before is not None:
            self._tell(agent, before, None)

    def keep_only(self, agents: Iterable[str]) -> None:
        """All others are gone."""
        for gone in self._traits.keys() - set(agents):
            self.drop(gone)

    def listen(self, told: Told) -> None:
        """Be told of every change from now on."""
        self._told.append(told)

    def _tell(self, agent: str, before: Traits | None, now: Traits | None) -> None:
        for told in list(self._told):
            told(agent, before, now)


_PLAIN: Final = (str, int, float, bool, type(None))


def _check_plain(value: Any, path: str) -> None:
    """What JSON has: it is told to other processes and shown to people."""
    if type(value) in _PLAIN:
        return
    if type(value) in (list, tuple):
        for number, item in enumerate(value):
            _check_plain(item, f"{path}[{number}]")
    elif type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise ConfigurationError(f"{path}: the key {key!r} is {type(key).__name__}; it must be str.")
            _check_plain(item, f"{path}.{key}")
    else:
        raise ConfigurationError(
            f"{path}: {type(value).__qualname__} cannot be told to other processes. Use str, int, float, bool, None, "
            "list or dict."
        )
