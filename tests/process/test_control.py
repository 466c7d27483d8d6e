"""`ps` and `stop` with real runs: two at once, one that starts, one that hangs, one that is dead."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import threading
import time

import psutil
import pytest

from civitas_shm.control.client import ControlClient
from civitas_shm.control.protocol import RunStatus, Status, Stopping, StopRun
from civitas_shm.errors import RunNotAnswering

if sys.platform != "linux":
    pytest.skip("shared memory needs Linux", allow_module_level=True)

from civitas_shm_transports.shm.segments import is_held

from .cli import Shell, until

pytestmark = pytest.mark.process


def test_two_runs_are_listed_and_stopped_each_alone(shell: Shell) -> None:
    web = shell.popen("run", shell.topology("web"), "-q")
    job = shell.popen("run", shell.topology("job"), "-q")
    seen = {name: shell.until_state(name, "running") for name in ("web", "job")}
    assert seen["web"]["pid"] == web.pid
    assert psutil.Process(seen["web"]["host_pid"]).ppid() == web.pid
    assert (seen["job"]["processes"], seen["job"]["agents"], seen["job"]["waiting"]) == (1, 2, 0)
    assert (seen["job"]["dead_letters"], seen["job"]["answers"]) == (0, True)
    lines = shell.do("ps").stdout.splitlines()
    assert lines[0].split()[:3] == ["NAME", "PID", "SINCE"]
    assert [line.split()[:2] for line in lines[1:]] == [["job", str(job.pid)], ["web", str(web.pid)]]

    nobody_named = shell.do("stop", code=7)
    assert "There are 2: job, web" in nobody_named.stderr
    assert "no run that is alive named 'wbe'" in shell.do("stop", "wbe", code=7).stderr

    assert shell.do("stop", "web").stdout == "web is gone.\n"
    assert not is_held(shell.runs / "web")
    assert web.wait() == 0
    assert list(shell.ps("--all")) == ["job"]
    assert shell.do("stop").stdout == "job is gone.\n"  # there is exactly one
    assert job.wait() == 0
    assert shell.ps("--all") == {}
    assert "There is no run." in shell.do("ps").stdout
    shell.do("stop", code=7)


def test_what_waits_is_said_and_a_dead_run_is_no_error(shell: Shell) -> None:
    topology = shell.topology("dead", "SendsItself", config="{n: 7}")
    run = shell.popen("run", topology, "-q")
    shell.until_state("dead", "running")
    host = shell.ps()["dead"]["host_pid"]
    until(lambda: shell.ps()["dead"]["waiting"] == 7)  # one of them in hand
    os.kill(host, signal.SIGKILL)
    run.wait()
    dead = shell.ps()["dead"]
    assert (dead["state"], dead["waiting"], dead["pid"]) == ("dead", 7, None)
    assert "dead, with 7 messages waiting" in shell.do("ps").stdout
    assert "dead is not running: dead, with 7 messages waiting." in shell.do("stop", "dead").stdout
    assert "run --name dead --resume" in shell.do("doctor", code=None).stdout
    assert "remove  dead" in shell.do("gc").stdout
    shell.do("gc", "--empty")
    assert shell.ps()["dead"]["waiting"] == 7

    again = shell.popen("run", topology, "-q", "--resume")
    assert shell.until_state("dead", "running")["waiting"] >= 7
    shell.do("gc", "dead", "--yes")  # it lives: not touched
    assert shell.ps()["dead"]["state"] == "running"
    stopped = shell.do("stop", "dead", "--now")
    assert "messages waiting" in stopped.stderr
    again.wait()
    assert "removed  dead" in shell.do("gc", "dead", "--yes").stdout
    assert shell.ps("--all") == {}


def test_drain_on_the_command_line_counts_and_now_does_not_wait(shell: Shell) -> None:
    out = shell.folder / "all.out"
    run = shell.popen("run", shell.topology("all", "SendsMark", config="{n: 200}"), "-q")
    shell.until_state("all", "running")
    shell.do("stop", "all", "--drain", "all")
    assert run.wait() == 0
    assert len(out.read_text().split()) == 200
    assert shell.ps("--all") == {}

    slow = shell.popen("run", shell.topology("slow", "SendsItself", config="{n: 1}"), "-q")  # handles for a minute
    shell.until_state("slow", "running")
    until(lambda: shell.ps()["slow"]["waiting"] == 1)
    assert "still stops after 0.2 s" in shell.do("stop", "slow", "--timeout", "0.2", code=1).stdout
    assert shell.until_state("slow", "stopping")["pid"] == slow.pid
    late = shell.do("stop", "slow", "--timeout", "0.2", code=1)  # a second stop is no kill
    assert "still stops" in late.stdout
    shell.do("stop", "slow", "--now")
    slow.wait()
    assert shell.ps()["slow"]["waiting"] == 1
    assert shell.do("stop", "slow", "--now", "--drain", "all", code=2)


def test_a_run_is_stopped_while_it_starts(shell: Shell) -> None:
    run = shell.popen("run", shell.topology("starting", "HangsAtStart"), "-q")
    found = shell.until_state("starting", "starting")
    assert found["pid"] == run.pid
    assert shell.do("stop", "starting").stdout == "starting is gone.\n"
    _, err = run.communicate()
    assert "stopped before all of its agents had started" in err
    assert shell.ps("--all") == {}


def test_a_stop_at_any_moment_of_a_start_ends_it_and_leaves_nothing(shell: Shell) -> None:
    topology = shell.topology("early", "Slow")
    for n in range(6):
        run = shell.popen("run", "-q", topology)
        until(lambda: is_held(shell.runs / "early"))
        time.sleep(n * 0.04)  # a start takes about 0.2 s
        with ControlClient(shell.runs / "early", is_held) as client:
            client.ask(StopRun(), Stopping)
            assert client.wait_for_end(None)
        run.communicate()
        assert run.returncode in (0, 1)  # stopped, or stopped before all of its agents had started
        assert list(shell.runs.iterdir()) == []


def test_of_two_starts_of_one_name_one_wins_and_the_other_says_so(shell: Shell) -> None:
    topology = shell.topology("once", "Slow")
    for _ in range(2):
        both = [shell.popen("run", "-d", topology) for _ in range(2)]
        said = [run.communicate() for run in both]
        assert sorted(run.returncode for run in both) == [0, 6], said
        assert any("A run named 'once' is alive" in err for _, err in said)
        shell.do("stop")
        shell.do("gc", "--empty")
        assert list(shell.runs.iterdir()) == []


def test_a_run_whose_directory_was_deleted_by_hand_goes_on_and_ends(shell: Shell) -> None:
    run = shell.popen("run", "-q", shell.topology("bare"))
    shell.until_state("bare", "running")
    shutil.rmtree(shell.runs)
    time.sleep(0.3)
    assert run.poll() is None
    run.terminate()
    assert run.wait() == 0
    assert [entry for entry in os.listdir("/dev/shm") if "-bare-" in entry] == []


def test_a_run_under_another_directory_is_found_by_its_segments_and_reached_by_its_name(shell: Shell) -> None:
    name = f"far-{os.getpid()}"
    elsewhere = shell.folder / "elsewhere"
    here = dict(shell.env)
    shell.env["CIVITAS_SHM_DIR"] = str(elsewhere)
    run = shell.popen("run", "-q", shell.topology(name, "SendsItself", config="{n: 2}"))
    until(lambda: is_held(elsewhere / name))
    until(
        lambda: [r["waiting"] for r in json.loads(shell.do("ps", "--json").stdout)["runs"] if r["name"] == name] == [2]
    )
    shell.env = here
    until(lambda: "under another CIVITAS_SHM_DIR" in shell.do("ps").stderr)
    assert name not in shell.do("ps").stdout
    [line] = [line for line in shell.do("ps", "--all").stdout.splitlines() if line.startswith(name)]
    assert str(elsewhere) in line
    assert str(run.pid) in line
    shell.do("gc", name, "--yes")  # it lives: not touched
    assert is_held(elsewhere / name)
    shell.do("stop", code=7)  # without a name only what is here is meant
    assert shell.do("stop", name, "--now").stdout == f"{name} is gone.\n"
    run.wait()
    [left] = [line for line in shell.do("gc").stdout.splitlines() if name in line]
    assert left.startswith("remove")
    assert "left over: no run directory" in left
    shell.do("gc", name, "--yes")
    shutil.rmtree(elsewhere)


def test_clients_that_are_silent_or_send_garbage_do_not_trouble_a_run(shell: Shell) -> None:
    run = shell.popen("run", shell.topology("busy"), "-q")
    shell.until_state("busy", "running")
    address = str(shell.runs / "busy" / "control")
    open_ones = []
    for n in range(100):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(address)
        if n % 2:
            sock.send(os.urandom(1 + n * 7))
        open_ones.append(sock)
    stop_asking = threading.Event()

    def hammer() -> None:
        while not stop_asking.is_set():
            with ControlClient(shell.runs / "busy", is_held) as client:
                for _ in range(50):
                    client.ask(Status(), RunStatus)

    thread = threading.Thread(target=hammer)
    thread.start()
    status = shell.ps()["busy"]
    assert (status["state"], status["restarts"]) == ("running", 0)
    fds = psutil.Process(status["host_pid"]).num_fds()
    assert fds < 80  # 32 clients at most
    stop_asking.set()
    thread.join()
    shell.do("stop", "busy")
    assert run.wait() == 0
    for sock in open_ones:
        sock.close()


def test_a_host_that_hangs_is_named_and_killed_only_with_now(shell: Shell) -> None:
    run = shell.popen("run", shell.topology("hangs", "SendsItself", config="{n: 3}"), "-q")
    shell.until_state("hangs", "running")
    until(lambda: shell.ps()["hangs"]["waiting"] == 3)
    host = shell.ps()["hangs"]["host_pid"]
    os.kill(host, signal.SIGSTOP)
    listed = shell.ps()["hangs"]
    assert (listed["state"], listed["answers"]) == ("live", False)
    assert "does not answer" in listed["problem"]
    with pytest.raises(RunNotAnswering), ControlClient(shell.runs / "hangs", is_held, 0.2) as client:
        client.ask(Status(), RunStatus)
    refused = shell.do("stop", "hangs", code=8)
    assert "stop hangs --now` kills it" in refused.stderr
    assert psutil.pid_exists(host)
    assert shell.do("stop", "hangs", "--now").stdout == "hangs is gone.\n"
    run.wait()
    assert shell.ps()["hangs"]["waiting"] == 3
