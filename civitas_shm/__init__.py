"""Agents in pinned OS processes, mailboxes in shared memory, supervision the Erlang way."""

from __future__ import annotations

# General layout:
#
# Lower layers import only from upper ones; docs/architecture.md has the table, and a test keeps it true.
# - errors.py, messages.py, clock.py are the words that everything else uses;
# - transport.py, topology/, supervision/ and placement.py decide: pure, no I/O, no asyncio;
# - process.py is what users subclass; runner.py, port_bus.py and host/ do things, in each process and around them;
# - runtime.py wires everything;
# - cli/ and dashboard/ are edges that nobody imports.
# Mailboxes are implemented outside of this package, in civitas_shm_transports, which imports from here, never the
# other way round.
#
# This file is the only door for users. It imports nothing before it is asked: a worker process starts through it too,
# and must not pay for the runtime, let alone for the command line.
import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .clients.blocking import BlockingClient, connect_blocking
    from .clients.client import Client, connect
    from .errors import (
        AgentError,
        AgentImportError,
        AgentRestarted,
        AgentStopped,
        AgentSuspendedError,
        ArenaFull,
        CapabilityNotFoundError,
        CivitasError,
        ConfigurationError,
        DeadlockError,
        DelayedFull,
        DeserializationError,
        ErrorAction,
        LinkedAgentDown,
        MailboxFull,
        MessageDropped,
        MessageRoutingError,
        MessageValidationError,
        ModelError,
        ModelUnavailable,
        PayloadTooLarge,
        PluginError,
        RunAlive,
        RunFailed,
        RunHasMessages,
        RunNotAnswering,
        RunNotFound,
        SharedMemoryFull,
        SlowConsumerError,
        SpawnError,
        StateConflict,
        StateDecryptionError,
        StateMigrationRefused,
        StateStoreUnavailable,
        StateTooLarge,
        StreamError,
        StreamInterrupted,
        StreamTimeout,
        TooManyClients,
        TopologyError,
        TransientError,
        TransportClosed,
        TransportUnavailable,
    )
    from .evalloop import CorrectionSignal, EvalAgent, EvalEvent, EvalExporter
    from .genserver import GenServer
    from .messages import Message
    from .plugins.encrypted_store import EncryptingStateStore
    from .process import AgentProcess
    from .registry import RegistryListener, RoutingEntry
    from .retrying import Retry
    from .runtime import Runtime
    from .secrets import SecretsProvider, substitute_vars
    from .state import StateStore
    from .supervisor import DynamicSupervisor, Supervisor
    from .typed import payload_type

__all__ = [
    "AgentError",
    "AgentImportError",
    "AgentProcess",
    "AgentRestarted",
    "AgentStopped",
    "AgentSuspendedError",
    "ArenaFull",
    "BlockingClient",
    "CapabilityNotFoundError",
    "CivitasError",
    "Client",
    "ConfigurationError",
    "CorrectionSignal",
    "DeadlockError",
    "DelayedFull",
    "DeserializationError",
    "DynamicSupervisor",
    "EncryptingStateStore",
    "ErrorAction",
    "EvalAgent",
    "EvalEvent",
    "EvalExporter",
    "GenServer",
    "LinkedAgentDown",
    "MailboxFull",
    "Message",
    "MessageDropped",
    "MessageRoutingError",
    "MessageValidationError",
    "ModelError",
    "ModelUnavailable",
    "PayloadTooLarge",
    "PluginError",
    "Retry",
    "RunAlive",
    "RunFailed",
    "RunHasMessages",
    "RunNotAnswering",
    "RunNotFound",
    "RegistryListener",
    "RoutingEntry",
    "Runtime",
    "SecretsProvider",
    "SharedMemoryFull",
    "SlowConsumerError",
    "SpawnError",
    "StateConflict",
    "StateDecryptionError",
    "StateMigrationRefused",
    "StateStore",
    "StateStoreUnavailable",
    "StateTooLarge",
    "StreamError",
    "StreamInterrupted",
    "StreamTimeout",
    "Supervisor",
    "TooManyClients",
    "TopologyError",
    "TransientError",
    "TransportClosed",
    "TransportUnavailable",
    "connect",
    "connect_blocking",
    "payload_type",
    "substitute_vars",
]

__version__ = "0.1.0"

_HOMES: Final = {
    "AgentProcess": ".process",
    "BlockingClient": ".clients.blocking",
    "Client": ".clients.client",
    "CorrectionSignal": ".evalloop",
    "DynamicSupervisor": ".supervisor",
    "EvalAgent": ".evalloop",
    "EvalEvent": ".evalloop",
    "EvalExporter": ".evalloop",
    "GenServer": ".genserver",
    "EncryptingStateStore": ".plugins.encrypted_store",
    "Message": ".messages",
    "RegistryListener": ".registry",
    "RoutingEntry": ".registry",
    "Retry": ".retrying",
    "Runtime": ".runtime",
    "SecretsProvider": ".secrets",
    "StateStore": ".state",
    "Supervisor": ".supervisor",
    "connect": ".clients.client",
    "connect_blocking": ".clients.blocking",
    "payload_type": ".typed",
    "substitute_vars": ".secrets",
}
"""Where a public name lives; the names that are not here live in `errors`."""


if not TYPE_CHECKING:  # a type checker that saw this function would believe in every misspelt name

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOMES.get(name, ".errors"), __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
