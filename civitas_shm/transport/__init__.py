"""What a transport promises: the contract of mailboxes, operation by operation, and where implementations are found.

Four contracts, from the inside out:
- `port.Port`: one process's door to the mailboxes of a run. Agents, asks and replies go through it. The hot path.
- `memory.RunMemory`: the host's hold on a run: creates mailboxes, says who reads them, repairs after proof of death.
- `reader.RunReader`: a look into a run from outside, which changes nothing and asks nobody.
- `addresses.Transport`: the seed's small protocol for a user's own transport (addresses and bytes, no mailboxes).

Rules of this package: no implementation, no I/O but the import in `loading.load_transport`. Implementations live in
`civitas_shm_transports` and import from here; the core never imports them by name. This file is the only door.

Words: a *mailbox* is a number that means one agent's mailbox as long as the run's memory lives (it never comes again,
though the memory behind it may be another agent's by then); a *slot* is a process's number, 0 the host,
1 the caller, 2 and up the workers; a *lane* is one of three rings of a mailbox, served control, priority, normal;
a *token* names a message in hand between `take` and `release`.
"""

from __future__ import annotations

from .addresses import Transport
from .loading import BUILTIN_TRANSPORTS, TransportModule, known_transports, load_link, load_transport, new_addresses
from .memory import Burials, DelayPort, RunMemory
from .port import Port, Sink
from .reader import Peeked, RunReader, SlotView
from .values import (
    BRIDGE,
    CLOSED,
    DELAYS,
    FULL,
    NO_MEMORY,
    NO_MESSAGE,
    REPLY_DROPPED,
    SAME_MESSAGE,
    SENDER_PROGRAM,
    SENT,
    SLOT_FIRST_WORKER,
    SLOT_HOST,
    SLOT_MAIN,
    STRIKES_MAX,
    TOO_LARGE,
    Buried,
    Delivery,
    InHand,
    MailboxSpec,
    MailboxStats,
    MemoryPlan,
    Overflow,
    Reply,
    Wait,
    quantile_us,
)

__all__ = [
    "BRIDGE",
    "BUILTIN_TRANSPORTS",
    "CLOSED",
    "DELAYS",
    "FULL",
    "NO_MEMORY",
    "NO_MESSAGE",
    "REPLY_DROPPED",
    "SAME_MESSAGE",
    "SENDER_PROGRAM",
    "SENT",
    "SLOT_FIRST_WORKER",
    "SLOT_HOST",
    "SLOT_MAIN",
    "STRIKES_MAX",
    "TOO_LARGE",
    "Buried",
    "DelayPort",
    "Burials",
    "Delivery",
    "InHand",
    "MailboxSpec",
    "MailboxStats",
    "MemoryPlan",
    "Overflow",
    "Peeked",
    "Port",
    "Reply",
    "RunMemory",
    "RunReader",
    "Sink",
    "SlotView",
    "Transport",
    "TransportModule",
    "Wait",
    "known_transports",
    "load_link",
    "load_transport",
    "new_addresses",
    "quantile_us",
]
