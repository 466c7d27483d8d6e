"""Who is there: the links that were seen, the host that each is, and the names behind them.

Rules of this file: no socket, no clock. Of the links of one host one is the host: the one with the highest epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from . import wire
from .lanes import ACK_EVERY, Receiving, Sending

__all__ = ["LEASE_S", "AWAY", "NEW", "UP", "Directory", "Peer", "choose"]

LEASE_S: Final = 5.0
"""Silence after which a link is not sent to, and as long again after which it is gone. A busy machine takes seconds."""

NEW: Final = "new"
"""Seen, and it has not said who it is."""
UP: Final = "up"
AWAY: Final = "away"
"""It cannot be reached, and may come back."""

FAR_BEHIND: Final = 2 * ACK_EVERY
"""Bodies that a link has not acknowledged, more than another: less may be on its way back."""
PEERS_MAX: Final = 1024
"""Links that are known at one time."""
GONE_MAX: Final = 4096
"""Ids of gone links that are remembered: who was one and sends after that many others have gone is greeted as new."""


@dataclass(slots=True, eq=False)
class Peer:
    """Another link."""

    id: bytes
    since_s: float
    """When its state began."""
    heard_s: float
    state: str = NEW
    reachable: bool = False
    """Its subscription is there."""
    host: str = ""
    epoch: int = 0
    serial: int = -1
    names: frozenset[str] = frozenset()
    sending: Sending = field(default_factory=Sending)
    receiving: Receiving = field(default_factory=Receiving)
    tell_at_s: float | None = None
    """When to say how many of its bodies have come, if there is no earlier occasion."""

    @property
    def rank(self) -> tuple[int, bytes]:
        """The higher one is the host."""
        return self.epoch, self.id


class Directory:
    """All peers, by id, host and name."""

    def __init__(self) -> None:
        self.peers: dict[bytes, Peer] = {}
        self.hosts: dict[str, Peer] = {}
        self._by_name: dict[str, list[Peer]] = {}
        self._gone: dict[bytes, int] = {}
        """Id -> epoch, in the order of going."""

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self.peers.values()))

    def seen(self, link: bytes, now: float) -> Peer:
        """The peer of that id; a new one when it was never seen. BadFrame: there are too many."""
        peer = self.peers.get(link)
        if peer is None:
            if len(self.peers) >= PEERS_MAX:
                raise wire.BadFrame(f"a frame of one link more than the {PEERS_MAX} that there may be")
            peer = self.peers[link] = Peer(link, now, now)
        return peer

    def gone_epoch(self, link: bytes) -> int | None:
        """The epoch of a link that is gone; None: it is not known to be."""
        return self._gone.get(link)

    def set_names(self, peer: Peer, names: Iterable[str]) -> None:
        """Whoever looks for one of these finds that peer, and for no other."""
        wanted = frozenset(names)
        for name in peer.names - wanted:
            having = self._by_name[name]
            having.remove(peer)
            if not having:
                del self._by_name[name]
        for name in wanted - peer.names:
            self._by_name.setdefault(name, []).append(peer)
        peer.names = wanted

    def having(self, name: str) -> list[Peer]:
        """All peers behind which that name is, reachable or not."""
        return self._by_name.get(name, [])

    def names(self) -> list[str]:
        """Of all hosts."""
        return list(self._by_name)

    def remove(self, peer: Peer) -> None:
        """It is gone for good; what it still sends comes from nobody."""
        self.set_names(peer, ())
        self.peers.pop(peer.id, None)
        if self.hosts.get(peer.host) is peer:
            del self.hosts[peer.host]
        self.bar(peer.id, peer.epoch)

    def forget(self, peer: Peer) -> None:
        """It was seen and is not there any more, and nobody knows who it was."""
        del self.peers[peer.id]

    def bar(self, link: bytes, epoch: int) -> None:
        """Take nothing of that id."""
        self._gone.pop(link, None)
        self._gone[link] = epoch
        while len(self._gone) > GONE_MAX:
            del self._gone[next(iter(self._gone))]


def choose(candidates: list[Peer], turn: int, size_bytes: int) -> Peer | None:
    """One of those that are up and have room: in turn, but for those that are far behind others."""
    able = [peer for peer in candidates if peer.state == UP and peer.sending.has_room(size_bytes)]
    if len(able) < 2:
        return able[0] if able else None
    fewest = min(len(peer.sending) for peer in able)
    able = [peer for peer in able if len(peer.sending) <= fewest + FAR_BEHIND]
    return able[turn % len(able)]
