"""AgentProcess: what users subclass.

An agent is one object that handles one message at a time. It lives in some process, which one is not its business: it
sends by name, and its mailbox outlives it. After a crash its supervisor builds a new object from the same constructor
call; `state` is then what was saved last (`checkpoint`), or empty.

    class Greeter(AgentProcess):
        async def handle(self, message):
            return self.reply({"text": f"hello {message.payload['name']}"})

Rules of this file: no loop, no mailbox, no supervision; a runner attaches the object to these. Hooks may be `async def`
or plain `def`; a plain `def handle` runs in a thread of its own, where `self.send` and `self.ask` are called without
`await`: they hand over to the loop and block the thread until the result is there.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Literal, Self, TypeVar

from .behaviours import Behaving
from .current import AGENT, HANDLED
from .errors import ErrorAction
from .events import EventHandler, StopRuntime
from .mailbox import Mailbox
from .messages import Message, _uuid7
from .petitions import Supervise
from .plugins.equipment import Equipped
from .port_bus import ASK_TIMEOUT_S, SEND_TIMEOUT_S, PortBus
from .retrying import Retry
from .sending import How, send_how
from .state import StateKind, StateStore
from .streaming import Ending, Streaming
from .suspension import Suspending, Suspension, unless_suspended
from .talking import Talking, reply_type
from .topology.model import DeliveryMode, OnCrash, Restart
from .transport import Overflow
from .typed import Payload

__all__ = ["AGENT", "HANDLED", "AgentProcess", "Attachment", "Birth", "Ending", "Mailbox", "ProcessStatus"]

T = TypeVar("T")


class ProcessStatus(Enum):
    """Where an agent is in its life."""

    INITIALIZING = "INITIALIZING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    CRASHED = "CRASHED"
    SUSPENDED = "SUSPENDED"
    """It takes no message until it is resumed."""


@dataclass(frozen=True, slots=True)
class Birth:
    """The constructor call of an agent: what a restart repeats. The arguments are kept, not copied."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a runner gives to an agent."""

    bus: PortBus
    mailbox: int
    on_event: EventHandler
    loop: asyncio.AbstractEventLoop
    loop_thread: int
    store: StateStore
    checkpoint: Callable[[bool], Coroutine[Any, Any, None]]
    supervise: Supervise
    suspension: Suspension
    at_end: Callable[[Ending], None]
    """What is to be finished when the handler that runs now has ended well."""


class AgentProcess(Equipped, Talking, Behaving, Streaming, Suspending):
    """Base class of all agents. Subclasses override `handle` and, where wanted, the other hooks."""

    process: str | None = None
    """Name of the OS process to run in; `main` is the program's own; None lets the pool place it."""
    replicas: int = 1
    """Processes that pull from this agent's mailbox; the `in_process` transport runs one."""
    overflow: Overflow = "block"
    """What its full mailbox does with one more message."""
    delivery: DeliveryMode = "at_least_once"
    """`at_most_once`: no message is handed over twice; what a death cuts off goes to the dead letters."""
    max_deliveries: int = 3
    """Deaths that are a message's doing, before it goes to the dead letters; 0 to 15, 0: it comes back for ever."""
    on_crash: OnCrash = "dead_letter"
    """What becomes of a message whose handler raised and escalated; `redeliver`: the next incarnation gets it again."""
    restart: Restart | Literal["never"] = "permanent"
    """`never` is Civitas's word for `temporary`."""
    significant: bool = False
    """Its end, if it is not restarted, may shut its supervisor down: `Supervisor(auto_shutdown=...)`."""
    capabilities: list[str] = []  # noqa: RUF012 - as Civitas declares it; nothing here changes it
    """What others may ask for by name of the thing, not of the agent (`send_capable`); the topology's word counts."""
    capability_metadata: dict[str, Any] = {}  # noqa: RUF012
    """What is known about these, for whoever looks them up."""
    state_storage: StateKind = "store"
    """Where `state` is saved: `store`, by `checkpoint()`, in what the topology's `plugins.state` names (in memory, when
    it names none); `in_memory` so too, for a restart in a living process; `shm`, at the end of every handler too, for a
    restart after the death of the process or the host; `none`, nowhere."""

    name: str
    id: str
    state: dict[str, Any]
    store: StateStore | None
    config: dict[str, Any]
    log: logging.Logger
    _birth: Birth
    _attached: Attachment | None
    _hand_over: Callable[[Coroutine[Any, Any, Any]], Any] | None
    _status: ProcessStatus
    _thread: int
    _blocked: asyncio.Task[Any] | None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        agent = super().__new__(cls)
        agent._birth = Birth(args, kwargs)
        agent._attached = None
        agent._hand_over = None
        agent._status = ProcessStatus.INITIALIZING
        agent.store = None
        agent._thread = 0
        agent._blocked = None
        return agent

    def __init__(
        self,
        name: str,
        mailbox_size: int = 1000,
        max_retries: int = 3,
        shutdown_timeout: float = 30.0,
        handle_timeout: float | None = None,
        *,
        process: str | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError(f"an agent's name must be a text that is not empty, not {name!r}")
        if mailbox_size < 1:
            raise ValueError(f"mailbox_size of {name!r} is {mailbox_size}; at least 1 message must fit")
        if max_retries < 0:
            raise ValueError(f"max_retries of {name!r} is {max_retries}; it cannot be negative")
        self.name = name
        self.id = _uuid7()
        self.mailbox_size = mailbox_size
        self.max_retries = max_retries
        self.shutdown_timeout = shutdown_timeout
        self.handle_timeout = handle_timeout
        self.state = {}
        self.config = {} if config is None else config
        self.log = logging.getLogger(f"civitas_shm.agent.{name}")
        if process is not None:
            self.process = process

    # --- hooks ----------------------------------------------------------------------------------------------------

    async def on_start(self) -> None:
        """Called once per start and restart, before the first message; `state` is restored already."""

    async def handle(self, message: Message[Any]) -> Message[Any] | None:
        """Called for each message, strictly one at a time. Returns `self.reply(...)` to answer an ask, or None.

        When it returns None for an ask, nothing is sent back: the asker waits until its deadline, or for `reply_to`.
        With an annotation (`message: Message[Order]`) it gets payloads of that type and no others, see `payload_type`.
        """
        return None

    async def on_error(self, exc: Exception, message: Message) -> ErrorAction:
        """`handle` raised: what shall be done. The default crashes the agent, so that its supervisor decides."""
        return ErrorAction.ESCALATE

    async def on_stop(self) -> None:
        """Called at the end, after a crash too. What it raises is logged and changes nothing."""

    async def on_down(self, name: str, reason: str) -> None:
        """A monitored agent has ended. `reason` begins with crashed, killed, finished, stopped, despawned or gone.

        A turn like `handle`: one at a time with it, before all messages that wait, and again when the process dies in
        the middle of it; what it raises goes to `on_error`.
        """

    async def on_child_terminated(self, name: str, reason: str) -> None:
        """An agent that this one has spawned is gone for good, and nobody has despawned it. A turn like `on_down`.

        `reason`: clean_exit, crashed (it was not to be restarted), restarts_exhausted, given_up.
        """

    # --- messaging ------------------------------------------------------------------------------------------------

    def send(
        self,
        recipient: str,
        payload: Payload,
        message_type: str = "message",
        timeout: float | None = SEND_TIMEOUT_S,
        priority: int = 0,
        ttl: float | None = None,
        delay: float | None = None,
        at: datetime | float | None = None,
        every: float | None = None,
        key: str | None = None,
        retry: Retry | None = None,
    ) -> Coroutine[Any, Any, None]:
        """Commit a message to `recipient`'s mailbox; to be awaited. It survives the death of any process from then on.

        Waits only while the mailbox is full, at most `timeout` seconds (None: for ever), then MailboxFull. An unknown
        name: MessageRoutingError; one that has stopped: AgentStopped. `priority` > 0 overtakes what is not. `retry`:
        which of these errors to try again. `ttl`: seconds after which no handler gets it any more; it is a dead letter
        then.

        `delay` (seconds), `at` (datetime, or seconds since 1970) and `every` (seconds; the first one after `delay`,
        else at `at`, else after `every`) send it later: it is committed now, and from then on survives whatever dies,
        the run too if it is resumed. Late only, never early; a ttl begins when it is due. What is missed of `every` is
        not made up for. With a `key` a newer order of this agent replaces the older, and `cancel(key)` takes it back;
        an `every` without one has `recipient/message_type`, so an agent may order it in each `on_start`. DelayedFull:
        the run keeps as many as it may.
        """
        to = self._attached or self._attachment()
        handled = HANDLED.get()
        cause = None if handled is None else handled._header
        if (
            ttl is not None or delay is not None or at is not None or every is not None or retry is not None
            or key is not None
        ):  # fmt: skip
            how = How(ttl, delay, at, every, key, retry)
            return self._awaited(
                send_how(to.bus, how, recipient, payload, message_type, timeout, priority, to.mailbox, cause)
            )
        if self._hand_over is None:
            return to.bus.post(recipient, payload, message_type, timeout, priority, to.mailbox, cause)
        return self._awaited(to.bus.send(recipient, payload, message_type, timeout, priority, to.mailbox, cause))

    def ask(
        self,
        recipient: str,
        payload: Payload,
        message_type: str = "message",
        timeout: float | None = ASK_TIMEOUT_S,
        priority: int = 0,
        retry: Retry | None = None,
        fail_if_suspended: bool = False,
    ) -> Coroutine[Any, Any, Message]:
        """Send a question and give back the reply; to be awaited.

        `timeout` covers everything, the wait for room included: builtin TimeoutError; None or <= 0 waits for ever. When
        the other handler raises: AgentError at once. When its process dies, the question waits for its successor.
        `retry`: which of these errors to try again; `timeout` is then that of each attempt. A suspended agent answers
        when it is resumed; `fail_if_suspended`: AgentSuspendedError instead, if it is suspended now.
        """
        to = self._attached or self._attachment()
        handled = HANDLED.get()
        cause = None if handled is None else handled._header
        if retry is None:
            work = to.bus.ask(recipient, payload, message_type, timeout, priority, to.mailbox, cause, self.name)
        else:
            work = to.bus.ask_with(
                retry, recipient, payload, message_type, timeout, priority, to.mailbox, cause, self.name
            )
        if fail_if_suspended:
            work = unless_suspended(to.bus, recipient, work)
        return work if self._hand_over is None else self._hand_over(work)

    def broadcast(
        self,
        pattern: str,
        payload: Payload,
        message_type: str = "message",
        *,
        timeout: float | None = SEND_TIMEOUT_S,
    ) -> Coroutine[Any, Any, None]:
        """Send to every agent whose name matches the `fnmatch` pattern, the sender included; to be awaited.

        Names that start with `_` are left out. All are tried; what failed is raised together as an ExceptionGroup.
        """
        to = self._attachment()
        handled = HANDLED.get()
        cause = None if handled is None else handled.header
        return self._awaited(
            to.bus.broadcast(pattern, payload, message_type, sender=to.mailbox, cause=cause, timeout=timeout)
        )

    def reply(self, payload: Payload) -> Message:
        """The answer to the message in hand, to be returned from `handle`; its type is `payload["type"]` or `reply`."""
        handled = HANDLED.get()
        if handled is None:
            raise RuntimeError("reply() works only inside of handle(): there is no message to answer")
        return Message.answering(handled, self.name, payload, reply_type(payload))

    def checkpoint(self, *, now: bool = False) -> Coroutine[Any, Any, None]:
        """Save `state`, so that a new incarnation begins with it; to be awaited. What it may be: what can be sent
        (`state: shm`, and the stores that come with this package), or what can be copied (`in_memory`). With
        `state: none` it does nothing.

        Inside a handler it takes effect at the handler's end, as the effect of the message: none of the two is ever
        found without the other. `now=True` saves at once; the message then counts as *not yet* handled, and if the
        process dies before the handler's end it is handled again upon that state, which must tell how far it came.
        Elsewhere (`on_start`, `on_stop`) it saves at once; after a crash only with `now=True`, because the state may
        be half changed.
        """
        return self._awaited(self._attachment().checkpoint(now))

    def stop_runtime(self, exit_code: int = 0) -> Coroutine[Any, Any, None]:
        """End the whole run in good order with this exit code; to be awaited. Returns at once; the handler goes on."""
        to = self._attachment()
        return self._awaited(_report(to.on_event, StopRuntime(self.name, exit_code)))

    # --- other agents' lives ----------------------------------------------------------------------------------------

    def spawn(
        self,
        agent_class: type[AgentProcess],
        name: str,
        config: dict[str, Any] | None = None,
        *,
        wait: bool = True,
        process: str | None = None,
        restart: str | None = None,
        kwargs: dict[str, Any] | None = None,
        mailbox_size: int = 1000,
    ) -> Coroutine[Any, Any, str]:
        """Start `agent_class(name, **kwargs)` below the nearest dynamic supervisor; to be awaited, gives the name.

        The nearest one: this agent's own, else a sibling, else an ancestor's sibling. `wait`: until the new agent's
        `on_start` has returned. SpawnError says what stands in the way: a quota, the name, the class, its start.
        """
        return self.spawn_into(
            "", agent_class, name, config, wait=wait, process=process, restart=restart, kwargs=kwargs,
            mailbox_size=mailbox_size,
        )  # fmt: skip

    def spawn_nowait(
        self, agent_class: type[AgentProcess], name: str, config: dict[str, Any] | None = None
    ) -> Coroutine[Any, Any, str]:
        """As `spawn`, but only until it is accepted; to be awaited. The agent can be sent to from then on."""
        return self.spawn(agent_class, name, config, wait=False)

    def spawn_into(
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
    ) -> Coroutine[Any, Any, str]:
        """As `spawn`, below the dynamic supervisor of that name; to be awaited."""
        from .spawning import spawn_fields  # what it needs, needs this module

        async def spawn() -> str:
            fields = spawn_fields(
                agent_class, name, config, supervisor=supervisor_name or None, wait=wait, process=process,
                restart=restart, kwargs=kwargs, mailbox_size=mailbox_size,
            )  # fmt: skip
            await self._attachment().supervise(self.name, "spawn", fields)
            return name

        return self._awaited(spawn())

    def despawn(self, name: str) -> Coroutine[Any, Any, None]:
        """End a spawned agent for good; to be awaited: then it is gone, and what waited for it is a dead letter.

        It finishes the message in hand first. An agent that despawns itself goes on until its handler has returned.
        """
        return self._supervise("despawn", {"name": name})

    def stop(
        self, name: str, drain: Literal["current", "all"] = "current", timeout: float = 30.0
    ) -> Coroutine[Any, Any, None]:
        """As `despawn`; with `drain="all"` it handles all that waits first. `timeout`: then it is cut off."""
        return self._supervise("despawn", {"name": name, "drain": drain, "timeout_s": timeout})

    def monitor(self, name: str) -> Coroutine[Any, Any, None]:
        """Be told of every end of that agent by `on_down`; to be awaited. It holds over restarts of both sides.

        Until `demonitor`, or until one of the two is gone for good. MessageRoutingError: there is no such agent.
        """
        return self._supervise("monitor", {"name": name})

    def demonitor(self, name: str) -> Coroutine[Any, Any, None]:
        """Take a monitor back; to be awaited. News that is under way already still comes."""
        return self._supervise("demonitor", {"name": name})

    def link(self, name: str) -> Coroutine[Any, Any, None]:
        """Fall together: when one of the two crashes, so does the other, unless it monitors the first; to be awaited.

        Between the two as they live now: who is started again links again. AgentStopped: the other does not run now.
        """
        return self._supervise("link", {"name": name})

    def unlink(self, name: str) -> Coroutine[Any, Any, None]:
        """Take a link back; to be awaited."""
        return self._supervise("unlink", {"name": name})

    def _supervise(self, what: str, fields: dict[str, Any]) -> Coroutine[Any, Any, None]:
        return self._awaited(self._attachment().supervise(self.name, what, fields))

    @property
    def status(self) -> ProcessStatus:
        """Where the agent is in its life, as the process that runs it knows."""
        return self._status

    # --- for runners ----------------------------------------------------------------------------------------------

    @property
    def birth(self) -> Birth:
        """The constructor call."""
        return self._birth

    def reborn(self) -> AgentProcess:
        """A new object from the same constructor call, with the same placement and config."""
        agent = type(self)(*self._birth.args, **self._birth.kwargs)
        agent.config = self.config
        agent.process = self.process
        return agent

    def attach(self, attachment: Attachment) -> None:
        """Give the agent its bus and mailbox. From here on it can send."""
        self._attached = attachment
        self._session_begins(attachment)
        self.store = attachment.store
        if not inspect.iscoroutinefunction(self.handle):
            self._hand_over = self._block

    def _life_ends(self) -> None:
        """No handler runs any more; `on_stop` follows. For our own subclasses."""

    def _block(self, work: Coroutine[Any, Any, Any]) -> Any:
        """In the thread of a plain `def handle`: the result of `work`. On the loop (other hooks): `work` itself."""
        to = self._attachment()
        if threading.get_ident() == to.loop_thread:
            return work
        if threading.get_ident() == self._thread:
            work = self._noted(work)
        return asyncio.run_coroutine_threadsafe(work, to.loop).result()

    async def _noted(self, work: Coroutine[Any, Any, Any]) -> Any:
        """`work`, for which the thread of a plain `def handle` is blocked: what the handler itself waits for."""
        self._blocked = asyncio.current_task()
        try:
            return await work
        finally:
            self._blocked = None

    def __repr__(self) -> str:
        return f"<{type(self).__qualname__} {getattr(self, 'name', '?')!r} {self._status.value}>"


async def _report(on_event: EventHandler, event: StopRuntime) -> None:
    on_event(event)
