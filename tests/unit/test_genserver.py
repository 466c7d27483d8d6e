"""GenServer where only its own process can look: timers that end with a life, what is not implemented, its spans."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from civitas_shm import AgentError, GenServer, Runtime, Supervisor
from civitas_shm.observability.spans import SpanQueue
from civitas_shm.observability.tracer import Tracer


class Server(GenServer):
    async def handle_call(self, payload: dict[str, Any], from_: str) -> dict[str, Any]:
        if "ms" in payload:
            self.send_after(payload["ms"], {})
        if "crash" in payload:
            raise ValueError("told to")
        return {}


def play(scene: Any) -> None:
    async def run() -> None:
        async with Runtime(Supervisor("root", [Server("server")], backoff_base=0.0, max_restarts=10)) as runtime:
            await scene(runtime)

    asyncio.run(run())


def timers_of(runtime: Runtime) -> set[asyncio.TimerHandle]:
    agent = runtime.get_agent("server")
    assert isinstance(agent, GenServer)
    return set(agent._timers or ())  # type: ignore[arg-type]


@pytest.mark.parametrize("end", ["stop", "crash"])
def test_what_send_after_was_to_send_never_comes_after_the_end_of_that_life(end: str) -> None:
    async def scene(runtime: Runtime) -> None:
        await runtime.call("server", {"ms": 3_600_000})
        [timer] = timers_of(runtime)
        assert not timer.cancelled()
        if end == "stop":
            await runtime.stop()
        else:
            with pytest.raises(AgentError):
                await runtime.call("server", {"crash": True})
            await runtime.call("server", {})
            assert not timers_of(runtime)
        assert timer.cancelled()

    play(scene)


def test_what_a_server_does_not_implement_crashes_it_and_says_what_is_missing() -> None:
    class Bare(GenServer):
        pass

    async def run() -> None:
        async with Runtime(Supervisor("root", [Bare("bare")], backoff_base=0.0, max_restarts=10)) as runtime:
            with pytest.raises(AgentError, match="NotImplementedError: Bare has no handle_call, and '_runtime' asked"):
                await runtime.call("bare", {})
            for tell, missing in ((runtime.cast, "handle_cast"), (runtime.send, "handle_info")):
                await tell("bare", {})
                while not any(f"Bare has no {missing}" in letter.cause for letter in runtime.dead_letters()):
                    await asyncio.sleep(0)

    asyncio.run(run())


def test_a_delay_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="delay_ms of send_after is -1"):
        Server("server").send_after(-1, {})


def test_each_way_in_has_a_span_below_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = SpanQueue()

    async def scene(runtime: Runtime) -> None:
        monkeypatch.setattr(Server, "tracer", Tracer(queue))
        monkeypatch.setattr(Server, "handle_cast", Server.handle_cast, raising=False)
        reply = await runtime.ask("server", {})
        spans = queue.get_batch()
        assert [(span.name, span.trace_id) for span in spans] == [("civitas.genserver.call", reply.trace_id)]
        await runtime.cast("server", {})
        await runtime.send("server", {})
        while len(queue) < 2:
            await asyncio.sleep(0)
        assert [(span.name, bool(span.error)) for span in queue.get_batch()] == [
            ("civitas.genserver.cast", True),
            ("civitas.genserver.info", True),
        ]

    play(scene)
