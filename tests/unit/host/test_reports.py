"""Sentences for people, events for programs, and readings: from given values to given words."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from civitas_shm.clock import ManualClock
from civitas_shm.errors import ConfigurationError
from civitas_shm.host.events import EventLog
from civitas_shm.host.kernel import Exit
from civitas_shm.host.probes import Probes
from civitas_shm.host.readings import agent_state
from civitas_shm.host.reports import Death, cause_of, death_report, failure_report, waiting_sentence
from civitas_shm.supervision.state import ChildState, ChildStatus

MESSAGE = {"agent": "a", "type": "job", "sender": "b", "id": "01ab", "delivery": 2}


@pytest.mark.parametrize(
    ("exit_", "because", "out_of_memory", "cause"),
    [
        (Exit(3), "", False, "exit code 3"),
        (Exit(0, 9), "", False, "SIGKILL"),
        (Exit(0, 9), "chaos", True, "SIGKILL (chaos)"),
        (Exit(0, 9), "", True, "SIGKILL (out of memory: killed by the kernel)"),
        (Exit(0, 11), "", True, "SIGSEGV"),
        (None, "", False, "it ended before it was started"),
    ],
)  # fmt: skip
def test_a_cause_is_the_kernels_word_and_who_did_it(
    exit_: Exit | None, because: str, out_of_memory: bool, cause: str
) -> None:
    assert cause_of(exit_, because, out_of_memory) == cause


def test_a_death_is_reported_with_message_and_last_words() -> None:
    assert death_report(Death("w1", 7, "SIGKILL", [MESSAGE], ["one", "two"])) == (
        "process w1 (pid 7) died: SIGKILL\n"
        "  in hand: message 01ab of type 'job' from 'b' to 'a', delivery 2\n"
        "  its last 2 lines:\n"
        "    one\n"
        "    two"
    )
    assert death_report(Death("w1", 7, "SIGKILL")).endswith("it wrote nothing to stderr")


def test_a_failure_is_reported_with_message_and_traceback() -> None:
    event: dict[str, Any] = {
        "agent": "a", "during": "handle", "type": "ValueError", "text": "no", "message": MESSAGE, "traceback": "x\ny",
    }  # fmt: skip
    text = failure_report(event, "w1")
    assert text.startswith("agent a in process w1 failed in handle: ValueError: no\n  in hand: message 01ab")
    assert text.endswith("    x\n    y")


@pytest.mark.parametrize(
    ("waiting", "text"),
    [
        ({}, ""),
        ({"a": 1}, "1 message waits (a 1): `run --resume` goes on with it, `run --fresh` drops it."),
        ({"a": 5, "b": 2}, "7 messages wait (a 5, b 2): `run --resume` goes on with them, `run --fresh` drops them."),
        (dict.fromkeys("abcdef", 1), "6 messages wait (a 1, b 1, c 1, d 1, e 1, …): `run --resume` goes on with them, "
                                     "`run --fresh` drops them."),
    ],
)  # fmt: skip
def test_what_waits_is_counted_named_and_has_a_way_out(waiting: dict[str, int], text: str) -> None:
    assert waiting_sentence(waiting) == text


# --- events -------------------------------------------------------------------------------------------------------


def test_events_are_one_line_each_on_disk_at_once_and_without_what_does_not_apply(tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    log = EventLog(ManualClock(wall_s=100.0), heard.append)
    log.open(str(tmp_path / "events"))
    log.emit("process_died", process="w1", pid=7, cause="SIGKILL", agent=None, in_hand=[])
    expected = {"event": "process_died", "time": 100.0, "process": "w1", "pid": 7, "cause": "SIGKILL", "in_hand": []}
    assert [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()] == [expected]
    assert heard == [expected]
    with pytest.raises(ValueError, match="unknown event 'exploded'"):
        log.emit("exploded")
    log.close()
    log.close()


def test_a_file_that_cannot_be_opened_is_refused_and_one_that_fills_up_is_not_fatal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = EventLog(ManualClock(), lambda event: None)
    with pytest.raises(ConfigurationError, match="No such file or directory"):
        log.open(str(tmp_path / "absent" / "events"))
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    log.open("/dev/full")
    log.emit("run_started")
    log.emit("run_stopped")
    assert capsys.readouterr().err == "--events /dev/full: No space left on device; no more events are written.\n"


# --- readings -----------------------------------------------------------------------------------------------------


def test_an_agent_is_what_the_most_restless_of_its_replicas_is() -> None:
    def child(status: ChildStatus) -> ChildState:
        return ChildState("a", "a", 0, "root", 0, "permanent", 1.0, status=status)

    assert agent_state([child(ChildStatus.READY), child(ChildStatus.READY)]) == "running"
    assert agent_state([child(ChildStatus.READY), child(ChildStatus.WAITING)]) == "waiting"
    assert agent_state([child(ChildStatus.GONE)]) == "gone"
    assert agent_state([]) == "down"


def test_a_process_that_is_gone_has_no_sample() -> None:
    probes = Probes()
    samples = probes.sample({os.getpid(), 1 << 22})
    assert list(samples) == [os.getpid()]
    assert samples[os.getpid()].rss_bytes >= samples[os.getpid()].private_bytes > 0
