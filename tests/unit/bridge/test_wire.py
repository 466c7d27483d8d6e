"""What travels between bridges: everything comes back equal, and nothing but a frame is accepted."""

from __future__ import annotations

import random

import msgspec
import pytest

from civitas_shm.bridge.wire import (
    ENTRIES_MAX,
    VERSION,
    Answer,
    Frame,
    FrameError,
    Parcel,
    Refusal,
    decode_frame,
    encode_frame,
)


def parcel(**fields: object) -> Parcel:
    known: dict[str, object] = {
        "to": "worker", "type": "message", "sender": "boss", "payload": b"\x80", "id": b"i" * 16, "trace": b"t" * 16,
        "span": b"s" * 8, "seq": 7,
    }  # fmt: skip
    return Parcel(**(known | fields))  # type: ignore[arg-type]


FULL = Frame(
    "host-1", 3,
    [parcel(), parcel(back=b"b" * 40, left_ns=5, mortal=True, priority=-1, attempt=2, repeated=True, time_ns=9)],
    [Answer(b"back", "worker", "reply", b"\x80"), Answer(b"back", "worker", "error", b"", True)],
    4, [1, 2], [Refusal(3, "full", "It is full.")], [5],
)  # fmt: skip


def test_a_frame_comes_back_equal() -> None:
    assert decode_frame(encode_frame(FULL)) == FULL
    assert decode_frame(encode_frame(Frame("h", 1))) == Frame("h", 1)


def test_the_first_byte_is_the_version_and_another_one_is_refused() -> None:
    data = encode_frame(FULL)
    assert data[0] == VERSION
    with pytest.raises(FrameError, match="is of version 2; this host knows version 1"):
        decode_frame(b"\x02" + data[1:])
    with pytest.raises(FrameError, match="of 0 bytes is of nothing"):
        decode_frame(b"")


def test_fields_of_a_newer_host_are_ignored() -> None:
    fields = msgspec.msgpack.decode(encode_frame(FULL)[1:])
    fields.append("new")
    fields[2][0].extend([0, "newer"])
    assert decode_frame(b"\x01" + msgspec.msgpack.encode(fields)).parcels[1] == FULL.parcels[1]


@pytest.mark.parametrize(
    "frame",
    [
        Frame("", 1), Frame("a b", 1), Frame("h" * 65, 1), Frame("h", -1), Frame("h", 1 << 63),
        Frame("h", 1, [parcel(to="")]), Frame("h", 1, [parcel(to="x" * 256)]), Frame("h", 1, [parcel(id=b"short")]),
        Frame("h", 1, [parcel(trace=b"")]), Frame("h", 1, [parcel(span=b"x" * 9)]), Frame("h", 1, [parcel(seq=-1)]),
        Frame("h", 1, [parcel(back=b"x" * 65)]), Frame("h", 1, [parcel(left_ns=-1)]),
        Frame("h", 1, [parcel(attempt=0)]),
        Frame("h", 1, [parcel(priority=1 << 31)]), Frame("h", 1, [parcel(type="x" * 1001)]),
        Frame("h", 1, [parcel(payload="text")]), Frame("h", 1, [parcel(to=None)]),
        Frame("h", 1, [parcel()] * (ENTRIES_MAX + 1)), Frame("h", 1, taken=[1] * (ENTRIES_MAX + 1)),
        Frame("h", 1, answers=[Answer(b"", "w", "reply", b"")]), Frame("h", 1, taken=[-1]),
    ],
)  # fmt: skip
def test_a_field_out_of_its_bounds_is_refused(frame: Frame) -> None:
    with pytest.raises(FrameError):
        decode_frame(encode_frame(frame))


def test_no_damage_raises_anything_else() -> None:
    chance, whole = random.Random(5), encode_frame(FULL)
    refused = 0
    for _ in range(3000):
        data = bytearray(whole[: chance.randrange(1, len(whole) + 1)] if chance.random() < 0.3 else whole)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            decode_frame(bytes(data))
        except FrameError:
            refused += 1
    assert refused > 1000


def test_deep_nesting_and_huge_counts_are_refused() -> None:
    for body in (
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\x92\xa1h\x01" + b"\xdc\xff\xff" * 3,
        b"\xc6\xff\xff\xff\xff",
    ):
        with pytest.raises(FrameError):
            decode_frame(b"\x01" + body)
