"""An XSUB/XPUB proxy and its connections, without sockets: what a link's machine sees of them, faults included."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from civitas_shm_transports.zmq import wire
from civitas_shm_transports.zmq.machine import Came, Changed, LinkMachine, Mark, Ready, Renew, Superseded, Unroutable


@dataclass(eq=False)
class End:
    """One link, with its two sockets."""

    machine: LinkMachine
    subscriptions: set[bytes] = field(default_factory=set)
    sees: set[bytes] = field(default_factory=set)
    """What its XPUB socket has been told of."""
    subscribing: bool = False
    """Its SUB socket is connected."""
    publishing: bool = False
    """Its XPUB socket is connected."""
    frames: deque[bytes] = field(default_factory=deque)
    news: deque[tuple[bool, bytes]] = field(default_factory=deque)
    came: list[bytes] = field(default_factory=list)
    unroutable: list[int] = field(default_factory=list)
    changes: list[Changed] = field(default_factory=list)
    lives: list[bytes] = field(default_factory=list)
    """Ids that it has had."""
    superseded: bool = False
    dead: bool = False


class Network:
    """All links of one proxy. Nothing moves unless it is told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.ends: list[End] = []
        self.known: set[bytes] = set()
        """The proxy's subscriptions."""
        self._made = 0

    def new_id(self) -> bytes:
        self._made += 1
        return self._made.to_bytes(16, "big")

    def add(self, host: str, *names: str, connect: bool = True) -> End:
        end = End(LinkMachine(self.new_id(), host, self._made, names, self.now))
        end.lives.append(end.machine.id)
        end.subscriptions = {wire.topic(end.machine.id), wire.topic(wire.EVERYBODY)}
        self.ends.append(end)
        if connect:
            self.connect(end)
        return end

    # --- connections --------------------------------------------------------------------------------------------------

    def connect(self, end: End) -> None:
        self.connect_sub(end)
        self.connect_pub(end)

    def connect_sub(self, end: End) -> None:
        if not end.dead:
            end.subscribing = True
            self._spread()

    def connect_pub(self, end: End) -> None:
        if not end.dead and not end.publishing:
            end.publishing = True
            for topic in sorted(self.known):
                end.sees.add(topic)
                end.news.append((True, topic))

    def cut_sub(self, end: End) -> None:
        end.subscribing = False
        end.frames.clear()
        self._spread()

    def cut_pub(self, end: End) -> None:
        end.publishing = False
        end.news.clear()
        for topic in sorted(end.sees):
            end.news.append((False, topic))
        end.sees.clear()

    def kill_proxy(self) -> None:
        """All connections with all that is in them; each end may connect again."""
        for end in self.ends:
            end.subscribing = False
            end.frames.clear()
        self.known = set()
        for end in self.ends:
            if end.publishing:
                self.cut_pub(end)

    def kill(self, end: End) -> None:
        end.dead = True
        self.cut_sub(end)
        end.publishing = False
        end.news.clear()

    def _spread(self) -> None:
        known = {topic for end in self.ends if end.subscribing for topic in end.subscriptions}
        for topic in sorted(known ^ self.known):
            for end in self.ends:
                if end.publishing:
                    (end.sees.add if topic in known else end.sees.discard)(topic)
                    end.news.append((topic in known, topic))
        self.known = known

    # --- steps --------------------------------------------------------------------------------------------------------

    def act(self, end: End) -> None:
        """What the driver of a machine does after each call."""
        if end.dead:
            return
        again = True
        while again:
            again = False
            for event in end.machine.events():
                match event:
                    case Came(body):
                        end.came.append(body)
                    case Unroutable(key):
                        end.unroutable.append(key)
                    case Changed():
                        end.changes.append(event)
                    case Mark(topic):
                        end.subscriptions = {kept for kept in end.subscriptions if not kept.startswith(wire.MARK)} | {
                            topic
                        }
                        self._spread()
                    case Ready():
                        pass
                    case Superseded():
                        end.superseded = True
                        self.kill(end)
                        return
                    case Renew():
                        self._made += 1
                        machine = end.machine.renewed(self.new_id(), self._made, self.now)
                        end.machine = machine
                        end.lives.append(machine.id)
                        end.news.clear()
                        end.frames.clear()
                        end.subscribing = False
                        end.subscriptions = {wire.topic(machine.id), wire.topic(wire.EVERYBODY)}
                        if end.publishing:
                            end.sees.clear()
                            end.publishing = False
                        self._spread()
                        self.connect(end)
                        again = True
        for frame in end.machine.flush(self.now):
            self.send(end, frame)

    def send(self, end: End, frame: bytes) -> None:
        if end.publishing:
            for other in self.ends:
                if other.subscribing and any(frame.startswith(topic) for topic in other.subscriptions):
                    other.frames.append(frame)

    def hear(self, end: End) -> None:
        """One piece of news, or else one frame, arrives."""
        if end.news:
            there, topic = end.news.popleft()
            (end.machine.subscribed if there else end.machine.unsubscribed)(topic, self.now)
        elif end.frames:
            end.machine.received(end.frames.popleft(), self.now)
        else:
            return
        self.act(end)

    def tick(self, end: End) -> None:
        if not end.dead:
            end.machine.tick(self.now)
            self.act(end)

    def offer(self, end: End, name: str, body: bytes, key: int = 0, to_host: bool = False) -> bool:
        taken = end.machine.offer(name, to_host, body, key)
        self.act(end)
        return taken

    def settle(self, for_s: float = 0.0) -> None:
        """Everything connects and arrives, and time goes on, in steps of what the machines ask for."""
        end_s = self.now + for_s
        while True:
            for end in self.ends:
                if not end.dead:
                    if not end.subscribing:
                        self.connect_sub(end)
                    if not end.publishing:
                        self.connect_pub(end)
            busy = True
            while busy:
                busy = False
                for end in self.ends:
                    while not end.dead and (end.news or end.frames):
                        busy = True
                        self.hear(end)
            at = min((end.machine.wake_at() for end in self.ends if not end.dead), default=end_s)
            if at > end_s:
                return
            self.now = max(self.now, at) + 1e-6
            for end in self.ends:
                self.tick(end)
