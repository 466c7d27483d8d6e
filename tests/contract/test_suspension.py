"""Every transport: agents that are suspended and resumed; what waits, what is kept, and with what it is committed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from civitas_shm.errors import AgentStopped, AgentSuspendedError, ConfigurationError, ErrorAction
from civitas_shm.messages import Message
from civitas_shm.process import AgentProcess, ProcessStatus
from civitas_shm.runner import AgentRunner
from civitas_shm.state import InMemoryStateStore
from civitas_shm.suspension import KEY, unless_suspended
from civitas_shm.topology.model import AgentSpec


class Payer(AgentProcess):
    """Counts; asks for approval of what is large."""

    def __init__(self, name: str, log: list[str] | None = None, **rest: Any) -> None:
        super().__init__(name, **rest)
        self.told: list[str] = [] if log is None else log
        self.gate: asyncio.Event | None = None

    async def handle(self, message: Message) -> Message | None:
        if self.gate is not None:
            await self.gate.wait()
        amount = message.payload["amount"]
        self.told.append(f"pay {amount}")
        self.state["paid"] = self.state.get("paid", 0) + amount
        if amount > 100:
            await self.suspend_for_approval(f"{amount} EUR")
        if message.payload.get("fail"):
            raise ValueError("told to")
        return self.reply({"paid": self.state["paid"]}) if message.correlation_id else None

    async def on_error(self, exc: Exception, message: Message) -> ErrorAction:
        return ErrorAction.SKIP

    async def on_suspend(self, reason: str) -> None:
        self.told.append(f"suspended: {reason}")

    async def on_resume(self, approver: str) -> None:
        if approver == "nobody":
            raise PermissionError("not you")
        self.told.append(f"resumed by {approver}")
        self.state["approved_by"] = approver


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.001)


async def started(port: Any, agent: AgentProcess, mailbox: int, **spec: Any) -> AgentRunner:
    runner = AgentRunner(port)
    assert await runner.start(agent, mailbox, AgentSpec(agent.name, "tests.Agent", **spec))
    return runner


@pytest.mark.parametrize("state", ["none", "in_memory", "shm"])
def test_dispatch_pauses_behind_the_message_in_hand_and_goes_on_in_order_when_somebody_approves(
    play: Any, state: Any
) -> None:
    async def scene(world: Any) -> None:
        agent, mailbox = Payer("payer"), world.mailbox("payer")
        runner = await started(world.b, agent, mailbox, state=state)
        for amount in (1, 500, 2, 3):
            await world.bus.send("payer", {"amount": amount})
        await until(lambda: "suspended: 500 EUR" in agent.told)
        assert agent.told == ["pay 1", "pay 500", "suspended: 500 EUR"]
        assert (agent.status, agent.suspend_category) == (ProcessStatus.SUSPENDED, "approval")
        assert agent.state[KEY]["reason"] == "500 EUR"
        stats = world.a.stats(mailbox)
        assert (stats.waiting, stats.in_hand) == (2, 0)
        assert stats.suspended_since_s == pytest.approx(agent.state[KEY]["since"])
        with pytest.raises(AgentSuspendedError, match="'payer' has been suspended for"):
            await unless_suspended(world.bus, "payer", world.bus.ask("payer", {"amount": 4}))
        with pytest.raises(TimeoutError, match="'payer' is suspended, 3 wait"):
            await world.bus.ask("payer", {"amount": 4}, timeout=0.05)
        with pytest.raises(PermissionError, match="not you"):
            await agent.resume("nobody")
        assert agent.status is ProcessStatus.SUSPENDED
        await agent.resume("ada")
        await until(lambda: agent.told[-1] == "pay 4")
        assert agent.told[3:] == ["resumed by ada", "pay 2", "pay 3", "pay 4"]
        assert (agent.status, agent.suspend_category) == (ProcessStatus.RUNNING, None)
        assert KEY not in agent.state
        assert not world.a.stats(mailbox).suspended_since_s
        await agent.resume("ada")  # of one that is not suspended: nothing
        assert await runner.stop_all()
        assert agent.told.count("resumed by ada") == 1

    play(scene)


@pytest.mark.parametrize("approver", ["", "  ", None, 7])
def test_who_resumes_has_a_name(play: Any, approver: Any) -> None:
    async def scene(world: Any) -> None:
        agent = Payer("payer")
        runner = await started(world.b, agent, world.mailbox("payer"))
        await agent.suspend("maintenance")
        with pytest.raises(ValueError, match="needs the name of who approves it"):
            await agent.resume(approver)
        assert (agent.status, agent.suspend_category) == (ProcessStatus.SUSPENDED, "manual")
        await runner.stop_all()

    play(scene)


def test_a_suspension_from_outside_waits_for_the_handler_and_a_second_one_only_changes_the_reason(play: Any) -> None:
    async def scene(world: Any) -> None:
        agent = Payer("payer")
        agent.gate = asyncio.Event()
        runner = await started(world.b, agent, world.mailbox("payer"))
        for amount in (1, 2):
            await world.bus.send("payer", {"amount": amount})
        await until(lambda: world.a.stats(world.mailbox("payer")).in_hand)
        order = asyncio.create_task(runner.steer("payer", "suspend", {"reason": "look"}))
        await asyncio.sleep(0)
        assert agent.status is ProcessStatus.RUNNING
        agent.gate.set()
        await order
        assert (agent.told[0], agent.status) == ("pay 1", ProcessStatus.SUSPENDED)
        since = agent.state[KEY]["since"]
        await runner.steer("payer", "suspend", {"reason": "look again"})
        assert (agent.state[KEY]["reason"], agent.state[KEY]["since"]) == ("look again", since)
        await runner.steer("payer", "resume", {"approver": "ada"})
        await until(lambda: agent.told[-1] == "pay 2")
        with pytest.raises(AgentStopped):
            await runner.steer("nobody", "suspend", {})
        await runner.stop_all()

    play(scene)


def test_a_handler_that_fails_after_it_asked_for_approval_is_suspended_all_the_same(play: Any) -> None:
    async def scene(world: Any) -> None:
        agent = Payer("payer")
        runner = await started(world.b, agent, world.mailbox("payer"), state="shm")
        await world.bus.send("payer", {"amount": 500, "fail": True})
        await until(lambda: agent.status is ProcessStatus.SUSPENDED)
        await runner.stop_all()

    play(scene)


class Strict(Payer):
    """Crashes over what it could not handle."""

    async def on_error(self, exc: Exception, message: Message) -> ErrorAction:
        return ErrorAction.ESCALATE


@pytest.mark.parametrize("state", ["none", "in_memory", "shm", "store"])
def test_the_life_after_a_handler_that_asked_for_approval_and_crashed_is_suspended(play: Any, state: Any) -> None:
    async def scene(world: Any) -> None:
        log: list[str] = []
        store = InMemoryStateStore()
        mailbox = world.mailbox("payer")
        first = Strict("payer", log)
        first.store = store
        runner = await started(world.b, first, mailbox, state=state)
        await world.bus.send("payer", {"amount": 1})
        await until(lambda: log == ["pay 1"])
        await world.bus.send("payer", {"amount": 500, "fail": True})
        await until(lambda: first.status is ProcessStatus.CRASHED)
        await until(lambda: "payer" not in runner.agents)
        assert log == ["pay 1", "pay 500", "suspended: 500 EUR"]
        await world.bus.send("payer", {"amount": 2})
        second = Strict("payer", log)
        second.store = store
        assert await runner.start(second, mailbox, AgentSpec("payer", "tests.Agent", state=state))
        assert (second.status, second.suspend_category) == (ProcessStatus.SUSPENDED, "approval")
        assert second.state.get("paid", 0) == (1 if state == "shm" else 0), "not what the failed handler made of it"
        await asyncio.sleep(0.01)
        assert log[-1] == "suspended: 500 EUR"
        await second.resume("ada")
        await until(lambda: log[-1] == "pay 2")
        assert log.count("pay 500") == 1, "it is a dead letter"
        await runner.stop_all()

    play(scene)


def test_a_message_that_comes_again_asks_for_approval_again(play: Any) -> None:
    async def scene(world: Any) -> None:
        log: list[str] = []
        first, mailbox = Strict("payer", log), world.mailbox("payer")
        runner = await started(world.b, first, mailbox, on_crash="redeliver")
        await world.bus.send("payer", {"amount": 500, "fail": True})
        await until(lambda: "payer" not in runner.agents)
        second = Payer("payer", log)
        assert await runner.start(second, mailbox, AgentSpec("payer", "tests.Agent", on_crash="redeliver"))
        await until(lambda: len(log) == 3)
        assert log == ["pay 500", "pay 500", "suspended: 500 EUR"]
        await runner.stop_all()

    play(scene)


def test_whoever_suspends_an_agent_whose_handler_crashes_then_has_suspended_it(play: Any) -> None:
    async def scene(world: Any) -> None:
        agent = Strict("payer")
        agent.gate = asyncio.Event()
        runner = await started(world.b, agent, world.mailbox("payer"))
        await world.bus.send("payer", {"amount": 1, "fail": True})
        await until(lambda: world.a.stats(world.a.resolve("payer")).in_hand)
        asked = asyncio.create_task(runner.steer("payer", "suspend", {"reason": "a look at it"}))
        await asyncio.sleep(0.01)
        assert not asked.done()
        agent.gate.set()
        await asked
        assert world.a.stats(world.a.resolve("payer")).suspended_since_s
        await runner.stop_all()

    play(scene)


def test_an_agent_suspended_by_its_on_start_takes_nothing_before_it_is_resumed(play: Any) -> None:
    class Careful(Payer):
        async def on_start(self) -> None:
            await self.suspend("first look")

    async def scene(world: Any) -> None:
        agent = Careful("payer")
        mailbox = world.mailbox("payer")
        await world.bus.send("payer", {"amount": 1})
        runner = await started(world.b, agent, mailbox)
        assert (agent.told, agent.status) == (["suspended: first look"], ProcessStatus.SUSPENDED)
        await agent.resume("ada")
        await until(lambda: agent.told[-1] == "pay 1")
        await runner.stop_all()

    play(scene)


def test_a_suspended_agent_can_be_stopped_and_what_waits_stays(play: Any) -> None:
    async def scene(world: Any) -> None:
        agent, mailbox = Payer("payer"), world.mailbox("payer")
        runner = await started(world.b, agent, mailbox)
        await agent.suspend()
        await world.bus.send("payer", {"amount": 1})
        assert await runner.stop_all("all")
        assert (agent.told, agent.status) == (["suspended: "], ProcessStatus.STOPPED)
        assert world.a.stats(mailbox).waiting == 1

    play(scene)


@pytest.mark.parametrize("state", ["none", "in_memory", "shm"])
def test_a_restarted_agent_is_still_suspended_and_its_hook_is_not_called_again(play: Any, state: Any) -> None:
    async def scene(world: Any) -> None:
        log: list[str] = []
        first, mailbox = Payer("payer", log), world.mailbox("payer")
        runner = await started(world.b, first, mailbox, state=state)
        await world.bus.send("payer", {"amount": 500})
        await until(lambda: len(log) == 2)
        await world.bus.send("payer", {"amount": 1})
        await runner.crash("payer", "on purpose")
        second = Payer("payer", log)
        assert await runner.start(second, mailbox, AgentSpec("payer", "tests.Agent", state=state))
        assert (second.status, second.suspend_category) == (ProcessStatus.SUSPENDED, "approval")
        await asyncio.sleep(0.01)
        assert log == ["pay 500", "suspended: 500 EUR"]
        await second.resume("ada")
        await until(lambda: log[-1] == "pay 1")
        if state == "shm":
            assert (second.state["paid"], second.state["approved_by"]) == (501, "ada")
        await runner.stop_all()

    play(scene)


@pytest.mark.parametrize("state", ["none", "shm"])
def test_the_marker_is_one_commit_with_the_message_that_led_to_it(play: Any, state: Any) -> None:
    """The process dies between the marker and the release: the message is handled, and the successor is suspended."""

    async def scene(world: Any) -> None:
        world.need("succession")
        log: list[str] = []
        mailbox = world.mailbox("payer")
        release = world.b.release
        released = asyncio.Event()

        def dies(*_: Any) -> None:
            released.set()
            raise asyncio.CancelledError

        world.b.release = dies
        first = Payer("payer", log)
        await started(world.b, first, mailbox, state=state)
        await world.bus.send("payer", {"amount": 500})
        await released.wait()
        del release
        second = Payer("payer", log)
        runner = await started(world.successor(), second, mailbox, state=state)
        assert second.status is ProcessStatus.SUSPENDED
        await second.resume("ada")
        await world.bus.send("payer", {"amount": 1})
        await until(lambda: log[-1] == "pay 1")
        assert log.count("pay 500") == 1
        await runner.stop_all()

    play(scene)


def test_replicas_cannot_be_suspended(play: Any) -> None:
    async def scene(world: Any) -> None:
        agent = Payer("payer")
        runner = await started(world.b, agent, world.mailbox("payer", replicas=2), replicas=2)
        with pytest.raises(ConfigurationError, match="has 2 replicas"):
            await agent.suspend()
        await runner.stop_all()

    play(scene)
