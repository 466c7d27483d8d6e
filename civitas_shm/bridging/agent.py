"""The bridge: the agent that has the one connection of its host to others. Its mailbox is the outbox.

Rules of this file: it puts link, outbox and inbox together, keeps the link's subscriptions the names of this host, and
says aloud how the link is; it is supervised like any agent, and may die at any instruction.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from ..bridge.back import Backs
from ..bridge.link import Link, LinkSettings, LinkState
from ..messages import Message
from ..process import AgentProcess
from ..transport import BRIDGE, load_link
from .inbox import Inbox
from .outbox import Outbox

if TYPE_CHECKING:
    from ..seat import Seat

__all__ = ["Bridge"]

log: Final = logging.getLogger("civitas_shm.bridge")

NAMES_EVERY_S: Final = 1.0
"""How often the names of this host are read again: those that come and go are told of as well, but not each of them."""


class Bridge(AgentProcess):
    """Of one host."""

    def __init__(
        self, host: str, epoch: int, key: str, type: str, options: dict[str, Any], expected: list[str]
    ) -> None:
        """`key`: the secret that this host's questions are known by, in hex; the same in each life of the bridge.
        `expected`: agents elsewhere that may come later than what is sent to them.
        """
        super().__init__(BRIDGE)
        self._host = host
        self._epoch = epoch
        self._backs = Backs(bytes.fromhex(key))
        self._expected = frozenset(expected)
        self._settings = LinkSettings(type, host, options)
        self._link: Link | None = None
        self._outbox: Outbox | None = None
        self._inbox: Inbox | None = None
        self._missed = False
        """Whether it could not be had since it was up last."""
        self._names: set[str] = set()
        self._naming: asyncio.TimerHandle | None = None

    def _take_seat(self, seat: Seat) -> None:
        """Called by its seat before `on_start`: messages do not go to a handler but to `Outbox.ready`."""
        self._link = load_link(self._settings)
        self._outbox = Outbox(seat, self._link, self._backs, self._host, self._epoch, self._expected)
        self._inbox = Inbox(seat._bus, self._link, self._backs, self._host, self._epoch, self._outbox)

    def _messages_wait(self) -> None:
        assert self._outbox is not None
        self._outbox.ready()

    async def on_start(self) -> None:
        assert self._link is not None
        self._name_all()
        await self._link.open(self)

    async def on_stop(self) -> None:
        if self._naming is not None:
            self._naming.cancel()
        if self._outbox is not None:
            self._outbox.close()
        if self._inbox is not None:
            self._inbox.close()
        if self._link is not None:
            await self._link.close()

    async def handle(self, message: Message) -> None:
        raise AssertionError("messages of a bridge go to its outbox")

    # --- names --------------------------------------------------------------------------------------------------------

    def _name_all(self) -> None:
        """Subscribe what is here, and give up what is not here any more."""
        assert self._link is not None
        assert self._attached is not None
        names = {name for name in self._attached.bus.port.names() if not name.startswith("_")}
        for name in names - self._names:
            self._link.subscribe(name)
        for name in self._names - names:
            self._link.unsubscribe(name)
        self._names = names
        self._naming = asyncio.get_running_loop().call_later(NAMES_EVERY_S, self._name_all)

    # --- what the link tells ------------------------------------------------------------------------------------------

    def received(self, frame: bytes) -> None:
        assert self._inbox is not None
        self._inbox.received(frame)

    def unroutable(self, key: int) -> None:
        assert self._outbox is not None
        self._outbox.unroutable(key)

    def writable(self) -> None:
        assert self._outbox is not None
        assert self._inbox is not None
        self._inbox.again()
        self._outbox.ready()

    def state_changed(self, state: LinkState, why: str) -> None:
        assert self._outbox is not None
        assert self._inbox is not None
        if state == "up":
            log.info("the link is up: %s", why)
            self._inbox.again()
            (self._outbox.reconnected if self._missed else self._outbox.again)()
            self._missed = False
        elif state in ("down", "connecting"):
            self._missed = True
            log.warning("the link is %s: %s", "down" if state == "down" else "not up yet", why)

    # --- looking ------------------------------------------------------------------------------------------------------

    def reading(self) -> dict[str, Any]:
        """How it is, for who looks."""
        assert self._link is not None
        assert self._outbox is not None
        assert self._inbox is not None
        return {
            "host": self._host,
            "state": self._link.state,
            "on_way": self._outbox.waiting(),
            **self._outbox.counts,
            **self._inbox.counts,
            **self._inbox.reading(),
            **self._link.counts(),
            "at_s": time.time(),
        }
