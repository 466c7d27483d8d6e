"""Bridges over a real NATS server: two hosts on this machine."""

from __future__ import annotations

import asyncio
import datetime
import functools
import ipaddress
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from civitas_shm import AgentProcess, Message, Runtime, Supervisor
from civitas_shm.errors import ConfigurationError, MessageRoutingError
from civitas_shm.topology.model import BridgeSpec

from ..nats_server import NatsServer
from ..test_seed_snippets import SEEDS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.process


class Counter(AgentProcess):
    """Counts each number that it gets."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.state["seen"] = {}

    async def handle(self, message: Message) -> Message | None:
        seen = self.state["seen"]
        if message.type == "seen":
            return self.reply({"seen": [[int(n), count] for n, count in seen.items()]})
        key = str(message.payload["n"])
        seen[key] = seen.get(key, 0) + 1
        return self.reply({"n": message.payload["n"], "from": message.sender})


class Asker(AgentProcess):
    async def handle(self, message: Message) -> Message:
        return self.reply((await self.ask("counter", message.payload)).payload)


def in_loop(test: Callable[..., Any]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def bridge(server: NatsServer, **options: Any) -> BridgeSpec:
    return BridgeSpec("nats", {"servers": server.url, **options})


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(40):
        while not holds():
            await asyncio.sleep(0.01)


async def reached(runtime: Runtime, name: str) -> None:
    """Returns when that agent of another host can be asked."""
    async with asyncio.timeout(40):
        while True:
            try:
                await runtime.ask(name, {}, message_type="seen")
                return
            except MessageRoutingError:
                await asyncio.sleep(0.01)


async def counts_of(runtime: Runtime) -> dict[int, int]:
    seen = (await runtime.ask("counter", {}, message_type="seen")).payload["seen"]
    return dict(seen)


@in_loop
async def test_a_broker_that_is_restarted_and_a_bridge_that_is_killed_lose_nothing_under_load() -> None:
    """Nothing is handled twice either: the bridge that has taken the messages lives."""
    name = f"bridged-{os.getpid()}"
    with NatsServer() as server:
        async with (
            Runtime(Supervisor("root", [Counter("counter")]), "shm", bridge=bridge(server), name=f"{name}-a") as a,
            Runtime(Supervisor("root", [Asker("asker")]), "shm", bridge=bridge(server), name=f"{name}-b") as b,
        ):
            await reached(b, "counter")
            said = await b.ask("asker", {"n": -1})
            assert said.payload == {"n": -1, "from": "asker"}
            with pytest.raises(MessageRoutingError, match="No host that the bridge reaches"):
                await b.ask("nobody", {}, timeout=3600)

            with socket.create_connection(("127.0.0.1", server.port)) as hostile:
                hostile.sendall(b'CONNECT {"verbose":false}\r\n')
                for body in (b"\x01\x91\x91", b"junk", b"\x02"):
                    hostile.sendall(b"PUB civitas.agent.counter %d\r\n%b\r\n" % (len(body), body))
                hostile.sendall(b"PING\r\n")
                hostile.settimeout(20)
                while b"PONG" not in hostile.recv(4096):
                    pass

            sent = 0

            async def load() -> None:
                nonlocal sent
                while sent < 3000:
                    await b.send("counter", {"n": sent})
                    sent += 1
                    if sent % 20 == 0:
                        await asyncio.sleep(0.01)

            loading = asyncio.create_task(load())
            await until(lambda: sent > 500)
            server.stop()
            at = sent
            await until(lambda: sent > at + 300)  # nobody is blocked while the outbox has room
            server.start()
            await until(lambda: sent > at + 600)
            (pid,) = (one.pid for one in b.snapshot().processes if one.name == "_bridge")
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await loading
            await until(lambda: not b._run.waiting())
            counts = await counts_of(a)
            assert counts == dict.fromkeys(range(-1, 3000), 1)


@in_loop
async def test_a_broker_that_is_not_there_yet_delays_and_loses_nothing() -> None:
    server = NatsServer()
    async with (
        Runtime(Supervisor("root", [Counter("counter")]), bridge=bridge(server), name="later-a"),
        Runtime(Supervisor("root", [Asker("asker")]), bridge=bridge(server), name="later-b") as b,
    ):
        await b.send("counter", {"n": 1})
        asked = asyncio.create_task(b.ask("counter", {"n": 2}, timeout=40))
        with pytest.raises(TimeoutError):
            await b.ask("counter", {"n": 3}, timeout=0.05)
        with server:
            assert (await asked).payload["n"] == 2
            assert await counts_of(b) == {1: 1, 2: 1}, "whoever asked for 3 had given up"


def certificate(folder: Path) -> tuple[str, str]:
    """Of 127.0.0.1, signed by itself; and its key."""
    x509 = pytest.importorskip("cryptography.x509", reason='pip install "civitas-shm[encryption]"')
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "test")])
    today = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(today - datetime.timedelta(1)).not_valid_after(today + datetime.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, none))
    return str(paths[0]), str(paths[1])


@pytest.mark.parametrize("way", ["token", "user", "nkey", "tls"])
@in_loop
async def test_who_may_connect_and_who_may_not(way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scheme, right, wrong = "nats", dict[str, Any](), dict[str, Any]()
    match way:
        case "token":
            options = ["--auth", "secret-token"]
            right, wrong = {"token": "secret-token"}, {"token": "wrong-token"}
        case "user":
            options = ["--user", "ada", "--pass", "secret-pass"]
            right, wrong = {"user": "ada", "password": "secret-pass"}, {"user": "ada", "password": "wrong-pass"}
        case "nkey":
            nkeys = pytest.importorskip("nkeys", reason='pip install "civitas-shm[nats-auth]"')
            seeds = [nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER) for _ in "ab"]
            public = nkeys.from_seed(seeds[0]).public_key.decode()
            (tmp_path / "server.conf").write_text(f"authorization: {{users: [{{nkey: {public}}}]}}")
            options = ["-c", str(tmp_path / "server.conf")]
            for number, seed in enumerate(seeds):
                (tmp_path / f"seed{number}").write_bytes(seed)
            right, wrong = {"nkey": str(tmp_path / "seed0")}, {"nkey": str(tmp_path / "seed1")}
        case _:
            cert, key = certificate(tmp_path)
            options = ["--tls", "--tlscert", cert, "--tlskey", key]
            scheme, right = "tls", {"tls": {"ca": cert}}
    with NatsServer(*options, scheme=scheme) as server:
        async with (
            Runtime(Supervisor("root", [Counter("counter")]), bridge=bridge(server, **right), name="auth-a"),
            Runtime(Supervisor("root", [Asker("asker")]), bridge=bridge(server, **right), name="auth-b") as b,
            Runtime(Supervisor("root", [Counter("intruder")]), bridge=bridge(server, **wrong), name="auth-c") as c,
        ):
            await reached(b, "counter")
            assert (await b.ask("asker", {"n": 1})).payload["n"] == 1
            link = c._run.agent("_bridge")._link
            await until(lambda: "tried again" in caplog.text)
            assert link.state == "connecting"
            assert "secret" not in caplog.text
            assert "wrong" not in caplog.text


def test_settings_that_cannot_be_are_said_before_anything_is_tried(tmp_path: Path) -> None:
    from civitas_shm.bridge.link import LinkSettings
    from civitas_shm.transport import load_link

    with pytest.raises(ConfigurationError, match=r"bridge\.tls: ca, cert or key cannot be used"):
        load_link(LinkSettings("nats", "h", {"tls": {"ca": str(tmp_path / "none")}}))
    with pytest.raises(ConfigurationError, match="a bridge of type 'carrier' is unknown; known: nats, zmq"):
        load_link(LinkSettings("carrier", "h"))


MYAPP = """
from civitas_shm import AgentProcess


class Orchestrator(AgentProcess):
    async def on_start(self):
        await self.send("researcher", {"topic": "actors"})

    async def handle(self, message):
        print("summary:", message.payload["summary"], "from", message.sender)
        await self.stop_runtime(0)


class WebResearcher(AgentProcess):
    async def handle(self, message):
        await self.send("summarizer", {"text": f"all about {message.payload['topic']}"})


class Summarizer(AgentProcess):
    async def handle(self, message):
        await self.send("orchestrator", {"summary": message.payload["text"]})
"""


def test_the_seeds_level_3_runs_in_two_terminals(tmp_path: Path) -> None:
    """`run --topology topology.yaml`, and `run ... --process worker --nats-url ...`; the first by NATS_URL.

    Without its model, which level 1 has. What is sent to the worker before that is there waits for it.
    """
    topology = (SEEDS / "000_level_3.yaml").read_text().replace("/data/", f"{tmp_path}/")
    topology = re.sub(r"  models:.*?(?=  state:)", "", topology, flags=re.DOTALL)
    (tmp_path / "topology.yaml").write_text(topology)
    (tmp_path / "myapp.py").write_text(MYAPP)
    with NatsServer() as server:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "transports"), os.environ.get("PYTHONPATH", "")]),
            "CIVITAS_SHM_DIR": str(tmp_path / "runs"),
            "PYTHONUNBUFFERED": "1",
        }
        command = [sys.executable, "-m", "civitas_shm", "run", "--topology", "topology.yaml"]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": tmp_path}
        first = subprocess.Popen(command, env={**environment, "NATS_URL": server.url}, **pipes)
        assert first.stdout is not None
        early = []
        for line in first.stdout:
            early.append(line)
            if "the link is up" in line:
                break
        second = subprocess.Popen(
            [*command, "--process", "worker", "--nats-url", server.url],
            env={**environment, "NATS_URL": "nats://127.0.0.1:1"},
            **pipes,
        )
        try:
            output = "".join(early) + first.communicate()[0]
            assert (first.returncode, "summary: all about actors from summarizer" in output) == (0, True), output
            assert "waits for worker" in output
        finally:
            for one in (first, second):
                if one.poll() is None:
                    one.send_signal(signal.SIGTERM)
            there = second.communicate()[0]
        assert second.returncode == 0, there
