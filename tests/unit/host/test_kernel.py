"""Ties, ends and sets of cores, asked of the real kernel."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from civitas_shm.host import kernel
from civitas_shm.host.kernel import Exit

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def in_child(work: Callable[[], int]) -> tuple[int, int]:
    """Fork; (pid, pidfd) of a child that exits with what `work` returns."""
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            status = work()
        finally:
            os._exit(status)
    return pid, os.pidfd_open(pid)


def end_of(pidfd: int) -> Exit:
    while (end := kernel.reap(pidfd)) is None:
        time.sleep(0.001)
    os.close(pidfd)
    return end


def forever() -> int:
    while True:
        time.sleep(1)


def test_an_exit_status_and_a_signal_are_told_apart() -> None:
    _, exits = in_child(lambda: 7)
    assert end_of(exits) == Exit(7)
    _, killed = in_child(forever)
    assert kernel.reap(killed) is None
    assert kernel.kill(killed, signal.SIGTERM)
    assert end_of(killed) == Exit(0, signal.SIGTERM)


@pytest.mark.parametrize(
    ("end", "text"), [(Exit(3), "exit code 3"), (Exit(0, 9), "SIGKILL"), (Exit(0, 40), "signal 40")]
)
def test_an_end_reads_as_the_kernel_says_it(end: Exit, text: str) -> None:
    assert str(end) == text


def test_a_signal_to_a_process_that_has_ended_is_not_an_error() -> None:
    _, pidfd = in_child(lambda: 0)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    assert kernel.pid_of(pidfd) > 0
    assert kernel.reap(pidfd) == Exit(0)
    assert not kernel.kill(pidfd)
    os.close(pidfd)


def test_children_lists_the_living_and_the_dead_that_nobody_has_reaped() -> None:
    pid, pidfd = in_child(lambda: 0)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    assert pid in kernel.children()
    end_of(pidfd)
    assert pid not in kernel.children()


def test_the_last_writer_of_a_death_pipe_takes_its_readers_with_it_each_of_them() -> None:
    read, write = os.pipe()
    told_read, told_write = os.pipe()

    def tied() -> int:
        os.close(write)
        kernel.arm_death_pipe(os.dup(read))
        os.write(told_write, b".")
        return forever()

    pidfds = [in_child(tied)[1] for _ in range(3)]
    assert sum(len(os.read(told_read, 1)) for _ in range(3)) == 3
    assert [kernel.reap(pidfd) for pidfd in pidfds] == [None] * 3
    os.close(write)
    assert [end_of(pidfd) for pidfd in pidfds] == [Exit(0, signal.SIGKILL)] * 3
    for fd in (read, told_read, told_write):
        os.close(fd)


def test_who_comes_after_the_end_of_the_writer_ends_itself() -> None:
    read, write = os.pipe()
    os.close(write)

    def late() -> int:
        kernel.arm_death_pipe(read)
        return 0

    _, pidfd = in_child(late)
    assert end_of(pidfd) == Exit(kernel.EXIT_ORPHANED)
    os.close(read)


def test_who_is_not_the_child_of_the_one_it_names_ends_itself() -> None:
    def orphan() -> int:
        kernel.die_with_parent(1 << 22)  # above every pid
        return 0

    _, pidfd = in_child(orphan)
    assert end_of(pidfd) == Exit(kernel.EXIT_ORPHANED)


@pytest.mark.parametrize(("text", "cpus"), [("0-3,6\n", [0, 1, 2, 3, 6]), ("5", [5]), ("\n", [])])
def test_a_set_of_cores_is_read_as_the_kernel_writes_it(text: str, cpus: list[int]) -> None:
    assert kernel.cpu_list(text) == cpus


def test_what_the_machine_says_about_itself_can_be_read() -> None:
    assert kernel.available_cpus() == sorted(os.sched_getaffinity(0))
    assert kernel.OomKills()() >= 0


def test_what_cannot_be_counted_is_not_known_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("low 3\noom_kill 12\n")
    assert kernel.counted(tmp_path / "events", "oom_kill") == 12
    assert kernel.counted(tmp_path / "events", "oom") is None
    assert kernel.counted(tmp_path / "nowhere", "oom_kill") is None
    assert kernel.counted(tmp_path, "oom_kill") is None, "open says something else than that it is not there"
    nodes = kernel.numa_nodes()
    assert not nodes or set(kernel.available_cpus()) <= {cpu for cpus in nodes.values() for cpu in cpus}
