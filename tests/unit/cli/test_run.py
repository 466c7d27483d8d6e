"""`run` between the shell and the runtime: what it hands over, what it does with signals, which exit codes come out.

The runtime is a double that keeps the agreed interface; with real processes it is tested in tests/process.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from civitas_shm import transport
from civitas_shm.cli.app import app
from civitas_shm.cli.supervise import letters_text, waiting_text
from civitas_shm.errors import RunAlive, RunFailed
from civitas_shm.host.protocol import Chaos
from civitas_shm.snapshot import ProcessSnapshot, RuntimeSnapshot
from civitas_shm.topology.model import TopologySpec

TOPOLOGY = "supervision: {children: [{name: a, type: json.JSONDecoder, config: {x: 1}}]}\n"


class RuntimeDouble:
    """Ends as `script` says; remembers what was asked of it."""

    def __init__(self, script: Callable[[RuntimeDouble], Any], left: dict[str, int]) -> None:
        self.script = script
        self.left = left
        self.letters: list[Any] = []
        self.spec = TopologySpec()
        self.arguments: dict[str, Any] = {}
        self.calls: list[str] = []
        self.stop_wanted = asyncio.Event()

    def from_spec(self, spec: TopologySpec, **arguments: Any) -> RuntimeDouble:
        self.spec, self.arguments = spec, arguments
        return self

    async def start(self) -> None:
        self.calls.append("start")

    async def wait(self) -> int:
        code = await self.script(self)
        assert isinstance(code, int)
        return code

    async def stop(self) -> None:
        self.calls.append("stop")

    def request_stop(self) -> None:
        self.calls.append("request_stop")
        self.stop_wanted.set()

    def kill(self) -> None:
        self.calls.append("kill")

    def dead_letters(self) -> list[Any]:
        return self.letters

    def waiting(self) -> dict[str, int]:
        return self.left

    def snapshot(self) -> RuntimeSnapshot:
        return RuntimeSnapshot("atlas", "shm", processes=(ProcessSnapshot("w1", restarts=2),))


Invoke = Callable[..., tuple[Result, RuntimeDouble]]


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    monkeypatch.setattr(os, "_exit", lambda code: None)  # the last resort after a second signal would end the tests
    (tmp_path / "topology.yaml").write_text(TOPOLOGY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOG_LEVEL", raising=False)

    def run(
        script: Callable[[RuntimeDouble], Any], *arguments: str, left: dict[str, int] | None = None
    ) -> tuple[Result, RuntimeDouble]:
        double = RuntimeDouble(script, left or {})
        monkeypatch.setitem(sys.modules, "civitas_shm.runtime", SimpleNamespace(Runtime=double))
        return CliRunner().invoke(app, ["run", *arguments]), double

    return run


async def ends_with_3(double: RuntimeDouble) -> int:
    return 3


async def ends_when_told(double: RuntimeDouble) -> int:
    os.kill(os.getpid(), signal.SIGTERM)
    await double.stop_wanted.wait()
    return 0


async def never_stops(double: RuntimeDouble) -> int:
    os.kill(os.getpid(), signal.SIGINT)
    await double.stop_wanted.wait()
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.Event().wait()
    return 0


async def fails(double: RuntimeDouble) -> int:
    raise RunFailed("process w1 was killed by SIGSEGV")


def test_the_exit_code_of_stop_runtime_is_ours(invoke: Invoke) -> None:
    result, double = invoke(ends_with_3)
    assert result.exit_code == 3
    assert double.calls == ["start", "stop"]
    assert result.stdout == ""


def test_sigterm_stops_in_order_with_0(invoke: Invoke) -> None:
    result, double = invoke(ends_when_told)
    assert result.exit_code == 0
    assert double.calls == ["start", "request_stop", "stop"]


def test_a_second_signal_kills_with_130(invoke: Invoke) -> None:
    result, double = invoke(never_stops)
    assert result.exit_code == 130
    assert double.calls[:3] == ["start", "request_stop", "kill"]


def test_signals_are_given_back_at_the_end(invoke: Invoke) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    invoke(ends_when_told)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_second_signal_ends_even_a_process_whose_loop_is_held(tmp_path: Path) -> None:
    (tmp_path / "held.py").write_text(
        "import time\n"
        "from civitas_shm import AgentProcess\n"
        "class Held(AgentProcess):\n"
        "    async def on_start(self):\n"
        "        await self.send(self.name, {})\n"
        "    async def handle(self, message):\n"
        "        print('held', flush=True)\n"
        "        time.sleep(3600)\n"
    )
    (tmp_path / "topology.yaml").write_text("supervision: {children: [{type: held.Held, name: a}]}")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "civitas_shm", "run"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)  # equal signals that come together are one
        assert process.wait() == 130


def test_a_failed_run_ends_with_1_and_its_report(invoke: Invoke) -> None:
    result, double = invoke(fails)
    assert result.exit_code == 1
    assert result.stderr == "process w1 was killed by SIGSEGV\n"
    assert double.calls == ["start", "stop"]


def test_a_run_that_cannot_start_ends_with_its_exit_code_and_is_stopped(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start(self: RuntimeDouble) -> None:
        raise RunAlive("atlas is alive")

    monkeypatch.setattr(RuntimeDouble, "start", start)
    result, double = invoke(ends_with_3)
    assert result.exit_code == 6
    assert double.calls == ["stop"]


def test_events_need_a_directory_that_exists(invoke: Invoke) -> None:
    result, double = invoke(ends_with_3, "--events", "nowhere/e.jsonl")
    assert result.exit_code == 2
    assert double.calls == []


def test_a_transport_that_cannot_be_had_ends_with_5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "topology.yaml").write_text("transport: shm\n" + TOPOLOGY)
    monkeypatch.setitem(transport.BUILTIN_TRANSPORTS, "shm", "civitas_shm.no_such_part")
    result = CliRunner().invoke(app, ["run", str(tmp_path / "topology.yaml")])
    assert result.exit_code == 5
    assert "transport 'shm' cannot be had here" in result.stderr
    assert "--transport in_process" in result.stderr


def test_defect_17_options_arrive(invoke: Invoke) -> None:
    options = "--name my-run --set a.x=2 --transport shm --workers 3 --resume --chaos kill=300ms --events e.jsonl"
    _, double = invoke(ends_with_3, *options.split(), "--log-format", "json")
    assert double.arguments == {
        "name": "my-run",
        "workers": 3,
        "resume": True,
        "fresh": False,
        "chaos": Chaos(kill_s=0.3),
        "events": "e.jsonl",
        "log_format": "json",
        "log_path": None,
        "service": None,
    }
    assert double.spec.name == "my-run"
    assert double.spec.transport.type == "shm"
    assert double.spec.logging.format == "json"
    assert double.spec.supervision.agents()[0].config == {"x": 2}


def test_without_a_name_the_run_has_that_of_its_directory(invoke: Invoke, tmp_path: Path) -> None:
    _, double = invoke(ends_with_3)
    assert double.arguments["name"] == tmp_path.name.replace("_", "-").lower()[:64].strip("-")


@pytest.mark.parametrize(
    ("arguments", "environment", "level"),
    [([], None, "INFO"), (["--quiet"], None, "WARNING"), ([], "debug", "DEBUG"), (["-q"], "error", "ERROR")],
)
def test_the_level_of_the_log(
    arguments: list[str], environment: str | None, level: str, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script(double: RuntimeDouble) -> int:
        return 0

    if environment is not None:
        # the fixture has removed it before
        monkeypatch.setenv("LOG_LEVEL", environment)
    _, double = invoke(script, *arguments)
    assert double.spec.logging.level == level


def test_a_level_that_does_not_exist_is_named(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "loud")
    result, _ = invoke(ends_with_3)
    assert "LOG_LEVEL is 'loud'; allowed: DEBUG" in result.stderr


def test_json_is_one_object_on_stdout(invoke: Invoke) -> None:
    result, _ = invoke(ends_with_3, "--json", left={"b": 2})
    plain = json.loads(result.stdout)
    assert plain["exit_code"] == 3
    assert plain["error"] is None
    assert plain["restarts"] == 2
    assert plain["waiting"] == {"b": 2}
    assert plain["processes"][0]["name"] == "w1"


def test_json_is_not_disturbed_by_what_agents_of_this_process_print(invoke: Invoke) -> None:
    async def prints(double: RuntimeDouble) -> int:
        print("from an agent")
        return 0

    result, _ = invoke(prints, "--json")
    assert json.loads(result.stdout)["exit_code"] == 0
    assert "from an agent" in result.stderr


def test_json_of_a_failed_run_has_the_report(invoke: Invoke) -> None:
    result, _ = invoke(fails, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"] == "process w1 was killed by SIGSEGV"


def test_messages_that_wait_are_named_with_the_way_to_go_on(invoke: Invoke) -> None:
    result, _ = invoke(ends_when_told, left={"a": 5, "b": 12})
    assert result.exit_code == 0
    assert result.stderr == "17 messages wait: run --resume (b 12, a 5)\n"


def test_dead_letters_are_counted_with_the_way_to_read_them(invoke: Invoke) -> None:
    async def script(runtime: RuntimeDouble) -> int:
        runtime.letters = [1, 2, 3]
        return 0

    result, _ = invoke(script)
    assert result.stderr == "3 dead letters: civitas-shm dead list\n"
    assert letters_text(1, kept=False).startswith("1 dead letter, gone")


def test_many_agents_with_messages_are_cut_short() -> None:
    assert waiting_text({"a": 1}) == "1 message waits: run --resume (a 1)"
    assert waiting_text({f"a{i}": i for i in range(1, 8)}).endswith("(a7 7, a6 6, a5 5, a4 4, a3 3, …)")


@pytest.mark.parametrize(
    ("option", "said", "code"),
    [
        (["--process", "worker"], "one `run` starts and watches every process of this topology", 3),
        (["-p", "supervisor"], "one `run` starts and watches every process of this topology", 3),
        (["--transport", "nats", "--process", "wroker"], "no agent has process 'wroker'; did you mean 'worker'?", 3),
        (["--transport", "nats", "--process", "worker", "--all"], "give one of them", 2),
        (["--transport", "nats", "--nats-url", "host:4222"], "--nats-url: 'host:4222' is no address of a server", 3),
    ],
)
def test_a_part_that_is_none_is_refused_with_the_reason(
    tmp_path: Path, option: list[str], said: str, code: int
) -> None:
    path = tmp_path / "topology.yaml"
    path.write_text("supervision:\n  children:\n  - {name: a, type: m.A}\n  - {name: b, type: m.B, process: worker}\n")
    result = CliRunner().invoke(app, ["run", str(path), *option], env={"COLUMNS": "300"})
    assert (said in result.stderr.replace("\n", " "), result.exit_code) == (True, code), result.stderr
