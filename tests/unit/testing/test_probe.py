"""A probe records, answers as told, and says what it got when a test expected something else. Over both transports,
because it lives in the test's process on both."""

from __future__ import annotations

import pytest

from civitas_shm import AgentError, AgentProcess, Message
from civitas_shm.testing import Probe, RuntimeUnderTest


class Planner(AgentProcess):
    """Asks the critic, and passes what it said to the writer."""

    async def handle(self, message: Message) -> Message | None:
        verdict = await self.ask("critic", {"draft": message.payload["draft"]}, "review")
        await self.send("writer", verdict.payload, "verdict")
        return self.reply({"ok": True})


async def test_a_probe_answers_as_told_and_its_messages_are_expected_each_once(runtime: RuntimeUnderTest) -> None:
    critic, writer = Probe("critic"), Probe("writer")
    critic.answer({"verdict": "bad"}, type="review", times=1).answer(lambda message: {"verdict": message.payload})
    await runtime.start(Planner("planner"), critic, writer)
    await runtime.ask("planner", {"draft": 1})
    await runtime.ask("planner", {"draft": 2})
    second = await critic.expect(type="review", payload={"draft": 2}, sender="planner")
    assert second.payload == {"draft": 2}
    assert [message.payload["draft"] for message in critic.unexpected] == [1]
    assert (await writer.expect(where=lambda message: message.payload["verdict"] != "bad")).payload == {
        "verdict": {"draft": 2}
    }
    with pytest.raises(AssertionError, match="messages that nobody expected") as caught:
        writer.assert_nothing_unexpected()
    assert "✓ 'verdict' from 'planner': {'verdict': {'draft': 2}}" in str(caught.value)
    await writer.expect("verdict")
    writer.assert_nothing_unexpected()
    assert [message.payload["draft"] for message in critic.messages] == [1, 2]


async def test_what_does_not_come_is_a_failure_that_says_what_came(runtime: RuntimeUnderTest) -> None:
    probe = Probe("sink")
    await runtime.start(probe)
    with pytest.raises(AssertionError, match=r"no message with type='a' within 0.01 s. Nothing has come at all"):
        await probe.expect("a", timeout_s=0.01)
    await runtime.send("sink", {"n": 1}, "b")
    await probe.expect("b")
    with pytest.raises(AssertionError, match=r"no message with payload=\{'n': 2\}.*1 have come.*\n  ✓ 'b'"):
        await probe.expect(payload={"n": 2}, timeout_s=0.01)


async def test_a_probe_that_raises_is_started_anew_and_keeps_its_record_and_its_rules(
    runtime: RuntimeUnderTest,
) -> None:
    probe = Probe("fragile", {"fine": True})
    probe.answer(ValueError("as told"), times=1)
    await runtime.start(probe)
    with pytest.raises(AgentError, match="as told"):
        await runtime.ask("fragile", {"n": 1})
    assert (await runtime.ask("fragile", {"n": 2})).payload == {"fine": True}
    assert {message.payload["n"] for message in probe.messages} == {1, 2}


def test_an_answer_for_no_times_is_refused() -> None:
    with pytest.raises(ValueError, match="once or more"):
        Probe().answer({}, times=0)
