"""What a frame on the control socket means, without a socket and without a run."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from civitas_shm.control.decide import Answer, HandOver, Later, Letter, Stop, decide, may_ask
from civitas_shm.control.protocol import (
    IDS_MAX,
    PROTOCOL,
    Connect,
    DeadDrop,
    DeadList,
    DeadReplay,
    DeadShow,
    DelaysCancel,
    DelaysList,
    Refusal,
    Request,
    States,
    Status,
    StopRun,
    Topology,
    read_request,
)


def body(**fields: Any) -> bytes:
    return msgspec.msgpack.encode({"protocol": PROTOCOL, **fields})


@pytest.mark.parametrize(
    "request_",
    [Status(), Topology(salt="s"), States(agent="a"), StopRun(now=True), StopRun(drain="all"),
     DeadList(skip=5), DeadShow(id="01a"), DeadReplay(ids=["a"]), DeadDrop(ids=[]), Connect(),
     DelaysList(after=7), DelaysCancel(ids=["a"])],
)  # fmt: skip
def test_what_is_sent_is_what_is_read(request_: Request) -> None:
    assert read_request(msgspec.msgpack.encode(request_), "1.0") == request_


@pytest.mark.parametrize("protocol", [0, PROTOCOL + 1, 10**9])
def test_another_version_is_refused_with_both(protocol: int) -> None:
    for fields in ({"op": "status"}, {"op": "what the future brings", "with": ["more"]}):
        refused = read_request(msgspec.msgpack.encode({**fields, "protocol": protocol}), "1.2")
        assert isinstance(refused, Refusal)
        assert refused.kind == "protocol"
        for part in ("civitas_shm 1.2", f"version {PROTOCOL}", f"version {protocol}"):
            assert part in refused.text


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "malformed"),
        (b"\xc1", "malformed"),
        (b"GET / HTTP/1.1\r\n", "malformed"),
        (msgspec.msgpack.encode([1, 2]), "malformed"),
        (msgspec.msgpack.encode({"op": 7}), "malformed"),
        (msgspec.msgpack.encode({"protocol": 1}), "malformed"),
        (body(op="format the disk"), "unknown"),
        (body(op="x" * 10_000), "unknown"),
        (body(op="stop", drain="none"), "malformed"),
        (body(op="stop", now="yes"), "malformed"),
        (body(op="dead_list", limit=10**6), "malformed"),
        (body(op="dead_list", skip=-1), "malformed"),
        (body(op="dead_show", id=""), "malformed"),
        (body(op="dead_drop", ids=["a"] * (IDS_MAX + 1)), "malformed"),
    ],
)
def test_what_is_no_request_is_refused_in_words(data: bytes, kind: str) -> None:
    refused = read_request(data, "1.0")
    assert isinstance(refused, Refusal)
    assert refused.kind == kind
    assert 0 < len(refused.text) < 300


@given(st.binary(max_size=300))
def test_no_bytes_make_it_raise(data: bytes) -> None:
    read_request(data, "1.0")


def test_a_stop_that_was_asked_for_is_not_asked_for_again_but_now_counts_always() -> None:
    for state in ("starting", "running"):
        assert decide(StopRun(), state) == Stop(False, None)  # type: ignore[arg-type]
    assert decide(StopRun(drain="all"), "running") == Stop(False, "all")
    assert decide(StopRun(), "stopping") == Answer("stopping already")
    assert decide(StopRun(drain="current"), "stopping") == Answer("stopping already")
    assert decide(StopRun(now=True), "stopping") == Stop(True, None)
    assert isinstance(decide(StopRun(now=True, drain="all"), "running"), Refusal)


def test_letters_are_read_and_dropped_in_every_state_and_replayed_only_while_it_runs() -> None:
    for request in (DeadList(), DeadShow(id="a"), DeadDrop(ids=["a"])):
        assert decide(request, "stopping") == Letter(request)
    assert decide(DeadReplay(ids=["a"]), "running") == Letter(DeadReplay(ids=["a"]))
    for state in ("starting", "stopping"):
        refused = decide(DeadReplay(ids=["a"]), state)  # type: ignore[arg-type]
        assert isinstance(refused, Refusal)
        assert refused.kind == "busy"


def test_status_is_answered_in_every_state() -> None:
    assert {decide(Status(), state) for state in ("starting", "running", "stopping")} == {Answer("status")}  # type: ignore[arg-type]


def test_the_topology_is_told_in_every_state() -> None:
    for state in ("starting", "running", "stopping"):
        assert decide(Topology(salt="s"), state) == Answer("topology", "s")  # type: ignore[arg-type]
        assert decide(States(agent="a"), state) == Answer("states", agent="a")  # type: ignore[arg-type]
    refused = read_request(msgspec.msgpack.encode(Topology(salt="s" * 65)), "1.0")
    assert isinstance(refused, Refusal)
    assert refused.kind == "malformed"


def test_only_the_own_user_and_root_may_ask() -> None:
    assert [uid for uid in (0, 1000, 1001) if may_ask(uid, 1000)] == [0, 1000]
    assert [uid for uid in (0, 1000) if may_ask(uid, 0)] == [0]


def test_a_client_is_handed_over_while_the_run_runs_and_comes_again_while_it_starts_or_stops() -> None:
    assert decide(Connect(), "running") == HandOver()
    for state in ("starting", "stopping"):
        refused = decide(Connect(), state)  # type: ignore[arg-type]
        assert isinstance(refused, Refusal)
        assert refused.kind == "busy"
        assert state in refused.text


@pytest.mark.parametrize("request_", [DelaysList(), DelaysCancel(ids=["a"])])
def test_delayed_messages_are_looked_at_once_the_run_has_read_them(request_: Request) -> None:
    assert decide(request_, "running") == Later(request_)
    assert decide(request_, "stopping") == Later(request_)
    refused = decide(request_, "starting")
    assert isinstance(refused, Refusal)
    assert refused.kind == "busy"
