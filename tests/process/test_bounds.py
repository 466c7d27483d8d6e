"""Bounds that are hit for real: each is an error with limit, value, holder and way out, and the run goes on."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from civitas_shm.errors import ArenaFull, MailboxFull, PayloadTooLarge
from civitas_shm.host.descriptors import needed
from civitas_shm.topology.model import AgentSpec, PoolSpec, ProcessSpec

pytestmark = pytest.mark.process

TWO: dict[str, Any] = {"processes": [ProcessSpec("w1"), ProcessSpec("w2")], "pool": PoolSpec(size=1)}


def run_async(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def spec(kind: str, name: str, **fields: Any) -> AgentSpec:
    return AgentSpec(name, f"watch_agents.{kind}", process=fields.pop("process", "w1"), **fields)


@pytest.mark.fault("arena full")
def test_a_full_arena_names_who_holds_it_and_the_run_goes_on(start_run: Any, fired: Any) -> None:
    async def test() -> None:
        agents = [spec("Waits", "slow"), spec("Waits", "other", process="w2")]
        async with start_run(*agents, **TWO) as run:  # 8 MiB of arena
            bus = run.client.orders.runner.bus
            chunk = {"data": b"x" * (1 << 20)}

            async def fill() -> None:
                for _ in range(20):
                    await bus.send("slow", chunk, "hold", timeout=0.3)

            with pytest.raises(ArenaFull) as full:
                await fill()
            fired(not full.value.refusal, "send that its own arena refused, and not the kernel")
            text = str(full.value)
            assert 6 << 20 < full.value.limit_bytes < 8 << 20
            assert full.value.held[0][0] == "slow"
            assert full.value.held[0][1] > 2 << 20
            assert "The message to 'slow' found no memory for" in text
            assert "of the 7.9 MiB that all messages of this process may take (transport.arena_mb" in text
            assert isinstance(full.value, TimeoutError)
            # One receiver may hold half: the others are not kept waiting.
            assert (await bus.ask("other", {}, "now", timeout=30)).payload == {"now": True}
            reply = await bus.ask("other", {"to": "slow"}, "poke", timeout=30)
            assert reply.payload == {"poked": True}

    run_async(test)


@pytest.mark.fault("mailbox full")
def test_a_full_mailbox_names_its_holder_and_the_run_goes_on(start_run: Any, tmp_path: Path, fired: Any) -> None:
    async def test() -> None:
        go = tmp_path / "go"
        async with start_run(spec("Waits", "slow", mailbox_size=2, config={"go": str(go)})) as run:
            bus = run.client.orders.runner.bus

            async def fill() -> None:
                for _ in range(5):
                    await bus.send("slow", {}, "hold", timeout=0.2)

            with pytest.raises(
                MailboxFull, match=r"'slow' holds 2 messages and had no room for 0\.2.* handling"
            ) as full:
                await fill()
            fired(full.value.capacity == 2, "send that a full mailbox refused")
            go.touch()
            assert (await bus.ask("slow", {}, "now", timeout=60)).payload == {"now": True}

    run_async(test)


def test_too_large_says_which_limit_for_a_message_and_for_a_state(start_run: Any) -> None:
    async def test() -> None:
        async with start_run(spec("Waits", "s", state="shm"), supervision={"backoff_base_s": 0.0}) as run:
            bus = run.client.orders.runner.bus
            with pytest.raises(PayloadTooLarge, match="one message may take at most 3,641,216"):
                await bus.send("s", {"data": b"x" * (4 << 20)})
            await bus.send("s", {"bytes": 3 << 20}, "grow")
            await run.until(lambda: run.named("agent_failed"))
            cause = run.named("agent_failed")[0]["cause"]
            assert cause.startswith("StateTooLarge: The state of 's' takes 3,145,7")
            assert "a state may take at most 1,820,544" in cause
            assert (await bus.ask("s", {}, "now", timeout=30)).payload == {"now": True}

    run_async(test)


@pytest.mark.parametrize(("limit", "who"), [(60, "the host process may have 60 (hard limit)"), (0, "")])
def test_too_few_descriptors_are_told_before_anything_is_made(tmp_path: Path, limit: int, who: str) -> None:
    """In a process of its own, because a hard limit cannot be raised again. 0: exactly as many as are needed."""
    host, _ = needed(4, 2)
    program = f"""
import asyncio, os, resource
from civitas_shm import Runtime, Supervisor, AgentProcess
from civitas_shm.errors import ConfigurationError

class Echo(AgentProcess):
    async def handle(self, message):
        return self.reply({{"fine": True}})

async def main():
    limit = {limit} or {host}
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    try:
        root = Supervisor("root", [Echo("echo")])
        async with Runtime(root, transport="shm", name="few-{os.getpid()}", workers=1) as runtime:
            print((await runtime.ask("echo", {{}})).payload)
    except ConfigurationError as error:
        print(error)

if __name__ == "__main__":
    asyncio.run(main())
"""
    path = tmp_path / "few.py"
    path.write_text(program)
    env = {**os.environ, "CIVITAS_SHM_DIR": str(tmp_path / "runs")}
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    if limit:
        assert f"Too few file descriptors: {who}, a run with 4 process slots needs {host}." in done.stdout
        assert "ulimit -n" in done.stdout
        assert not any((tmp_path / "runs").glob("*/run.json"))
    else:
        assert json.loads(done.stdout.replace("'", '"').replace("True", "true")) == {"fine": True}
