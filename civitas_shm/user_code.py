"""How the code of one agent's author is called: `handle` and the hooks, each in its own way, and with its own deadline.

Rules of this file:
- whatever a hook raises, SystemExit and CancelledError included, comes back as a value; what `handle` raises goes on to
  the caller as it is;
- all of it runs in the agent's one context, as if in one task; a plain function runs in a thread of its own;
- a handler that overstays `handle_timeout_s` is cancelled; one that nothing in this process can end is reported.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final

from .events import AgentEvent, AgentStuck
from .handler_thread import HandlerThread
from .messages import Message
from .process import HANDLED, AgentProcess

__all__ = ["CANCEL_GRACE_S", "UserCode", "awaited"]

CANCEL_GRACE_S: Final = 1.0
"""What a cancelled handler gets to clean up; then it is left behind, for nothing in Python can end it."""


class UserCode:
    """Of one agent."""

    def __init__(
        self,
        agent: AgentProcess,
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context,
        report: Callable[[AgentEvent], None],
    ) -> None:
        self._agent = agent
        self._loop = loop
        self._context = context
        self._report = report
        self._thread: HandlerThread | None = None
        self.handle: Callable[[Message], Awaitable[Message | None]] = agent.handle
        self.hook_task: asyncio.Task[BaseException | None] | None = None
        """Runs `on_start` or `on_stop` just now."""

    # --- handle -------------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Once, before the first message: how `handle` is to be called."""
        agent = self._agent
        if not inspect.iscoroutinefunction(agent.handle):
            self._thread = HandlerThread(agent.name, self._loop)
            self.handle = self._handle_in_thread
            agent._thread = self._thread.ident
        elif agent.handle_timeout is not None:
            self.handle = self._handle_in_time

    def end(self) -> None:
        """No more messages come. Hooks may still."""
        if self._thread is not None:
            self._thread.end()

    async def _handle_in_thread(self, message: Message) -> Message | None:
        assert self._thread is not None
        limit_s = self._agent.handle_timeout
        stuck = None if limit_s is None else self._loop.call_later(limit_s, self._stuck, limit_s, "is a plain function")
        try:
            result = await self._thread.call(self._agent.handle, message)
            # A wrapper around a coroutine function looks plain until it is called.
            return (await result) if inspect.isawaitable(result) else result  # type: ignore[no-any-return]
        finally:
            if stuck is not None:
                stuck.cancel()

    async def _handle_in_time(self, message: Message) -> Message | None:
        agent, limit_s = self._agent, self._agent.handle_timeout
        assert limit_s is not None
        after_s = limit_s + CANCEL_GRACE_S
        stuck = self._loop.call_later(after_s, self._stuck, after_s, "ignores that it was cancelled")
        limit = asyncio.timeout(limit_s)
        try:
            async with limit:
                return await agent.handle(message)
        except TimeoutError:
            if not limit.expired():
                raise  # the handler's own
            raise TimeoutError(
                f"handle of {agent.name!r} ran longer than its handle_timeout_s of {limit_s:g} s and was cancelled"
            ) from None
        finally:
            stuck.cancel()

    def _stuck(self, for_s: float, why: str) -> None:
        """Nothing in this process can end the handler, and a successor beside it would be a second one."""
        agent, limit_s = self._agent, self._agent.handle_timeout
        text = f"handle of {agent.name!r} has run for {for_s:g} s, its handle_timeout_s is {limit_s:g}, and it {why}"
        agent.log.error("%s", text)
        self._report(AgentStuck(agent.name, for_s, text))

    # --- hooks --------------------------------------------------------------------------------------------------------

    async def run_hook(self, hook: Callable[[], Any], limit_s: float) -> BaseException | None:
        """Run `on_start` or `on_stop` in the agent's context; what it raised, because a task hands SystemExit on."""

        async def run() -> BaseException | None:
            HANDLED.set(None)
            try:
                async with asyncio.timeout(limit_s):
                    await awaited(hook())
            except GeneratorExit:
                raise
            except BaseException as error:  # noqa: BLE001 - the user's code, see the rules
                return error
            return None

        task = self.hook_task = self._loop.create_task(run(), context=self._context)
        try:
            return await task
        except asyncio.CancelledError as error:  # before its first step
            return error
        finally:
            self.hook_task = None


async def awaited(result: Any) -> Any:
    """What a hook returned, awaited if it was `async def`."""
    return (await result) if inspect.isawaitable(result) else result
