"""What is said of an agent, for each thing that can be true of it: scenes made by hand, one finding each."""

from __future__ import annotations

from typing import Any

import pytest

from civitas_shm.chart import Chart, ChartChild, ChartProcess, ChartSupervisor
from civitas_shm.inspection import Finding, Hand, Reading, Scene, find, snapshot_of
from civitas_shm.inspection.proc import Sample
from civitas_shm.inspection.readings import decode_reading, encode_reading
from civitas_shm.inspection.why import KINDS
from civitas_shm.transport import MailboxStats, SlotView, Wait

S = 1_000_000_000
NOW = 1000 * S
WALL = 5000.0


def stats(mailbox: int, name: str, *, slot: int = 2, busy_s: float = 0, waiting: int = 0, **more: Any) -> MailboxStats:
    busy = {"in_hand": 1, "busy_since_ns": int(NOW - busy_s * S)} if busy_s else {"in_hand": 0, "busy_since_ns": 0}
    fields = {"capacity": 10, "handled": 7, "sent": 0, "redelivered": 0, "dropped": 0, "garbage": 0} | busy | more
    return MailboxStats(name=name, waiting=waiting, readers=(slot,), mailbox=mailbox, **fields)


def reading(*mailboxes: MailboxStats, **more: Any) -> Reading:
    """Agents of w1 (slot 2) and w2 (slot 3), of which nothing is wrong."""
    asked, states, at_s = more.pop("asked", ()), more.pop("states", {}), more.pop("at_s", 0.0)
    cpu_s = more.pop("cpu_s", {})
    children = more.pop("children", {})
    supervisors = more.pop("supervisors", (ChartSupervisor("root", max_restarts=3, window_s=60),))
    chart = Chart(
        "r", "0" * 32, state="running", host_pid=100, main_pid=101, stopped_timeout_s=30.0,
        processes=(ChartProcess("w1", 2, 102), ChartProcess("w2", 3, 103)),
        supervisors=supervisors,
        children=tuple(
            ChartChild(one.name, one.name, "root", f"w{one.readers[0] - 1}", children.get(one.name, "ready"))
            for one in mailboxes
        ),
    )  # fmt: skip
    fields: dict[str, Any] = {
        "name": "r", "run_id": "0" * 32, "path": "/nowhere", "alive": True, "removed": False,
        "time_s": WALL + at_s, "monotonic_ns": int(NOW + at_s * S), "shared_bytes": 1 << 20, "chart": chart,
        "mailboxes": mailboxes, "waits": (), "hands": (), "events": (), "dead_letters": 0,
        "slots": tuple(
            SlotView(slot, 1, True, 100 + slot, False, slot in asked, 1 << 20, 4 << 20) for slot in (0, 1, 2, 3)
        ),
        "samples": {
            pid: Sample(pid, states.get(pid, "S"), False, cpu_s.get(pid, 1.0), 1 << 20, 2, 0, 5)
            for pid in (100, 101, 102, 103)
        },
    }  # fmt: skip
    return Reading(**(fields | more))


def wait(agent: int, target: int, for_s: float = 3.0, seen_s: float = 0.1, **more: Any) -> Wait:
    kind = more.pop("kind", "ask")
    return Wait(agent, target, kind, 5, int(NOW - for_s * S), int(NOW - seen_s * S), "go_on")


def found(agent: str, now: Reading, before: Reading | None = None) -> Finding:
    finding = find(Scene(before, now), agent)
    assert finding.kind in KINDS
    return finding


def blocked(*mailboxes: MailboxStats, cpu_s: float) -> Finding:
    """`a`, when the process of slot 2 has used so much of a core in the last second and has not answered."""
    before = reading(*mailboxes, asked=(2,), at_s=-1.0)
    return found("a", reading(*mailboxes, asked=(2,), cpu_s={102: 1.0 + cpu_s}), before)


HAND = Hand(20, "running", "task", "boss", "ab" * 16, WALL - 9, 1, 10, 2)


def test_an_agent_that_has_nothing_to_do_is_idle() -> None:
    assert found("a", reading(stats(20, "a"))).kind == "idle"


def test_a_handler_that_runs_is_named_with_its_message_and_how_long() -> None:
    said = found("a", reading(stats(20, "a", busy_s=42), hands=(HAND,)))
    assert (said.kind, said.healthy) == ("handling", True)
    assert "for 42 s" in said.text
    assert "type 'task' from boss" in said.text
    assert said.evidence["message"]["id"] == "ab" * 16
    assert "turns" in said.text


def test_messages_that_wait_between_two_handlers() -> None:
    assert found("a", reading(stats(20, "a", waiting=3))).kind == "working"


@pytest.mark.parametrize(("cpu_s", "words"), [(0.99, "99% of a core"), (0.0, "holds the GIL")])
def test_a_loop_that_does_not_turn_is_told_as_computing_or_as_sleeping(cpu_s: float, words: str) -> None:
    said = blocked(stats(20, "a", busy_s=9), cpu_s=cpu_s)
    assert (said.kind, said.pid) == ("blocked", 102)
    assert words in said.text


def test_who_computes_on_a_machine_that_gives_it_little_is_not_taken_for_a_sleeper() -> None:
    mailbox = stats(20, "a", busy_s=9)
    before = reading(mailbox, asked=(2,), at_s=-1.0, states={102: "R"})
    now = reading(mailbox, asked=(2,), cpu_s={102: 1.1}, states={102: "R"})
    assert "it computes (10% of a core)" in found("a", now, before).text


def test_who_sits_beside_the_one_that_blocks_the_loop_is_told_its_name() -> None:
    said = blocked(stats(20, "a", waiting=4), stats(21, "b", busy_s=9), cpu_s=0.0)
    assert (said.kind, said.chain) == ("blocked_by", ("a", "b"))
    assert "4 messages wait" in said.text


def test_a_question_that_was_asked_only_just_now_proves_nothing() -> None:
    mailbox = stats(20, "a", busy_s=9)
    assert found("a", reading(mailbox, asked=(2,)), reading(mailbox, at_s=-1.0)).kind == "handling"


@pytest.mark.parametrize(("state", "kind"), [("T", "stopped"), ("D", "disk_wait")])
def test_what_the_kernel_says_of_its_process(state: str, kind: str) -> None:
    assert found("a", reading(stats(20, "a", busy_s=1), states={102: state})).kind == kind


def test_a_debugger_is_told_from_a_stop() -> None:
    now = reading(stats(20, "a", busy_s=1))
    now.samples[102] = Sample(102, "t", True, 1.0, 1, 1, 0, 5)
    assert found("a", now).kind == "traced"


def test_a_chain_of_waits_is_followed_to_its_end() -> None:
    boxes = (stats(20, "a", busy_s=3), stats(21, "b", busy_s=3, slot=3), stats(22, "c", busy_s=8))
    said = found("a", reading(*boxes, waits=(wait(20, 21), wait(21, 22))))
    assert (said.kind, said.chain) == ("waits_reply", ("a", "b", "c"))
    assert "c has been in its handler for 8.0 s" in said.text


def test_waiting_for_room_names_the_full_mailbox() -> None:
    boxes = (stats(20, "a", busy_s=3), stats(21, "b", waiting=10, slot=3))
    said = found("a", reading(*boxes, waits=(wait(20, 21, kind="room"),)))
    assert said.kind == "waits_room"
    assert "10 of 10 wait there" in said.text


def test_a_circle_is_a_deadlock_for_those_in_it_and_the_end_of_a_chain_for_who_waits_for_them() -> None:
    boxes = (stats(20, "a", busy_s=3), stats(21, "b", busy_s=3, slot=3), stats(22, "c", busy_s=3))
    now = reading(*boxes, waits=(wait(20, 21), wait(21, 20), wait(22, 20)))
    assert found("a", now).chain == ("a", "b", "a")
    assert {found(agent, now).kind for agent in "ab"} == {"deadlock"}
    assert found("c", now).kind == "waits_reply"
    assert "circle of a, b" in found("c", now).text


def test_waits_that_do_not_overlap_in_one_instant_are_no_deadlock() -> None:
    boxes = (stats(20, "a", busy_s=3), stats(21, "b", busy_s=3, slot=3))
    waits = (wait(20, 21, for_s=3, seen_s=1), wait(21, 20, for_s=0.5, seen_s=0.1))
    assert found("a", reading(*boxes, waits=waits)).kind == "waits_reply"


def test_a_deadlock_that_was_broken_in_the_last_minute_is_said_beside_what_is_true_now() -> None:
    event = {"event": "deadlock", "time": WALL - 20, "agent": "b", "agents": ["a", "b"], "cause": "a for b, b for a."}
    said = found("a", reading(stats(20, "a"), events=(event,)))
    assert said.kind == "idle"
    assert "broken 20 s ago by ending the wait of b" in said.text
    assert "deadlock" not in found("a", reading(stats(20, "a"), events=(event | {"time": WALL - 61},))).text


@pytest.mark.parametrize(
    ("status", "kind"),
    [("starting", "starting"), ("stopping", "stopping"), ("waiting", "restarting"), ("gone", "dead"), ("down", "dead")],
)
def test_what_its_supervisor_knows(status: str, kind: str) -> None:
    assert found("a", reading(stats(20, "a"), children={"a": status})).kind == kind


def test_a_dead_agent_comes_with_the_cause_and_the_supervisor_that_gave_up() -> None:
    event = {"event": "agent_failed", "time": WALL - 5, "agent": "a", "cause": "KeyError: 'x'"}
    gone = (ChartSupervisor("root", state="gone", max_restarts=3, window_s=60),)
    said = found("a", reading(stats(20, "a"), children={"a": "gone"}, supervisors=gone, events=(event,)))
    assert said.kind == "dead"
    assert "'root' has given up" in said.text
    assert "KeyError: 'x'" in said.text


def test_an_agent_without_a_process_is_dead_with_its_cause() -> None:
    now = reading(stats(20, "a"))
    slots = tuple(SlotView(2, 1, False, 0, False, False, 0, 0) if slot.slot == 2 else slot for slot in now.slots)
    event = {"event": "process_died", "time": WALL - 1, "process": "w1", "pid": 102, "cause": "SIGSEGV"}
    said = found("a", reading(stats(20, "a"), slots=slots, events=(event,)))
    assert (said.kind, said.word) == ("dead", "no process")
    assert "SIGSEGV" in said.text


def test_in_a_dead_run_nothing_else_matters_and_what_it_had_in_hand_is_said() -> None:
    said = found("a", reading(stats(20, "a", busy_s=3, waiting=2), alive=False, hands=(HAND,)))
    assert said.kind == "run_dead"
    assert "'task' from boss" in said.text
    assert "2 messages wait" in said.text


def test_a_stopped_host_is_said_whatever_is_true() -> None:
    assert "nobody watches" in found("a", reading(stats(20, "a"), states={100: "T"})).text


def test_a_suspended_agent() -> None:
    assert found("a", reading(stats(20, "a", suspended_since_s=WALL - 5))).kind == "suspended"


def test_an_unknown_agent_is_an_error() -> None:
    with pytest.raises(KeyError):
        find(Scene(None, reading(stats(20, "a"))), "nobody")


def test_a_reading_that_was_kept_in_a_file_says_the_same() -> None:
    now = reading(stats(20, "a", busy_s=3), stats(21, "b"), waits=(wait(20, 21),), hands=(HAND,))
    assert decode_reading(encode_reading(now)) == now
    assert snapshot_of(Scene(None, decode_reading(encode_reading(now)))) == snapshot_of(Scene(None, now))


def test_rates_and_times_are_those_between_the_readings() -> None:
    before = reading(stats(20, "a", handled=100, handler_ns=(0, 100, 0)), at_s=-2.0, cpu_s={102: 1.0})
    now = reading(stats(20, "a", handled=300, handler_ns=(0, 100, 200)), cpu_s={102: 2.0})
    shown = snapshot_of(Scene(before, now))
    (agent,) = shown.agents
    assert agent.rate_per_s == 100.0
    assert agent.handler_p50_us == 3.0
    assert agent.handler_p99_us is not None
    assert 3.9 < agent.handler_p99_us < 4.0
    assert next(process for process in shown.processes if process.name == "w1").cpu_percent == 50.0


def test_of_one_reading_no_rate_is_known() -> None:
    (agent,) = snapshot_of(Scene(None, reading(stats(20, "a")))).agents
    assert agent.rate_per_s is None


def test_readings_of_two_runs_are_not_compared() -> None:
    assert Scene(reading(stats(20, "a"), at_s=-1.0, run_id="1" * 32), reading(stats(20, "a"))).before is None
