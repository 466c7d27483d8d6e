"""The envelope: header bytes, what is rendered from them, and the dictionary form."""

from __future__ import annotations

import math
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from civitas_shm.messages import (
    FLAG_ASK,
    HEADER,
    LANE_PRIORITY,
    SYSTEM_MESSAGE_TYPES,
    Message,
    _new_span_id,
    _uuid7,
    is_system_type,
    new_header,
)
from civitas_shm.serializer import decode, encode


def received(**fields: Any) -> Message:
    return Message.received(new_header(**fields), "t", "source", "sink", {"n": 1}, 1)


def test_the_header_has_128_bytes() -> None:
    assert HEADER.size == 128
    assert len(new_header()) == 128


@given(
    st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(-(2**31), 2**31 - 1)
)
def test_what_is_written_into_a_header_is_read_from_a_message(
    mailbox: int, correlation: int, deadline_ns: int, priority: int
) -> None:
    header = new_header(
        mailbox=mailbox, correlation=correlation, deadline_ns=deadline_ns, priority=priority, lane=LANE_PRIORITY,
        flags=FLAG_ASK,
    )  # fmt: skip
    message = Message.received(header, "t", "source", "sink", {}, 3)
    assert message.correlation == correlation
    assert message.deadline_ns == deadline_ns
    assert message.priority == priority
    assert message.delivery == 3
    assert message.correlation_id == (f"{correlation:016x}" if correlation else None)
    assert message.reply_to == (f"_reply.{correlation:016x}" if correlation else None)


def test_ids_are_uuid7_and_grow_with_time() -> None:
    ids = [uuid.UUID(received().id) for _ in range(50)]
    assert {one.version for one in ids} == {7}
    assert len(set(ids)) == 50
    milliseconds = [one.int >> 80 for one in ids]
    assert milliseconds == sorted(milliseconds)


def test_an_effect_has_the_trace_of_its_cause_and_the_causes_span_as_parent() -> None:
    cause = received()
    effect = Message.received(new_header(cause=cause.header), "t", "", "", {}, 1)
    assert effect.trace_id == cause.trace_id
    assert effect.parent_span_id == cause.span_id
    assert effect.span_id != cause.span_id
    assert cause.parent_span_id is None
    assert received().trace_id != cause.trace_id


def test_a_reply_goes_to_the_reply_address_or_else_to_the_sender() -> None:
    asked = received(correlation=255, flags=FLAG_ASK)
    reply = Message.answering(asked, "sink", {"a": 1}, "reply")
    assert (reply.recipient, reply.correlation_id, reply.trace_id) == (
        "_reply.00000000000000ff",
        "00000000000000ff",
        asked.trace_id,
    )
    told = received()
    assert Message.answering(told, "sink", {}, "reply").recipient == "source"


@pytest.mark.parametrize("message", [received(correlation=7, priority=-3), Message(payload={"n": 1}, ttl=2.5, seq=4)])
def test_a_message_survives_its_dictionary_form(message: Message) -> None:
    plain = message.to_dict()
    assert plain["schema_version"] == 1
    again = Message.from_dict({**plain, "from the future": True})
    assert again == message
    assert again.to_dict() == plain


def test_a_message_made_by_hand_keeps_its_identity() -> None:
    message = Message(type="greeting", sender="me", recipient="you")
    assert message.id == message.id
    assert message != Message(type="greeting", sender="me", recipient="you")
    assert message.payload == {}
    assert message.correlation_id is None


def test_changing_a_received_message_changes_no_header() -> None:
    message = received()
    before = message.header
    message.payload["n"] = 2
    message.attempt += 1
    message.type = "other"
    assert message.header == before


@pytest.mark.parametrize(("kind", "system"), [("_agency.shutdown", True), ("agency", False), ("message", False)])
def test_types_of_the_runtime_are_known(kind: str, system: bool) -> None:
    assert is_system_type(kind) is system


def test_the_types_of_civitas_runtime_are_known_by_name_and_all_are_reserved() -> None:
    assert {"_agency.shutdown", "_agency.heartbeat", "_agency.child_crashed"} <= SYSTEM_MESSAGE_TYPES
    assert len(SYSTEM_MESSAGE_TYPES) == 12
    assert all(is_system_type(kind) for kind in SYSTEM_MESSAGE_TYPES)


def test_the_helpers_that_tests_of_civitas_use() -> None:
    assert uuid.UUID(_uuid7()).version == 7
    assert len(_new_span_id()) == 16
    assert int(_new_span_id(), 16) >= 0


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ({"fn": print}, "payload.fn"),
        ({"big": 1 << 64}, "65 bits"),
        ({"a": {("t",): 1}}, "keys are str or int"),
        (["no", "dict"], "payload must be a dict"),
    ],
)
def test_a_payload_that_cannot_be_sent_is_a_value_error_where_the_message_is_made(payload: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Message(payload=payload)


def test_defect_32_int_keys_tuples_nan_and_large_ints_are_sent_whole_or_refused_by_the_sender() -> None:
    for payload in ({1: "int key"}, {"t": (1, (2, 3))}, {"n": (1 << 64) - 1}, {"n": -(1 << 63)}):
        message = Message.from_dict(Message(payload=payload).to_dict())
        assert decode(encode(message.payload)) == payload
        assert type(decode(encode({"t": (1,)}))["t"]) is tuple
    assert math.isnan(decode(encode({"x": float("nan")}))["x"])
    with pytest.raises(ValueError, match="limit is 64 bits"):
        Message(payload={"n": -(1 << 63) - 1})
