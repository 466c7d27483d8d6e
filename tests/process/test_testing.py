"""The pytest plug-in with real processes, as a user's project has it: agents in a module, tests beside it."""

from __future__ import annotations

import sys

import pytest

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sys.platform != "linux", reason="shared memory needs Linux"),
]

AGENTS = """
import os

from civitas_shm import AgentProcess

class Counter(AgentProcess):
    state_storage = "shm"

    async def handle(self, message):
        self.state["n"] = self.state.get("n", 0) + 1
        await self.send("probe", {"n": self.state["n"], "pid": os.getpid()}, "counted")
        return self.reply({"n": self.state["n"], "pid": os.getpid()})
"""

TESTS = """
import os

import pytest
from agents_of_the_project import Counter

from civitas_shm.testing import Probe

@pytest.mark.civitas(transport=["in_process", "shm"])
async def test_the_probe_is_here_wherever_the_agent_is(runtime, civitas_transport):
    probe = Probe()
    await runtime.start(Counter("counter"), probe)
    reply = await runtime.ask("counter", {})
    assert (reply.payload["pid"] == os.getpid()) == (civitas_transport == "in_process")
    assert (await probe.expect("counted", sender="counter")).payload == reply.payload

@pytest.mark.civitas(transport="shm")
async def test_nothing_is_lost_by_a_kill(runtime):
    probe = Probe()
    await runtime.start(Counter("counter"), probe)
    await runtime.ask("counter", {})
    killed = await runtime.kill("counter")
    reply = await runtime.ask("counter", {})
    assert reply.payload["n"] == 2
    assert reply.payload["pid"] != killed == (await probe.expect("counted")).payload["pid"]
    with pytest.raises(Exception, match="process of the test"):
        await runtime.kill("probe")
    with pytest.raises(Exception, match="no agent and no process 'conter'"):
        await runtime.kill("conter")

@pytest.mark.civitas(transport="shm")
async def test_a_run_of_one_that_is_stopped_is_seen_off(runtime):
    await runtime.start(Counter("counter"), Probe())
    await runtime.pause("counter")
    raise ValueError("this test fails while a process is stopped")
"""


def test_a_project_tests_its_agents_in_one_process_and_in_many_and_kills_them(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\naddopts = -p civitas_shm.testing.plugin -p no:cacheprovider --strict-markers\n")
    pytester.makepyfile(agents_of_the_project=AGENTS, test_agents=TESTS)
    pytester.syspathinsert()
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*this test fails while a process is stopped*"])
