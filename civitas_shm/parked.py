"""Tasks that wait for the next busy period of their agent, on Python 3.11, where no task can start eagerly.

Measured on 3.11 with uvloop (2026-11-20): waking a parked task instead of making one takes 1.2 of 10.8 µs off an ask.
A parked task takes about 1.3 KB, so only the KEPT that were busy last stay parked in one process; of the others the
task ends, and an idle agent costs no task.
"""

from __future__ import annotations

import asyncio
from typing import Final

__all__ = ["KEPT", "Park"]

KEPT: Final = 256
"""A third of a megabyte."""


class Park:
    """The parked tasks of one process, by their owners; the one that parked first is let go first."""

    def __init__(self) -> None:
        self._waiting: dict[object, asyncio.Future[bool]] = {}  # in the order in which they parked

    def stay(self, owner: object, loop: asyncio.AbstractEventLoop) -> asyncio.Future[bool]:
        """A future to await: True = a busy period begins, False = the task is not kept."""
        future = self._waiting[owner] = loop.create_future()
        if len(self._waiting) > KEPT:
            self._waiting.pop(next(iter(self._waiting))).set_result(False)
        return future

    def wake(self, owner: object) -> bool:
        """Let the owner's task go on. False: it has none here."""
        future = self._waiting.pop(owner, None)
        if future is None or future.done():  # done: cancelled from outside
            return False
        future.set_result(True)
        return True

    def leave(self, owner: object) -> None:
        """End the owner's task, if it is parked."""
        future = self._waiting.pop(owner, None)
        if future is not None and not future.done():
            future.set_result(False)
