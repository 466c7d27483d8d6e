"""Suspended agents: they take no message until somebody resumes them, whatever dies meanwhile.

    await self.suspend_for_approval("pay 10,000 EUR")     # in a handler: after it, no further message is taken
    await runtime.resume("payer", approver="ada")         # a person has said yes: `on_resume("ada")`, then messages

Guarantees:
- it begins at the end of the message in hand: that one is finished, its answer sent, and nothing after it is taken;
  what is sent to the agent meanwhile is committed and waits in its mailbox, in order;
- a handler that fails after it asked for it changes nothing: where its message is given up (`ESCALATE`, dead letters)
  the next life is suspended, where it comes again (`on_crash: redeliver`, a death) it is the message that asks again;
- the marker is stored before the message is let go, with the identity of that message (with a state that outlives the
  process it is a part of it, else a record of its own in shared memory): after the death of the process or the host the
  agent is suspended exactly if the message counts as handled;
- who resumes has a name, always. `on_resume` runs before the marker goes: if it fails, or its process dies in it, the
  agent is still suspended; with `state: shm` what it did to the state and the end of the suspension are one commit.

`on_suspend` and `on_resume` are called for a change, not when a restarted agent is found suspended. A suspension ends
with its run, unless the run is kept (`run --resume`) for messages that wait.

Rules of this file: three parts, of the agent (`Suspending`: the user's words), of its seat (`Pausing`: when it stops
to take messages), and between them `Suspension`, the marker and where it is kept. Nothing here is on the hot path: the
seat looks at flags that it has anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

from .errors import AgentStopped, AgentSuspendedError, ConfigurationError, DeserializationError, TransportClosed
from .events import AgentEvent, AgentResumed, AgentSuspended
from .messages import ID_AT, Message
from .serializer import decode_dict, encode
from .tracebacks import format_exception
from .transport import NO_MESSAGE, SAME_MESSAGE

if TYPE_CHECKING:
    from .port_bus import PortBus
    from .process import AgentProcess, Attachment
    from .state import StateKeeper, StateKind
    from .streaming import Ending
    from .topology.model import AgentSpec, Drain
    from .transport import Port
    from .user_code import UserCode

__all__ = ["APPROVAL", "KEY", "MANUAL", "Pausing", "Suspending", "Suspension", "unless_suspended"]

KEY: Final = "_civitas.suspended"
"""In `state`: {reason, category, since}."""

APPROVAL: Final = "approval"
"""Category: a person has to say yes."""
MANUAL: Final = "manual"


async def unless_suspended(bus: PortBus, name: str, ask: Coroutine[Any, Any, Message]) -> Message:
    """The answer to `ask`; AgentSuspendedError if that agent is suspended now, in whatever process it lives."""
    try:
        mailbox = bus.port.resolve(name)
        since_s = bus.port.stats(mailbox).suspended_since_s if mailbox >= 0 else 0.0  # else the ask says so
        if since_s:
            raise AgentSuspendedError(name, max(0.0, time.time() - since_s))
    except BaseException:
        ask.close()
        raise
    return await ask


class Suspending:
    """A part of AgentProcess."""

    _attached: Attachment | None

    if TYPE_CHECKING:

        def _attachment(self) -> Attachment: ...
        def _awaited(self, work: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]: ...

    @property
    def suspend_category(self) -> str | None:
        """Why the agent is suspended: `approval`, `manual`, or what was given to `suspend`; None: it is not."""
        marker = None if self._attached is None else self._attached.suspension.marker
        return None if marker is None else str(marker["category"])

    def suspend(self, reason: str = "", category: str = MANUAL) -> Coroutine[Any, Any, None]:
        """Take no more messages after the one in hand, until `resume`; to be awaited. Returns at once in a handler.

        It survives the death of the process and of the host. When the agent is suspended already, the reason is
        replaced. ConfigurationError: it has replicas.
        """
        return self._awaited(self._attachment().suspension.suspend(reason, category))

    def suspend_for_approval(self, reason: str) -> Coroutine[Any, Any, None]:
        """`suspend`, until a person has approved what `reason` says; to be awaited."""
        return self.suspend(reason, APPROVAL)

    def resume(self, approver: str) -> Coroutine[Any, Any, None]:
        """Take messages again; to be awaited. From a task of its own: the handlers of a suspended agent do not run.

        `approver` names who says so: ValueError when it is empty. Nothing happens when the agent is not suspended. What
        `on_resume` raises is raised here, and then it stays suspended.
        """
        return self._awaited(self._attachment().suspension.resume(approver))

    async def on_suspend(self, reason: str) -> None:
        """The agent has just been suspended. What it raises is logged and changes nothing."""

    async def on_resume(self, approver: str) -> None:
        """Somebody resumes the agent; called before the next message. If it raises, the agent stays suspended."""


class Suspension:
    """Of one agent. All methods run on the loop."""

    def __init__(self, seat: Pausing, kept: StateKind) -> None:
        self._seat = seat
        self._agent = seat.agent
        self.in_state = kept in ("shm", "store")
        """The state outlives the process, and the marker with it."""
        self._turn = asyncio.Lock()
        self._effect: asyncio.Future[None] | None = None
        """Done when what is wanted is in effect, or the agent has ended."""
        self._wanted: dict[str, Any] | None = None
        """It is to begin at the end of the message in hand."""
        self.marker: dict[str, Any] | None = None
        """While it is in effect."""

    @property
    def wanted(self) -> bool:
        return self._wanted is not None

    # --- beginning ------------------------------------------------------------------------------------------------

    async def suspend(self, reason: str, category: str) -> None:
        """Returns when it is in effect; called by the agent's own handler, at once. AgentStopped: it ended before."""
        seat = self._seat
        if seat.spec.replicas > 1:
            raise ConfigurationError(
                f"{self._agent.name!r} has {seat.spec.replicas} replicas and cannot be suspended: each would have to "
                "be told at once. Run one of it, or do not send to it."
            )
        marker = {"reason": str(reason), "category": str(category), "since": time.time()}
        if self.marker is not None:
            await self._commit({**marker, "since": self.marker["since"]})
            return
        self._wanted = marker
        if seat.runs:
            seat._flag()
            if seat.calls_itself():
                return
        while self._wanted is not None and not seat._ended:
            if not seat.runs:  # it may have looked for a message and found none
                await self.begin()
                await self.began()
                return
            if self._effect is None or self._effect.done():
                self._effect = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._effect, *seat.rests()], return_when=asyncio.FIRST_COMPLETED)
        if self.marker is None and seat._ended:
            raise AgentStopped(f"Agent {self._agent.name!r} ended before it could be suspended.")

    async def begin(self, token: int = SAME_MESSAGE, message: Message | None = None) -> None:
        """At the end of the message in hand, or between two: nothing after it is taken. Stores the marker."""
        marker, self._wanted = self._wanted, None
        assert marker is not None
        self._seat._deaf = True  # before all: not to act any more is what is wanted
        await self._commit(marker, token, message)

    async def begin_failed(self) -> None:
        """The handler that wanted it has crashed the agent, and its message is about to be given up: the next life is
        found suspended, without what the handler made of the state. `on_suspend` is called in the life that ends."""
        marker, self._wanted = self._wanted, None
        if marker is None:
            return
        try:
            await self._seat._keeper.amend({KEY: marker})
        except TransportClosed:
            raise
        except Exception as error:  # noqa: BLE001 - of the user's store, or no memory: the crash goes on either way
            self._agent.log.warning("the suspension that its failed handler wanted is lost: %s", error)
            return
        self.marker = marker
        self._note()
        self._tell(marker)
        await self._seat.hook(lambda: self._agent.on_suspend(marker["reason"]), "on_suspend")

    async def began(self) -> None:
        """The message in hand has been let go."""
        marker = self.marker
        if marker is None:
            return
        self._seat.deaf(True)
        self._tell(marker)
        async with self._alone():
            await self._seat.hook(lambda: self._agent.on_suspend(marker["reason"]), "on_suspend")

    def _tell(self, marker: dict[str, Any]) -> None:
        self._seat._report(AgentSuspended(self._agent.name, marker["reason"], marker["category"]))
        if self._effect is not None and not self._effect.done():
            self._effect.set_result(None)

    # --- end ------------------------------------------------------------------------------------------------------

    async def resume(self, approver: str) -> None:
        """Returns when messages are taken again. Raises what `on_resume` raises."""
        if not isinstance(approver, str) or not approver.strip():
            raise ValueError(f"resume of {self._agent.name!r} needs the name of who approves it; it is {approver!r}")
        async with self._alone():
            self._wanted = None
            if self.marker is None or self._seat._ended:
                return
            failure = await self._seat.hook(lambda: self._agent.on_resume(approver), "on_resume")
            if failure is not None:
                raise failure
            if self._seat._ended:
                return
            await self._commit(None)
            self._seat._report(AgentResumed(self._agent.name, approver))
            self._seat.deaf(False)

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """One change at a time; but a hook may call for the next one."""
        if self._seat.calls_itself():
            yield
            return
        async with self._turn:
            yield

    def close(self) -> None:
        """The agent ends."""
        if self._effect is not None and not self._effect.done():
            self._effect.set_result(None)

    # --- where it is kept -----------------------------------------------------------------------------------------

    async def _commit(
        self, marker: dict[str, Any] | None, token: int = SAME_MESSAGE, message: Message | None = None
    ) -> None:
        """Store it, with the identity of the message in hand. A suspension that cannot be stored holds all the same, as
        long as the process lives; the end of one that cannot be is none."""
        state, keeper = self._agent.state, self._seat._keeper
        before = state.pop(KEY, None)
        if marker is not None:
            state[KEY] = marker
        try:
            if not self.in_state:
                await keeper.commit_apart(encode({} if marker is None else {KEY: marker}, "state"), token)
            elif message is not None and message.header is not None:
                await keeper.handler_ended(token, message.header[ID_AT])
            else:
                await keeper.checkpoint(True, False)
        except TransportClosed:
            raise
        except Exception as error:
            if marker is None:
                state[KEY] = before
                raise
            self._agent.log.warning("the suspension is not stored, and ends with this process: %s", error)
        self.marker = marker
        self._note()

    def _note(self) -> None:
        since_ns = 0 if self.marker is None else int(float(self.marker["since"]) * 1e9)
        self._seat._port.note_suspended(self._seat.mailbox, since_ns)

    def restore(self) -> None:
        """Before `on_start`, after the state was restored."""
        state, seat = self._agent.state, self._seat
        if not self.in_state and seat.spec.replicas == 1:
            state.pop(KEY, None)  # of an earlier suspension, saved with the state since
            stored = seat._port.stored_state(seat.mailbox)
            with contextlib.suppress(DeserializationError):
                if stored is not None:
                    seat._keeper.committed_id = stored[1]  # the message at whose end the last one began is handled
                    if (marker := decode_dict(stored[0]).get(KEY)) is not None:
                        state[KEY] = marker
        marker = state.get(KEY)
        self.marker = marker if isinstance(marker, dict) and marker.keys() >= {"reason", "category", "since"} else None
        self._note()


class Pausing:
    """A part of Seat: what begins or ends between two messages, because the code of the agent wants it or a person."""

    agent: AgentProcess
    mailbox: int
    spec: AgentSpec
    _code: UserCode
    _context: Context
    _deaf: bool
    """Takes no messages, whoever says that there are some."""
    _draining: Drain | None
    _ended: bool
    _ending: Ending | None
    _flagged: bool
    """The hot loop looks at one flag at the end of a handler, `keeper.due`: it is up for something beside the state."""
    _keeper: StateKeeper
    _loop: asyncio.AbstractEventLoop
    _port: Port
    _quiet: asyncio.Future[None] | None
    _save: bool
    _suspension: Suspension
    _task: asyncio.Task[Any] | None
    _busy: bool

    if TYPE_CHECKING:

        @property
        def runs(self) -> bool: ...
        def _on_ready(self) -> None: ...
        def _report(self, event: AgentEvent) -> None: ...

    # --- what a handler has begun and ends with it ----------------------------------------------------------------

    def _at_end(self, ending: Ending) -> None:
        """`AgentProcess` has begun something."""
        self._ending = ending
        self._flag()

    def _flag(self) -> None:
        if not self._flagged:
            self._flagged, self._save = True, self._keeper.due
        self._keeper.due = True

    async def _end_begun(self) -> bool:
        """The handler has returned: finish what it has begun. Whether it wants its state saved, too."""
        if not self._flagged:
            return True
        self._flagged = False
        if (ending := self._ending) is not None:
            self._ending = None
            await ending.finish()
        return self._save

    # --- suspended ------------------------------------------------------------------------------------------------

    @property
    def suspended(self) -> bool:
        return self._deaf

    async def steer(self, what: str, fields: dict[str, Any]) -> None:
        """`suspend` or `resume`, ordered by somebody else."""
        if what == "suspend":
            await self._suspension.suspend(str(fields.get("reason", "")), str(fields.get("category") or MANUAL))
        else:
            await self._suspension.resume(str(fields.get("approver", "")))

    def calls_itself(self) -> bool:
        """Whether the code that runs now is the agent's own handler or hook: it cannot wait for its own end."""
        current = asyncio.current_task()
        own = (self.agent._blocked, self._task if self._busy else None, self._code.hook_task)
        return current is not None and current in own

    async def _first_message(self) -> None:
        """It has started: take messages, unless it is suspended, or its `on_start` has said so."""
        if self._suspension.marker is not None:
            self.deaf(True)
        elif self._suspension.wanted:
            await self._suspension.begin()
            await self._suspension.began()
        else:
            self._listen()

    def _listen(self) -> None:
        self._port.listen(self.mailbox, self._on_ready)
        self._keeper.listening()
        self._on_ready()  # a batch may have left one in hand that nothing in the mailbox speaks of

    async def _suspend_at(self, token: int = SAME_MESSAGE, message: Message | None = None) -> None:
        """At the end of a handler, before its message is let go. None: there are several."""
        await self._suspension.begin(token, message)
        self._loop.create_task(self._suspended(), context=self._context)
        self._draining = "current"  # the last thing: from here to the release nothing is awaited

    async def _ended_with_news(self, token: int) -> None:
        """A turn for news of the runtime has ended, and nothing after it is taken."""
        if self._suspension.wanted:
            await self._suspension.begin(NO_MESSAGE)
            self._loop.create_task(self._suspended(), context=self._context)
        self._port.release(self.mailbox, token)

    async def _suspended(self) -> None:
        """Behind the handler at whose end the suspension began."""
        while self._busy:
            await asyncio.sleep(0)
        if not self._ended:
            if self.agent._status.value != "STOPPING":
                self._draining = None
            await self._suspension.began()

    def deaf(self, on: bool) -> None:
        """Take no more messages, or take them again."""
        from .process import ProcessStatus  # which needs this module

        self._deaf = on
        if self._ended or self.agent._status is ProcessStatus.STOPPING:
            return
        self.agent._status = ProcessStatus.SUSPENDED if on else ProcessStatus.RUNNING
        if on:
            self._port.unlisten(self.mailbox, comes_back=True)
        else:
            self._listen()

    def rests(self) -> list[asyncio.Future[None]]:
        """Done when no handler runs any more; nothing while none does."""
        if not self._busy:
            return []
        if self._quiet is None or self._quiet.done():
            self._quiet = self._loop.create_future()
        return [self._quiet]

    async def hook(self, hook: Callable[[], Any], name: str) -> BaseException | None:
        """Run a hook; what it raised, which is logged."""
        failure = await self._code.run_hook(hook, self.agent.shutdown_timeout)
        if failure is not None:
            self.agent.log.error("%s failed:\n%s", name, format_exception(failure))
        return failure
