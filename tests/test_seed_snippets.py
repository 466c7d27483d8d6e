"""The snippets of the seed documents run as they are written, with `civitas` renamed to `civitas_shm`.

Rules of this file: `RUNS` and `WAITS` together are all files of tests/seeds; what waits says for what, and is refused
by name until then, so a snippet that has become possible fails here and moves up.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import subprocess
import sys
import types
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

import civitas_shm
from civitas_shm.errors import ConfigurationError, TopologyError
from civitas_shm.testing.models import FakeModelServer
from civitas_shm.topology.load import load_topology_text

HERE = Path(__file__).parent
SEEDS = HERE / "seeds"

RUNS = {
    "000_level_1.yaml": "Deployment, Level 1: one process, a model of Anthropic",
    "000_switching_1.yaml": "Deployment, Switching between levels: one process",
    "001_custom_transport.py.txt": "Transports, Writing a custom transport: as far as it is written out",
    "001_in_process.py.txt": "Transports, Level 1, programmatic",
    "001_in_process.yaml": "Transports, Level 1",
    "001_protocol.py.txt": "Transports, Transport protocol",
    "001_switching_1.yaml": "Transports, Switching transports: one process",
}

ELSEWHERE = {
    "000_level_2.yaml": "Deployment, Level 2: ZeroMQ: process/test_zmq_bridge.py",
    "000_switching_2.yaml": "Deployment, Switching between levels: ZeroMQ",
    "000_level_3.yaml": "Deployment, Level 3: NATS, and state in SQLite: process/test_bridge.py",
    "001_nats.py.txt": "Transports, Level 3, programmatic: NATS",
    "001_nats.yaml": "Transports, Level 3: NATS",
    "001_switching_2.yaml": "Transports, Switching transports: ZeroMQ",
    "001_zmq.py.txt": "Transports, Level 2, programmatic: ZeroMQ",
    "001_zmq.yaml": "Transports, Level 2: ZeroMQ",
}
"""What needs a server or addresses, and runs where there is one, or is read here."""
NATS = ["'jetstream: true' is not supported yet"]

WAITS = {
    "000_compose.yaml": ("Deployment, Level 4: what `deploy` generates; no topology", ["unknown key 'services'"]),
    "000_switching_3.yaml": ("Deployment, Switching between levels: NATS", NATS),
    "001_jetstream.yaml": ("Transports, JetStream: NATS", NATS),
    "001_switching_3.yaml": ("Transports, Switching transports: NATS", NATS),
    "001_worker.py.txt": ("Transports, Worker processes: of ZeroMQ and NATS", ["cannot import name 'Worker'"]),
}
"""Where it stands and what it waits for, and what is said of it. The FAQ, 002, has no snippets."""

MYAPP = '''
"""What the snippet calls `myapp`: three agents, two of which ask the model."""

from civitas_shm import AgentProcess


class Orchestrator(AgentProcess):
    async def on_start(self):
        await self.send(self.name, {"topic": "actors"}, message_type="begin")

    async def handle(self, message):
        if message.type == "begin":
            await self.send("researcher", message.payload)
        else:
            print("summary:", message.payload["summary"])
            await self.stop_runtime(0)


class Researcher(AgentProcess):
    async def handle(self, message):
        said = await self.llm.chat("", [{"role": "user", "content": f"research {message.payload['topic']}"}])
        await self.send("summarizer", {"text": said.content})


class Summarizer(AgentProcess):
    async def handle(self, message):
        with self.llm_span("claude-sonnet-4-6"):
            said = await self.llm.chat("claude-haiku-4-5", [{"role": "user", "content": message.payload["text"]}])
        await self.send("orchestrator", {"summary": said.content}, message_type="done")
'''


def test_the_list_is_complete() -> None:
    assert sorted([*RUNS, *ELSEWHERE, *WAITS]) == sorted(
        path.name for path in SEEDS.iterdir() if path.name != "README.md"
    )


@pytest.mark.process
@pytest.mark.parametrize("transport", [[], ["--transport", "shm"]], ids=["as written", "in many processes"])
def test_level_1_runs_with_the_key_and_the_address_from_the_environment(tmp_path: Path, transport: list[str]) -> None:
    """`civitas run --topology topology.yaml`; and by one word in many processes."""
    pytest.importorskip("anthropic", reason='pip install "civitas-shm[anthropic]"')
    if transport and sys.platform != "linux":
        pytest.skip("transport: shm needs Linux")
    (tmp_path / "topology.yaml").write_bytes((SEEDS / "000_level_1.yaml").read_bytes())
    (tmp_path / "myapp.py").write_text(MYAPP)
    roots = [str(HERE.parent), str(HERE.parent / "transports"), os.environ.get("PYTHONPATH", "")]
    with FakeModelServer(api_key="sk-ant-of-the-environment") as server:
        server.answer("all about actors").answer("actors are simple")
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, roots)),
            "CIVITAS_SHM_DIR": str(tmp_path / "runs"),
            "ANTHROPIC_API_KEY": "sk-ant-of-the-environment",
            "ANTHROPIC_BASE_URL": server.url,
        }
        command = [sys.executable, "-m", "civitas_shm", "run", "--topology", "topology.yaml", *transport]
        finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        assert "summary: actors are simple" in finished.stdout + finished.stderr
        assert [request.body["model"] for request in server.requests] == ["claude-sonnet-4-6", "claude-haiku-4-5"]
        assert server.requests[1].last_user_text == "all about actors"
        assert "sk-ant" not in finished.stdout + finished.stderr


# --- fragments of a topology, and what a program says ----------------------------------------------------------------

BESIDE = """
supervision:
  children:
    - agent: {name: echo, type: Echo}
"""
"""The block that a fragment leaves out."""


class Echo(civitas_shm.AgentProcess):
    async def handle(self, message: civitas_shm.Message) -> civitas_shm.Message:
        return self.reply(message.payload)


async def echoes(runtime: civitas_shm.Runtime) -> None:
    async with runtime:
        assert (await runtime.ask("echo", {"n": 1})).payload == {"n": 1}


@pytest.mark.parametrize("name", [name for name in RUNS if name.endswith(".yaml") and name != "000_level_1.yaml"])
def test_a_fragment_with_agents_beside_it_runs(name: str, tmp_path: Path) -> None:
    (tmp_path / "topology.yaml").write_text((SEEDS / name).read_text() + BESIDE)
    asyncio.run(echoes(civitas_shm.Runtime.from_config(tmp_path / "topology.yaml", {"Echo": Echo})))


def play(name: str, **known: Any) -> dict[str, Any]:
    """The names that a snippet in Python has made. `...` in a list of children is its agents."""
    source = re.sub(r"^(from|import) civitas\b", r"\1 civitas_shm", (SEEDS / name).read_text(), flags=re.MULTILINE)
    names: dict[str, Any] = {"Runtime": civitas_shm.Runtime, "Supervisor": civitas_shm.Supervisor, **known}
    code = compile(source, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    running = types.FunctionType(code, names)()
    if inspect.iscoroutine(running):
        asyncio.run(running)
    return names


@pytest.fixture(autouse=True)
def ellipsis_is_an_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    real = civitas_shm.Supervisor

    def supervisor(name: str, children: list[Any]) -> civitas_shm.Supervisor:
        return real(name, [Echo("echo") if child is ... else child for child in children])

    monkeypatch.setattr(civitas_shm, "Supervisor", supervisor)


def test_a_program_of_one_process_runs() -> None:
    asyncio.run(echoes(play("001_in_process.py.txt")["runtime"]))


def test_the_protocol_of_transports_is_one_that_the_custom_transport_of_the_document_fits() -> None:
    protocol = play("001_protocol.py.txt", Protocol=Protocol, Callable=Callable, Awaitable=Awaitable)["Transport"]
    source = (SEEDS / "001_custom_transport.py.txt").read_text()
    (cls,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    assert {name for name in vars(protocol) if not name.startswith("_")} == {
        node.name for node in cls.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_the_custom_transport_of_the_document_is_wired_as_it_says() -> None:
    names = play("001_custom_transport.py.txt")
    assert names["components"].transport is names["transport"]
    assert names["components"].serializer is names["serializer"]
    assert [agent.name for agent in names["runtime"].all_agents()] == ["echo"]
    assert names["components"].bus.transport is names["transport"]
    assert names["runtime"]._components is names["components"]


def test_a_system_over_nats_is_read_as_shared_memory_and_a_bridge() -> None:
    declared = load_topology_text((SEEDS / "001_nats.yaml").read_text() + BESIDE, agent_types=["Echo"])
    said = play("001_nats.py.txt")["runtime"]._given
    assert declared.transport.type == said.transport.type == "shm"
    for bridge in (declared.bridge, said.bridge):
        assert bridge is not None
        assert (bridge.type, bridge.options) == ("nats", {"servers": "nats://localhost:4222"})


ADDRESSES = {"pub_addr": "tcp://127.0.0.1:5559", "sub_addr": "tcp://127.0.0.1:5560", "start_proxy": True}


@pytest.mark.parametrize("name", ["000_switching_2.yaml", "001_switching_2.yaml", "001_zmq.yaml"])
def test_a_system_over_zmq_is_read_as_shared_memory_and_a_bridge(name: str) -> None:
    declared = load_topology_text((SEEDS / name).read_text() + BESIDE, agent_types=["Echo"])
    assert declared.transport.type == "shm"
    assert declared.bridge is not None
    assert (declared.bridge.type, declared.bridge.options) == ("zmq", ADDRESSES)


def test_a_program_over_zmq_is_read_as_shared_memory_and_a_bridge() -> None:
    said = play("001_zmq.py.txt")["runtime"]._given
    assert said.transport.type == "shm"
    assert (said.bridge.type, said.bridge.options) == ("zmq", ADDRESSES)


# --- what waits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in WAITS if name.endswith(".yaml")])
def test_a_topology_that_waits_is_refused_by_name(name: str) -> None:
    text = (SEEDS / name).read_text()
    with pytest.raises(TopologyError) as caught:
        load_topology_text(text if "supervision:" in text else text + BESIDE, agent_types=["Echo"])
    for sentence in WAITS[name][1]:
        assert any(sentence in problem for problem in caught.value.problems), caught.value.problems
    assert len(caught.value.problems) == len(WAITS[name][1]), caught.value.problems


@pytest.mark.parametrize("name", [name for name in WAITS if name.endswith(".py.txt")])
def test_a_program_that_waits_is_refused_by_name(name: str) -> None:
    with pytest.raises((ConfigurationError, ImportError)) as caught:
        play(name)
    for sentence in WAITS[name][1]:
        assert sentence in str(caught.value)
