"""News of the runtime: they arrive as they were sent, and nothing else is taken for one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from civitas_shm.notices import CHILD_TERMINATED, DOWN, decode_notice, encode_notice
from civitas_shm.serializer import encode

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXT, TEXT)
def test_a_notice_arrives_as_it_was_sent(name: str, reason: str) -> None:
    for kind in (DOWN, CHILD_TERMINATED):
        assert decode_notice(kind, encode_notice(name, reason)) == {"name": name, "reason": reason}
    assert decode_notice("message", encode_notice(name, reason)) is None


@given(st.binary())
def test_any_bytes_are_safe(data: bytes) -> None:
    decode_notice(DOWN, data)
    decode_notice(DOWN, b"\xc1" + data)


@given(st.dictionaries(TEXT, st.integers(0, 9)))
def test_no_payload_of_an_agent_is_a_notice(payload: dict[str, int]) -> None:
    assert decode_notice(DOWN, encode(payload)) is None
