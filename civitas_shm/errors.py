"""Every error that civitas_shm raises on purpose, in one tree.

Rules of this file:
- a class says *who must act* (the topology's author, the sender, the operator, nobody: try later), not which module
  failed;
- its first docstring line is the sentence of `docs/errors.md`; the second paragraph names the way out;
- numbers go into the text *and* into attributes: what, where, limit, value;
- `exit_code` is what `python -m civitas_shm` ends with when the error reaches the command line;
- where a builtin exception says it already (TimeoutError of an ask, ValueError of a bad argument), it is raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

__all__ = [
    "AgentError",
    "AgentImportError",
    "AgentRestarted",
    "AgentStopped",
    "AgentSuspendedError",
    "ArenaFull",
    "CapabilityNotFoundError",
    "CivitasError",
    "ConfigurationError",
    "DeadlockError",
    "DelayedFull",
    "DeserializationError",
    "ErrorAction",
    "LinkedAgentDown",
    "MailboxFull",
    "MessageDropped",
    "MessageRoutingError",
    "MessageValidationError",
    "ModelError",
    "ModelUnavailable",
    "PayloadTooLarge",
    "PluginError",
    "RunAlive",
    "RunFailed",
    "RunHasMessages",
    "RunNotAnswering",
    "RunNotFound",
    "SharedMemoryFull",
    "SlowConsumerError",
    "SpawnError",
    "StateConflict",
    "StateDecryptionError",
    "StateMigrationRefused",
    "StateStoreUnavailable",
    "StateTooLarge",
    "StreamError",
    "StreamInterrupted",
    "StreamTimeout",
    "TooManyClients",
    "TopologyError",
    "TransientError",
    "TransportClosed",
    "TransportUnavailable",
]


class ErrorAction(Enum):
    """What `on_error` wants done about the exception that `handle` raised."""

    RETRY = "RETRY"
    """Run `handle` again on the same message, in place, up to `max_retries` times; then as ESCALATE."""
    SKIP = "SKIP"
    """Release the message and go on; an asker gets AgentError."""
    ESCALATE = "ESCALATE"
    """Crash the agent: its supervisor decides. The message goes to the dead letters; an asker gets AgentError."""
    STOP = "STOP"
    """End the agent normally; it is not restarted."""


class CivitasError(Exception):
    """Base of all errors of civitas_shm."""

    exit_code = 1


# --- the topology or the program is wrong: mend it and start again ---------------------------------------------


class ConfigurationError(CivitasError):
    """A setting is missing, unknown or impossible; the text says which, where, and what is allowed."""

    exit_code = 3


class TopologyError(ConfigurationError):
    """The topology file is invalid; `problems` holds every error with file, line and column.

    Way out: correct the places named; an unknown key comes with a suggestion.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class AgentImportError(ConfigurationError):
    """An agent class cannot be imported or built where it should run.

    Way out: give the class an import path that the worker can import (`package.module.Class`), or run in process.
    """

    exit_code = 4


class PluginError(ConfigurationError):
    """A plug-in cannot be had: it is unknown, a package is missing, or its class does not fit.

    Way out: what the text says, for example `pip install "civitas-shm[anthropic]"`.
    """

    exit_code = 4

    def __init__(self, plugin_type: str, name: str, reason: str) -> None:
        self.plugin_type = plugin_type
        self.name = name
        self.reason = reason
        super().__init__(f"{plugin_type} plug-in {name!r}: {reason}")


class TransportUnavailable(CivitasError):
    """This machine cannot provide the transport that was asked for; the text has the line to paste.

    Way out: what the text says, or the same topology with `--transport in_process`.
    """

    exit_code = 5


class SpawnError(CivitasError):
    """A process or an agent could not be started."""


class StateDecryptionError(CivitasError):
    """A stored state cannot be decrypted: its key is not among the given ones, or it was changed or swapped.

    `agent` and `key_id` say which. Way out: give the key that it names, or `state clear AGENT` to begin anew.
    """

    def __init__(self, agent: str, key_id: str, reason: str) -> None:
        self.agent = agent
        self.key_id = key_id
        super().__init__(f"The state of {agent!r} cannot be decrypted: {reason}.")


class StateMigrationRefused(CivitasError):
    """States were not copied from one store to another; both are as they were.

    Way out: what the text says: stop the run that uses one of them, or say that what is there may be replaced.
    """


class StateConflict(CivitasError):
    """Somebody else has changed or removed the agent's stored state since this process read it; nothing was saved.

    Another run with an agent of that name uses the same store, or an operator has cleared it. The agent is started
    again with what is stored now. Way out: a store, a file or a prefix of its own for each run.
    """

    def __init__(self, agent: str, where: str) -> None:
        self.agent = agent
        super().__init__(
            f"The state of {agent!r} in {where} was changed or removed by somebody else since this process has read "
            "it. Give each run a store of its own; nothing was saved."
        )


class AgentRestarted(CivitasError):
    """Somebody wants this agent to be restarted (`Runtime.restart_agent`), so this life of it ends.

    Way out: none is needed, nothing has failed. A new object gets the message that was in hand, and goes on.
    """


class LinkedAgentDown(CivitasError):
    """An agent that this one is linked with has crashed, so this one ends as if it had crashed itself.

    Way out: monitor the agent too (`self.monitor(name)`), and `on_down` is called instead.
    """


# --- the run of that name ---------------------------------------------------------------------------------------


class RunAlive(CivitasError):
    """A run of that name is alive in another process.

    Way out: another `--name`, or stop the other run.
    """

    exit_code = 6


class RunHasMessages(CivitasError):
    """A dead run of that name left committed messages; they are never dropped without being told to.

    Way out: `--resume` goes on with them, `--fresh` drops them.
    """

    exit_code = 6


class RunNotFound(CivitasError):
    """There is no run of that name, or several when none was named.

    Way out: `civitas-shm ps --all` lists what there is.
    """

    exit_code = 7


class RunNotAnswering(CivitasError):
    """The host of a run does not answer on its control socket, or refused the request; the text says which, and why.

    Way out: what the text says. A stopped host (SIGSTOP) goes on with SIGCONT; `stop --now` ends one that hangs.
    """

    exit_code = 8


class TooManyClients(CivitasError):
    """A run has as many connections of clients as it may have; the text says who has most of them.

    Way out: one client for a whole process, closed when it is not used any more; not one for each request.
    """

    exit_code = 8


class RunFailed(CivitasError):
    """Supervision gave up: a restart budget is exhausted, or the host process died.

    The text is the report: process or agent, cause, the message in hand, the last lines of its stderr.
    """

    exit_code = 1


# --- a send or an ask failed: nothing was committed ----------------------------------------------------------------


class CapabilityNotFoundError(CivitasError):
    """No agent of this run has the capability that a message was sent to.

    Way out: declare it (`capabilities` of a class or of an agent in the topology), or start an agent that has it.
    """

    def __init__(self, capability: str) -> None:
        self.capability = capability
        super().__init__(f"No agent of this run has the capability {capability!r}.")


class MessageValidationError(CivitasError, ValueError):
    """A message is not allowed or cannot be encoded; the text has the path of the field. A ValueError too."""


class PayloadTooLarge(MessageValidationError):
    """An encoded payload is larger than the memory that this process may use for one message."""

    def __init__(self, size_bytes: int, limit_bytes: int, text: str = "") -> None:
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        super().__init__(
            text
            or f"The payload takes {size_bytes:,} bytes; one message may take at most {limit_bytes:,} "
            "(half of the sender's arena). Raise transport.arena_mb in the topology, or send it in parts."
        )


class StateTooLarge(PayloadTooLarge):
    """The state of an agent with `state: shm` is larger than the memory that one state may take.

    Way out: a larger `transport.arena_mb`; or keep less in `self.state`, and what is large elsewhere.
    """

    def __init__(self, agent: str, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            size_bytes,
            limit_bytes,
            f"The state of {agent!r} takes {size_bytes:,} bytes; a state may take at most {limit_bytes:,} (a quarter "
            "of what its process's arena gives to messages, because old and new are there at once). Raise "
            "transport.arena_mb in the topology, or keep less in self.state.",
        )


class MessageRoutingError(CivitasError):
    """No agent of that name exists in this run.

    Way out: the text lists the names that come close.
    """


class AgentStopped(MessageRoutingError):
    """The agent existed but has stopped, or its supervisor gave it up; nothing reads its mailbox any more."""


class MailboxFull(CivitasError, TimeoutError):
    """The receiver's mailbox had no room until the deadline; the message was not committed.

    A TimeoutError too, because an ask whose deadline passes in front of a full mailbox is an ask that timed out.
    `name`, `capacity` and `holder` say whose, how large, and who is handling what for how long.
    """

    def __init__(self, name: str, capacity: int, waited_s: float, holder: str = "") -> None:
        self.name = name
        self.capacity = capacity
        self.waited_s = waited_s
        self.holder = holder
        super().__init__(
            f"The mailbox of {name!r} holds {capacity} messages and had no room for {waited_s:.3g} s"
            + (f"; {holder}." if holder else ".")
        )


class DelayedFull(MailboxFull):
    """The run keeps as many delayed messages as it may, and orders of more have no room; nothing was committed.

    Way out: cancel what is not needed (`self.cancel(key)`), send with a `key` so that a newer one replaces the older,
    or wait until some are due.
    """

    def __init__(self, capacity: int, waited_s: float) -> None:
        super().__init__("_delays", capacity, waited_s, "the run keeps as many delayed messages as it may")


class DeadlockError(CivitasError):
    """Agents wait for one another in a circle, and this ask or send was the last to close it; `cycle` names them all.

    Way out: send instead of ask in one of these places, answer before asking back, or ask from a task of its own.
    """

    def __init__(self, cycle: Sequence[tuple[str, str, str, str, float]]) -> None:
        self.cycle = list(cycle)
        """Who, waits for whom, for what (`ask` or `room`), the message's type, for how many seconds so far."""
        super().__init__(
            f"{'; '.join(map(_waits, self.cycle))}: "
            + ("it waits for itself." if len(self.cycle) == 1 else "nobody of them can go on.")
        )


def _waits(wait: tuple[str, str, str, str, float]) -> str:
    who, target, kind, message_type, for_s = wait
    what = f"the answer of {target!r} to" if kind == "ask" else f"room in the full mailbox of {target!r} for"
    for_long = f" for {for_s:.3g} s" if for_s else ""
    return f"{who!r} waits{for_long} for {what} {message_type!r}"


class SharedMemoryFull(CivitasError):
    """Shared memory cannot grow; the text says how much there is, how much is wanted and what holds it.

    Way out: a larger /dev/shm (`docker run --shm-size=1g`; Kubernetes: an emptyDir with medium Memory at /dev/shm).
    """

    exit_code = 5


class ArenaFull(SharedMemoryFull, TimeoutError):
    """The sender's own memory had no room until the deadline; nothing was committed. The text says who holds it.

    A TimeoutError too, as MailboxFull. `limit_bytes` is what all messages of the sender's process may take, `held` the
    receivers that have most of it, with bytes; `refusal`, if not empty, why the kernel gave less (a full /dev/shm).
    Way out: a larger `transport.arena_mb`, or a larger /dev/shm; receivers that keep up.
    """

    def __init__(
        self, name: str, waited_s: float, limit_bytes: int, held: Sequence[tuple[str, int]], refusal: str = ""
    ) -> None:
        self.name = name
        self.waited_s = waited_s
        self.limit_bytes = limit_bytes
        self.held = list(held)
        self.refusal = refusal
        holders = ", ".join(f"{agent} {_size(size)}" for agent, size in self.held) or "nobody"
        hold = f"{holders} hold{'s' if len(self.held) < 2 else ''} what has not been handled"
        if refusal:
            why = f"{refusal} Or let the receivers keep up: {hold}."
        else:
            why = (
                f"of the {_size(limit_bytes)} that all messages of this process may take (transport.arena_mb; one "
                f"receiver half of it), {hold}. Raise arena_mb, or let them keep up."
            )
        super().__init__(f"The message to {name!r} found no memory for {waited_s:.3g} s: {why}")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB" if size_bytes >= 1 << 19 else f"{size_bytes / 1024:.1f} KiB"


class TransportClosed(CivitasError):
    """This process has left the run (it has ended, or this is a forked child): nothing can be sent or received.

    The text says what became of the run, and how to go on with what waits (`run --resume`). `Runtime.ask` raises
    RunFailed instead when the run has failed.
    """


class TransientError(CivitasError):
    """For users' own code: an error that is worth a RETRY."""


class StateStoreUnavailable(TransientError):
    """The store of states could not be reached, or could not do its work, for as long as it is given.

    The message whose handler wanted to save stays in hand and is handled again by the agent's next incarnation. Way
    out: what the text says; the run goes on when the store does.
    """


class MessageDropped(CivitasError):
    """A question waited in a full mailbox that makes room by dropping, and was dropped for newer messages.

    `name`, `capacity` and `overflow` say whose, how large, and by which policy; `dropped` how many messages it has
    dropped so far. Nobody has handled the question. Way out: ask less at once, raise `mailbox_size`, or use
    `overflow: block` for an agent that is asked.
    """

    def __init__(self, name: str, message_type: str, overflow: str, capacity: int, dropped: int) -> None:
        self.name = name
        self.overflow = overflow
        self.capacity = capacity
        self.dropped = dropped
        super().__init__(
            f"{name!r} keeps {capacity} waiting message{'' if capacity == 1 else 's'} and drops others for newer ones "
            f"(overflow: {overflow}); this question, {message_type!r}, was one of {dropped:,} that it has dropped. "
            "Ask less at once, raise mailbox_size, or use overflow: block."
        )


# --- the other side ------------------------------------------------------------------------------------------------


class AgentError(CivitasError):
    """The agent that was asked raised and did not retry; carries the remote type, text and traceback."""

    def __init__(self, agent: str, type_name: str, text: str, remote_traceback: str = "") -> None:
        self.agent = agent
        self.type_name = type_name
        self.text = text
        self.remote_traceback = remote_traceback
        super().__init__(f"{agent!r} raised {type_name}: {text}")


class AgentSuspendedError(CivitasError):
    """The agent that was to be asked is suspended, and the asker did not want to wait until it is resumed.

    Way out: `Runtime.resume` or `civitas-shm resume`; or ask without `fail_if_suspended`, and with a timeout that a
    person can keep. `name` says who, `for_s` since how many seconds.
    """

    def __init__(self, name: str, for_s: float = 0.0) -> None:
        self.name = name
        self.for_s = for_s
        super().__init__(f"{name!r} has been suspended for {for_s:.3g} s and takes no messages until it is resumed.")


class StreamError(CivitasError):
    """A stream cannot begin or go on; its subclasses say why, `received` how many chunks have come."""

    def __init__(self, text: str, received: int = 0) -> None:
        self.received = received
        super().__init__(text)


class StreamInterrupted(StreamError):
    """The other side of a stream is gone before its end: its agent failed, was stopped, or has turned away.

    To the reader: nothing comes any more, and `__cause__` is what the agent raised, where it did. To the writer: nobody
    reads any more; if it does not care, its handler ends over it and the agent goes on.
    """


class StreamTimeout(StreamError, TimeoutError):
    """A stream did not begin in time, paused for too long, or took longer than it may; the text says what.

    Way out: `timeout`, `idle_timeout` or `max_duration` of `stream()`, `max_duration` of `stream_reply()`.
    """


class SlowConsumerError(StreamError):
    """The reader has taken nothing for `idle_timeout` seconds although chunks lay ready; both sides are told.

    A slow reader slows its writer and loses nothing; this is one that has stopped. Way out: a larger `idle_timeout`, or
    leave the loop over the stream before doing something else.
    """


class ModelError(CivitasError):
    """The service behind a model refused the request, or its answer could not be understood; trying again is no use.

    Way out: what the service says, which is in the text; `status`, `type_name` and `request_id` are the service's own.
    """

    def __init__(
        self,
        provider: str,
        model: str,
        text: str,
        *,
        status: int | None = None,
        type_name: str = "",
        request_id: str = "",
    ) -> None:
        self.provider = provider
        self.model = model
        self.text = text
        self.status = status
        self.type_name = type_name
        self.request_id = request_id
        said = " ".join(str(part) for part in (status, type_name) if part)
        super().__init__(
            f"{provider}, model {model!r}: {text}"
            + (f" ({said})" if said else "")
            + (f"; request {request_id}" if request_id else "")
        )


class ModelUnavailable(ModelError, TransientError):
    """The service behind a model is overloaded, limits the rate, or cannot be reached, and retries were used up.

    Way out: later. `retries` were made; `retry_after_s` is how long the service asks to wait, or None. It is a
    TransientError: `on_error` may answer with RETRY.
    """

    def __init__(
        self,
        provider: str,
        model: str,
        text: str,
        *,
        status: int | None = None,
        type_name: str = "",
        request_id: str = "",
        retries: int = 0,
        retry_after_s: float | None = None,
    ) -> None:
        self.retries = retries
        self.retry_after_s = retry_after_s
        tail = f", after {retries} {'retry' if retries == 1 else 'retries'}"
        if retry_after_s is not None:
            tail += f"; it asks to wait {retry_after_s:.3g} s"
        super().__init__(provider, model, text + tail, status=status, type_name=type_name, request_id=request_id)


class DeserializationError(CivitasError):
    """Received bytes are not a message; they were moved to the dead letters, nothing else was harmed."""
