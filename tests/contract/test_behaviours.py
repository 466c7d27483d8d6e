"""GenServer and the evaluation loop, in one process and in many."""

from __future__ import annotations

from typing import Any

import pytest

from civitas_shm import AgentError, AgentStopped, MessageValidationError, Runtime, Supervisor

from .anywhere import Anywhere, until
from .anywhere_agents import Client, Counter, Echo, Guard, Plain, PlainClient, Watched


def servers() -> Supervisor:
    agents = [Counter("counter", process="one"), Client("client", process="two"), PlainClient("plain", process="two")]
    return Supervisor("root", agents, backoff_base=0.0)


def test_a_genserver_tells_calls_casts_and_infos_apart_wherever_it_lives(anywhere: Anywhere) -> None:
    async def scene(runtime: Runtime) -> None:
        await runtime.cast("counter", {"by": 5})
        assert await runtime.call("counter", {}) == {"total": 5, "infos": [], "from": "_runtime"}
        await runtime.send("counter", {"n": 1})
        assert (await runtime.call("client", {}))["from"] == "client"
        assert await runtime.call("plain", {}) == {"total": 10, "infos": [{"n": 1}], "from": "plain"}
        await runtime.call("counter", {"op": "later", "ms": 1, "n": 2})

        async def came() -> bool:
            return (await runtime.call("counter", {}))["infos"] == [{"n": 1}, {"n": 2}]

        await until(came)

    anywhere.play(servers, scene)


def test_a_genserver_that_answers_no_dictionary_crashes(anywhere: Anywhere) -> None:
    async def scene(runtime: Runtime) -> None:
        await runtime.cast("counter", {"by": 5})
        with pytest.raises(AgentError, match="TypeError: handle_call of Counter returned str; it must return a dict"):
            await runtime.call("counter", {"op": "wrong"})
        assert (await runtime.call("counter", {}))["total"] == 0, "a new life began with init()"

    anywhere.play(servers, scene)


def evaluation(**options: Any) -> Supervisor:
    guard = Guard("guard", process="one", **options)
    return Supervisor("root", [guard, Watched("watched", process="two"), Plain("plain", process="two"), Echo("echo")])


def test_an_eval_agent_sees_what_agents_show_and_corrects_them_wherever_they_live(anywhere: Anywhere) -> None:
    async def scene(runtime: Runtime) -> None:
        await runtime.call("watched", {"show": {"n": 1}})
        await runtime.call("watched", {"show": {"want": "nudge"}})

        async def corrected() -> Any:
            return (await runtime.call("watched", {}))["corrections"]

        expected = {"severity": "nudge", "reason": "as it wanted", "hint": 1, "from": "guard"}
        assert await until(corrected) == [expected]
        seen = (await runtime.call("guard", {}))["seen"]
        assert seen == [["watched", "step", {"n": 1}], ["watched", "step", {"want": "nudge"}]]

    anywhere.play(evaluation, scene)


def test_corrections_are_limited_within_the_window_and_a_halt_is_not(anywhere: Anywhere) -> None:
    async def scene(runtime: Runtime) -> None:
        for _ in range(3):
            await runtime.call("watched", {"show": {"want": "redirect"}})
        while len((await runtime.call("guard", {}))["seen"]) < 3:
            pass
        assert len((await runtime.call("watched", {}))["corrections"]) == 1
        await runtime.send("watched", {"show": {"want": "halt"}})

        async def stopped() -> bool:
            try:
                await runtime.send("watched", {})
            except AgentStopped:
                return True
            return False

        await until(stopped)
        status = (await runtime.ask("root", {}, message_type="civitas.supervision.status")).payload
        assert {child["name"]: (child["status"], child["restart_count"]) for child in status["children"]} == {
            "guard": ("RUNNING", 0),
            "watched": ("STOPPED", 0),
            "plain": ("RUNNING", 0),
            "echo": ("RUNNING", 0),
        }

    anywhere.play(lambda: evaluation(max_corrections_per_window=1, window_seconds=3600.0), scene)


@pytest.mark.parametrize("kind", ["civitas.eval.halt", "civitas.eval.correction", "_agency.shutdown"])
def test_no_agent_can_halt_or_correct_another(kind: str) -> None:
    async def scene(runtime: Runtime) -> None:
        assert await runtime.call("plain", {"to": "echo", "type": kind}) == {"error": "MessageValidationError"}
        with pytest.raises(MessageValidationError):
            await runtime.send("echo", {}, kind)
        assert (await runtime.call("echo", {}))["name"] == "echo"

    Anywhere("in_process").play(evaluation, scene)
