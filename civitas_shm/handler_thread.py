"""The thread of an agent whose `handle` is a plain function.

Rules of this file: one thread per agent, one call at a time, results go back to the loop. The thread is a daemon: a
handler that never ends must not keep the process from ending.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

__all__ = ["HandlerThread"]

_Job = tuple[Callable[[], Any], "asyncio.Future[Any]"]


class HandlerThread:
    """Runs functions one after another in a thread of its own."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        thread = threading.Thread(target=self._run, name=f"agent {name}", daemon=True)
        thread.start()
        self.ident = thread.ident or 0

    def call(self, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Run `function(*args)` in the thread, in a copy of the caller's context; the future resolves on the loop."""
        context = contextvars.copy_context()
        future = self._loop.create_future()
        self._jobs.put((lambda: context.run(function, *args), future))
        return future

    def end(self) -> None:
        """Let the thread end after the job that it has."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, future = job
            value, error = None, None
            try:
                value = function()
            except BaseException as raised:  # noqa: BLE001 - carried to the loop, which decides
                error = raised
            try:
                self._loop.call_soon_threadsafe(_resolve, future, value, error)
            except RuntimeError:
                return  # the loop is closed: nobody is left to tell


def _resolve(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():
        return  # cancelled: the agent was stopped while its handler ran
    if isinstance(error, StopIteration):
        # A future refuses it, because inside of a coroutine it would read as a return.
        future.set_exception(RuntimeError(f"handle raised StopIteration({error.value!r})"))
    elif error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)
