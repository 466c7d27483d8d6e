"""A run in which everything goes wrong at once, as it is seen from outside: what is said of each agent is true."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

if sys.platform != "linux":
    pytest.skip("shared memory needs Linux", allow_module_level=True)

from civitas_shm.cli import attach
from civitas_shm.cli.app import app
from civitas_shm.clients.blocking import BlockingClient
from civitas_shm.inspection import Looker, Scene, find
from civitas_shm.inspection.scene import ASKED_S
from civitas_shm_transports.shm.reader import look

from .cli import Shell, until

pytestmark = pytest.mark.process

TOPOLOGY = """
transport: {type: shm, arena_mb: 4, mailboxes: 64}
pool: {size: 1, standby: 0}
watch: {stopped_timeout_s: 0}
processes: {w1: {}, w2: {}, w3: {}, w4: {}, w5: {}, w6: {}, w7: {}}
supervision:
  children:
    - agent: {name: gil, type: look_agents.Sick, process: w1}
    - agent: {name: beside, type: look_agents.Sick, process: w1}
    - agent: {name: spin, type: look_agents.Sick, process: w2}
    - agent: {name: halted, type: look_agents.Sick, process: w3}
    - agent: {name: a, type: look_agents.Sick, process: w4}
    - agent: {name: b, type: look_agents.Sick, process: w5}
    - agent: {name: sleeps, type: look_agents.Sick, process: w6}
    - agent: {name: calm, type: look_agents.Sick, process: w7}
    - supervisor:
        name: small
        restart: temporary
        max_restarts: 0
        children:
          - agent: {name: dying, type: look_agents.Sick, process: w6}
"""


def turns(pid: int) -> str:
    """How often the threads of a process have been given a core: who makes a system call has been."""
    tasks = sorted(os.listdir(f"/proc/{pid}/task"))
    return " ".join(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[2] for task in tasks)


def test_everything_that_can_be_wrong_with_an_agent_is_named(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIVITAS_SHM_DIR", str(shell.runs))
    monkeypatch.setattr("civitas_shm.cli.why.INTERVAL_S", 0.3)
    monkeypatch.setattr(attach, "INTERVAL_S", 0.3)
    (shell.folder / "sick.yaml").write_text(TOPOLOGY)
    run = shell.popen("run", shell.folder / "sick.yaml", "--name", "sick", "-q")
    until(lambda: (shell.runs / "sick" / "chart.json").exists())
    with BlockingClient("sick", timeout_s=60, wait_s=60) as client:
        looker = Looker(look(shell.runs / "sick"))
        seen(looker, lambda scene: scene.now.chart is not None and scene.now.chart.state == "running")
        pids = chart_pids(looker)
        assert min(pids.values()) > 1  # nobody else is stopped here
        try:
            make_it_sick(client, looker, pids)
        finally:
            looker.reader.close()
            os.kill(pids["host"], signal.SIGKILL)
    run.wait()
    assert cli("why", "gil", "--name", "sick")["kind"] == "run_dead"
    (message,) = cli("mailbox", "beside", "--name", "sick", "--peek", "5")["messages"]
    assert (message["where"], message["payload"]) == ("waiting", {"n": 1, "api_key": "***"})
    assert CliRunner().invoke(app, ["why", "gil"]).exit_code == 7  # none is alive


def test_top_on_a_terminal_keys_and_a_recording(shell: Shell) -> None:
    """Through a pty of 80 × 24: what is drawn is put together again, so what wraps or is cut would be seen."""
    (shell.folder / "calm.yaml").write_text(
        "transport: {type: shm, arena_mb: 4, mailboxes: 64}\npool: {size: 1, standby: 0}\n"
        "supervision: {children: [{agent: {name: calm, type: look_agents.Sick}}]}\n"
    )
    shell.popen("run", shell.folder / "calm.yaml", "--name", "calm", "-q")
    shell.until_state("calm", "running")
    kept = shell.folder / "kept"
    for arguments in (("top", "--name", "calm", "--record", kept), ("top", "--replay", kept)):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        before = termios.tcgetattr(theirs)
        top = shell.popen(*arguments, stdin=theirs, stdout=theirs)
        screen = Terminal(ours)
        screen.until(lambda lines: any(line.startswith("calm") and "idle" in line for line in lines))
        os.write(ours, b"4")
        screen.until(lambda lines: any(line.startswith("host") and "running" in line for line in lines))
        os.write(ours, b"?")
        screen.until(lambda lines: any("regular expression" in line for line in lines))
        os.write(ours, b"x1/nothing\r")
        screen.until(lambda lines: "/nothing" in lines[23] and not any(line.startswith("host") for line in lines))
        os.write(ours, b"\x1bq")
        assert top.wait() == 0
        screen.until_gone()
        assert termios.tcgetattr(theirs) == before
        os.close(theirs)
        os.close(ours)


class Terminal:
    """What a terminal of 80 × 24 shows of top's frames: each is written whole, from the first line on."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._seen = ""

    def until(self, condition: Callable[[list[str]], object]) -> None:
        """The watchdog of pytest-timeout is the only limit."""
        until(lambda: condition(self._lines()))

    def until_gone(self) -> None:
        until(lambda: self._read().endswith("\x1b[?1049l"))

    def _lines(self) -> list[str]:
        frames = self._read().split("\x1b[H")[1:]
        whole = [frame for frame in frames if "\x1b[J" in frame]
        if not whole:
            return [""] * 24
        lines = re.sub(r"\x1b\[[0-9;]*[mKJ]", "", whole[-1].split("\x1b[J")[0]).split("\r\n")
        assert len(lines) == 24
        assert max(map(len, lines)) <= 80
        return lines

    def _read(self) -> str:
        while select.select([self._fd], [], [], 0)[0]:
            self._seen += os.read(self._fd, 65536).decode(errors="ignore")
        return self._seen


def cli(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    shown: dict[str, Any] = json.loads(done.stdout)
    return shown


def chart_pids(looker: Looker) -> dict[str, int]:
    chart = looker.look().chart
    assert chart is not None
    return {"host": chart.host_pid} | {process.name: process.pid for process in chart.processes}


def seen(looker: Looker, condition: Callable[[Scene], object]) -> Scene:
    """The first scene of two readings of which it holds; the watchdog of pytest-timeout is the only limit."""
    while True:
        scene = attach.two_readings(looker, ASKED_S)
        if condition(scene):
            return scene


def make_it_sick(client: Any, looker: Looker, pids: dict[str, int]) -> None:
    for agent, kind in (("gil", "gil"), ("spin", "spin"), ("dying", "fail"), ("sleeps", "sleep")):
        client.send(agent, {}, kind)
    client.send("beside", {"n": 1, "api_key": "sk-1234567"}, "task")
    os.kill(pids["w3"], signal.SIGSTOP)
    client.send("halted", {}, "task")
    client.send("a", {"to": "b"}, "circle")

    # The host has broken the circle, given the dying one up, and asked the blocked loops.
    until(lambda: any(event["event"] == "deadlock" for event in looker.look().events))
    seen(looker, lambda scene: find(scene, "dying").kind == "dead" and find(scene, "beside").kind == "blocked_by"
         and find(scene, "spin").kind == "blocked")  # fmt: skip

    told = {agent: cli("why", agent) for agent in ("gil", "beside", "spin", "halted", "a", "dying", "sleeps", "calm")}
    kinds = {agent: one["kind"] for agent, one in told.items()}
    assert kinds == {
        "gil": "blocked", "beside": "blocked_by", "spin": "blocked", "halted": "stopped", "a": "idle", "dying": "dead",
        "sleeps": "handling", "calm": "idle",
    }  # fmt: skip
    assert "holds the GIL" in told["gil"]["text"]
    assert "endless loop" in told["spin"]["text"]
    assert told["beside"]["chain"] == ["beside", "gil"]
    assert "'small' has given up" in told["dying"]["text"]
    assert "RuntimeError: no way out" in told["dying"]["text"]
    assert "It was in a deadlock, which was broken" in told["a"]["text"]
    assert CliRunner().invoke(app, ["why", "nobody"]).exit_code == 9
    shown = cli("top", "--interval", "0.3")
    assert {one["name"]: one["kind"] for one in shown["agents"]} == kinds | {"b": "idle"}
    assert {one["name"]: one["state"] for one in shown["supervisors"]} == {"root": "up", "small": "gone"}
    states = {one["name"]: one["state"] for one in shown["processes"]}
    assert (states["w1"], states["w2"], states["w3"]) == ("blocked loop", "blocked loop", "stopped")
    assert (shown["state"], shown["dead_letters"]) == ("running", 1)

    # Nobody in the run is given a core for it, and nothing is counted.
    idle = pids["w7"]
    at_rest, cell = turns(idle), Scene(None, looker.look()).stats["calm"]
    for _ in range(30):
        looker.look()
    looker.reader.peek(cell.mailbox, 10, 1000)
    assert turns(idle) == at_rest
    assert Scene(None, looker.look()).stats["calm"] == cell

    # A host that is stopped ends no deadlock: the circle stays, and both are told so.
    os.kill(pids["host"], signal.SIGSTOP)
    client.send("a", {"to": "b"}, "circle")
    scene = seen(looker, lambda scene: find(scene, "a").kind == find(scene, "b").kind == "deadlock")
    assert find(scene, "a").chain == ("a", "b", "a")
    assert "The host of the run" in find(scene, "b").text
