"""Supervision as a program sees it, in one process and in many: status by message, and dynamic agents by message."""

from __future__ import annotations

from typing import Any

import pytest

from civitas_shm import AgentError, DynamicSupervisor, MessageRoutingError, MessageValidationError, Runtime, Supervisor

from .anywhere import Anywhere, until
from .anywhere_agents import Echo, Observer

STATUS = "civitas.supervision.status"


def family() -> Supervisor:
    below = Supervisor("below", [Echo("b", process="two")], strategy="ONE_FOR_ALL", backoff_base=0.0)
    pool = DynamicSupervisor("pool", max_children=1)
    return Supervisor(
        "root", [Echo("a", process="one"), Observer("observer", process="one"), below, pool], max_restarts=5,
        restart_window=30.0, backoff_base=0.0,
    )  # fmt: skip


def test_a_supervisor_tells_its_status_to_the_program_and_to_agents_wherever_they_live(anywhere: Anywhere) -> None:
    async def scene(runtime: Runtime) -> None:
        with pytest.raises(AgentError):
            await runtime.ask("b", {"do": "crash"})
        await runtime.ask("b", {})
        reply = await runtime.ask("root", {}, message_type=STATUS)
        assert (reply.sender, reply.payload) == (
            "root",
            {
                "name": "root",
                "strategy": "ONE_FOR_ONE",
                "max_restarts": 5,
                "restart_window": 30.0,
                "crashes_in_window": 0,
                "children": [
                    {"name": "a", "kind": "agent", "status": "RUNNING", "restart_count": 0},
                    {"name": "observer", "kind": "agent", "status": "RUNNING", "restart_count": 0},
                    {"name": "below", "kind": "supervisor", "status": "RUNNING", "restart_count": 0},
                    {"name": "pool", "kind": "supervisor", "status": "RUNNING", "restart_count": 0},
                ],
            },
        )
        seen = await runtime.call("observer", {"to": "below", "type": STATUS})
        assert seen["sender"] == "below"
        assert seen["answer"]["crashes_in_window"] == 1
        assert seen["answer"]["children"] == [{"name": "b", "kind": "agent", "status": "RUNNING", "restart_count": 1}]
        with pytest.raises(MessageRoutingError, match="No supervisor is named 'a'; there are 'root', 'below', 'pool'"):
            await runtime.ask("a", {}, message_type=STATUS)
        with pytest.raises(MessageValidationError, match="is for one supervisor: ask it by its name"):
            await runtime.broadcast("*", {}, STATUS)

    anywhere.play(family, scene)


def test_a_supervisor_that_was_restarted_says_how_often(anywhere: Anywhere) -> None:
    def tree() -> Supervisor:
        below = Supervisor("below", [Echo("b", process="two")], max_restarts=0)
        return Supervisor("root", [below], backoff_base=0.0)

    async def scene(runtime: Runtime) -> None:
        with pytest.raises(AgentError):
            await runtime.ask("b", {"do": "crash"})

        async def back() -> Any:
            [child] = (await runtime.ask("root", {}, message_type=STATUS)).payload["children"]
            return child if child["restart_count"] and child["status"] == "RUNNING" else None

        assert await until(back) == {"name": "below", "kind": "supervisor", "status": "RUNNING", "restart_count": 1}
        assert (await runtime.call("b", {}))["name"] == "b"

    anywhere.play(tree, scene)


def test_dynamic_agents_come_and_go_by_message(anywhere: Anywhere) -> None:
    path = f"{Echo.__module__}.Echo"

    async def scene(runtime: Runtime) -> None:
        async def ask(what: str, **payload: Any) -> dict[str, Any]:
            asked = {"to": "pool", "type": f"civitas.dynamic.{what}", "payload": payload}
            answer: dict[str, Any] = (await runtime.call("observer", asked))["answer"]
            return answer

        assert await ask("spawn", class_path=path, name="x", config={"n": 1}, spawner="a") == {"status": "ok"}
        assert (await runtime.call("x", {}))["name"] == "x"
        refused = await ask("spawn", class_path=path, name="y", config={})
        assert refused["status"] == "error"
        assert "max_children of 'pool' is 1, and 1 children live" in refused["reason"]
        assert (await ask("spawn", class_path="nowhere.Echo", name="y"))["status"] == "error"
        assert (await ask("spawn", name="y"))["reason"] == "civitas.dynamic.spawn needs 'class_path' as text, not None."
        assert await ask("stop", name="x", drain="all", timeout=5.0) == {"status": "ok"}
        assert (await ask("despawn", name="x"))["status"] == "error"
        spawn = {"class_path": path, "name": "z"}
        reply = await runtime.ask("pool", spawn, message_type="civitas.dynamic.spawn")
        assert reply.payload == {"status": "ok"}
        await runtime.send("pool", {"name": "z"}, "civitas.dynamic.despawn")
        status = (await runtime.ask("pool", {}, message_type=STATUS)).payload
        assert status["children"] == []

    anywhere.play(family, scene)
