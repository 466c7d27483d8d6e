"""The pool with real processes: nobody is lost, nobody stays, and the death of one is one event."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from civitas_shm.host import kernel
from civitas_shm.host.forkserver import Preload
from civitas_shm.host.kernel import Exit
from civitas_shm.host.pool import Pool, PoolBroken, Worker
from civitas_shm.host.protocol import Line

pytestmark = pytest.mark.skipif(os.name != "posix" or not Path("/proc/self").exists(), reason="needs Linux")


class Watched:
    """A pool whose reports are kept."""

    def __init__(self, standby: int, preload: Preload | None = None) -> None:
        self.deaths: list[tuple[Worker, Exit | None]] = []
        self.lines: list[Line] = []
        self.broken: list[PoolBroken] = []
        self._standby = standby
        self.pool = Pool(
            asyncio.get_running_loop(),
            preload=preload.own if preload else [],
            user_preload=preload.users if preload else [],
            import_paths=preload.paths if preload else [],
            on_line=self.lines.append,
            on_broken=self.broken.append,
        )

    def open(self) -> None:
        self.pool.open(
            [],
            standby=self._standby,
            on_message=self._message,
            on_death=lambda worker, exit_: self.deaths.append((worker, exit_)),
        )

    def _message(self, worker: Worker, message: Any) -> None:
        raise AssertionError(f"a standby said {message}")

    def born(self) -> list[Worker]:
        return [worker for worker in self.pool.workers() if worker.pid]


async def until(condition: Callable[[], object]) -> None:
    """The watchdog of pytest-timeout is the only limit."""
    while not condition():
        await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def a_pool(standby: int) -> AsyncIterator[Watched]:
    watched = Watched(standby)
    watched.open()
    try:
        await until(lambda: len(watched.born()) == standby)
        yield watched
    finally:
        await watched.pool.close()
    assert kernel.children() == []


@pytest.fixture(autouse=True)
def as_host() -> Iterator[None]:
    """The test process plays the host: orphans become its children, for the time of the test."""
    kernel.become_subreaper()
    yield
    kernel.become_subreaper(False)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def test_workers_are_children_of_the_host_and_not_of_the_fork_server() -> None:
    async def test() -> None:
        async with a_pool(3) as watched:
            assert sorted(kernel.children()) == sorted(
                [watched.pool.fork_server_pid, *(worker.pid for worker in watched.pool.workers())]
            )

    run(test)


def test_a_killed_process_is_one_death_with_its_signal_and_is_replaced() -> None:
    async def test() -> None:
        async with a_pool(2) as watched:
            victim = watched.born()[0]
            kernel.kill(victim.pidfd)
            await until(lambda: watched.deaths)
            assert watched.deaths == [(victim, Exit(0, signal.SIGKILL))]
            await until(lambda: len(watched.born()) == 2)
            assert victim not in watched.born()
            assert len(watched.deaths) == 1

    run(test)


def test_a_stopped_process_can_be_killed() -> None:
    async def test() -> None:
        async with a_pool(1) as watched:
            victim = watched.born()[0]
            kernel.kill(victim.pidfd, signal.SIGSTOP)
            watched.pool.kill(victim, "test")
            await until(lambda: watched.deaths)
            assert watched.deaths[0][1] == Exit(0, signal.SIGKILL)
            assert victim.killed_because == "test"

    run(test)


def test_many_that_are_asked_for_together_are_all_born_once_and_are_the_hosts() -> None:
    async def test() -> None:
        async with a_pool(20) as watched:  # in more than one batch
            pids = [worker.pid for worker in watched.born()]
            assert len(set(pids)) == 20
            assert set(pids) | {watched.pool.fork_server_pid} == set(kernel.children()), "none in between is left"
            assert not watched.deaths

    run(test)


def test_the_death_of_the_fork_server_harms_nobody_and_it_is_replaced() -> None:
    async def test() -> None:
        async with a_pool(2) as watched:
            alive = {worker.pid for worker in watched.born()}
            os.kill(watched.pool.fork_server_pid or 0, signal.SIGKILL)
            await until(lambda: watched.pool.fork_servers == 2)
            kernel.kill(watched.born()[0].pidfd)  # its place is filled by the new fork server
            await until(lambda: watched.deaths and len(watched.born()) == 2)
            assert len(alive & {worker.pid for worker in watched.born()}) == 1
            assert len(watched.deaths) == 1

    run(test)


def test_what_a_killed_fork_server_had_not_forked_is_forked_by_the_next() -> None:
    async def test() -> None:
        async with a_pool(1) as watched:
            os.kill(watched.pool.fork_server_pid or 0, signal.SIGSTOP)
            kernel.kill(watched.born()[0].pidfd)
            await until(lambda: watched.deaths)  # its successor has been asked for, and waits in the socket
            os.kill(watched.pool.fork_server_pid or 0, signal.SIGKILL)
            await until(lambda: len(watched.born()) == 1)
            assert watched.pool.fork_servers == 2
            assert len(watched.deaths) == 1

    run(test)


def test_a_stopped_fork_server_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("civitas_shm.host.pool.FORK_TIMEOUT_S", 0.3)

    async def test() -> None:
        async with a_pool(1) as watched:
            os.kill(watched.pool.fork_server_pid or 0, signal.SIGSTOP)
            kernel.kill(watched.born()[0].pidfd)
            await until(lambda: watched.deaths and watched.born())
            assert watched.pool.fork_servers == 2

    run(test)


def test_a_fork_server_that_cannot_start_breaks_the_pool_with_a_reason() -> None:
    async def test() -> None:
        watched = Watched(1, Preload(["no.such.module"], [], []))
        watched.open()
        await until(lambda: watched.broken)
        await watched.pool.close()
        assert "fork server" in str(watched.broken[0])  # it died five times, or eight requests came to nothing

    run(test)


def test_fifty_deaths_leak_no_descriptor_and_no_zombie() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def test() -> None:
        async with a_pool(2) as watched:
            before = descriptors()
            for count in range(1, 51):
                kernel.kill(watched.born()[0].pidfd)
                await until(lambda: len(watched.deaths) == count and len(watched.born()) == 2)  # noqa: B023
            assert descriptors() == before
            assert len(kernel.children()) == 3  # two standbys and the fork server

    run(test)


def test_a_standby_waits_without_a_thread_or_a_loop_and_without_interrupts() -> None:
    async def test() -> None:
        async with a_pool(1) as watched:
            standby = psutil.Process(watched.born()[0].pid)
            assert standby.num_threads() == 1
            assert standby.name() == "civ-standby"
            standby.send_signal(signal.SIGINT)
            await asyncio.sleep(0.2)
            assert standby.status() == psutil.STATUS_SLEEPING
            assert not watched.deaths

    run(test)


def test_what_a_user_wants_preloaded_is_there_in_each_process_and_a_module_that_fails_harms_nobody(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "preloaded_first.py").write_text("import sys\nprint('preloaded', file=sys.stderr)\n")
    (tmp_path / "preloaded_fails.py").write_text("raise LookupError('not here')\n")
    (tmp_path / "preloaded_thread.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    names = ["preloaded_first", "preloaded_fails", "preloaded_thread"]

    async def test() -> None:
        watched = Watched(2, Preload([], [str(tmp_path)], names))
        watched.open()
        await until(lambda: len(watched.born()) == 2)
        assert not watched.broken
        await watched.pool.close()

    run(test)
    said = capfd.readouterr().err
    assert said.count("preloaded\n") == 1, "once, not in each process"
    assert "pool.preload: 'preloaded_fails' cannot be imported: LookupError: not here" in said
    assert "pool.preload: 'preloaded_thread' has started 1 thread(s)" in said
