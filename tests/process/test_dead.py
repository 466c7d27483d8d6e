"""`dead` with a live run: what its host answers over the control socket."""

from __future__ import annotations

import json
import os
import signal
import sys

import pytest

if sys.platform != "linux":
    pytest.skip("shared memory needs Linux", allow_module_level=True)

from civitas_shm.dead_letters import FileLetters
from civitas_shm.letters import DIRECTORY, Letter

from .cli import Shell, until

pytestmark = pytest.mark.process


def left_by_an_earlier_run(shell: Shell, name: str, letters: int) -> None:
    directory = shell.runs / name
    directory.mkdir(parents=True, mode=0o700)
    store = FileLetters(directory / DIRECTORY)
    store.add(
        [
            Letter(
                f"{n:08x}-0000-7000-8000-000000000000", "mark", "first", "message", f"cause {n}", "", 1000.0 + n, 900.0,
                3, 0, 3, 0, 4, b"h" * 80, b"\x81\xa1n\x01",
            )
            for n in range(letters)
        ]
    )  # fmt: skip
    store.close()


def test_letters_of_earlier_runs_are_listed_shown_and_dropped_while_the_run_lives(shell: Shell) -> None:
    left_by_an_earlier_run(shell, "web", 230)
    assert shell.ps()["web"]["dead_letters"] == 230
    run = shell.popen("run", "-q", shell.topology("web"))
    assert shell.until_state("web", "running")["dead_letters"] == 230
    listed = json.loads(shell.do("dead", "list", "--json").stdout)
    assert [letter["cause"] for letter in listed["letters"]] == [f"cause {n}" for n in reversed(range(230))]
    shown = json.loads(shell.do("dead", "show", "00000007", "--json").stdout)
    assert (shown["recipient"], shown["payload"]) == ("mark", {"n": 1})
    partly = shell.do("dead", "drop", "00000007", "00000007", "eeee", code=1)
    assert "1 dead letter of web dropped." in partly.stdout
    assert "eeee: no dead letter begins" in partly.stderr
    assert shell.until_state("web", "running")["dead_letters"] == 229
    plain = json.loads(shell.do("dead", "drop", "--all", "--run", "web", "--json").stdout)
    assert (len(plain["dropped"]), plain["problems"]) == (229, {})
    assert "web has no dead letters." in shell.do("dead", "list", "--run", "web").stdout
    shell.do("stop", "web")
    run.wait()
    assert shell.ps("--all") == {}
    assert list(shell.runs.iterdir()) == []


def test_letters_outlive_a_run_that_ends_in_order_and_fresh_drops_them(shell: Shell) -> None:
    left_by_an_earlier_run(shell, "job", 3)
    topology = shell.topology("job")
    for _ in range(2):
        run = shell.popen("run", "-q", topology)
        shell.until_state("job", "running")
        shell.do("stop", "job")
        run.wait()
        dead = shell.ps()["job"]
        assert (dead["state"], dead["waiting"], dead["dead_letters"]) == ("dead", 0, 3)
    shell.do("gc", "--empty")
    assert "dead, with 3 dead letters" in shell.do("gc").stdout
    run = shell.popen("run", "-q", "--fresh", topology)
    assert shell.until_state("job", "running")["dead_letters"] == 0
    shell.do("stop")
    run.wait()
    assert list(shell.runs.iterdir()) == []


def test_a_poisoned_message_is_looked_at_and_replayed_when_its_agent_is_mended(shell: Shell) -> None:
    mended, out = shell.folder / "mended", shell.folder / "web.out"
    config = f"{{files: [{shell.folder / 'sent'}, {mended}]}}"
    run = shell.popen("run", "-q", shell.topology("web", "Poisoned", config=config))
    until(lambda: shell.ps().get("web", {}).get("dead_letters") == 1)
    [letter] = json.loads(shell.do("dead", "list", "--json").stdout)["letters"]
    assert (letter["sender"], letter["recipient"]) == ("first", "first")
    shown = shell.do("dead", "show", letter["id"]).stdout
    assert "LookupError: poisoned" in shown
    assert '"n": 7' in shown
    mended.touch()
    assert shell.do("dead", "replay", "--all").stdout == "1 dead letter of web replayed.\n"
    until(lambda: out.exists() and out.read_text() == "7\n")
    assert shell.until_state("web", "running")["dead_letters"] == 0
    assert "no dead letter begins" in shell.do("dead", "replay", letter["id"], "--run", "web", code=1).stderr
    shell.do("stop")
    assert run.wait() == 0
    assert list(shell.runs.iterdir()) == []


def test_letters_of_a_dead_run_are_replayed_after_a_resume_and_not_before(shell: Shell) -> None:
    mended, out = shell.folder / "mended", shell.folder / "web.out"
    topology = shell.topology("web", "Poisoned", config=f"{{files: [{shell.folder / 'sent'}, {mended}]}}")
    run = shell.popen("run", "-q", topology)
    until(lambda: shell.ps().get("web", {}).get("dead_letters") == 1)
    os.kill(shell.ps()["web"]["host_pid"], signal.SIGKILL)
    run.wait()
    mended.touch()
    assert "run --resume" in shell.do("dead", "replay", "--all", code=8).stderr
    assert len(json.loads(shell.do("dead", "list", "--json").stdout)["letters"]) == 1
    again = shell.popen("run", "-q", "--resume", topology)
    shell.until_state("web", "running")
    shell.do("dead", "replay", "--all")
    until(lambda: out.exists() and out.read_text() == "7\n")
    shell.do("stop")
    assert again.wait() == 0
