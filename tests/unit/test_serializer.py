"""Payloads: what is accepted arrives equal, what is not is refused with its path, and foreign bytes harm nobody."""

from __future__ import annotations

import collections
import datetime
import enum
import math
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from civitas_shm.errors import DeserializationError, MessageValidationError
from civitas_shm.serializer import DEPTH_MAX, decode, encode

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
INTS = st.integers(-(1 << 63), (1 << 64) - 1)
KEYS = TEXT | INTS
PLAIN = st.none() | st.booleans() | INTS | st.floats(allow_nan=False) | TEXT | st.binary()
ZONES = st.timezones() | st.just(datetime.timezone(datetime.timedelta(hours=-3, minutes=30)))
MOMENTS = st.datetimes() | st.datetimes(timezones=ZONES)


def nested(leaves: st.SearchStrategy[Any], *, tuples: bool) -> st.SearchStrategy[Any]:
    def deeper(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        grown = st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5)
        return grown | st.lists(inner, max_size=3).map(tuple) if tuples else grown

    return st.dictionaries(KEYS, st.recursive(leaves, deeper, max_leaves=20), max_size=5)


def with_types(value: Any) -> Any:
    """A value in a form in which 1, 1.0 and True, or a list and a tuple, are not equal."""
    if isinstance(value, dict):
        return {(type(key), key): with_types(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value), [with_types(item) for item in value]
    if isinstance(value, datetime.datetime):
        return value.replace(tzinfo=None, fold=0), value.utcoffset()
    return type(value), value


@given(nested(PLAIN | MOMENTS, tuples=True))
def test_what_is_accepted_arrives_equal_and_of_the_same_type(payload: dict[Any, Any]) -> None:
    assert with_types(decode(encode(payload))) == with_types(payload)


@given(nested(PLAIN, tuples=False))
def test_plain_payloads_are_msgpack_that_others_read(payload: dict[Any, Any]) -> None:
    assert with_types(msgpack.unpackb(encode(payload), strict_map_key=False)) == with_types(payload)


@given(nested(PLAIN, tuples=False))
def test_msgpack_that_others_write_is_read(payload: dict[Any, Any]) -> None:
    assert with_types(decode(msgpack.packb(payload))) == with_types(payload)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_payload_or_a_deserialization_error(data: bytes) -> None:
    try:
        assert type(decode(data)) is dict
    except DeserializationError:
        pass


@given(nested(PLAIN | MOMENTS, tuples=True), st.data())
def test_a_damaged_payload_is_a_payload_or_a_deserialization_error(
    payload: dict[Any, Any], data: st.DataObject
) -> None:
    damaged = bytearray(encode(payload))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        assert type(decode(bytes(damaged))) is dict
    except DeserializationError:
        pass


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"\x90",
        b"\xc1",
        b"\x81\xa1a",
        b"\x81\xa1a\xc7\x01\x01\x05",  # the extension for a tuple holds an int
        b"\x81\xa1a\xc7\x01\x02\xff",  # the extension for a datetime is no text
        b"\x81\xa1a\xd4\x63\x00",  # unknown extension
        b"\x81\x81\x01\x02\x03",  # a map as a key
        b"\x91" * 100_000,
        b"\x81\xa1a" * 100_000,
        b"\xdf\xff\xff\xff\xff",  # a map that says it has 4 billion entries
    ],
)
def test_bytes_that_are_no_payload_are_refused(data: bytes) -> None:
    with pytest.raises(DeserializationError):
        decode(data)


def test_bytearray_and_memoryview_arrive_as_bytes() -> None:
    payload = {"a": bytearray(b"abc"), "b": memoryview(b"abcdef")[::2], "c": [memoryview(b"x")]}
    assert decode(encode(payload)) == {"a": b"abc", "b": b"ace", "c": [b"x"]}


def test_nan_and_infinity_arrive() -> None:
    arrived = decode(encode({"nan": math.nan, "inf": -math.inf}))
    assert math.isnan(arrived["nan"])
    assert arrived["inf"] == -math.inf


class Owner:
    pass


class Color(enum.IntEnum):
    RED = 1


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ({"items": [1, 2, 3, {"owner": {1}}]}, ["payload.items[3].owner: set cannot be sent", "send a list"]),
        ({"a": (1, [Owner()])}, ["payload.a[1][0]: ", "Owner cannot be sent"]),
        ({"two words": {7: frozenset()}}, ["payload['two words'][7]: frozenset cannot be sent"]),
        ({"n": 1 << 64}, ["payload.n: an int of 65 bits", "64 bits"]),
        ({"n": [(-(1 << 63) - 1,)]}, ["payload.n[0][0]: an int of 64 bits"]),
        ({1 << 70: 0}, ["an int of 71 bits"]),
        ({"name": "caf\udce9"}, ["payload.name: the text has a lone surrogate at position 3", "os.fsencode"]),
        ({"caf\udce9": 1}, ["lone surrogate"]),
        ({"m": {2.0: 1}}, ["payload.m: float cannot be a key", "str or int"]),
        ({True: 1}, ["payload: bool cannot be a key"]),
        ({b"k": 1}, ["payload: bytes cannot be a key"]),
        ({"c": collections.Counter()}, ["payload.c: collections.Counter cannot be sent", "send dict(value)"]),
        ({"e": Color.RED}, ["payload.e: ", "Color cannot be sent", "send int(value)"]),
        ({"d": datetime.date(2020, 1, 1)}, ["payload.d: datetime.date cannot be sent"]),
        ({"l": CYCLE}, ["payload.l[0][0]", f"nests deeper than {DEPTH_MAX} levels, or contains itself"]),
        (["no dict"], ["payload must be a dict; list cannot be sent"]),
        (None, ["payload must be a dict; NoneType"]),
    ],
)
def test_what_cannot_be_sent_is_refused_with_the_path_of_the_field(payload: Any, words: list[str]) -> None:
    with pytest.raises(MessageValidationError) as caught:
        encode(payload)
    for word in words:
        assert word in str(caught.value)


def test_the_path_begins_with_what_is_encoded() -> None:
    with pytest.raises(MessageValidationError, match=r"^state\.seen: set cannot be sent"):
        encode({"seen": set()}, "state")


def test_nesting_is_allowed_up_to_the_limit() -> None:
    payload: Any = 0
    for _ in range(DEPTH_MAX - 1):
        payload = (payload,)
    assert decode(encode({"a": payload})) == {"a": payload}


def test_encoding_changes_nothing_in_the_payload() -> None:
    inner = [1, (2, 3), {"k": (4,)}]
    payload = {"a": inner}
    encode(payload)
    assert payload == {"a": [1, (2, 3), {"k": (4,)}]}
    assert payload["a"] is inner
