"""Monitors and links: who is told of an end, and who falls with it.

Rules of this file: pure, frozen values; agents are named, incarnations numbered; what a driver does with the answer
(notices into the control lane, an order to end an agent) is its own business.

| an agent ends …                                   | who monitors it is told | who is linked with it, and does not   |
|                                                   | (`on_down`)             | monitor it                            |
|---------------------------------------------------|-------------------------|---------------------------------------|
| crashed: it failed, or could not start            | `crashed: …`            | falls as if it had crashed itself     |
| killed: its process died, whoever killed it       | `killed: …`             | falls                                 |
| finished: it said STOP                            | `finished`              | goes on                               |
| stopped: taken down by its supervisor             | `stopped`               | goes on                               |
| despawned                                         | `despawned`             | goes on                               |
| (it was gone when the monitor was set)            | `gone`, at once         |                                       |

- A *monitor* is between names: it holds over restarts of both sides, tells of every end once, and goes when it is taken
  back, when the watched agent is gone for good, or when the watcher is.
- A *link* is between two incarnations, and goes with the first of them, however it ends: who wants it again links again
  in `on_start`. It has no direction: each of the two falls with the other.
- An agent that monitors its peer has trapped the link: it is told, and goes on.
- What dies with one process is told to those that live; the monitors of those that died hold, so they are told of what
  died beside them when they are back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

__all__ = ["CRASHED", "DESPAWNED", "FINISHED", "GONE", "KILLED", "STOPPED", "Fall", "Life", "Tell", "Watches"]

CRASHED: Final = "crashed"
KILLED: Final = "killed"
FINISHED: Final = "finished"
STOPPED: Final = "stopped"
DESPAWNED: Final = "despawned"
GONE: Final = "gone"

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Life:
    """One incarnation of one agent."""

    agent: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Tell:
    """`on_down(name, reason)` for the watcher."""

    watcher: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Fall:
    """This life ends as if it had crashed."""

    life: Life
    reason: str


@dataclass(frozen=True, slots=True)
class Watches:
    """All monitors and links of a run."""

    watchers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By watched agent."""
    peers: Mapping[Life, tuple[Life, ...]] = field(default_factory=dict)
    """Each link stands under both."""

    # --- to set and to take back: all idempotent ------------------------------------------------------------------

    def monitor(self, watcher: str, watched: str) -> Watches:
        known = self.watchers.get(watched, ())
        if watcher in known:
            return self
        return replace(self, watchers={**self.watchers, watched: (*known, watcher)})

    def demonitor(self, watcher: str, watched: str) -> Watches:
        return replace(self, watchers=_without(self.watchers, watched, watcher))

    def link(self, one: Life, other: Life) -> Watches:
        if one == other or other in self.peers.get(one, ()):
            return self
        added = {one: (*self.peers.get(one, ()), other), other: (*self.peers.get(other, ()), one)}
        return replace(self, peers={**self.peers, **added})

    def unlink(self, one: Life, other: Life) -> Watches:
        return replace(self, peers=_without(_without(self.peers, one, other), other, one))

    # --- what happens ---------------------------------------------------------------------------------------------

    def ended(self, life: Life, name: str, why: str, detail: str = "") -> tuple[Watches, list[Tell], list[Fall]]:
        """A life has ended. `name`: of the agent, or of the replica. The table above."""
        reason = f"{why}: {detail}" if detail else why
        watchers = self.watchers.get(life.agent, ())
        tells = [Tell(watcher, name, reason) for watcher in watchers]
        falls: list[Fall] = []
        if why in (CRASHED, KILLED):
            falls = [
                Fall(peer, f"it is linked with {name!r}, which {reason}")
                for peer in self.peers.get(life, ())
                if peer.agent not in watchers
            ]
        peers = self.peers
        for peer in self.peers.get(life, ()):
            peers = _without(peers, peer, life)
        return replace(self, peers={one: its for one, its in peers.items() if one != life}), tells, falls

    def gone(self, agent: str) -> Watches:
        """The agent will not be back: neither its monitors nor those on it mean anything any more."""
        return replace(
            self,
            watchers={
                watched: left
                for watched, watchers in self.watchers.items()
                if watched != agent and (left := tuple(watcher for watcher in watchers if watcher != agent))
            },
        )


def _without(table: Mapping[K, tuple[V, ...]], key: K, value: V) -> dict[K, tuple[V, ...]]:
    """The table less one value; a key that has none left goes too."""
    left = tuple(each for each in table.get(key, ()) if each != value)
    rest = {each: values for each, values in table.items() if each != key}
    return {**rest, key: left} if left else rest
