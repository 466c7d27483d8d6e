"""The machine of a ZeroMQ link: P1 to P5 of PROTOCOL.md, with a proxy that does what it must not."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from civitas_shm_transports.zmq import lanes, machine, peers, wire

from .network import End, Network


def two(*names: str) -> tuple[Network, End, End]:
    network = Network()
    a = network.add("a")
    b = network.add("b", *(names or ("far",)))
    network.settle()
    assert a.machine.ready
    assert b.machine.ready
    return network, a, b


def body(number: int) -> bytes:
    return number.to_bytes(4, "big")


def test_a_link_is_ready_when_it_has_read_its_mark_and_everybody_before_it_has_said_hello() -> None:
    network = Network()
    b = network.add("b", "far")
    network.settle()
    a = network.add("a")
    assert network.offer(a, "far", b"early")  # nothing is known yet: it waits
    assert not a.unroutable
    while a.news:
        network.hear(a)
    assert a.machine.connected
    assert not a.machine.ready  # b's subscription was among them, and b has not said hello
    network.settle()
    assert a.machine.ready
    assert b.came == [b"early"]
    assert network.now == pytest.approx(100.0)  # no time was waited


def test_a_name_that_nobody_has_is_unroutable_at_once() -> None:
    network, a, _ = two()
    assert network.offer(a, "nobody", b"x", key=7)
    assert network.offer(a, "nohost", b"x", key=8, to_host=True)
    assert a.unroutable == [7, 8]


def test_frames_of_one_turn_travel_together_and_arrive_in_order() -> None:
    network, a, b = two()
    for number in range(500):
        assert a.machine.offer("far", False, body(number), 0)
    frames = a.machine.flush(network.now)
    assert len(frames) == 1
    network.send(a, frames[0])
    network.settle()
    assert b.came == [body(number) for number in range(500)]


def test_a_host_is_reached_by_its_id() -> None:
    network, a, b = two()
    assert network.offer(b, "a", b"reply", to_host=True)
    network.settle()
    assert a.came == [b"reply"]


def test_what_is_lost_comes_again_and_nothing_else_does() -> None:
    network, a, b = two()
    for number in range(3):
        network.offer(a, "far", body(number))
    b.frames.popleft()  # the first of three
    network.settle()
    assert b.came == [body(number) for number in range(3)]
    assert network.now == pytest.approx(100.0)  # told at the next frame, not after a wait
    network.settle(1.0)
    sending = a.machine.directory.hosts["b"].sending
    assert sending.resent == 3
    assert len(sending) == 0


def test_a_lost_last_frame_is_asked_for() -> None:
    network, a, b = two()
    network.offer(a, "far", b"only")
    b.frames.clear()
    network.settle(lanes.RESEND_S * 2 + 0.1)
    assert b.came == [b"only"]


def test_doubles_are_dropped() -> None:
    network, a, b = two()
    network.offer(a, "far", b"once")
    b.frames.extend(list(b.frames) * 3)
    network.settle(1.0)
    assert b.came == [b"once"]
    assert b.machine.directory.hosts["a"].receiving.doubles == 3


def test_a_full_lane_refuses_and_takes_again_when_there_is_room() -> None:
    network, a, b = two()
    taken = 0
    while a.machine.offer("far", False, body(taken), 0):
        taken += 1
    assert taken == lanes.QUEUE_MAX
    network.act(a)
    network.settle(0.1)
    assert a.machine.offer("far", False, body(taken), 0)
    network.act(a)
    network.settle(0.1)
    assert b.came == [body(number) for number in range(taken + 1)]


def test_a_body_larger_than_all_room_goes_alone() -> None:
    network, a, b = two()
    large = bytes(lanes.QUEUE_BYTES + 1)
    assert network.offer(a, "far", large)
    assert not network.offer(a, "far", b"next")
    network.settle(0.1)
    assert network.offer(a, "far", b"next")
    network.settle(0.1)
    assert b.came == [large, b"next"]


def test_several_hosts_of_one_name_get_each_frame_once_in_turn() -> None:
    network, a, b = two()
    c, d = network.add("c", "far"), network.add("d", "far")
    network.settle()
    for number in range(300):
        network.offer(a, "far", body(number))
        network.settle()
    assert sorted(b.came + c.came + d.came) == [body(number) for number in range(300)]
    assert [len(end.came) for end in (b, c, d)] == [100, 100, 100]
    network.settle(0.1)  # all of it is acknowledged
    network.kill(c)
    network.settle(3 * peers.LEASE_S)
    for number in range(300, 400):
        network.offer(a, "far", body(number))
        network.settle()
    assert len(b.came) == len(d.came) == 150


def test_what_a_dead_host_has_not_acknowledged_goes_to_another_of_that_name() -> None:
    network, a, b = two()
    for number in range(10):
        network.offer(a, "far", body(number))
    network.kill(b)
    c = network.add("c", "far")
    network.settle()
    assert c.came == []  # b may come back
    network.settle(3 * peers.LEASE_S)
    assert c.came == [body(number) for number in range(10)]
    assert [(change.host, change.names) for change in a.changes][-1] == ("b", None)


def test_of_a_dead_host_what_was_never_sent_is_unroutable_and_of_the_rest_nothing_is_said() -> None:
    network, a, b = two()
    network.offer(a, "far", b"sent", key=1)
    network.kill(b)
    network.settle()
    network.offer(a, "far", b"waits", key=2)
    assert a.unroutable == []
    network.settle(3 * peers.LEASE_S)
    assert a.unroutable == [2]
    assert a.machine.dropped == 1
    assert a.machine._waiting_bytes == 0


def test_the_successor_of_a_host_gets_what_its_predecessor_has_not_acknowledged_at_once_and_first() -> None:
    network, a, b = two()
    for number in range(3):
        network.offer(a, "far", body(number))
    network.kill(b)
    network.settle()
    network.offer(a, "far", body(3))
    began_s = network.now
    successor = network.add("b", "far")
    network.settle()
    assert successor.came == [body(number) for number in range(4)]
    assert network.now - began_s < 0.001


def test_of_two_links_of_one_host_the_older_is_fenced_and_takes_nothing_more() -> None:
    network, a, b = two()
    second = network.add("b", "far")
    network.settle()
    assert b.superseded
    network.offer(a, "far", b"x")
    network.settle()
    assert (b.came, second.came) == ([], [b"x"])


def test_a_link_that_stood_still_for_longer_than_its_lease_begins_again_before_it_takes_anything() -> None:
    network, a, b = two()
    c = network.add("c", "far")
    network.settle()
    network.offer(a, "far", body(0))
    network.offer(a, "far", body(1))
    stopped = [end for end in (b, c) if end.frames]
    assert stopped == [b, c]
    for _ in range(30):  # b is stopped; all else goes on
        network.now += 0.5
        for end in (a, c):
            network.tick(end)
            while end.news or end.frames:
                network.hear(end)
    assert len(c.came) == 2
    network.tick(b)  # it wakes up: its frames are still in its socket
    network.settle(1.0)
    assert b.came == []
    assert len(b.lives) == 2
    network.offer(b, "a", b"hello", to_host=True)
    network.settle()
    assert a.came == [b"hello"]


def test_a_link_that_was_taken_for_gone_is_told_so() -> None:
    network, a, b = two()
    for _ in range(30):
        network.now += 0.5
        for end in (a, b):
            end.machine.tick(network.now)
            end.machine.flush(network.now)  # nothing arrives, and nobody sees that it does not
    network.settle(1.0)
    assert len(a.lives) + len(b.lives) > 2
    network.offer(a, "far", b"x")
    network.settle(1.0)
    assert b.came == [b"x"]


def test_while_the_proxy_is_away_no_lease_runs_out() -> None:
    network, a, b = two()
    network.kill_proxy()
    for end in (a, b):
        while end.news:
            network.hear(end)
    assert not a.machine.ready
    for number in range(5):
        network.offer(a, "far", body(number), key=number + 1)
    for _ in range(100):
        network.now += 1.0
        for end in (a, b):
            network.tick(end)
    network.settle(1.0)
    assert (a.unroutable, b.came) == ([], [body(number) for number in range(5)])
    assert a.lives == [a.machine.id]


def test_who_is_back_at_the_proxy_first_gives_the_others_their_whole_lease() -> None:
    network, a, b = two()
    network.kill_proxy()
    for end in (a, b):
        while end.news:
            network.hear(end)
    network.now += 3 * peers.LEASE_S - 0.5
    a.machine._ticked_s = network.now  # it did not stand still
    network.connect(a)
    while a.news:
        network.hear(a)
    network.now += 0.5
    network.tick(a)
    assert a.machine.connected
    assert list(a.machine.directory.hosts) == ["b"]


def test_who_leaves_in_good_order_is_gone_at_once() -> None:
    network, a, b = two()
    b.machine.leave()
    network.act(b)
    network.settle()
    network.offer(a, "far", b"x", key=3)
    assert a.unroutable == [3]


def test_names_that_change_are_known_to_all() -> None:
    network, a, b = two()
    b.machine.announce(["other"])
    network.act(b)
    network.settle()
    network.offer(a, "far", b"x", key=3)
    network.offer(a, "other", b"y", key=4)
    network.settle()
    assert (a.unroutable, b.came) == ([3], [b"y"])


def test_a_lost_hello_is_asked_for_with_the_next_beat() -> None:
    network, a, b = two()
    b.machine.announce(["other"])
    network.act(b)
    a.frames.clear()
    network.settle(machine.BEAT_S * 2)
    assert a.machine.directory.hosts["b"].names == {"other"}


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"cvz1",
        bytes(200),
        b"cvz1" + bytes(16) + b"x" * 16 + b"\x09" + b"\x90",
        b"cvz1" + bytes(16) + b"x" * 16 + b"\x06" + b"\xff\xff",
        b"cvz1" + bytes(16) + b"x" * 16 + b"\x01" + b"\x91" * 5000,
        wire.encode(wire.EVERYBODY, b"x" * 16, wire.Lane(0, [], 0)),
        wire.encode(wire.EVERYBODY, b"x" * 16, wire.Lane(1, [b"x"], -1)),
    ],
)
def test_what_is_no_frame_is_counted_and_costs_nothing_else(frame: bytes) -> None:
    network, a, b = two()
    b.machine.received(frame, network.now)
    assert b.machine.bad_frames == 1
    network.offer(a, "far", b"after")
    network.settle()
    assert b.came == [b"after"]


def test_a_peer_that_acknowledges_what_never_went_is_no_peer_of_ours_for_that_frame() -> None:
    network, a, b = two()
    network.offer(a, "far", b"x")
    a.machine.received(wire.encode(a.machine.id, b.machine.id, wire.Lane(1, [], 99)), network.now)
    assert a.machine.bad_frames == 1
    network.settle()
    assert b.came == [b"x"]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), st.binary(max_size=400))
def test_any_bytes_are_survived(rubbish: bytes, change: bytes) -> None:
    network, a, b = two()
    network.offer(a, "far", b"x")
    frame = bytearray(b.frames[0])
    frame[36 : 36 + len(change)] = change
    for bad in (rubbish, b"cvz1" + b.machine.id + a.machine.id + rubbish, bytes(frame[: 36 + len(change)])):
        b.machine.received(bad, network.now)
        network.act(b)
    if not b.machine.directory.gone_epoch(a.machine.id) and b.machine.directory.peers[a.machine.id].receiving.got == 0:
        network.settle(5.0)
        assert b.came == [b"x"]


OPERATIONS = (
    "offer",
    "reply",
    "hear a",
    "hear b",
    "hear a",
    "hear b",
    "lose",
    "double",
    "swap",
    "proxy",
    "cut",
    "connect",
    "wait",
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 7)), max_size=120))
def test_between_two_links_that_live_everything_arrives_once_and_in_order(steps: list[tuple[str, int]]) -> None:
    network, a, b = two()
    to_b: list[bytes] = []
    to_a: list[bytes] = []
    for number, (what, which) in enumerate(steps):
        end = (a, b)[which % 2]
        match what:
            case "offer":
                if network.offer(a, "far", body(number)):
                    to_b.append(body(number))
            case "reply":
                if network.offer(b, "a", body(number), to_host=True):
                    to_a.append(body(number))
            case "hear a" | "hear b":
                network.hear(a if what == "hear a" else b)
            case "lose" if end.frames:
                del end.frames[which % len(end.frames)]
            case "double" if end.frames:
                end.frames.append(end.frames[which % len(end.frames)])
            case "swap" if end.frames:
                end.frames.rotate(which)
            case "proxy":
                network.kill_proxy()
            case "cut":
                (network.cut_sub if which < 4 else network.cut_pub)(end)
            case "connect":
                (network.connect_sub if which < 4 else network.connect_pub)(end)
            case "wait":
                network.now += which / 200  # no lease runs out
                network.tick(a)
                network.tick(b)
    network.settle(4 * lanes.RESEND_MAX_S)
    assert len(a.lives) == len(b.lives) == 1
    assert (b.came, a.came) == (to_b, to_a)
    for end, other in ((a, "b"), (b, "a")):
        assert len(end.machine.directory.hosts[other].sending) == 0
        assert not end.machine._waiting
        assert (end.machine.dropped, end.machine.bad_frames) == (0, 0)


def test_a_long_bad_day() -> None:
    """Three hosts, one name; losses, doubles, kills of links and of the proxy, successors: all accounted for."""
    for seed in range(12):
        chance = random.Random(seed)
        network = Network()
        a = network.add("a")
        others = [network.add(host, "far") for host in "bcd"]
        network.settle()
        offered: set[bytes] = set()
        for number in range(400):
            if network.offer(a, "far", body(number), key=number + 1):
                offered.add(body(number))
            for end in [a, *others]:
                if end.frames and chance.random() < 0.05:
                    end.frames.popleft()
                while (end.news or end.frames) and chance.random() < 0.8:
                    network.hear(end)
            if chance.random() < 0.01:
                network.kill_proxy()
            if chance.random() < 0.01:
                which = chance.randrange(3)
                host = others[which].machine.host
                network.kill(others[which])
                network.settle(chance.choice([0.0, 12.0]))
                others[which] = network.add(host, "far")
            if chance.random() < 0.2:
                network.settle(0.0)
        network.settle(15.0)
        came = [one for end in network.ends for one in end.came]
        unroutable = {body(key - 1) for key in a.unroutable}
        assert set(came) | unroutable == offered, seed
        assert not set(came) & unroutable
