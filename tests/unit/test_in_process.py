"""What the transport of one process keeps of agents that come and go: the contract itself is in tests/contract."""

from __future__ import annotations

from civitas_shm.transport import CLOSED, SENDER_PROGRAM, MailboxSpec
from civitas_shm_transports import in_process
from civitas_shm_transports.in_process import InProcessPort


def test_of_agents_that_are_gone_for_long_nothing_is_kept_but_that_their_numbers_are_closed() -> None:
    port = InProcessPort()
    first = port.add_mailbox(MailboxSpec("first"))
    stays = port.add_mailbox(MailboxSpec("stays"))
    assert port.post(first, b"", "m", SENDER_PROGRAM) == 0
    port.close_mailbox(first)
    assert port.resolve("first") == first
    for number in range(in_process.CLOSED_KEPT):
        port.close_mailbox(port.add_mailbox(MailboxSpec(f"n{number}")))
    assert port.resolve("first") == -1
    assert port.resolve("n0") >= 0
    assert port.post(first, b"", "m", SENDER_PROGRAM) == CLOSED
    assert port.stats(first).name == "_gone"
    assert port.names() == ["stays"]
    assert port.post(stays, b"", "m", SENDER_PROGRAM) == 0
    again = port.add_mailbox(MailboxSpec("first"))
    assert again not in (first, stays)
