"""The contract of a link: one host's connection to the other hosts of a system, over NATS, ZeroMQ or anything else.

Rules of this file: no implementation. A link carries frames, which are bytes to it (`wire`), and may lose them: the
bridge keeps every message in its outbox until the other side's bridge has said that it has it, and repeats it. So a
link needs no memory of what it was given, and nothing on a disk.

What it needs is to be honest about four things: whether it is up, when nobody is there, when it has no room, and how
much fits into a frame.

Addresses: the name of an agent, or the id of a host. Several hosts may subscribe to one name (replicas, or one group
started three times): each frame to a name goes to one of them. A host's id is had by one host only; it is what replies
and receipts are sent to, and it is standing: nothing is subscribed or given up for a single question.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

__all__ = ["FRAME_BYTES_MAX", "Link", "LinkEvents", "LinkSettings", "LinkState"]

FRAME_BYTES_MAX: Final = 64 << 20
"""No frame is larger, whatever the link could carry: what is received is held in memory."""

LinkState = Literal["connecting", "up", "down", "closed"]
"""`connecting`: it has never been up. `down`: it was, and tries to be again by itself."""


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """What a link is made from: `link(settings) -> Link` of its module, see `transport.loading.load_link`."""

    type: str
    host: str
    """The id of this host: 1 to 64 characters of `[A-Za-z0-9_-]`, unlike that of any other host of the system."""
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    """As the topology has them, checked there; with passwords, so not shown."""


class LinkEvents(Protocol):
    """What the link tells the bridge. All are called on the loop, never from inside of a call to the link; none blocks
    or raises."""

    def received(self, frame: bytes) -> None:
        """A frame for a name that is subscribed here, or for this host. The bytes are a copy of their own.

        From anybody who may publish: it is checked by who gets it. More than FRAME_BYTES_MAX is dropped by the link,
        and counted (`counts`).
        """
        ...

    def unroutable(self, key: int) -> None:
        """Of the frame published with this key: nobody is subscribed to where it went, so nobody has got it.

        As soon as it is known, at most once for a key. A link that cannot know it does not call this, and the asker
        waits for its deadline: say so in its documents.
        """
        ...

    def state_changed(self, state: LinkState, why: str) -> None:
        """Now it is so. `why`: a sentence for people, without passwords.

        After `up` every subscription is in effect where the link's broker or peers are; what was published before
        and is not acknowledged is repeated by the bridge.
        """
        ...

    def writable(self) -> None:
        """There is room again, after a `publish` that was refused."""
        ...


class Link(Protocol):
    """One host's connection. All operations belong to the loop of `open`; none but `open` and `close` waits."""

    state: LinkState
    frame_bytes_max: int
    """What one frame may have just now; it may change with each `up`. Never above FRAME_BYTES_MAX."""

    async def open(self, events: LinkEvents) -> None:
        """Begin, and return as soon as it is known that it can be tried; being up is told by `state_changed`.

        MissingExtra, ConfigurationError: it can never be. A broker that is not there is no error: it is tried again
        until it is, with waits that grow to 2 s at most, told each time by `state_changed` (down or connecting, why).
        """
        ...

    async def close(self) -> None:
        """Send what was accepted, for at most 2 s, and leave. Idempotent. Nothing is told after it has returned."""
        ...

    def publish(self, name: str, frame: bytes, key: int) -> bool:
        """To one host that is subscribed to that agent's name. False: not now, because it is not up or its buffers are
        full; nothing was done then, and `writable` or `state_changed` follows. True: it is on its way and may get lost.

        `key` > 0: `unroutable(key)` is wanted; 0: not. Frames of one host to one name that arrive at one host arrive
        in their order. A frame above `frame_bytes_max` is a ValueError: the bridge looks before.
        """
        ...

    def publish_to_host(self, host: str, frame: bytes, key: int) -> bool:
        """As `publish`, to the host of that id."""
        ...

    def subscribe(self, name: str) -> None:
        """From now on frames to that name come here, or to another host that has subscribed too. In effect soon, and
        again after each reconnection. May be called before the link is up. Idempotent."""
        ...

    def unsubscribe(self, name: str) -> None:
        """No more of them: what is on its way may still come. Idempotent."""
        ...

    def counts(self) -> dict[str, int]:
        """For statistics, at least: `reconnects`, `buffered_bytes` (accepted, not yet with the kernel), `oversized`
        (frames that were dropped on arrival)."""
        ...
