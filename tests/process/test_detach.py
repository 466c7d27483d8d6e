"""`run --detach` and `logs` with real runs."""

from __future__ import annotations

import json
import os
import signal
import sys

import psutil
import pytest

if sys.platform != "linux":
    pytest.skip("shared memory needs Linux", allow_module_level=True)

from .cli import Shell, until

pytestmark = pytest.mark.process


def test_a_detached_run_has_no_terminal_and_a_log_that_outlives_it(shell: Shell) -> None:
    started = json.loads(shell.do("run", "-d", "--json", shell.topology("web", "SaysAtStart")).stdout)
    assert started["name"] == "web"
    listed = shell.ps()["web"]
    assert (listed["state"], listed["pid"], listed["has_log"]) == ("running", started["pid"], True)
    process = psutil.Process(started["pid"])
    assert process.ppid() != os.getpid()
    assert os.getsid(started["pid"]) == started["pid"]
    assert {fd: os.readlink(f"/proc/{started['pid']}/fd/{fd}") for fd in (0, 1, 2)} == {
        0: "/dev/null", 1: started["log"], 2: started["log"],
    }  # fmt: skip
    assert [path.name for path in shell.runs.iterdir()] == ["web"]  # the log has settled in the run directory
    printed = shell.do("logs").stdout
    assert "[w1 first] said at the start" in printed
    assert printed[:2] == "20"  # with the time
    assert shell.do("stop", "web").stdout == "web is gone.\n"
    process.wait()
    printed = shell.do("logs", "web").stdout
    assert printed.endswith("run web ended with exit code 0\n")
    assert shell.do("logs", "web", "-n", "1").stdout.endswith(" run web ended with exit code 0\n")
    assert shell.do("logs", "web", "-n", "1").stdout.count("\n") == 1
    assert shell.ps() == {}
    assert shell.ps("--all")["web"]["state"] == "ended"
    shell.do("gc", "--empty")
    assert shell.ps("--all") == {}
    assert list(shell.runs.iterdir()) == []
    shell.do("logs", "web", code=7)


def test_a_start_that_fails_is_told_with_its_output_and_exit_code_and_leaves_nothing(shell: Shell) -> None:
    failed = shell.do("run", "-d", shell.topology("fails", "FailsAtStart"), code=1)
    assert "said before it failed" in failed.stderr
    assert "LookupError: cannot begin" in failed.stderr
    assert failed.stdout == ""
    shell.do("gc", "--empty")
    assert list(shell.runs.iterdir()) == []
    assert shell.do("run", "-d", shell.topology("nothere", "NoSuchClass"), code=4).stdout == ""
    refused = shell.do("run", "-d", shell.topology("local"), "--transport", "in_process", code=3)
    assert "'in_process' has neither" in refused.stderr


def test_a_name_that_is_alive_is_refused_and_its_log_is_not_touched(shell: Shell) -> None:
    topology = shell.topology("twice", "SaysAtStart")
    shell.do("run", "-d", topology)
    before = shell.do("logs", "twice").stdout
    refused = shell.do("run", "-d", topology, code=6)
    assert "A run named 'twice' is alive" in refused.stderr
    assert shell.do("logs", "twice").stdout == before
    assert [path.name for path in shell.runs.iterdir()] == ["twice"]
    shell.do("stop")


def test_an_interrupted_starter_takes_the_start_with_it(shell: Shell) -> None:
    starter = shell.popen("run", "-d", shell.topology("hangs", "HangsAtStart", timeout_s=0.5))
    found = shell.until_state("hangs", "starting")
    starter.send_signal(signal.SIGINT)
    assert starter.wait() == 130
    until(lambda: not psutil.pid_exists(found["host_pid"]))
    shell.do("gc", "--empty")
    assert list(shell.runs.iterdir()) == []


def test_a_killed_starter_does_not_end_its_run(shell: Shell) -> None:
    starter = shell.popen("run", "-d", shell.topology("goes-on", "SlowAtStart"))
    shell.until_state("goes-on", "starting")
    starter.kill()
    shell.until_state("goes-on", "running")
    shell.do("stop")


def test_logs_follows_to_the_end_of_the_run(shell: Shell) -> None:
    shell.do("run", "-d", shell.topology("talks", "Talks", config="{lines: 300}"))
    follower = shell.popen("logs", "-f")
    out, _ = follower.communicate()
    assert follower.returncode == 0
    assert [line.split()[-1] for line in out.splitlines() if "number" in line] == [str(n) for n in range(300)]
    assert out.endswith("run talks ended with exit code 3\n")


def test_what_a_killed_run_printed_last_is_in_its_log(shell: Shell) -> None:
    started = json.loads(shell.do("run", "-d", "--json", shell.topology("dies", "SaysAtStart")).stdout)
    os.kill(shell.ps()["dies"]["host_pid"], signal.SIGKILL)
    until(lambda: not psutil.pid_exists(started["pid"]))
    assert "The host process (pid" in shell.do("logs", "dies").stdout
    assert "SIGKILL" in shell.do("logs", "dies").stdout


def test_a_run_that_was_not_detached_has_no_log_and_says_so(shell: Shell) -> None:
    run = shell.popen("run", "-q", shell.topology("fore"))
    shell.until_state("fore", "running")
    assert "was not started with --detach" in shell.do("logs", "fore", code=7).stderr
    shell.do("stop")
    run.wait()
