"""States in stores outside of shared memory, and real deaths: the effect on the state is exactly once all the same."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from civitas_shm import AgentProcess, Message, Runtime, Supervisor
from civitas_shm.cli.app import app
from civitas_shm.host.protocol import Chaos
from civitas_shm.messages import Message as _Message
from civitas_shm.plugins.sqlite_store import SQLiteStateStore
from civitas_shm.topology.model import AgentSpec, PluginSpec, PluginsSpec, PoolSpec

pytestmark = pytest.mark.process

KILLS = 8


def agents() -> list[AgentSpec]:
    return [
        AgentSpec("counter", "state_agents.Counter", process="w1"),
        AgentSpec("heard", "state_agents.Heard", process="w2", state="shm"),
    ]


async def looked(run: Any, name: str) -> dict[str, Any]:
    reply: _Message = await run.client.orders.runner.bus.ask(name, {}, "look", timeout=60)
    return reply.payload


async def heard(run: Any, total: int) -> list[int]:
    while len(found := (await looked(run, "heard"))["heard"]) < total:
        await asyncio.sleep(0.01)
    return list(found)


@pytest.mark.parametrize("kind", ["sqlite", "encrypted redis"])
def test_with_workers_killed_at_random_every_message_counts_once(
    start_run: Any, tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    config: dict[str, Any] = {"db_path": str(tmp_path / "states.db")}
    preload: list[str] = []
    if kind != "sqlite":
        pytest.importorskip("cryptography", reason='pip install "civitas-shm[encryption]"')
        inner = {"type": "redis", "config": {"url": request.getfixturevalue("redis_server").url}}
        config = {"inner": inner, "keys": {"k": base64.b64encode(os.urandom(32)).decode()}}
        preload = ["redis.asyncio", "redis.asyncio.retry", "cryptography.hazmat.primitives.ciphers.aead"]
    plugins = PluginsSpec(state=PluginSpec(kind.split()[0], config))

    async def test() -> None:
        chaos = {"chaos": Chaos(kill_s=0.06)}
        async with start_run(*agents(), plugins=plugins, options=chaos, pool=PoolSpec(1, preload=preload)) as run:
            sent = 0
            while len(run.named("process_recovered")) < KILLS:
                for _ in range(20):
                    await run.send("counter", {"n": sent})
                    sent += 1
                while len((await looked(run, "heard"))["heard"]) < sent - 10:  # some are always on their way
                    await asyncio.sleep(0.001)
            assert await heard(run, sent) == list(range(sent)), "each is told once, and in order"
            assert (await looked(run, "counter"))["total"] == sent

    asyncio.run(test())


def test_a_kill_between_the_stores_commit_and_the_release_and_one_before_the_commit(
    start_run: Any, tmp_path: Path
) -> None:
    path = tmp_path / "states.db"
    config = {"db_path": str(path), "before": 3, "after": 5}
    plugins = PluginsSpec(state=PluginSpec("state_agents.Deadly", config))

    async def test() -> None:
        async with start_run(*agents(), plugins=plugins) as run:
            for n in range(8):
                await run.send("counter", {"n": n})
            assert await heard(run, 8) == list(range(8))
            assert (await looked(run, "counter"))["total"] == 8
            assert (Path(f"{path}.before").exists(), Path(f"{path}.after").exists()) == (True, True)
            port = run.client.orders.runner.port
            reading = port.stats(port.resolve("counter"))
            assert reading.redelivered == 1, "the one is handled again, the other is only released"
            assert reading.replay_dropped == 1
        store = SQLiteStateStore(path)
        state = await store.get("counter")
        assert state is not None
        assert state["seen"] == list(range(8))
        await store.close()

    asyncio.run(test())


class Adds(AgentProcess):
    """Runs wherever it is put."""

    async def handle(self, message: Message) -> Message:
        self.state["n"] = self.state.get("n", 0) + 1
        await self.checkpoint()
        return self.reply({"n": self.state["n"], "pid": os.getpid()})


def test_the_state_is_there_in_the_next_run_whatever_transport_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object of the program: each process builds the like of it."""
    monkeypatch.setenv("CIVITAS_SHM_DIR", str(tmp_path / "runs"))
    monkeypatch.syspath_prepend(Path(__file__).parent)
    from test_state_stores import Adds

    async def run(transport: str) -> dict[str, Any]:
        store = SQLiteStateStore(tmp_path / "states.db")
        runtime = Runtime(
            Supervisor("root", [Adds("adds")]), transport, name=f"s{os.getpid()}-{tmp_path.name}", state_store=store
        )
        async with runtime:
            return (await runtime.ask("adds", {}, timeout=60)).payload

    replies = [asyncio.run(run(transport)) for transport in ("in_process", "shm", "in_process")]
    assert [reply["n"] for reply in replies] == [1, 2, 3]
    assert replies[1]["pid"] != os.getpid()


def test_states_in_the_memory_of_a_live_run_are_shown(tmp_path: Path, start_run: Any) -> None:
    def state(*arguments: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, ["state", *arguments])
        assert result.exit_code == code, result.output + result.stderr
        return json.loads(result.stdout) if code == 0 else result.stderr

    async def test() -> None:
        async with start_run(AgentSpec("heard", "state_agents.Heard", process="w1", state="shm")) as run:
            name = f"t{os.getpid()}-{tmp_path.name[-20:]}"
            assert (await asyncio.to_thread(state, "list", "--run", name, "--json"))["agents"] == []
            for n in range(3):
                await run.send("heard", {"n": n})
            await heard(run, 3)
            listed = await asyncio.to_thread(state, "list", "--run", name, "--json")
            assert [row["agent"] for row in listed["agents"]] == ["heard"]
            shown = await asyncio.to_thread(state, "show", "heard", "--run", name, "--json")
            assert (shown["state"], len(shown["message"])) == ({"heard": [0, 1, 2]}, 32)
            assert "no state of 'nobody'" in await asyncio.to_thread(
                lambda: state("show", "nobody", "--run", name, code=1)
            )
            assert "give one of them" in await asyncio.to_thread(
                lambda: state("list", "--run", name, "--db", "s.db", code=2)
            )

    asyncio.run(test())
