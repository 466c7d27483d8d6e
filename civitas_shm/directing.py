"""What a program wants of supervision: agents that come and go, restarts, and to hear of crashes.

Rules of this file: the methods of Runtime that ask supervision for something; each returns when that is done, and
raises why not. When the run has ended meanwhile, the error says how.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from .errors import TransportClosed
from .process import AgentProcess
from .program import Program
from .spawning import spawn_fields
from .supervisor import CrashCallback

__all__ = ["Directing"]


class Directing:
    """Base of Runtime."""

    _program: Program

    if TYPE_CHECKING:

        def _started(self) -> Any: ...

    async def spawn(
        self,
        supervisor_name: str,
        agent_class: type[AgentProcess],
        name: str,
        config: dict[str, Any] | None = None,
        *,
        wait: bool = True,
        process: str | None = None,
        restart: str | None = None,
        kwargs: dict[str, Any] | None = None,
        mailbox_size: int = 1000,
    ) -> str:
        """Start an agent below the dynamic supervisor of that name, as `AgentProcess.spawn`; its name."""
        fields = spawn_fields(
            agent_class, name, config, supervisor=supervisor_name, wait=wait, process=process, restart=restart,
            kwargs=kwargs, mailbox_size=mailbox_size,
        )  # fmt: skip
        await self._supervise("spawn", fields)
        return name

    async def spawn_nowait(
        self, supervisor_name: str, agent_class: type[AgentProcess], name: str, config: dict[str, Any] | None = None
    ) -> str:
        """As `spawn`, but only until it is accepted. The agent can be sent to from then on."""
        return await self.spawn(supervisor_name, agent_class, name, config, wait=False)

    async def despawn(self, supervisor_name: str, name: str) -> None:
        """End a spawned agent for good, as `AgentProcess.despawn`."""
        await self._supervise("despawn", {"supervisor": supervisor_name, "name": name})

    async def stop_agent(
        self, supervisor_name: str, name: str, drain: Literal["current", "all"] = "current", timeout: float = 30.0
    ) -> None:
        """As `despawn`; with `drain="all"` it handles all that waits first. `timeout`: then it is cut off."""
        fields = {"supervisor": supervisor_name, "name": name, "drain": drain, "timeout_s": timeout}
        await self._supervise("despawn", fields)

    async def restart_agent(self, name: str, reason: str = "", initiated_by: str = "_runtime") -> None:
        """End an agent at once and start a new object of it; returns when that one takes messages.

        The message in hand comes back to it, what waits stays. It counts against no restart budget, but takes with it
        whom a crash would (strategy, links). MessageRoutingError: there is no such agent; AgentStopped: it does not run
        just now; ConfigurationError: it is `restart: temporary`, so nobody would start it again.
        """
        await self._supervise("restart", {"name": name, "reason": reason, "by": initiated_by})

    def on_crash(self, callback: CrashCallback) -> None:
        """Call `callback(name, error)` whenever an agent falls, of any supervisor; plain or `async def`.

        `error` is the exception itself where the agent lives in this process, else an AgentError with its type and
        traceback as text; HeartbeatTimeout when its process was ended because it did not answer.
        """
        self._program.on_crash.append(callback)

    async def _supervise(self, what: str, fields: dict[str, Any]) -> None:
        run = self._started()
        try:
            await run.supervise(what, fields)
        except TransportClosed as closed:
            raise await run.failure() or closed from None
