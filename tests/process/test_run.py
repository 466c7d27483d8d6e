"""A run under a host: what agents may rely on, what the user is told, and that nothing is lost or left."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest

from civitas_shm.errors import AgentImportError, AgentStopped, RunFailed, RunHasMessages, SpawnError
from civitas_shm.host.protocol import Chaos
from civitas_shm.topology.model import LoggingSpec, PoolSpec, ProcessSpec, StopSpec
from civitas_shm_transports.shm.transport import ShmPort

pytestmark = pytest.mark.process

Agent = Callable[..., Any]
Test = Callable[[], Coroutine[Any, Any, None]]


def run_async(test: Test) -> None:
    asyncio.run(test())


def test_a_process_is_what_the_topology_says(start_run: Any, agent: Agent) -> None:
    cpu = sorted(os.sched_getaffinity(0))[-1]

    async def test() -> None:
        processes = [ProcessSpec("w1", cpus=[cpu], nice=5, env={"FROM_TOPOLOGY": "yes"})]
        async with start_run(agent("Echo", process="w1"), processes=processes) as run:
            answer = await run.ask("echo", {"n": 1})
            assert (answer["cpus"], answer["nice"]) == ([cpu], 5)
            assert answer["env"] == {"FROM_TOPOLOGY": "yes", "OMP_NUM_THREADS": "1"}
            assert psutil.Process(answer["pid"]).ppid() == run.client.host_pid
            assert answer["pid"] == run.pid() != run.client.host_pid

    run_async(test)


def test_a_process_with_devices_is_a_fresh_interpreter_each_time(start_run: Any, agent: Agent) -> None:
    async def test() -> None:
        processes = [ProcessSpec("g", gpu=[1, 0])]
        async with start_run(agent("Echo", process="g"), processes=processes) as run:
            for _ in range(2):
                answer = await run.ask("echo", {})
                assert answer["devices"] == "1,0"
                assert "civitas_shm.host.worker" in answer["command"]
                assert psutil.Process(answer["pid"]).ppid() == run.client.host_pid
                os.kill(answer["pid"], signal.SIGKILL)
                before = answer["pid"]
            assert (await run.ask("echo", {}))["pid"] != before

    run_async(test)


@pytest.mark.fault("kill")
def test_no_number_is_lost_and_few_are_doubled_by_kills_from_outside(
    start_run: Any, agent: Agent, tmp_path: Path, fired: Any
) -> None:
    out = tmp_path / "numbers"

    async def test() -> None:
        sink = agent("Sink", config={"out": str(out), "pause_s": 0.001})
        async with start_run(sink, pool=PoolSpec(size=1, standby=1), supervision={"backoff_base_s": 0.0}) as run:
            for n in range(300):
                await run.send("sink", {"n": n})
                if n % 30 == 15:
                    deaths = len(run.named("process_died"))
                    os.kill(run.pid(), signal.SIGKILL)
                    await run.until(lambda: len(run.named("process_died")) > deaths)  # noqa: B023
                    await run.until(lambda: len(run.named("process_recovered")) > deaths)  # noqa: B023
            await run.until(lambda: out.read_text().endswith("299\n"))
            deaths = run.named("process_died")
        numbers = [int(line) for line in out.read_text().split()]
        assert sorted(set(numbers)) == list(range(300))
        fired(len(deaths) == 10 and sum(death["cause"] == "SIGKILL" for death in deaths), "deaths by SIGKILL")
        fired(sum(bool(death["in_hand"]) for death in deaths), "of them with a message in hand")
        assert len(numbers) - 300 <= sum(len(death["in_hand"]) for death in deaths)
        first = {n: numbers.index(n) for n in range(300)}
        assert sorted(first, key=first.__getitem__) == list(range(300))

    run_async(test)


def test_defect_11_an_ask_survives_the_death_of_who_answers_it(start_run: Any, agent: Agent) -> None:
    async def test() -> None:
        async with start_run(agent("Dies")) as run:
            before = run.pid()
            answer = await run.ask("dies", {"how": "signal", "number": 9, "until": 2})
            assert answer["delivery"] == 3
            assert answer["pid"] == run.pid() != before
            assert [death["in_hand"][0]["delivery"] for death in run.named("process_died")] == [1, 2]
            await run.until(lambda: len(run.named("process_recovered")) == 2)  # the answer is faster than the event

    run_async(test)


def test_the_end_of_a_significant_agent_ends_the_run_well(start_run: Any, agent: Agent) -> None:
    async def test() -> None:
        job = agent("Finishes", restart="transient", significant=True)
        async with start_run(job, agent("Echo"), supervision={"auto_shutdown": "any_significant"}) as run:
            await run.send("finishes", {})
            assert (await run.client.wait()).exit_code == 0
        [shut_down] = run.named("supervisor_shut_down")
        assert (shut_down["supervisor"], shut_down["agent"]) == ("root", "finishes")

    run_async(test)


def test_an_agent_that_was_given_up_comes_back_with_its_group_and_a_mailbox_of_its_own(
    start_run: Any, agent: Agent
) -> None:
    async def test() -> None:
        agents = agent("Finishes", restart="transient"), agent("Dies")
        async with start_run(*agents, supervision={"strategy": "ONE_FOR_ALL"}) as run:
            await run.send("finishes", {})
            with pytest.raises(AgentStopped):
                await run.ask("finishes", {})  # whoever waits is told when the mailbox closes
            await run.send("dies", {"how": "exit", "code": 1, "until": 1})
            await run.until(lambda: len(run.named("process_recovered")) == 1)
            await run.send("finishes", {})

    run_async(test)


@pytest.mark.parametrize(
    ("payload", "cause", "word"),
    [
        ({"how": "signal", "number": 9}, "SIGKILL", "last words on stderr"),
        ({"how": "exit", "code": 3}, "exit code 3", "last words on stderr"),
        ({"how": "segv"}, "SIGSEGV", "Segmentation fault"),
    ],
)
def test_defect_13_a_dead_process_is_started_again_and_its_end_is_told_with_exit_code_or_signal(
    start_run: Any, agent: Agent, payload: dict[str, Any], cause: str, word: str
) -> None:
    async def test() -> None:
        supervision = {"max_restarts": 1, "backoff_base_s": 0.0}
        async with start_run(agent("Dies"), supervision=supervision) as run:
            await run.send("dies", payload)
            with pytest.raises(RunFailed) as failed:
                await run.client.wait()
        report = str(failed.value)
        assert "max_restarts is 1" in report
        assert f"process w1 (pid {run.named('process_died')[-1]['pid']}) died: {cause}" in report
        assert "of type 'message' from '_runtime' to 'dies', delivery 2" in report
        assert word in report
        assert [death["cause"] for death in run.named("process_died")] == [cause, cause]
        assert failed.value.exit_code == 1

    run_async(test)


def test_an_agent_that_fails_too_often_ends_the_run_with_its_traceback(start_run: Any, agent: Agent) -> None:
    async def test() -> None:
        async with start_run(agent("Fails"), supervision={"max_restarts": 0}) as run:
            await run.send("fails", {})
            with pytest.raises(RunFailed, match="LookupError: nothing there"):
                await run.client.wait()
        assert run.named("agent_failed")[0]["agent"] == "fails"
        assert not run.named("process_died")

    run_async(test)


def test_deaths_by_chaos_count_against_nobody(start_run: Any, agent: Agent) -> None:
    async def test() -> None:
        async with start_run(
            agent("Echo"), supervision={"max_restarts": 0}, options={"chaos": Chaos(kill_s=0.05)}
        ) as run:
            await run.until(lambda: len(run.named("process_recovered")) >= 5)
            assert (await run.ask("echo", {"n": 1}))["n"] == 1
            assert {death["cause"] for death in run.named("process_died")} == {"SIGKILL (chaos)"}

    run_async(test)


def test_a_class_that_cannot_be_imported_ends_the_run_at_once(start_run: Any, agent: Agent) -> None:
    async def test() -> None:
        with pytest.raises(AgentImportError, match="Absent") as failed:
            async with start_run(agent("Absent")):
                pass
        assert failed.value.exit_code == 4

    run_async(test)


def test_a_fault_of_ours_in_the_caller_ends_the_start_instead_of_hanging_it(
    start_run: Any, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: Any, loop: asyncio.AbstractEventLoop) -> None:
        raise TypeError("bind() takes 2 arguments, 3 given")

    monkeypatch.setattr(ShmPort, "start", start)

    async def test() -> None:
        told: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(repr(context["exception"])))
        with pytest.raises(SpawnError, match="a fault of civitas-shm"):
            async with start_run(agent("Echo")):
                pass
        assert told == ["TypeError('bind() takes 2 arguments, 3 given')"]

    run_async(test)


@pytest.mark.fault("start-up failure")
@pytest.mark.parametrize("kind", ["BlocksAtStart", "HangsAtStart"])
def test_a_start_that_takes_too_long_is_a_failed_start(start_run: Any, agent: Agent, kind: str, fired: Any) -> None:
    async def test() -> None:
        with pytest.raises(RunFailed) as failed:
            async with start_run(agent(kind, start_timeout_s=0.2), supervision={"max_restarts": 0}):
                pass
        text = str(failed.value)
        fired(
            "on_start of 'blocksatstart' blocked its process" in text or "TimeoutError" in text, "start that was late"
        )

    run_async(test)


def test_an_agent_ends_the_run_with_its_exit_code(start_run: Any, agent: Agent) -> None:
    async def test() -> None:
        async with start_run(agent("Ends")) as run:
            await run.send("ends", {"code": 42})
            ended = await run.client.wait()
        assert (ended.exit_code, ended.waiting) == (42, {})
        told = [event["event"] for event in run.events]
        assert told == ["run_started", "process_started", "run_stopping", "run_stopped"]

    run_async(test)


# --- stopping -----------------------------------------------------------------------------------------------------


def test_a_stop_finishes_what_is_in_hand_and_names_what_waits_and_resume_goes_on(
    start_run: Any, agent: Agent, tmp_path: Path
) -> None:
    out = tmp_path / "mark"

    def agents() -> list[Any]:
        return [agent("Sink", "mark", config={"out": str(out)}), agent("Slow")]

    async def first() -> None:
        async with start_run(*agents()) as run:
            for n in range(5):
                await run.send("slow", {"n": n, "s": 0.3})
            await run.until(out.exists)
            await run.client.stop()
            ended = await run.client.wait()
        assert ended.exit_code == 0
        assert ended.waiting == {"slow": 4}
        assert out.read_text() == "0\n"

    async def without_saying() -> None:
        with pytest.raises(RunHasMessages, match="4 messages"):
            async with start_run(*agents()):
                pass

    async def again() -> None:
        async with start_run(*agents(), options={"resume": True}, stop=StopSpec(drain="all")) as run:
            await run.until(lambda: out.read_text().endswith("4\n"))
            await run.client.stop()
            assert (await run.client.wait()).waiting == {}
        assert out.read_text() == "0\n1\n2\n3\n4\n"

    run_async(first)
    run_async(without_saying)
    run_async(again)


def test_a_drain_of_all_empties_every_mailbox_first(start_run: Any, agent: Agent, tmp_path: Path) -> None:
    out = tmp_path / "mark"

    async def test() -> None:
        agents = [agent("Sink", "mark", config={"out": str(out)}), agent("Slow")]
        async with start_run(*agents, stop=StopSpec(drain="all")) as run:
            for n in range(5):
                await run.send("slow", {"n": n, "s": 0.01})
            await run.client.stop()
            assert (await run.client.wait()).waiting == {}
        assert out.read_text() == "0\n1\n2\n3\n4\n"

    run_async(test)


def test_a_second_stop_does_not_wait(start_run: Any, agent: Agent, tmp_path: Path) -> None:
    async def test() -> None:
        agents = [agent("Sink", "mark", config={"out": str(tmp_path / "mark")}), agent("Slow")]
        async with start_run(*agents) as run:
            await run.send("slow", {"n": 0, "s": 600})
            await run.until((tmp_path / "mark").exists)
            await run.client.stop()
            await run.client.stop()
            ended = await run.client.wait()
        assert ended.waiting == {"slow": 1}
        async with start_run(*agents, options={"fresh": True}):
            pass  # what waited is dropped, because it was told to

    run_async(test)


def test_a_handler_that_does_not_end_is_cut_off_at_the_end_of_the_stop(
    start_run: Any, agent: Agent, tmp_path: Path
) -> None:
    async def test() -> None:
        agents = [
            agent("Sink", "mark", config={"out": str(tmp_path / "mark")}),
            agent("HoldsTheGil", "gil", shutdown_timeout_s=60),
        ]
        async with start_run(*agents, stop=StopSpec(timeout_s=0.5), pool=PoolSpec(size=2)) as run:
            await run.send("gil", {})
            await run.until((tmp_path / "mark").exists)
            await run.client.stop()
            assert (await run.client.wait()).waiting == {"gil": 1}

    run_async(test)


def test_sigterm_to_the_host_is_a_stop_in_good_order(start_run: Any, agent: Agent) -> None:
    async def test() -> None:
        async with start_run(agent("Echo")) as run:
            os.kill(run.client.host_pid, signal.SIGTERM)
            ended = await run.client.wait()
        assert ended.exit_code == 0
        assert not run.named("process_died")

    run_async(test)


# --- limits and leftovers -----------------------------------------------------------------------------------------


def test_a_process_over_its_memory_limit_is_killed_and_says_so(start_run: Any, agent: Agent) -> None:
    async def test() -> None:
        processes = [ProcessSpec("w1", memory_limit_mb=120)]
        async with start_run(agent("Hog", process="w1"), processes=processes, supervision={"max_restarts": 0}) as run:
            await run.send("hog", {})
            with pytest.raises(RunFailed, match=r"SIGKILL \(memory limit: \d+ MiB taken, .* is 120\)"):
                await run.client.wait()

    run_async(test)


def test_programs_that_a_worker_started_die_with_it(start_run: Any, agent: Agent) -> None:
    async def test() -> None:
        async with start_run(agent("Starts")) as run:
            answer = await run.ask("starts", {})
            child = psutil.Process(answer["child"])
            os.kill(answer["pid"], signal.SIGKILL)
            await run.until(lambda: not child.is_running())

    run_async(test)


def test_the_host_leaks_no_descriptor_over_fifty_restarts(start_run: Any, agent: Agent) -> None:
    async def test() -> None:
        async with start_run(agent("Echo"), options={"chaos": Chaos(kill_s=0.03)}) as run:
            fds = Path(f"/proc/{run.client.host_pid}/fd")
            await run.until(lambda: len(run.named("process_recovered")) >= 5)
            # The number goes up and down with the processes that are being started and mourned at that moment.
            before = max([len(list(fds.iterdir())) for _ in range(20) if not await asyncio.sleep(0.01)])
            await run.until(lambda: len(run.named("process_recovered")) >= 55)
            after = min([len(list(fds.iterdir())) for _ in range(20) if not await asyncio.sleep(0.01)])
            assert after <= before

    run_async(test)


# --- what the user sees -------------------------------------------------------------------------------------------


def test_every_way_of_writing_reaches_the_caller_with_process_and_agent(start_run: Any, agent: Agent) -> None:
    async def test() -> None:
        async with start_run(agent("Says"), logging=LoggingSpec(level="INFO")) as run:
            pid = (await run.ask("says", {}))["pid"]
            await run.until(lambda: any(line.text == "from a child" for line in run.lines))
            assert {line.pid for line in run.lines} == {pid}
            assert {line.process for line in run.lines} == {"w1"}
            seen = {(line.stream, line.agent, line.level, line.text) for line in run.lines}
            assert seen == {
                ("stdout", "says", "", "at the start"),
                ("stdout", "says", "", "printed"),
                ("stdout", "says", "", "twice"),
                ("stdout", "says", "", "without an end, later ended"),
                ("stderr", "says", "", "to stderr"),
                ("log", "says", "WARNING", "logged 7"),
                ("log", "says", "ERROR", "from a library"),
                ("stdout", "", "", "raw bytes \\xff"),
                ("stdout", "", "", "from a child"),
            }

    run_async(test)


def test_a_level_for_one_agent_is_its_own(start_run: Any, agent: Agent) -> None:
    async def test() -> None:
        logging = LoggingSpec(level="ERROR", agents={"says": "DEBUG"})
        async with start_run(agent("Says"), logging=logging) as run:
            await run.ask("says", {})
            await run.until(lambda: any(line.text == "from a child" for line in run.lines))
            assert [line.text for line in run.lines if line.stream == "log"] == [
                "logged 7",
                "not wanted",
                "from a library",
            ]

    run_async(test)


def test_a_snapshot_shows_processes_and_agents(start_run: Any, agent: Agent) -> None:
    async def test() -> None:
        async with start_run(agent("Echo", replicas=2), pool=PoolSpec(size=2)) as run:
            for n in range(3):
                await run.ask("echo", {"n": n})
            port = run.client.port
            await run.until(lambda: port.stats(port.resolve("echo")).handled == 3)  # the last is answered before that
            os.kill(run.pid("w2"), signal.SIGKILL)
            await run.until(lambda: run.named("process_recovered"))
            run.client.want_snapshots(0.01)
            await run.until(lambda: run.client.snapshot)
            snapshot = run.client.snapshot
            assert [process.name for process in snapshot.processes] == ["host", "w1", "w2"]
            assert [process.restarts for process in snapshot.processes] == [0, 0, 1]
            assert snapshot.processes[1].pid == run.pid("w1")
            echo = snapshot.agents[0]
            assert (echo.name, echo.process, echo.handled, echo.restarts) == ("echo", "w1,w2", 3, 1)
            assert echo.state == "running"

    run_async(test)
