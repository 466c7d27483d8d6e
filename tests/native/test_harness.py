"""The C harnesses, compiled and run: cases of the native core, threads under sanitizers, processes under SIGKILL and
SIGSTOP, a kill at every instruction.

Rules of this file: each harness says what it checks in its own first lines and ends with 0 only if all of it held; what
it prints is the failure. Times here are the ordinary test run's; scripts/torture runs the same programs for long.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent

# --- one process, word by word ------------------------------------------------------------------------------------

CASES = re.findall(r"CASE\((\w+)\),", (HERE / "mailbox_cases.c").read_text())


def test_the_list_of_cases_is_the_programs_own(harness: Any) -> None:
    assert harness.run(harness.build("mailbox_cases", "gcc", "address,undefined")).split() == CASES


@pytest.mark.parametrize("case", CASES)
def test_case(harness: Any, case: str) -> None:
    harness.run(harness.build("mailbox_cases", "gcc", "address,undefined"), case)


def test_no_case_goes_by_memory_that_nobody_has_written(harness: Any) -> None:
    """What lies on the stack decided once whose a log is: by luck it was right, and a process died when it was not."""
    program = harness.build("mailbox_cases", "clang", "memory")
    for case in CASES:
        harness.run(program, case)


# --- threads ------------------------------------------------------------------------------------------------------

THREADS = {
    "one_reader": ["policy=block"],
    "replicas": ["policy=block", "replicas=1", "consumers=3"],
    "larger_ring": ["policy=block", "capacity=63", "boxes=1", "producers=4"],
    "drop_oldest": ["policy=drop_oldest"],
    "drop_oldest_replicas": ["policy=drop_oldest", "replicas=1"],
    "latest": ["policy=latest"],
}


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("setting", THREADS)
def test_threads_lose_double_and_reorder_nothing(harness: Any, setting: str, compiler: str, sanitizer: str) -> None:
    # ThreadSanitizer makes every access slower; a fifth of the messages is as many races.
    messages = 4_000 if sanitizer == "thread" else 20_000
    harness.run(harness.build("threads", compiler, sanitizer), f"messages={messages}", *THREADS[setting])


# --- processes ----------------------------------------------------------------------------------------------------

PROCESSES = {
    "one_reader": ["state=0", "seed=1"],
    "state": ["state=1", "seed=2"],
    "replicas": ["replicas=1", "consumers=3", "seed=3"],
    "without_stops": ["stops=0", "capacity=20", "seed=4"],
}


@pytest.mark.parametrize("setting", PROCESSES)
def test_killed_and_stopped_processes_lose_nothing(harness: Any, setting: str) -> None:
    printed = harness.run(harness.build("processes"), "seconds=2", *PROCESSES[setting])
    assert int(re.findall(r"kills (\d+)", printed)[0]) > 20, printed


# --- a kill at every instruction ------------------------------------------------------------------------------------

OPERATIONS = re.findall(r'^    \{"(\w+)",', (HERE / "kill_sweep.c").read_text(), re.MULTILINE)


def test_the_list_of_operations_is_the_programs_own(harness: Any) -> None:
    assert harness.run(harness.build("kill_sweep"), "list").split() == OPERATIONS


@pytest.mark.parametrize("operation", OPERATIONS)
def test_kill_at_every_instruction_of(harness: Any, operation: str) -> None:
    harness.run(harness.build("kill_sweep"), operation)


@pytest.mark.parametrize("operation", ["publish", "take", "release", "commit_state", "close"])
def test_real_kills_find_what_the_copies_find(harness: Any, operation: str) -> None:
    harness.run(harness.build("kill_sweep"), operation, 30)


# --- damaged memory -------------------------------------------------------------------------------------------------


def test_no_hostile_word_crashes_loops_or_harms_another_mailbox(harness: Any) -> None:
    harness.run(harness.build("hostile_words", "gcc", "address,undefined"))
