"""Keys go to the process of their agent and nowhere else, however its program prints, fails and dies."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from civitas_shm import AgentError, Runtime
from civitas_shm.letters import Letter

if sys.platform != "linux":
    pytest.skip("shared memory needs Linux", allow_module_level=True)

pytestmark = pytest.mark.process

HERE = Path(__file__).parent
OWN, TOKEN, PASSWORD = "canary-own-0a1b2c3d4e5f", "canary-token-6a7b8c9d0e1f", "canary-password-2f3e4d5c"
CANARIES = (OWN, TOKEN, PASSWORD)

TOPOLOGY = f"""
transport: {{type: shm, arena_mb: 4, mailboxes: 64}}
pool: {{size: 1, standby: 0}}
supervision:
  max_restarts: 100
  children:
    - agent:
        name: leaky
        type: secret_agents.Leaky
        process: w1
        max_deliveries: 1
        credentials: {{service: "${{CANARY_OWN_KEY}}"}}
        kwargs: {{address: "http://user:${{CANARY_TOKEN}}@host/"}}
        config: {{password: {PASSWORD}}}
    - agent: {{name: other, type: secret_agents.Other, process: w2}}
"""


def holds(data: bytes) -> list[str]:
    return [canary for canary in CANARIES if canary.encode() in data]


def halves(canary: str) -> list[str]:
    return [canary[:10], canary[10:]]


def command_line(*arguments: object) -> str:
    command = [sys.executable, "-m", "civitas_shm", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_keys_are_in_no_log_event_dump_or_process_but_their_agents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CIVITAS_SHM_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("CANARY_OWN_KEY", OWN)
    monkeypatch.setenv("CANARY_TOKEN", TOKEN)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*filter(None, sys.path), str(HERE)]))
    file, name = tmp_path / "secrets.yaml", f"secrets-{os.getpid()}"
    file.write_text(TOPOLOGY)
    runtime = Runtime.from_config(file, name=name, events=tmp_path / "events.jsonl", log_format="text")
    said: list[str] = []

    async def ask(agent: str, **payload: Any) -> dict[str, Any]:
        return (await runtime.ask(agent, payload, timeout=60)).payload

    async def test() -> list[Letter]:
        async with runtime:
            assert (await ask("leaky", do="look", halves=halves(OWN)))["holds"], "the search must be able to find it"
            await ask("leaky", do="print")
            for do, what in (("raise", r"cannot log in with \*\*\* "), ("die", "died")):
                with pytest.raises(AgentError, match=what) as caught:
                    await ask("leaky", do=do)
                said.append(f"{caught.value} {caught.value.__dict__}")
            pid = (await ask("leaky", do="look", halves=halves(OWN)))["pid"]
            for canary in (OWN, PASSWORD):  # CANARY_TOKEN is not of credentials alone, so the environment has it
                other = await ask("other", halves=halves(canary))
                assert (other["holds"], other["variable"]) == (False, None), canary
            _no_process_has_it_from_the_start(pid)
            said.append(await asyncio.to_thread(_told_over_the_control_socket, file, name))
            files = [*(tmp_path / "runs").rglob("*"), *Path("/dev/shm").glob(f"*{name}*")]
            read = {path: path.read_bytes() for path in files if path.is_file()}
            assert len(read) > 3, "nothing was tested"
            assert {path: found for path, data in read.items() if (found := holds(data))} == {}
            return runtime.dead_letters()

    letters = asyncio.run(test())
    ended, raised = sorted(letter.cause for letter in letters)
    assert ended.startswith("it ended its process 1 time")
    assert raised.startswith("its handler raised RuntimeError: cannot log in with ***")
    assert any("last words ***" in letter.traceback for letter in letters), "nothing was tested"
    events = (tmp_path / "events.jsonl").read_text()
    assert "agent_failed" in events
    out, err = capfd.readouterr()
    for words in ("stdout ***", "stderr ***", "logged ***", "ValueError: ***"):
        assert words in out + err, "nothing was tested"
    shown = "\n".join([events, out, err, *said, *(f"{letter.cause} {letter.traceback}" for letter in letters)])
    assert holds(shown.encode()) == []


def _no_process_has_it_from_the_start(pid: int) -> None:
    """Of the run's own processes: this one, which was given the variable, has it of course."""
    host = next(parent for parent in psutil.Process(pid).parents())
    run = [host, *host.children(recursive=True)]
    assert len(run) >= 4, "host, fork server and two workers"
    for process in run:
        for what in ("environ", "cmdline"):
            data = Path(f"/proc/{process.pid}/{what}").read_bytes()
            assert OWN.encode() not in data, (process.name(), what)


def _told_over_the_control_socket(file: Path, name: str) -> str:
    plain = json.loads(command_line("topology", "show", name, "--json"))
    leaky = plain["topology"]["supervision"]["children"][0]
    assert (leaky["credentials"], leaky["config"]) == ({"service": "***"}, {"password": "***"})
    assert [agent["state"] for agent in plain["agents"]] == ["running", "running"]
    other = file.with_name("other.yaml")
    other.write_text(TOPOLOGY.replace("${CANARY_OWN_KEY}", "another-key"))
    changed = command_line("topology", "diff", name, other)
    assert changed == "~ agent leaky: credentials.service *** → ***\n"
    return json.dumps(plain) + changed
