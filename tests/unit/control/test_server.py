"""The control socket against clients that are silent, slow, many, wrong, or of another user: the loop goes on."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from civitas_shm.control import server as server_module
from civitas_shm.control.client import ControlClient
from civitas_shm.control.protocol import REQUEST_BYTES_MAX, Letters, Refusal, Reply, Status, Stopping, StopRun
from civitas_shm.control.server import CLIENTS_MAX, ControlServer, peer_of
from civitas_shm.errors import RunNotAnswering, RunNotFound
from civitas_shm.host.loop import new_loop
from civitas_shm.host.wire import FrameDecoder, encode_frame

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="SO_PEERCRED is Linux's")

STATUS = encode_frame(Status())


class Served:
    """A server, and what it was asked."""

    def __init__(self, directory: Path, answer: Callable[[bytes], Reply] | None = None, uid: int | None = None) -> None:
        self.directory = directory
        self.asked: list[bytes] = []
        self.faults: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.faults.append(context))
        self.server = ControlServer(loop, directory, answer or self.answer, uid)

    def answer(self, body: bytes) -> Reply:
        self.asked.append(body)
        return Stopping()

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(self.directory / "control"))
        sock.settimeout(30)
        return sock


@asynccontextmanager
async def served(directory: Path, **options: Any) -> AsyncIterator[Served]:
    one = Served(directory, **options)
    try:
        yield one
    finally:
        one.server.close()
        assert one.faults == []
        assert not (directory / "control").exists()


def run(test: Callable[[], Awaitable[None]], loop: str = "uvloop") -> None:
    with asyncio.Runner(loop_factory=new_loop if loop == "uvloop" else asyncio.new_event_loop) as runner:
        runner.run(test())  # type: ignore[arg-type]


async def reply_from(sock: socket.socket) -> Reply | None:
    """The next reply; None at the end of the connection."""
    decoder: FrameDecoder[Reply] = FrameDecoder(Reply)
    while True:
        try:
            data = await asyncio.to_thread(sock.recv, 1 << 16)
        except ConnectionError:
            return None
        if not data:
            return None
        if replies := decoder.feed(data):
            return replies[0]


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_requests_are_answered_in_order_however_they_are_cut(tmp_path: Path, loop: str) -> None:
    async def test() -> None:
        async with served(tmp_path) as one:
            with one.connect() as sock:
                for byte in STATUS:
                    sock.send(bytes([byte]))
                    await asyncio.sleep(0)
                assert isinstance(await reply_from(sock), Stopping)
                sock.sendall(STATUS * 3 + encode_frame(StopRun(now=True)))
                await until(lambda: len(one.asked) == 5)
                assert msgspec.msgpack.decode(one.asked[-1])["op"] == "stop"

    run(test, loop)


def test_the_socket_is_for_its_user_alone_and_its_path_may_be_long(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 60) / ("e" * 60)  # 107 bytes are all that an address takes
    directory.mkdir(parents=True)

    async def test() -> None:
        before = os.umask(0)
        try:
            async with served(directory) as one:
                mode = (directory / "control").stat().st_mode
                assert stat.S_ISSOCK(mode)
                assert stat.S_IMODE(mode) == 0o600

                def ask() -> None:
                    with ControlClient(directory, lambda _: True) as client:
                        assert client.host_pid == os.getpid()
                        client.ask(Status(), Stopping)

                await asyncio.to_thread(ask)
                assert len(one.asked) == 1
        finally:
            os.umask(before)

    run(test)


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", os.urandom(5000), struct.pack("<I", REQUEST_BYTES_MAX + 1), b"\xff" * 4],
)
def test_garbage_ends_its_client_with_a_word_and_nobody_else(tmp_path: Path, garbage: bytes) -> None:
    async def test() -> None:
        async with served(tmp_path) as one:
            with one.connect() as good, one.connect() as bad:
                bad.sendall(struct.pack("<I", 1 << 30) + garbage)
                refused = await reply_from(bad)
                assert refused is None or (isinstance(refused, Refusal) and refused.kind == "malformed")
                assert await reply_from(bad) is None
                good.sendall(STATUS)
                assert isinstance(await reply_from(good), Stopping)
                await until(lambda: one.server.clients == 1)

    run(test)


def test_clients_that_say_nothing_make_room_for_those_that_do(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path) as one:
            silent = [one.connect() for _ in range(CLIENTS_MAX)]
            await until(lambda: one.server.clients == CLIENTS_MAX)
            silent[0].sendall(STATUS)  # the first is no longer the one that was silent for longest
            assert isinstance(await reply_from(silent[0]), Stopping)
            for _ in range(3):
                with one.connect() as sock:
                    sock.sendall(STATUS)
                    assert isinstance(await reply_from(sock), Stopping)
                    assert one.server.clients <= CLIENTS_MAX
            silent[0].sendall(STATUS)
            assert isinstance(await reply_from(silent[0]), Stopping)
            assert await reply_from(silent[1]) is None  # it was turned out
            for sock in silent:
                sock.close()

    run(test)


def test_a_client_that_does_not_read_is_not_read_and_holds_one_reply(tmp_path: Path) -> None:
    large = Letters(letters=[{"cause": "x" * (8 << 20)}], total=1, evicted=0)
    asked = 0

    def answer(body: bytes) -> Reply:
        nonlocal asked
        asked += 1
        return large

    async def test() -> None:
        async with served(tmp_path, answer=answer) as one:
            with one.connect() as slow, one.connect() as other:
                slow.setblocking(False)
                sent = 0
                for _ in range(400):  # far more than the buffers of the kernel and one reading
                    try:
                        sent += slow.send(STATUS * 100)
                    except BlockingIOError:
                        await asyncio.sleep(0.001)
                assert asked == 1
                other.sendall(STATUS)
                assert isinstance(await reply_from(other), Letters)
                slow.settimeout(30)
                assert isinstance(await reply_from(slow), Letters)

    run(test)


def test_a_fault_in_answering_is_said_and_survived(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(body: bytes) -> Reply:
        raise ZeroDivisionError("a fault of ours")

    async def test() -> None:
        async with served(tmp_path, answer=answer) as one:
            with one.connect() as sock:
                for _ in range(2):
                    sock.sendall(STATUS)
                    refused = await reply_from(sock)
                    assert isinstance(refused, Refusal)
                    assert refused.kind == "fault"

    run(test)
    assert "a fault of ours" in capsys.readouterr().err


def test_a_reply_that_is_too_large_is_a_refusal(tmp_path: Path) -> None:
    async def test() -> None:
        def answer(body: bytes) -> Reply:
            return Letters(letters=[{"cause": "x" * (17 << 20)}], total=1, evicted=0)

        async with served(tmp_path, answer=answer) as one:
            with one.connect() as sock:
                sock.sendall(STATUS)
                assert isinstance(await reply_from(sock), Refusal)

    run(test)


def test_descriptors_that_come_along_are_not_kept(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path) as one:
            with one.connect() as sock:
                sock.sendall(STATUS)
                await reply_from(sock)
                before = len(os.listdir("/proc/self/fd"))
                read, write = os.pipe()
                for _ in range(20):
                    socket.send_fds(sock, [STATUS], [write])
                    assert isinstance(await reply_from(sock), Stopping)
                os.close(write)
                assert os.read(read, 1) == b""  # nobody has the other end
                os.close(read)
                assert len(os.listdir("/proc/self/fd")) == before

    run(test)


def test_no_descriptor_left_is_waited_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(server_module, "_NO_DESCRIPTORS_PAUSE_S", 0.01)

    async def test() -> None:
        async with served(tmp_path) as one:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(int(f) for f in os.listdir("/proc/self/fd")) + 1, hard))
            held = []
            try:
                while True:
                    held.append(os.dup(0))
            except OSError:
                pass
            try:
                sock.connect(str(tmp_path / "control"))
                sock.sendall(STATUS)
                await asyncio.sleep(0.05)
                assert one.server.clients == 0
            finally:
                for fd in held:
                    os.close(fd)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            sock.settimeout(30)
            assert isinstance(await reply_from(sock), Stopping)
            sock.close()

    run(test)


AS_NOBODY = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
sock = socket.socket(socket.AF_UNIX); sock.connect(sys.argv[1])
sys.stdout.buffer.write(sock.recv(4096)); sys.stdout.flush()
assert sock.recv(1) == b""
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_another_user_is_turned_away_even_where_the_modes_would_let_it_in(tmp_path: Path) -> None:
    import tempfile

    async def test() -> None:
        with tempfile.TemporaryDirectory(dir="/tmp") as open_:
            os.chmod(open_, 0o777)
            async with served(Path(open_)) as one:
                os.chmod(f"{open_}/control", 0o666)
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-c", AS_NOBODY, f"{open_}/control", stdout=asyncio.subprocess.PIPE
                )
                out, _ = await process.communicate()
                assert process.returncode == 0
                [refused] = FrameDecoder[Reply](Reply).feed(out)
                assert isinstance(refused, Refusal)
                assert refused.kind == "forbidden"
                assert "user 65534" in refused.text
                assert one.asked == []
                assert one.server.clients == 0

    run(test)


def test_a_socket_that_a_killed_host_left_is_replaced(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "control"))
    left.close()

    async def test() -> None:
        async with served(tmp_path) as one:
            with one.connect() as sock:
                sock.sendall(STATUS)
                assert isinstance(await reply_from(sock), Stopping)

    run(test)


def test_the_end_of_the_server_is_the_end_of_its_connections(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path) as one:
            sock = one.connect()
            await until(lambda: one.server.clients == 1)
            one.server.stop_listening()
            assert not (tmp_path / "control").exists()
            sock.sendall(STATUS)  # who is connected still gets answers
            assert isinstance(await reply_from(sock), Stopping)
            one.server.close()
            assert await reply_from(sock) is None
            sock.close()

    run(test)


# --- the client -------------------------------------------------------------------------------------------------------


def test_a_host_that_is_gone_and_one_that_hangs_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(RunNotFound):
        ControlClient(tmp_path, lambda _: False, 0.1)
    with pytest.raises(RunNotAnswering, match="--now` kills it"):
        ControlClient(tmp_path, lambda _: True, 0.1)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "control"))
        silent.listen(1)
        with ControlClient(tmp_path, lambda _: True, 0.1) as client, pytest.raises(RunNotAnswering, match="SIGSTOP"):
            client.ask(Status(), Stopping)


@pytest.mark.parametrize(
    ("answer", "word"),
    [(b"\xff\xff\xff\xff", "no reply"), (b"", "ended the connection"), (encode_frame(Stopping()), "answered Stopping"),
     (encode_frame(Refusal(kind="busy", text="not now")), "refused: not now")],
)  # fmt: skip
def test_what_a_host_should_not_answer_is_a_sentence(tmp_path: Path, answer: bytes, word: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control"))
        listener.listen(1)

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(1000)
                sock.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with ControlClient(tmp_path, lambda _: True, 5) as client, pytest.raises(RunNotAnswering, match=word):
            client.ask(Status(), Letters)
        thread.join()


def test_peers_are_named_by_the_kernel() -> None:
    mine, its = socket.socketpair()
    with mine, its:
        assert peer_of(mine) == (os.getpid(), os.geteuid())
