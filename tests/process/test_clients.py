"""Clients of real runs: killed and stopped in the middle, forked, and while the host is killed and the run resumed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from civitas_shm import RunNotFound, StreamInterrupted, TransportClosed, connect, connect_blocking
from civitas_shm.errors import CivitasError
from civitas_shm.host.loop import new_loop
from civitas_shm.topology.model import AgentSpec, StopSpec

from .cli import until

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sys.platform != "linux", reason="shared memory needs Linux"),
]

CHILDREN = 6
DRAIN = StopSpec(drain="all", timeout_s=600.0)


def lines(folder: Path, child: int) -> list[str]:
    path = folder / str(child)
    return path.read_text().splitlines() if path.exists() else []


def test_clients_are_killed_and_stopped_in_the_middle_and_the_run_has_all_that_they_committed_once(
    start_run: Any, agent: Any, tmp_path: Path
) -> None:
    """SIGKILL at instants that nobody chose, of forked children that send and ask without pause; the
    run drains and ends in good order while one of them is stopped and another sends on."""

    async def scene() -> None:
        sink = agent("Sink", config={"out": str(tmp_path / "sink")})
        async with start_run(agent("Echo"), sink, options={"name": f"clients-{os.getpid()}"}, stop=DRAIN) as run:
            program = subprocess.Popen(
                [sys.executable, HERE / "client_program.py", f"clients-{os.getpid()}", str(CHILDREN), tmp_path],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert program.stdout is not None
            try:
                await run.until(lambda: all(len(lines(tmp_path, child)) > 5 for child in range(CHILDREN)))
                pids = [int(lines(tmp_path, child)[0].split()[1]) for child in range(CHILDREN)]
                server = run.client._clients
                assert server is not None
                assert server.clients == CHILDREN + 1  # each forked child has a connection of its own
                stopped = pids[-1]
                os.kill(stopped, signal.SIGSTOP)
                for left, pid in enumerate(pids[1:-1], 1):
                    before = len(lines(tmp_path, 0))
                    os.kill(pid, signal.SIGKILL)
                    await run.until(lambda left=left: server.clients == CHILDREN + 1 - left)  # type: ignore[misc]
                    await run.until(lambda before=before: len(lines(tmp_path, 0)) > before)  # type: ignore[misc]
                assert await asyncio.to_thread(program.stdout.read, 13) == "forked\nasked\n"
                assert (await run.ask("echo", {"n": 1}))["n"] == 1
                program.kill()  # its children have copies of its descriptors, but let go of its connection
                await run.until(lambda: server.clients == 2)
                await run.client.stop()  # drains all, while one sends without pause and one is stopped
                assert (await run.client.wait()).exit_code == 0
            finally:
                program.kill()
                for child in range(CHILDREN):
                    for line in lines(tmp_path, child)[:1]:
                        try:
                            os.kill(int(line.split()[1]), signal.SIGKILL)
                        except ProcessLookupError:
                            pass
                program.communicate()
        handled = (tmp_path / "sink").read_text().split()
        assert len(set(handled)) == len(handled)
        for child in range(CHILDREN):
            sent = {line.split()[1] for line in lines(tmp_path, child) if re.fullmatch(r"sent \d+", line)}
            its = {number for number in handled if int(number) // 1_000_000 == child}
            assert sent <= its
            assert len(its - sent) <= 1  # committed, and killed before it could note that

    asyncio.run(scene())


def made(kind: str, process: str) -> AgentSpec:
    return AgentSpec(kind.lower(), f"stream_agents.{kind}", process=process)


READER = """
import sys, civitas_shm
with civitas_shm.connect_blocking(sys.argv[1]).stream("teller", {"n": 10**9}) as chunks:
    print(next(chunks)["number"], flush=True)
    sys.stdin.read()
"""


def test_streams_of_clients_over_the_deaths_of_writer_client_and_host(start_run: Any) -> None:
    name = f"streams-{os.getpid()}"

    async def scene() -> None:
        agents = [made("Teller", "w1"), made("Witness", "w2")]
        async with start_run(*agents, options={"name": name}) as run:  # noqa: SIM117 - the client ends before the run
            async with connect(name) as client:
                numbers = []
                async for chunk in client.stream("teller", {"n": 1000, "pause_s": 0.0001}):
                    numbers.append(chunk["number"])
                    if len(numbers) == 100:
                        os.kill(pid := run.pid("w1"), signal.SIGKILL)
                        await run.until(lambda pid=pid: run.pid("w1") != pid)  # type: ignore[misc]
                assert numbers == list(range(1000))  # its successor says the same

                program = subprocess.Popen(
                    [sys.executable, "-c", READER, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
                assert program.stdout is not None
                assert await asyncio.to_thread(program.stdout.readline) == "0\n"
                program.kill()
                while (await client.ask("witness", {"of": "nobody reads"})).payload["times"] < 1:
                    await asyncio.sleep(0.01)
                program.communicate()

                stream = client.stream("teller", {"n": 10**9, "unlike": True})
                before = [(await anext(stream))["number"] for _ in range(20)]
                os.kill(run.pid("w1"), signal.SIGKILL)
                with pytest.raises(StreamInterrupted, match="its successor answers otherwise"):
                    before += [chunk["number"] async for chunk in stream]
                assert before == list(range(1000, 1000 + len(before)))

                last = client.stream("teller", {"n": 10**9})
                got = [(await anext(last))["number"]]
                await run.until(lambda: last.received >= 8)
                os.kill(run.client.host_pid, signal.SIGKILL)
                with pytest.raises(CivitasError):
                    await run.client.wait()
                await run.until(lambda: not client.connected)

                async def rest() -> None:
                    async for chunk in last:
                        got.append(chunk["number"])

                with pytest.raises(TransportClosed, match=r"died: .*SIGKILL|is lost"):
                    await rest()
                assert got == list(range(len(got)))
                assert len(got) >= 8

    asyncio.run(scene())


def test_a_client_hears_that_the_host_was_killed_and_goes_on_with_the_resumed_run(shell: Any) -> None:
    """By the command line too: `ask` and `send`, with what they print and their exit codes."""
    topology = shell.topology("shop", "Echo")
    mark = {"out": str(shell.folder / "shop.out")}
    started = shell.popen("run", topology)
    asked = shell.do("ask", "shop", "first", '{"n": 7}', "--wait", "60")
    assert json.loads(asked.stdout)["n"] == 7
    whole = json.loads(shell.do("ask", "shop", "first", "--json").stdout)
    assert (whole["sender"], whole["type"]) == ("first", "reply")
    (shell.folder / "message.json").write_text('{"n": 1}')
    assert shell.do("send", "shop", "mark", "@message.json").stdout == ""
    assert json.loads(shell.do("send", "shop", "mark", '{"n": 2}', "--json").stdout)["sent"] is True
    assert "'first'" in shell.do("ask", "shop", "firstt", code=1).stderr
    assert "no JSON" in shell.do("ask", "shop", "first", "n=7", code=2).stderr
    assert "no live run named 'shopp'" in shell.do("send", "shopp", "first", code=7).stderr
    assert "did not answer" in shell.do("ask", "shop", "mark", '{"n": 3}', "--timeout", "0.01", code=1).stderr
    shell.do("send", "shop", "mark", '{"n": 20}', "--delay", "1000", "--key", "k")
    shell.do("send", "shop", "mark", '{"n": 21}', "--every", "500")
    hourly, later = delays = json.loads(shell.do("delays", "list", "--run", "shop", "--json").stdout)["delayed"]
    assert [(one["recipient"], one["every_s"], one["key"]) for one in delays] == [
        ("mark", 500.0, "mark/message"), ("mark", None, "k"),
    ]  # fmt: skip
    assert later["id"] in shell.do("delays", "list").stdout
    common = later["id"][:4]  # of the time, to half a year
    ambiguous = shell.do("delays", "cancel", hourly["id"], common, code=1)
    assert "1 delayed message of shop cancelled." in ambiguous.stdout
    assert f"{common}: more than one delayed message" in ambiguous.stderr
    assert "no delayed message" in shell.do("delays", "cancel", hourly["id"], code=1).stderr
    assert "one or more IDs, or --all" in shell.do("delays", "cancel", code=2).stderr
    shell.do("delays", "list", "--run", "shopp", code=7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIVITAS_SHM_DIR", str(shell.runs))

        async def scene() -> None:
            blocking = connect_blocking("shop", wait_s=60)
            assert (await asyncio.to_thread(blocking.ask, "first", {"n": 8})).payload["n"] == 8
            async with connect("shop", wait_s=60) as client:
                await client.ask("first", {"n": 9})
                # Never answered: Sink does not reply.
                waiting = asyncio.ensure_future(client.ask("mark", {"n": 4}, timeout=None))
                await asyncio.to_thread(until, lambda: "4" in Path(mark["out"]).read_text().split())
                host = shell.ps()["shop"]["host_pid"]
                os.kill(host, signal.SIGKILL)
                with pytest.raises(TransportClosed, match=r"died: .*SIGKILL|is lost"):
                    await waiting
                await asyncio.to_thread(started.communicate)
                with pytest.raises(RunNotFound, match="no live run named 'shop'"):
                    await connect("shop").ask("first", {})
                dead = json.loads(shell.do("delays", "list", "--json").stdout)
                assert (dead["alive"], [one["id"] for one in dead["delayed"]]) == (False, [later["id"]])
                assert "run --name shop --resume" in shell.do("delays", "cancel", later["id"], code=8).stderr
                again = shell.popen("run", topology, "--resume")
                assert (await client.ask("first", {"n": 10})).payload["n"] == 10
                assert (await asyncio.to_thread(blocking.ask, "first", {"n": 11})).payload["n"] == 11
                assert "1 delayed message" in shell.do("delays", "cancel", "--all").stdout
                assert "shop has no messages" in shell.do("delays", "list").stdout
                await asyncio.to_thread(shell.do, "stop", "shop")
                with pytest.raises((TransportClosed, RunNotFound)):
                    await connect("shop").ask("first", {"n": 12})
                await asyncio.to_thread(again.communicate)
            blocking.close()

        with asyncio.Runner(loop_factory=new_loop) as runner:  # uvloop, where it is; the test above has the stock one
            runner.run(scene())
    assert {"1", "2", "3", "4"} <= set(Path(mark["out"]).read_text().split())
