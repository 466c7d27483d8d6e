"""Plug-ins in real worker processes: built where they are used, keys only where they belong, kills survived."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from civitas_shm import Runtime, Supervisor
from civitas_shm.testing.models import Answer, FakeModelServer
from civitas_shm.topology.load import load_topology_text
from civitas_shm.topology.model import PluginSpec, PluginsSpec

pytestmark = pytest.mark.process

HERE = Path(__file__).parent
anthropic = pytest.importorskip("anthropic", reason='pip install "civitas-shm[anthropic]"')

SHARED, OWN = "sk-shared-0123456789abcdef", "sk-own-fedcba9876543210"

TOPOLOGY = """
transport: {type: shm, arena_mb: 16}
plugins:
  models:
    - type: anthropic
      config: {default_model: claude-sonnet-4-6, base_url: "${SERVICE}", api_key: "${SHARED}", timeout_s: 60}
  tools:
    - {type: plugin_agents.Shelf, config: {books: 7}}
supervision:
  children:
    - agent: {name: asks, type: plugin_agents.Asks, process: w1}
    - agent: {name: searches, type: plugin_agents.Searches, process: w1}
    - agent: {name: keyed, type: plugin_agents.Keyed, process: w2, credentials: {anthropic: "${OWN}"}}
    - agent: {name: plain, type: plugin_agents.Plain, process: w3}
"""


@pytest.fixture
def server() -> Iterator[FakeModelServer]:
    with FakeModelServer() as running:
        yield running


@pytest.fixture
def runtime(server: FakeModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    monkeypatch.setenv("CIVITAS_SHM_DIR", str(tmp_path / "runs"))
    spec = load_topology_text(TOPOLOGY, environment={"SERVICE": server.url, "SHARED": SHARED, "OWN": OWN})
    spec = replace(spec, import_paths=[str(HERE)])
    return Runtime.from_spec(spec, name=f"plugins-{os.getpid()}", events=tmp_path / "events.jsonl")


def test_agents_in_workers_use_models_and_tools(runtime: Runtime, server: FakeModelServer) -> None:
    async def test() -> None:
        async with runtime:
            reply = (await runtime.ask("asks", {"say": "hi"}, timeout=60)).payload
            assert (reply["said"], reply["cost"]) == ("echo: hi", pytest.approx(0.000105))
            assert reply["pid"] != os.getpid()
            server.answer("", tool_calls=[("shelf", {"row": 2})]).answer("seven books")
            assert (await runtime.ask("searches", {"say": "how many?"}, timeout=60)).payload == {"said": "seven books"}
            result = json.loads(server.requests[-1].body["messages"][-1]["content"][0]["content"])
            assert result == {"row": 2, "books": 7, "pid": reply["pid"]}, "the tool runs in its agent's process"

    asyncio.run(test())


def test_a_program_names_its_plug_ins_too(
    server: FakeModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIVITAS_SHM_DIR", str(tmp_path / "runs"))
    monkeypatch.syspath_prepend(HERE)
    from plugin_agents import Asks

    config = {"default_model": "claude-sonnet-4-6", "base_url": server.url, "api_key": SHARED}
    plugins = PluginsSpec(models=[PluginSpec("anthropic", config)])

    async def test() -> None:
        async with Runtime(
            Supervisor("root", [Asks("asks")]), transport="shm", plugins=plugins, events=tmp_path / "events.jsonl"
        ) as runtime:
            reply = (await runtime.ask("asks", {"say": "hi"}, timeout=60)).payload
            assert (reply["said"], reply["pid"] != os.getpid()) == ("echo: hi", True)

    asyncio.run(test())


def test_a_process_that_uses_none_loads_none(runtime: Runtime) -> None:
    async def test() -> None:
        async with runtime:
            await runtime.ask("asks", {"say": "hi"}, timeout=60)
            assert (await runtime.ask("plain", {"halves": ["a", "b"]}, timeout=60)).payload["loaded"] == []

    asyncio.run(test())


def test_an_agents_key_is_in_its_own_process_and_no_other(runtime: Runtime, server: FakeModelServer) -> None:
    async def test() -> None:
        async with runtime:
            await runtime.ask("asks", {"say": "hi"}, timeout=60)
            halves = {"halves": [OWN[:12], OWN[12:]]}
            keyed = (await runtime.ask("keyed", halves, timeout=60)).payload
            assert (keyed["key"], keyed["holds"]) == (OWN, True), "the search must be able to find it"
            plain = (await runtime.ask("plain", halves, timeout=60)).payload
            assert (plain["key"], plain["holds"]) == (None, False)
            assert [request.api_key for request in server.requests] == [SHARED, OWN]

    asyncio.run(test())


def test_keys_are_in_no_event_log_or_list_of_processes(
    runtime: Runtime, server: FakeModelServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The service refuses the key and repeats it: the agent crashes over it, with report and traceback."""

    async def test() -> None:
        server.otherwise = lambda request: Answer(status=401, message=f"invalid x-api-key: {request.api_key}")
        async with runtime:
            with pytest.raises(Exception, match="invalid x-api-key"):
                await runtime.ask("asks", {"say": "hi"}, timeout=60)
            with pytest.raises(Exception, match="invalid x-api-key"):
                await runtime.ask("keyed", {"halves": []}, timeout=60)
            shown = subprocess.run(["ps", "axe", "-ww"], capture_output=True, text=True, check=False).stdout
            files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
            assert files, "nothing was tested"
            assert not [path for path in files if _holds(path)]
            assert SHARED not in shown
            assert OWN not in shown
        events = (tmp_path / "events.jsonl").read_text()
        assert "agent_failed" in events, "nothing was tested"
        out, err = capfd.readouterr()
        assert "invalid x-api-key: ***" in events + out + err, "nothing was tested"
        for text in (events, out, err):
            assert SHARED not in text
            assert OWN not in text

    asyncio.run(test())


def _holds(path: Path) -> bool:
    data = path.read_bytes()
    return SHARED.encode() in data or OWN.encode() in data


def test_a_question_survives_the_death_of_the_process_that_asks_the_model(
    runtime: Runtime, server: FakeModelServer
) -> None:
    async def test() -> None:
        async with runtime:
            pid = (await runtime.ask("asks", {"say": "hi"}, timeout=60)).payload["pid"]
            server.answer("never heard", delay_s=60)
            asking = asyncio.create_task(runtime.ask("asks", {"say": "again"}, timeout=100))
            while len(server.requests) < 2:
                await asyncio.sleep(0.01)
            os.kill(pid, signal.SIGKILL)
            reply = (await asking).payload
            assert reply["said"] == "echo: again"
            assert reply["pid"] != pid

    asyncio.run(test())


def test_a_plug_in_that_cannot_be_had_is_told_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text("from civitas_shm import AgentProcess\nclass A(AgentProcess): pass\n")
    (tmp_path / "topology.yaml").write_text(
        "plugins: {models: [{type: agents.Modell}]}\nsupervision: {children: [{type: agents.A, name: a}]}\n"
    )
    command = [sys.executable, "-m", "civitas_shm", "run", "topology.yaml"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 4
    assert (
        "model plug-in 'agents.Modell': type 'agents.Modell' cannot be imported: 'agents' has no class" in result.stderr
    )
