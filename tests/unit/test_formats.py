"""Whole messages to bytes and back: what can be sent arrives equal, in both formats, and nothing else gets in."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from civitas_shm import DeserializationError, Message, MessageValidationError
from civitas_shm.formats import JsonSerializer, MsgpackSerializer, Serializer

SERIALIZERS = [MsgpackSerializer(), JsonSerializer()]

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
    | st.datetimes().map(lambda at: at.replace(fold=0)),  # ISO 8601 has no word for it
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])) | st.integers(-9, 9), inner)
    ),
    max_leaves=12,
)
payloads = st.dictionaries(st.sampled_from(["a", "$bytes", "$tuple", "$object", "$", "ü"]), values, max_size=3)


both = pytest.mark.parametrize("serializer", SERIALIZERS, ids=lambda one: type(one).__name__)


@both
@given(payload=payloads)
def test_every_payload_and_every_field_arrives_equal(serializer: Serializer, payload: dict[str, Any]) -> None:
    message = Message(
        type="t", sender="a", recipient="b", correlation_id="c", reply_to="_reply.x", payload=payload,
        trace_id="0" * 32, span_id="1" * 16, priority=3, attempt=2,
    )  # fmt: skip
    arrived = serializer.deserialize(serializer.serialize(message))
    assert arrived == message
    assert repr(arrived.payload) == repr(payload)  # tuples are tuples, ints no bools


@both
def test_nan_and_infinity_arrive(serializer: Serializer) -> None:
    sent = {"nan": float("nan"), "inf": [float("-inf")]}
    assert repr(serializer.deserialize(serializer.serialize(Message(payload=sent))).payload) == repr(sent)


@both
def test_what_cannot_be_sent_is_refused_with_its_path(serializer: Serializer) -> None:
    with pytest.raises(MessageValidationError, match=r"payload\.x\[1\]"):
        serializer.serialize(Message(payload={"x": [1, object()]}))


@both
@given(data=st.binary())
def test_any_bytes_are_a_message_or_a_deserialization_error(serializer: Serializer, data: bytes) -> None:
    with pytest.raises(DeserializationError):
        serializer.deserialize(data)


@both
def test_a_message_of_another_schema_is_refused_with_its_version(serializer: Serializer) -> None:
    data = serializer.serialize(Message(payload={}))
    assert b"schema_version" in data
    newer = data.replace(b"schema_version\x01", b"schema_version\x02").replace(b'_version": 1', b'_version": 2')
    with pytest.raises(DeserializationError, match="version 2"):
        serializer.deserialize(newer)


@both
def test_it_is_a_serializer(serializer: Serializer) -> None:
    assert isinstance(serializer, Serializer)


def test_json_is_for_people_to_read() -> None:
    sent = Message(type="t", sender="a", recipient="b", payload={"at": datetime.datetime(2026, 1, 2), "n": (1, 2)})
    text = JsonSerializer().serialize(sent).decode()
    assert '"payload": {"at": {"$datetime": "2026-01-02T00:00:00"}, "n": {"$tuple": [1, 2]}}' in text


def test_a_word_that_json_does_not_know_is_refused() -> None:
    data = JsonSerializer().serialize(Message(payload={"a": (1,)})).replace(b"$tuple", b"$touple")
    with pytest.raises(DeserializationError, match=r"\$touple"):
        JsonSerializer().deserialize(data)
