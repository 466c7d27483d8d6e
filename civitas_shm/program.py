"""What the program hears and decides about its run: crashes, agents that were started again, spawns to be allowed.

Rules of this file: it runs in the program's own process, over any transport, on the loop of the run; callbacks may be
plain or `async def`, and what they raise is logged only. A spawn that its supervisor's hook fails to judge is refused.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from .errors import CivitasError
from .loading import load_class
from .supervisor import CrashCallback, DynamicSupervisor, Supervisor
from .topology.model import AgentSpec
from .tracebacks import format_exception

__all__ = ["Program"]

log: Final = logging.getLogger("civitas_shm.supervision")


class Program:
    """One run's."""

    def __init__(self, supervisors: Sequence[Supervisor], agent_of: Callable[[str], Any]) -> None:
        """`agent_of`: the object of an agent, or a handle."""
        self._supervisors = {supervisor.name: supervisor for supervisor in supervisors}
        self._agent_of = agent_of
        self.on_crash: list[CrashCallback] = []
        """Of all agents, beside those of their supervisors."""
        self._tasks: set[asyncio.Future[Any]] = set()
        self._judging: dict[str, asyncio.Lock] = {}

    # --- news ---------------------------------------------------------------------------------------------------------

    def crashed(self, agent: str, supervisor: str, error: BaseException) -> None:
        """An agent fell; its supervisor decides what follows."""
        of = self._supervisors.get(supervisor)
        for callback in [*(of.crash_callbacks if of is not None else ()), *self.on_crash]:
            self._call("a crash callback", callback, agent, error)

    def replaced(self, agent: str, supervisor: str) -> None:
        """An agent was started again: a new object."""
        of = self._supervisors.get(supervisor)
        if of is None or not of.child_replaced_callbacks:
            return
        try:
            found = self._agent_of(agent)
        except CivitasError:
            return  # it has gone since
        for callback in list(of.child_replaced_callbacks):
            self._call("a child-replaced callback", callback, agent, found)

    def _call(self, what: str, callback: Callable[..., Any], *arguments: Any) -> None:
        async def finish(result: Any) -> None:
            try:
                await result
            except Exception as error:  # noqa: BLE001 - the user's code, see the rules
                _log_failure(what, error)

        try:
            result = callback(*arguments)
        except Exception as error:  # noqa: BLE001
            _log_failure(what, error)
            return
        if inspect.isawaitable(result):
            task = asyncio.get_running_loop().create_task(finish(result))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    # --- decisions ----------------------------------------------------------------------------------------------------

    async def may_spawn(self, supervisor: str, agent: AgentSpec, spawner: str) -> str:
        """Why `on_spawn_requested` of that supervisor refuses an agent; empty: it may be spawned. One at a time."""
        of = self._supervisors.get(supervisor)
        if not isinstance(of, DynamicSupervisor):
            return ""
        async with self._judging.setdefault(supervisor, asyncio.Lock()):
            of.current_spawner = spawner
            try:
                allowed: Any = of.on_spawn_requested(load_class(agent.type), agent.name, dict(agent.config))
                if inspect.isawaitable(allowed):
                    allowed = await allowed
            except CivitasError as error:
                return f"{agent.name!r} cannot be spawned: {error}"
            except Exception as error:  # noqa: BLE001 - the user's code, see the rules
                _log_failure(f"on_spawn_requested of {supervisor!r}", error)
                return f"{agent.name!r} cannot be spawned: on_spawn_requested of {supervisor!r} raised {error!r}."
            finally:
                of.current_spawner = None
        return "" if allowed else f"{agent.name!r} cannot be spawned: on_spawn_requested of {supervisor!r} refused it."


def _log_failure(what: str, error: Exception) -> None:
    log.error("%s failed:\n%s", what, format_exception(error))
