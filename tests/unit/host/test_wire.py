"""Control messages: framing without a socket, then channels over real socketpairs."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from civitas_shm.host import wire
from civitas_shm.host.protocol import FromWorker, Hello, Line, Output, Ready, StartAgent
from civitas_shm.host.wire import Channel, FrameDecoder, WireError, encode_frame


class Passed(msgspec.Struct, tag_field="op", tag="passed"):
    fds: int
    note: str = ""


# --- framing ------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2**31), max_size=8), st.lists(st.integers(1, 40), max_size=20))
def test_frames_come_out_as_they_went_in_however_the_bytes_are_cut(pids: list[int], cuts: list[int]) -> None:
    data = b"".join(encode_frame(Hello(pid)) for pid in pids)
    decoder: FrameDecoder[Any] = FrameDecoder(FromWorker)
    out = []
    for cut in [*cuts, len(data)]:
        out += decoder.feed(data[:cut])
        data = data[cut:]
    assert out == [Hello(pid) for pid in pids]


@given(st.binary(max_size=64))
def test_garbage_is_an_error_or_waits_for_more_and_nothing_else(data: bytes) -> None:
    decoder: FrameDecoder[Any] = FrameDecoder(FromWorker)
    try:
        messages = decoder.feed(data)
    except WireError:
        return
    assert all(isinstance(message, Hello | Ready) or message for message in messages)


def test_a_frame_that_claims_too_much_is_refused_before_it_is_waited_for() -> None:
    decoder: FrameDecoder[Any] = FrameDecoder(FromWorker)
    with pytest.raises(WireError, match="claims 4,294,967,295 bytes"):
        decoder.feed(b"\xff\xff\xff\xff")


def test_a_message_that_this_side_does_not_accept_is_refused() -> None:
    decoder: FrameDecoder[Any] = FrameDecoder(FromWorker)
    with pytest.raises(WireError, match="no control message"):
        decoder.feed(encode_frame(StartAgent({}, 1, 1)))


# --- channels -----------------------------------------------------------------------------------------------------


class Peer:
    """One end and what it has heard."""

    def __init__(self, sock: socket.socket, kind: Any) -> None:
        self.heard: list[Any] = []
        self.fds: list[int] = []
        self.ends: list[Exception | None] = []
        self.channel: Channel[Any] = Channel(asyncio.get_running_loop(), sock, kind, self._on, self.ends.append)

    def _on(self, message: Any, fds: list[int]) -> None:
        self.heard.append(message)
        self.fds += fds

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await asyncio.sleep(0.001)


def test_descriptors_arrive_with_their_message_and_are_not_inherited() -> None:
    async def test() -> None:
        a, b = wire.socket_pair()
        left, right = Peer(a, Passed), Peer(b, Passed)
        read, write = os.pipe()
        left.channel.send(Passed(0, "first"))
        left.channel.send(Passed(1, "with a pipe"), [write])
        left.channel.send(Passed(0, "last"))
        os.close(write)
        await right.until(lambda: len(right.heard) == 3)
        assert [message.note for message in right.heard] == ["first", "with a pipe", "last"]
        os.write(right.fds[0], b"through")
        assert os.read(read, 10) == b"through"
        assert not os.get_inheritable(right.fds[0])
        for fd in (read, right.fds[0]):
            os.close(fd)
        left.channel.close()
        right.channel.close()

    asyncio.run(test())


def test_more_descriptors_than_the_kernel_takes_at_once_arrive_in_order() -> None:
    async def test() -> None:
        a, b = wire.socket_pair()
        left, right = Peer(a, Passed), Peer(b, Passed)
        files = [os.memfd_create(str(number)) for number in range(2)]
        for number, fd in enumerate(files):
            os.write(fd, bytes([number]))
        many = [files[number % 2] for number in range(2 * wire.FDS_MAX + 10)]
        left.channel.send(Passed(len(many), "many"), many)
        left.channel.send(Passed(1, "one more"), files[:1])
        for fd in files:
            os.close(fd)
        await right.until(lambda: len(right.heard) == 2)
        assert [os.pread(fd, 1, 0)[0] for fd in right.fds] == [number % 2 for number in range(len(many))] + [0]
        for fd in right.fds:
            os.close(fd)
        left.channel.close()
        right.channel.close()

    asyncio.run(test())


def test_a_peer_that_announces_descriptors_and_sends_none_is_cut_off() -> None:
    async def test() -> None:
        a, b = wire.socket_pair()
        peer = Peer(b, Passed)
        a.sendall(encode_frame(Passed(2)))
        await peer.until(lambda: peer.ends)
        assert "2 descriptors were announced, 0 came" in str(peer.ends[0])
        a.close()

    asyncio.run(test())


def test_the_end_is_told_once_after_everything_that_was_said() -> None:
    async def test() -> None:
        a, b = wire.socket_pair()
        peer = Peer(b, FromWorker)
        a.sendall(encode_frame(Hello(1)) + encode_frame(Ready(2)))
        a.close()
        await peer.until(lambda: peer.ends)
        assert peer.heard == [Hello(1), Ready(2)]
        assert peer.ends == [None]
        assert not peer.channel.send(Hello(3))

    asyncio.run(test())


def test_what_nobody_reads_is_dropped_if_it_may_be_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "QUEUE_BYTES_MAX", 1 << 16)

    async def test() -> None:
        a, b = wire.socket_pair()
        peer = Peer(a, FromWorker)
        lines = Output([Line(0.0, "w1", 1, "stdout", "x" * 1000)])
        sent = [peer.channel.send(lines, droppable=True) for _ in range(1000)]
        assert peer.channel.dropped == sent.count(False) > 0
        assert not peer.ends
        assert peer.channel.send(Ready(1))  # control messages still have room
        peer.channel.close()
        b.close()

    asyncio.run(test())


def test_a_queue_of_control_messages_that_nobody_reads_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "QUEUE_BYTES_MAX", 1 << 16)
    monkeypatch.setattr(wire, "FRAME_BYTES_MAX", 1 << 16)

    async def test() -> None:
        a, b = wire.socket_pair()
        peer = Peer(a, FromWorker)
        while peer.channel.send(StartAgent({"pad": "x" * 1000}, 1, 1)):
            pass
        await peer.until(lambda: peer.ends)
        assert "has not read" in str(peer.ends[0])
        b.close()

    asyncio.run(test())


def test_a_queue_is_written_on_as_the_peer_reads_and_drained_waits_for_it() -> None:
    async def test() -> None:
        a, b = wire.socket_pair()
        left = Peer(a, FromWorker)
        for n in range(2000):
            left.channel.send(Output([Line(0.0, "w1", n, "stdout", "x" * 1000)]))
        assert not await left.channel.drained(0.01)
        right = Peer(b, Output)
        assert await left.channel.drained(30)
        await right.until(lambda: len(right.heard) == 2000)
        assert [output.lines[0].pid for output in right.heard] == list(range(2000))
        left.channel.close()
        right.channel.close()

    asyncio.run(test())


def test_what_is_said_soon_comes_with_what_is_said_next_or_at_the_end_of_the_turn() -> None:
    async def play() -> None:
        loop = asyncio.get_running_loop()
        mine, its = wire.socket_pair()
        channel: Channel[Any] = Channel(loop, mine, FromWorker, lambda message, fds: None, lambda error: None)
        its.setblocking(False)
        decoder: FrameDecoder[Any] = FrameDecoder(FromWorker)

        def heard() -> list[Any]:
            try:
                return wire.receive(its, decoder)[0]
            except BlockingIOError:
                return []

        assert channel.send(Ready(1), soon=True)
        assert heard() == []
        assert channel.send(Ready(2), soon=True)
        assert heard() == [Ready(1), Ready(2)], "one wake-up for both"
        assert channel.send(Ready(3), soon=True)
        assert await channel.drained(5.0)
        assert heard() == [Ready(3)]
        assert channel.send(Ready(4), soon=True)
        await asyncio.sleep(0)
        assert heard() == [Ready(4)]
        assert channel.send(Ready(5))
        assert heard() == [Ready(5)]
        channel.close()
        its.close()

    asyncio.run(play())


def test_messages_that_go_in_one_write_arrive_whole_and_in_order_however_little_of_it_is_taken() -> None:
    async def play() -> None:
        loop = asyncio.get_running_loop()
        mine, its = wire.socket_pair()
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        said = [StartAgent({"text": "x" * (n * 37 % 3000)}, n, 1) for n in range(60)]
        got: list[Any] = []
        done = loop.create_future()

        def on_message(message: Any, fds: list[int]) -> None:
            got.append(message)
            if len(got) == len(said):
                done.set_result(None)

        writer: Channel[Any] = Channel(loop, mine, FromWorker, lambda message, fds: None, lambda error: None)
        for message in said:
            assert writer.send(message, soon=True)
        reader: Channel[Any] = Channel(loop, its, StartAgent, on_message, lambda error: None)
        async with asyncio.timeout(30):
            await done
        assert got == said
        writer.close()
        reader.close()

    asyncio.run(play())
