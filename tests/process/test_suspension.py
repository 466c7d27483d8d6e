"""A suspension with real processes: it outlives the worker and the host, and is seen and ended from another process."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from civitas_shm.errors import AgentSuspendedError, CivitasError, ConfigurationError, MessageRoutingError
from civitas_shm.suspension import unless_suspended
from civitas_shm.topology.model import AgentSpec

pytestmark = pytest.mark.process


@pytest.mark.parametrize("state", ["none", "shm"])
def test_a_suspended_agent_is_suspended_still_after_the_death_of_its_process_and_of_the_host(
    start_run: Any, tmp_path: Path, state: Any
) -> None:
    out = tmp_path / "paid"
    out.touch()
    payer = AgentSpec("payer", "suspension_agents.Payer", process="w1", state=state)
    name = f"suspended-{os.getpid()}-{state}"

    def paid() -> list[str]:
        return out.read_text().split()

    async def steer(run: Any, what: str, **fields: Any) -> None:
        await run.client.orders.supervise("", what, {"name": "payer", **fields})

    async def scene() -> None:
        async with start_run(payer, options={"name": name}) as run:
            bus = run.client.orders.runner.bus
            port, mailbox = bus.port, bus.port.resolve("payer")
            for amount in (1, 500, 2):
                await run.send("payer", {"amount": amount, "out": str(out)})
            await run.until(lambda: run.named("agent_suspended"))
            assert run.named("agent_suspended")[0]["category"] == "approval"
            with pytest.raises(AgentSuspendedError):
                await unless_suspended(bus, "payer", bus.ask("payer", {}))
            os.kill(run.pid("w1"), signal.SIGKILL)
            await run.until(lambda: run.named("process_recovered"))
            await run.until(lambda: port.stats(mailbox).readers and port.stats(mailbox).suspended_since_s)
            await steer(run, "suspend", reason="again")  # answered by the successor: it has started
            assert (paid(), port.stats(mailbox).waiting) == (["1", "500"], 1)
            os.kill(run.client.host_pid, signal.SIGKILL)
            with pytest.raises(CivitasError):
                await run.client.wait()
        async with start_run(payer, options={"name": name, "resume": True}) as run:
            assert paid() == ["1", "500"]
            with pytest.raises(ConfigurationError, match="'root' is a supervisor"):
                await run.client.orders.supervise("", "suspend", {"name": "root"})
            with pytest.raises(MessageRoutingError):
                await run.client.orders.supervise("", "resume", {"name": "nobody", "approver": "ada"})
            with pytest.raises(CivitasError, match="not you"):
                await steer(run, "resume", approver="nobody")
            await steer(run, "resume", approver="ada")
            await run.until(lambda: paid() == ["1", "500", "2"])
            assert run.named("agent_resumed")[0]["approver"] == "ada"
            assert await run.ask("payer", {}) == {"status": "RUNNING"}

    asyncio.run(scene())


def test_the_command_line_suspends_and_resumes_and_ps_says_it(shell: Any) -> None:
    shell.popen("run", shell.topology("held", "Echo"), "-q")
    shell.until_state("held", "running")
    assert shell.do("suspend", "held", "first", "--reason", "look").stdout == "first is suspended.\n"
    assert shell.ps()["held"]["suspended"] == ["first"]
    assert "running, suspended: first" in shell.do("ps").stdout
    assert "did not answer" in shell.do("ask", "held", "first", "--timeout", "0.01", code=1).stderr
    assert "no agent 'nobody'" in shell.do("suspend", "held", "nobody", code=1).stderr
    assert "--by" in shell.do("resume", "held", "first", code=2).stderr
    assert shell.do("resume", "held", "first", "--by", "ada").stdout == "first takes messages again.\n"
    assert shell.ps()["held"]["suspended"] == []
    assert shell.do("ask", "held", "first").stdout
    shell.do("stop", "held")
