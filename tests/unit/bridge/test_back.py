"""The way back of an answer, and what is known of messages that came before."""

from __future__ import annotations

from civitas_shm.bridge.back import Backs
from civitas_shm.bridge.doubles import Doubles
from civitas_shm.messages import FLAG_ASK, HEADER, new_header

KEY = b"k" * 16


def test_an_answer_finds_the_one_who_waits_with_the_trace_of_the_question() -> None:
    header = new_header(flags=FLAG_ASK, sender=9, correlation=77, deadline_ns=123)
    back = Backs(KEY).of(header)
    assert len(back) <= 64
    cause = Backs(KEY).cause(back)
    assert cause is not None
    sent, got = HEADER.unpack(header), HEADER.unpack(cause)
    assert [got[field] for field in (7, 12, 14, 15, 17, 18)][1:] == [sent[field] for field in (12, 14, 15, 17, 18)]


def test_a_message_that_nobody_waits_for_has_no_way_back() -> None:
    assert Backs(KEY).of(new_header(sender=9)) == b""


def test_what_was_not_asked_here_cannot_be_answered() -> None:
    back = Backs(KEY).of(new_header(flags=FLAG_ASK, correlation=77))
    assert Backs(b"another key 1234").cause(back) is None
    assert Backs(KEY).cause(back[:-1]) is None
    assert Backs(KEY).cause(b"") is None
    for at in range(len(back)):
        assert Backs(KEY).cause(back[:at] + bytes([back[at] ^ 1]) + back[at + 1 :]) is None


def test_a_repetition_is_known_by_host_and_id_and_the_oldest_is_forgotten() -> None:
    doubles = Doubles(remembered=3)
    doubles.hold("a", b"0")
    assert doubles.known("a", b"0") == "held"
    for number in b"1234":
        doubles.take("a", bytes([number]))
    assert [doubles.known("a", bytes([number])) for number in b"1234"] == ["", "taken", "taken", "taken"]
    assert doubles.known("a", b"0") == "held", "what still waits is not forgotten"
    assert doubles.known("b", b"4") == ""
    doubles.forget("a", b"0")
    assert doubles.known("a", b"0") == ""
