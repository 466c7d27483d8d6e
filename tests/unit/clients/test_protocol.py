"""Errors travel to a client as themselves."""

from __future__ import annotations

import msgspec
import pytest

from civitas_shm import errors
from civitas_shm.clients.protocol import Failed, error_from, failed

ERRORS = [
    errors.MailboxFull("a", 3, 0.5, "held by somebody"),
    errors.ArenaFull("a", 0.5, 1 << 20, [("b", 17)]),
    errors.MessageDropped("a", "t", "latest", 1, 7),
    errors.PayloadTooLarge(17, 16),
    errors.DeadlockError([("a", "b", "ask", "t", 1.5), ("b", "a", "ask", "t", 0.5)]),
    errors.AgentError("a", "ValueError", "no", "Traceback"),
    errors.MessageRoutingError("nobody"),
    TimeoutError("late"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_arrives_as_the_same_class_with_text_attributes_and_notes(error: Exception) -> None:
    error.add_note("noted")
    travelled = msgspec.msgpack.decode(msgspec.msgpack.encode(failed(7, error)), type=Failed)
    assert travelled.id == 7
    arrived = error_from(travelled)
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert arrived.__notes__ == ["noted"]
    for name, value in vars(error).items():
        if name != "cycle":
            assert getattr(arrived, name) == value or [*map(list, value)] == getattr(arrived, name)


def test_a_group_arrives_with_its_parts_and_what_is_not_known_keeps_its_name() -> None:
    group = ExceptionGroup("2 of 3 failed", [errors.MailboxFull("a", 3, 0.5), KeyError("odd")])
    arrived = error_from(msgspec.msgpack.decode(msgspec.msgpack.encode(failed(1, group)), type=Failed))
    assert isinstance(arrived, ExceptionGroup)
    assert arrived.message == "2 of 3 failed"
    full, odd = arrived.exceptions
    assert isinstance(full, errors.MailboxFull)
    assert type(odd) is errors.CivitasError
    assert str(odd) == "KeyError: 'odd'"
