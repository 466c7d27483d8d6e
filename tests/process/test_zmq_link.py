"""Links over a real proxy, in a process of its own that is killed; what is promised stands in zmq/PROTOCOL.md."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from civitas_shm.bridge.link import LinkSettings, LinkState

zmq = pytest.importorskip("zmq")
from civitas_shm_transports.zmq import link as new_link  # noqa: E402 - pyzmq is there
from civitas_shm_transports.zmq.link import ZmqLink  # noqa: E402
from civitas_shm_transports.zmq.settings import make_keys  # noqa: E402

pytestmark = pytest.mark.process

HOW_LONG_S = 60.0
"""A watchdog: nothing here takes a second on an idle machine."""


def played(scene: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine, on a loop of its own."""

    @functools.wraps(scene)
    def test(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(scene(*args, **kwargs), HOW_LONG_S))

    return test


class Bridge:
    """What a link talks to: it notes all, and answers when it is told to."""

    def __init__(self, link: ZmqLink) -> None:
        self.link = link
        self.frames: list[bytes] = []
        self.unroutables: list[int] = []
        self.states: list[tuple[LinkState, str]] = []
        self.changed = asyncio.Event()
        self.answer: Callable[[bytes], object] | None = None

    def received(self, frame: bytes) -> None:
        self.frames.append(frame)
        if self.answer is not None:
            self.answer(frame)
        self.changed.set()

    def unroutable(self, key: int) -> None:
        self.unroutables.append(key)
        self.changed.set()

    def state_changed(self, state: LinkState, why: str) -> None:
        self.states.append((state, why))
        self.changed.set()

    def writable(self) -> None:
        self.changed.set()

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(HOW_LONG_S):
            while not true():
                self.changed.clear()
                await self.changed.wait()

    async def publish(self, name: str, frame: bytes, key: int = 0) -> None:
        """As a bridge does: what is refused is offered again when something has changed."""
        async with asyncio.timeout(HOW_LONG_S):
            while not self.link.publish(name, frame, key):
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
def addresses() -> Iterator[dict[str, Any]]:
    directory = tempfile.mkdtemp(prefix="cvz")  # short: a socket's path has 107 characters
    yield {"pub_addr": f"ipc://{directory}/p", "sub_addr": f"ipc://{directory}/s"}
    shutil.rmtree(directory)


@asynccontextmanager
async def opened(host: str, options: dict[str, Any], *names: str) -> AsyncIterator[Bridge]:
    bridge = Bridge(new_link(LinkSettings("zmq", host, options)))
    for name in names:
        bridge.link.subscribe(name)
    await bridge.link.open(bridge)
    try:
        yield bridge
    finally:
        await bridge.link.close()


async def polled(true: Callable[[], object]) -> None:
    """Of what nobody is told."""
    async with asyncio.timeout(HOW_LONG_S):
        while not true():
            await asyncio.sleep(0.001)


async def known(bridge: Bridge, name: str) -> None:
    """Of another host's hello nobody is told: a bridge finds out by publishing."""
    await polled(lambda: bridge.link.machine.directory.having(name))


@played
async def test_asks_bursts_and_a_name_that_nobody_has(addresses: dict[str, Any]) -> None:
    guest = {**addresses, "start_proxy": False}
    async with opened("near", addresses) as a, opened("distant", guest, "far") as b:
        await a.until(lambda: a.link.state == "up")
        await b.until(lambda: b.link.state == "up")
        await known(a, "far")
        b.answer = lambda frame: b.link.publish_to_host("near", frame, 0)
        for number in range(50):
            await a.publish("far", b"%d" % number)
            await a.until(lambda number=number: len(a.frames) > number)
        assert a.frames == [b"%d" % number for number in range(50)]

        b.answer = None
        b.frames.clear()
        for number in range(20_000):
            await a.publish("far", b"%d" % number)
        await b.until(lambda: len(b.frames) == 20_000)
        assert b.frames == [b"%d" % number for number in range(20_000)]

        await a.publish("nobody", b"x", key=9)
        await a.until(lambda: a.unroutables == [9])
        statistics = await a.link.keeper.statistics()
        assert statistics is not None
        assert statistics["pub_frames_in"] > 100
        assert a.link.counts()["bad_frames"] == b.link.counts()["bad_frames"] == 0


@played
async def test_a_killed_proxy_costs_a_moment_and_no_frame(addresses: dict[str, Any]) -> None:
    guest = {**addresses, "start_proxy": False}
    async with opened("near", addresses) as a, opened("distant", guest, "far") as b:
        await a.until(lambda: a.link.state == "up")
        await known(a, "far")
        keeper = a.link.keeper
        count = 0
        for _ in range(3):
            await a.until(lambda: a.link.state == "up")
            await polled(lambda: keeper.pid is not None)  # it hears of its proxy by another way than the link does
            for number in range(2000):
                await a.publish("far", b"%d" % count)
                count += 1
                if number == 1000:
                    os.kill(keeper.pid, signal.SIGKILL)
                if number % 100 == 0:
                    await asyncio.sleep(0)
        await b.until(lambda: len(b.frames) >= count)
        assert b.frames == [b"%d" % number for number in range(count)]
        await a.until(lambda: a.link.state == "up")
        assert keeper.starts == 4
        assert a.link.counts()["reconnects"] == 3
        assert a.unroutables == []
        assert ("down", "the connection to the proxy is lost") in a.states


@played
async def test_what_is_no_frame_is_counted_and_survived(addresses: dict[str, Any]) -> None:
    guest = {**addresses, "start_proxy": False}
    async with opened("near", addresses) as a, opened("distant", guest, "far") as b:
        await a.until(lambda: a.link.state == "up")
        await known(a, "far")
        context = zmq.Context()
        naughty = context.socket(zmq.XPUB)
        naughty.connect(addresses["pub_addr"])
        topic = b"cvz1" + b.link.machine.id
        while naughty.recv() != b"\x01" + topic:
            pass
        naughty.send(topic)
        naughty.send(topic + bytes(17) + b"\xc1")
        naughty.send(topic + b"x" * 16 + b"\x06\xdd\xff\xff\xff\xff")
        naughty.send_multipart([topic + b"x" * 16, b"\x06", b""])
        naughty.send(b"\x01" + topic)  # as a subscription looks
        await a.publish("far", b"after")
        await b.until(lambda: b.frames)
        while b.link.counts()["bad_frames"] < 4:
            await asyncio.sleep(0.001)
        await a.publish("far", b"still")
        await b.until(lambda: len(b.frames) == 2)
        assert b.frames == [b"after", b"still"]
        naughty.close(0)
        context.term()


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@played
async def test_with_keys_only_those_who_have_them_take_part(tmp_path: Path) -> None:
    first, second = free_ports(2)
    plain = {"pub_addr": f"tcp://127.0.0.1:{first}", "sub_addr": f"tcp://127.0.0.1:{second}"}
    ours = {**plain, "curve": {"directory": str(tmp_path / "ours")}}
    guest = {**ours, "start_proxy": False}
    make_keys(tmp_path / "others")
    shutil.copy(tmp_path / "others" / "client_public_key", tmp_path)
    async with opened("near", ours) as a, opened("distant", guest, "far") as b:
        for name in ("client_public_key", "client_secret_key"):  # a stranger who knows the proxy's public key
            (tmp_path / "others" / "server_public_key").write_bytes(
                (tmp_path / "ours" / "server_public_key").read_bytes()
            )
            assert (tmp_path / "others" / name).exists()
        await a.until(lambda: a.link.state == "up")
        await known(a, "far")
        stranger = {**plain, "start_proxy": False, "curve": {"directory": str(tmp_path / "others")}}
        async with opened("stranger", stranger, "far") as c, opened("open", {**plain, "start_proxy": False}) as d:
            await c.until(lambda: any("CURVE" in why for _, why in c.states))
            await d.until(lambda: any("CURVE" in why for _, why in d.states))
            assert {c.link.state, d.link.state} == {"connecting"}
            await a.publish("far", b"x")
            await b.until(lambda: b.frames)
            assert list(a.link.machine.directory.hosts) == ["distant"]
            assert c.frames == []


@played
async def test_two_hosts_keep_one_proxy(addresses: dict[str, Any]) -> None:
    async with opened("distant", addresses, "far") as b, opened("near", addresses) as a:
        await a.until(lambda: a.link.state == "up")
        await b.until(lambda: b.link.state == "up")
        keepers = [a.link.keeper, b.link.keeper]
        await polled(lambda: sum(keeper.pid is not None for keeper in keepers) == 1)
        holder = next(keeper for keeper in keepers if keeper.pid is not None)
        await holder.stop()
        await a.until(lambda: a.link.state == "down")
        await a.until(lambda: a.link.state == "up")
        await known(a, "far")
        await a.publish("far", b"x")
        await b.until(lambda: b.frames)


def proxy(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "civitas_shm_transports.zmq.proxy", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_proxy_alone_says_when_it_is_ready_and_why_it_is_not(addresses: dict[str, Any]) -> None:
    where = ["--pub-addr", addresses["pub_addr"], "--sub-addr", addresses["sub_addr"]]
    first, public = proxy(*where), proxy("--pub-addr", "tcp://0.0.0.0:1", "--sub-addr", "tcp://127.0.0.1:1")
    assert first.stdout is not None
    assert first.stdout.readline() == "ready\n"
    second = proxy(*where)
    said = second.communicate()[1]
    assert (second.returncode, "in use" in said) == (3, True), said
    said = public.communicate()[1]
    assert (public.returncode, "beyond this machine" in said) == (2, True), said
    out, said = first.communicate("stats\n")  # and then its input ends
    assert out.startswith('{"pub_frames_in": 0')
    assert (first.returncode, said) == (0, "")
