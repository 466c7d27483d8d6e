"""What a link does, decided: of subscriptions, frames, offers and time it makes frames and events. See PROTOCOL.md.

Rules of this file: no socket, no clock, no asyncio; every time is an argument, in seconds of one monotonic clock.
Whoever drives it calls `events` and `flush` after anything else, and `tick` at `wake_at` at the latest.

Guarantees: P1 to P5 of PROTOCOL.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from . import wire
from .lanes import QUEUE_BYTES, QUEUE_MAX, Kept
from .peers import AWAY, LEASE_S, NEW, UP, Directory, Peer, choose

__all__ = ["BEAT_S", "Came", "Changed", "Event", "LinkMachine", "Mark", "Ready", "Renew", "Superseded", "Unroutable"]

BEAT_S: Final = 1.0
"""A fifth of the lease: four beats may be lost or late."""
ACK_DELAY_S: Final = 0.002
"""How long `got` waits for a body to travel with: an answer comes within that, and nobody waits for `got`."""


@dataclass(frozen=True, slots=True)
class Came:
    """A body, for this host or for one of its names."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Unroutable:
    """Nobody has got the frame of that key, and nobody will."""

    key: int


@dataclass(frozen=True, slots=True)
class Changed:
    """The names behind a host, all of them; None: the host is gone."""

    host: str
    names: frozenset[str] | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """Subscribe that mark, and give up the one before."""

    topic: bytes


@dataclass(frozen=True, slots=True)
class Ready:
    """Whether this link sees itself, and knows all others, through the proxy; it has changed."""

    ready: bool


@dataclass(frozen=True, slots=True)
class Renew:
    """This link has been taken for gone, or has to take that for granted: `renewed` begins a new life."""

    why: str


@dataclass(frozen=True, slots=True)
class Superseded:
    """Another link has taken this host's place: this one is not to go on."""

    epoch: int


Event = Came | Unroutable | Changed | Mark | Ready | Renew | Superseded


class LinkMachine:
    """One link, from the making of its id to its end."""

    def __init__(self, link: bytes, host: str, epoch: int, names: Iterable[str], now: float) -> None:
        self.id = link
        self.host = host
        self.epoch = epoch
        self.directory = Directory()
        self.connected = False
        """It has read its own subscription, and not its end."""
        self.ready = False
        self.ended = False
        self.bad_frames = 0
        self.last_bad = ""
        self.dropped = 0
        """Frames that waited for something that is gone, or for which too many waited: the bridge repeats them."""
        self._mark = 0
        self._marked = False
        self._serial = 0
        self._names = frozenset(names)
        self._ticked_s = now
        self._next_beat_s = now
        self._frames: list[tuple[bytes, wire.Body]] = []
        self._events: list[Event] = []
        self._dirty: dict[Peer, None] = {}
        """In the order in which they became so, so that a run can be repeated."""
        self._waiting: dict[tuple[bool, str], deque[Kept]] = {}
        """By (is a host, name): for what is away or not known yet, and has no lane."""
        self._waiting_bytes = 0
        self._turn = 0

    # --- what comes from outside --------------------------------------------------------------------------------------

    def subscribed(self, topic: bytes, now: float) -> None:
        """The proxy knows this subscription from now on, and sends there."""
        if self.ended:
            return
        if topic == wire.mark(self.id, self._mark):
            self._marked = self.connected
            self._look_ready()
            return
        link = wire.id_of_topic(topic)
        if link == self.id:
            self._connected(now)
        elif link is not None and self.directory.gone_epoch(link) is not None:
            self._fence(link)
        elif link is not None:
            peer = self.directory.seen(link, now)
            peer.reachable = True
            peer.heard_s = now
            self._hello(link)
            if peer.state == AWAY:
                self._up(peer, now)

    def unsubscribed(self, topic: bytes, now: float) -> None:
        """Nothing that is sent there arrives any more: the link, or the proxy, is gone."""
        link = wire.id_of_topic(topic)
        if link == self.id:
            self.connected = self._marked = False
            self._look_ready()
            return
        peer = None if link is None else self.directory.peers.get(link)
        if peer is None:
            return
        peer.reachable = False
        if peer.state == UP:
            peer.state, peer.since_s = AWAY, now
        elif peer.state == NEW:
            self.directory.forget(peer)
            self._look_ready()

    def received(self, frame: bytes, now: float) -> None:
        """A frame from the proxy, of whomever."""
        try:
            to, sender, body = wire.decode(frame)
            if sender == self.id or self.ended or to not in (self.id, wire.EVERYBODY):
                return
            if isinstance(body, wire.Fenced):  # of whomever: two may have taken each other for gone
                self._fenced(body.epoch)
                return
            if self.directory.gone_epoch(sender) is not None:
                if not isinstance(body, wire.Bye):
                    self._fence(sender)
                return
            self._received(self.directory.seen(sender, now), body, now)
        except wire.BadFrame as error:
            self.bad_frames += 1
            self.last_bad = str(error)

    def offer(self, name: str, to_host: bool, body: bytes, key: int) -> bool:
        """A body for one host that has that name, or for the host of that id. False: no room; nothing was done."""
        return self._route(Kept(name, to_host, body, key))

    def announce(self, names: Iterable[str]) -> None:
        """From now on these names come here, all of them."""
        wanted = frozenset(names)
        if wanted != self._names:
            self._names, self._serial = wanted, self._serial + 1
            if self.connected:
                self._hello(wire.EVERYBODY)

    def leave(self) -> None:
        """In good order: the others need not wait."""
        if not self.ended and self.connected:
            self._frames.append((wire.EVERYBODY, wire.Bye()))
        self.ended = True

    def renewed(self, link: bytes, epoch: int, now: float) -> LinkMachine:
        """A new life with another id. All that is kept goes on in it."""
        fresh = LinkMachine(link, self.host, epoch, self._names, now)
        fresh.bad_frames, fresh.last_bad, fresh.dropped = self.bad_frames, self.last_bad, self.dropped
        for peer in self.directory:
            for kept in peer.sending.close():
                fresh._wait(kept)
        for queue in self._waiting.values():
            for kept in queue:
                fresh._wait(kept)
        self.ended = True
        return fresh

    @property
    def kept(self) -> int:
        """Bodies that are on their way or wait."""
        return sum(len(peer.sending) for peer in self.directory) + sum(map(len, self._waiting.values()))

    @property
    def kept_bytes(self) -> int:
        """Of them."""
        return sum(peer.sending.kept_bytes for peer in self.directory) + self._waiting_bytes

    @property
    def has_room(self) -> bool:
        """Whether a body of moderate size would be taken for anybody."""
        return self._waiting_bytes < QUEUE_BYTES // 2 and all(
            len(peer.sending) < QUEUE_MAX // 2 and peer.sending.kept_bytes < QUEUE_BYTES // 2
            for peer in self.directory
            if peer.state == UP
        )

    # --- time ---------------------------------------------------------------------------------------------------------

    def wake_at(self) -> float:
        """When `tick` is to be called at the latest."""
        at = self._ticked_s + BEAT_S
        if self.connected:
            at = min(at, self._next_beat_s)
            for peer in self.directory.peers.values():
                if peer.state == UP:
                    at = min(at, peer.tell_at_s or at, peer.sending.ask_at_s or at)
        return at

    def tick(self, now: float) -> None:
        """Do what is due."""
        if self.ended:
            return
        stood_s, self._ticked_s = now - self._ticked_s, now
        if stood_s > LEASE_S:
            self._end(Renew(f"this process stood still for {stood_s:.1f} s"))
            return
        if not self.connected:
            return
        if now >= self._next_beat_s:
            self._next_beat_s = now + BEAT_S
            self._frames.append((wire.EVERYBODY, wire.Beat(self._serial)))
        for peer in self.directory:
            self._tick_peer(peer, now)

    def _tick_peer(self, peer: Peer, now: float) -> None:
        sending = peer.sending
        if peer.state == UP:
            if now - peer.heard_s > LEASE_S:
                peer.state, peer.since_s = AWAY, now
                return
            if sending.ask_at_s is not None and now >= sending.ask_at_s:
                sending.ask(now)
                self._dirty[peer] = None
            if peer.tell_at_s is not None and now >= peer.tell_at_s:
                peer.receiving.owes_now = True
                self._dirty[peer] = None
        elif now - peer.since_s > LEASE_S:
            self._drop(peer, f"nothing was heard of it for {now - peer.heard_s:.1f} s", now)

    # --- what goes out ------------------------------------------------------------------------------------------------

    def events(self) -> list[Event]:
        """What has happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def flush(self, now: float) -> list[bytes]:
        """All frames that are to be sent now, in order."""
        frames = [wire.encode(to, self.id, body) for to, body in self._frames]
        self._frames.clear()
        if self._dirty:
            for peer in self._dirty:
                if peer.state == UP and self.connected and not self.ended:
                    frames += self._lane_frames(peer, now)
            self._dirty.clear()
        return frames

    def _lane_frames(self, peer: Peer, now: float) -> list[bytes]:
        frames = []
        sending, receiving = peer.sending, peer.receiving
        for first, bodies, want in sending.frames(now) if sending.due else ():
            frames.append(wire.encode(peer.id, self.id, wire.Lane(first, bodies, *receiving.tell(), want)))
        if receiving.owes_now:
            frames.append(wire.encode(peer.id, self.id, wire.Lane(sending.next, [], *receiving.tell())))
        if not receiving.owes:
            peer.tell_at_s = None
        elif peer.tell_at_s is None:
            peer.tell_at_s = now + ACK_DELAY_S
        return frames

    def _hello(self, to: bytes) -> None:
        self._frames.append((to, wire.Hello(self.host, self.epoch, self._serial, sorted(self._names))))

    def _fence(self, link: bytes) -> None:
        self._frames.append((link, wire.Fenced(self.directory.gone_epoch(link) or 0)))

    # --- frames -------------------------------------------------------------------------------------------------------

    def _received(self, peer: Peer, body: wire.Body, now: float) -> None:
        peer.heard_s = now
        match body:
            case wire.Lane():
                if peer.state == NEW:  # whose it is, is not known
                    self._frames.append((peer.id, wire.Who()))
                    return
                if peer.sending.heard(body.got, body.gap, now) and self._waiting:
                    self._route_waiting()
                self._events += [Came(taken) for taken in peer.receiving.take(body)]
                self._dirty[peer] = None
            case wire.Hello():
                self._greeted(peer, body, now)
            case wire.Beat(serial):
                if serial != peer.serial:
                    self._frames.append((peer.id, wire.Who()))
            case wire.Who():
                self._hello(peer.id)
            case wire.Bye():
                self._drop(peer, "it has left", now)
                return
        if peer.state == AWAY and peer.reachable and peer.id in self.directory.peers:
            self._up(peer, now)

    def _fenced(self, epoch: int) -> None:
        if epoch > self.epoch:
            self._end(Superseded(epoch))
        else:
            self._end(Renew("another link took this one for gone"))

    def _greeted(self, peer: Peer, hello: wire.Hello, now: float) -> None:
        rank = (hello.epoch, peer.id)
        if hello.host == self.host:
            if rank > (self.epoch, self.id):
                self._end(Superseded(hello.epoch))
            else:
                self._outranked(peer, self.epoch, now)
            return
        other = self.directory.hosts.get(hello.host)
        if other is not None and other is not peer and rank < other.rank:
            self._outranked(peer, other.epoch, now)
            return
        if peer.state != NEW and (peer.host, peer.epoch) != (hello.host, hello.epoch):
            raise wire.BadFrame(f"host {peer.host!r} now says that it is host {hello.host!r}")
        peer.host, peer.epoch = hello.host, hello.epoch
        self.directory.hosts[hello.host] = peer
        if hello.serial > peer.serial:
            peer.serial = hello.serial
            self.directory.set_names(peer, hello.names)
            self._events.append(Changed(peer.host, peer.names))
        if peer.state == NEW:
            peer.state, peer.since_s = (UP if peer.reachable else AWAY), now
        if other is not None and other is not peer:
            other.epoch = max(peer.epoch, other.epoch + 1)  # what it is told when it still lives: it is not the host
            self._drop(other, "its successor is there", now)
        self._look_ready()
        self._route_waiting()

    def _outranked(self, peer: Peer, epoch: int, now: float) -> None:
        peer.epoch = max(epoch, peer.epoch + 1)
        self._drop(peer, "another link is this host", now)
        self._fence(peer.id)

    # --- links that come and go ---------------------------------------------------------------------------------------

    def _connected(self, now: float) -> None:
        self.connected = True
        self._next_beat_s = now
        for peer in self.directory:
            peer.since_s = peer.heard_s = now  # no lease has run while we were cut off
            self._dirty[peer] = None
        self._mark += 1
        self._events.append(Mark(wire.mark(self.id, self._mark)))

    def _look_ready(self) -> None:
        """All whose subscriptions came before the mark must have said who they are."""
        peers = self.directory.peers.values()
        ready = self._marked and (self.ready or not any(peer.state == NEW and peer.reachable for peer in peers))
        if ready != self.ready:
            self.ready = ready
            self._events.append(Ready(ready))
            self._route_waiting()

    def _up(self, peer: Peer, now: float) -> None:
        peer.state, peer.since_s = UP, now
        peer.sending.ask_now()
        self._dirty[peer] = None
        self._route_waiting()

    def _drop(self, peer: Peer, why: str, now: float) -> None:
        known = self.directory.hosts.get(peer.host) is peer
        self.directory.remove(peer)
        self._dirty.pop(peer, None)
        if known:
            self._events.append(Changed(peer.host, None, why))
        for kept in reversed(peer.sending.close()):  # they are older than those that wait
            self._waiting.setdefault((kept.to_host, kept.name), deque()).appendleft(kept)
            self._waiting_bytes += len(kept.body)
        self._look_ready()
        self._route_waiting()

    def _end(self, event: Renew | Superseded) -> None:
        if not self.ended:
            self.ended = True
            self._events.append(event)

    # --- bodies that look for a lane ----------------------------------------------------------------------------------

    def _route(self, kept: Kept) -> bool:
        if kept.to_host:
            host = self.directory.hosts.get(kept.name)
            candidates = [] if host is None else [host]
        else:
            candidates = self.directory.having(kept.name)
        if (kept.to_host, kept.name) not in self._waiting:  # else it waits behind them, for their order
            self._turn += 1
            peer = choose(candidates, self._turn, len(kept.body))
            if peer is not None:
                peer.sending.add(kept)
                self._dirty[peer] = None
                return True
            if any(candidate.state == UP for candidate in candidates):
                return False
            if not candidates and self.ready:
                if kept.sent:  # somebody may have it, who is gone
                    self.dropped += 1
                elif kept.key:
                    self._events.append(Unroutable(kept.key))
                return True
        queue = self._waiting.get((kept.to_host, kept.name), ())
        if len(queue) >= QUEUE_MAX or self._waiting_bytes + len(kept.body) > QUEUE_BYTES:
            return False
        self._wait(kept)
        return True

    def _wait(self, kept: Kept) -> None:
        self._waiting.setdefault((kept.to_host, kept.name), deque()).append(kept)
        self._waiting_bytes += len(kept.body)

    def _route_waiting(self) -> None:
        """Each of those that wait to a lane, to its end, or back to where it was; in order."""
        for key in list(self._waiting):
            queue = self._waiting.pop(key)
            while queue:
                kept = queue.popleft()
                self._waiting_bytes -= len(kept.body)
                if not self._route(kept):
                    queue.appendleft(kept)
                    self._waiting_bytes += len(kept.body)
                    break
                if key in self._waiting:  # nobody can have it yet: the rest stays behind it
                    self._waiting[key].extend(queue)
                    queue.clear()
            if queue:
                self._waiting[key] = queue
