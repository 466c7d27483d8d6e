"""The evaluation loop where only its own process can look: the window, exporters, and who is believed."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from civitas_shm import CorrectionSignal, EvalAgent, EvalEvent, EvalExporter, Message, Runtime, Supervisor
from civitas_shm.evalloop import Window
from civitas_shm.process import AgentProcess


def test_a_window_slides_and_is_each_ones_own() -> None:
    now = [0.0]
    window = Window(2, 10.0, lambda: now[0])
    said = []
    for at_s, key in [(0, "a"), (4, "a"), (5, "a"), (5, "b"), (9.9, "a"), (10.0, "a"), (10.1, "a"), (14.0, "a")]:
        now[0] = at_s
        said.append(window.admits(key))
    assert said == [True, True, False, True, False, True, False, True]


def test_a_window_keeps_nothing_of_those_that_are_gone() -> None:
    now = [0.0]
    window = Window(1, 1.0, lambda: now[0])
    for number in range(1000):
        now[0] = float(number)
        window.admits(f"agent-{number}")
    assert len(window._times) <= 2


def test_nobody_is_corrected_where_the_limit_is_0() -> None:
    assert not Window(0, 1.0).admits("a")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_corrections_per_window": -1}, "max_corrections_per_window of 'e' is -1"),
        ({"window_seconds": 0}, "window_seconds of 'e' is 0"),
    ],
)
def test_impossible_limits_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EvalAgent("e", **arguments)


def test_a_severity_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="severity is 'slap'; it must be nudge, redirect, halt"):
        CorrectionSignal("slap", "")  # type: ignore[arg-type]


class Shows(AgentProcess):
    async def handle(self, message: Message) -> Message:
        await self.emit_eval("step", message.payload)
        return self.reply({})


class Broken:
    def export(self, event: EvalEvent) -> None:
        raise OSError("the service is down")


class Keeps:
    def __init__(self) -> None:
        self.events: list[EvalEvent] = []

    async def export(self, event: EvalEvent) -> None:
        self.events.append(event)


def test_exporters_come_first_and_one_that_fails_is_logged_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    keeps = Keeps()
    judged: list[tuple[EvalEvent, int]] = []

    class Judge(EvalAgent):
        def on_eval_event(self, event: EvalEvent) -> CorrectionSignal | None:  # type: ignore[override]
            judged.append((event, len(keeps.events)))
            return CorrectionSignal("nudge", "of somebody who is not there")

    assert isinstance(keeps, EvalExporter)
    agents = [Judge("eval_agent", exporters=[Broken(), keeps]), Shows("shows")]

    async def run() -> None:
        async with Runtime(Supervisor("root", agents)) as runtime:
            asked = await runtime.ask("shows", {"n": 1, "agent_name": "somebody else"})
            forged = {"agent_name": "nobody", "event_type": "report", "n": 2}
            await runtime.send("eval_agent", forged, "civitas.eval.event")
            await runtime.send("eval_agent", {}, "something else")
            while len(judged) < 2 or "is no eval event" not in caplog.text:
                await asyncio.sleep(0)
            first, second = (event for event, _ in judged)
            assert (first.agent_name, first.event_type, first.payload) == ("shows", "step", {"n": 1})
            assert first.trace_id == asked.trace_id
            assert first.message_id
            assert first.timestamp > 0
            assert (second.agent_name, second.event_type, second.payload) == ("nobody", "report", {"n": 2})
            assert [count for _, count in judged] == [1, 2], "exported before it was judged"

    with caplog.at_level(logging.INFO, "civitas_shm"):
        asyncio.run(run())
    assert caplog.text.count("exporter Broken failed") == 2
    assert "'nobody' cannot be corrected" in caplog.text


def test_an_agent_that_does_not_run_shows_nothing() -> None:
    asyncio.run(Shows("shows").emit_eval("step", {}))  # type: ignore[arg-type]
