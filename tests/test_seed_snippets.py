"""The snippets of the seed documents run as they are written, with `civitas` renamed to `civitas_shm`.

Rules of this file: `RUNS` and `WAITS` together are all files of tests/seeds; what waits says for what, and is refused
by name until then, so a snippet that has become possible fails here and moves up.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from civitas_shm.errors import TopologyError
from civitas_shm.testing.models import FakeModelServer
from civitas_shm.topology.load import load_topology

HERE = Path(__file__).parent
SEEDS = HERE / "seeds"

RUNS = {"000_level_1.yaml": "Deployment, Level 1: one process, a model of Anthropic"}

WAITS = {
    "000_level_3.yaml": (
        "Deployment, Level 3: NATS, and state in SQLite",
        ["the transport 'nats' is not supported yet", "'state' is not supported yet"],
    ),
}

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
    assert sorted([*RUNS, *WAITS]) == sorted(path.name for path in SEEDS.glob("*.yaml"))


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


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_is_refused_by_name(name: str) -> None:
    with pytest.raises(TopologyError) as caught:
        load_topology(SEEDS / name)
    for sentence in WAITS[name][1]:
        assert any(sentence in problem for problem in caught.value.problems), caught.value.problems
    assert len(caught.value.problems) == len(WAITS[name][1]), caught.value.problems
