"""Delayed messages in the host: orders come from a mailbox that it reads, what is due goes to its recipient.

Contract: `civitas_shm.transport.DelayPort`. Rules of this file: the host is rung for orders and for nothing else that
it reads; it never spins. What an order means is decided in `civitas_shm.delays`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from civitas_shm.transport import DELAYS, SENDER_PROGRAM, SLOT_HOST, Delivery, MailboxSpec

from . import _shm

__all__ = ["Orders"]


class Orders:
    """Base of ShmRunMemory; does nothing before `open_delays`."""

    _native: _shm.Port
    _doors: list[int]
    _delays_closed = False
    _loop: asyncio.AbstractEventLoop | None = None

    def add_mailbox(self, spec: MailboxSpec) -> int:
        raise NotImplementedError

    def set_readers(self, mailbox: int, slots: list[int]) -> None:
        raise NotImplementedError

    def open_delays(self, on_orders: Callable[[], None]) -> None:
        self._orders = self.add_mailbox(MailboxSpec(DELAYS))
        self.set_readers(self._orders, [SLOT_HOST])
        self._native.listen(self._orders, True)  # what an earlier host had in hand comes first
        self._on_orders = on_orders
        self._loop = asyncio.get_running_loop()
        self._host_door = self._doors[SLOT_HOST]
        self._loop.add_reader(self._host_door, self._rung)
        self._loop.call_soon(self._look)

    def _rung(self) -> None:
        if not self._delays_closed:
            self._native.unpark()
            self._look()

    def _look(self) -> None:
        """Orders may have come; then asleep, unless something was announced meanwhile."""
        if self._delays_closed:
            return
        self._on_orders()
        if self._native.poll(0, True) is not None:
            asyncio.get_running_loop().call_soon(self._look)

    def take_order(self, done: int = -1) -> Delivery | None:
        return None if self._delays_closed else self._native.take(self._orders, done)

    def release_order(self, token: int) -> None:
        if not self._delays_closed:
            self._native.release(self._orders, token)

    def next_number(self) -> int:
        return self._native.next_number()

    def fire(
        self, mailbox: int, header: bytes, payload: bytes, type: str, sender: str, priority: int, expires_ns: int,
        number: int,
    ) -> int:  # fmt: skip
        known = self._native.find(sender)
        return self._native.fire(
            mailbox, header, payload, type, SENDER_PROGRAM if known < 0 else known, priority, expires_ns, number
        )

    def was_sent(self, mailbox: int, number: int) -> bool:
        return self._native.was_sent(mailbox, number)

    def _close_delays(self) -> None:
        self._delays_closed = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._host_door)
