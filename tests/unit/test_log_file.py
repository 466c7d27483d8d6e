"""The log of a detached run: bounded whoever writes, whole lines, and a follower that misses none."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from civitas_shm.cli.logs import Follower
from civitas_shm.log_file import LogFile, new_log, settle

if sys.platform != "linux":
    pytest.skip("detached runs need a host, and Linux", allow_module_level=True)

Open = Callable[..., LogFile]


@pytest.fixture
def open_log(tmp_path: Path) -> Iterator[Open]:
    fds: list[int] = []

    def make(**options: object) -> LogFile:
        path, fd = new_log(tmp_path, "demo")
        fds.append(fd)
        (tmp_path / "demo").mkdir(exist_ok=True)
        settle(path, tmp_path / "demo")
        return LogFile(fd, **({"stamped": False, "watched": False} | options))  # type: ignore[arg-type]

    yield make
    for fd in fds:
        os.close(fd)


def test_lines_are_stamped_and_whole_even_from_many_threads(open_log: Open, tmp_path: Path) -> None:
    log = open_log(stamped=True, now_s=lambda: 0.5)
    threads = [
        threading.Thread(target=lambda n=n: [print(f"{n} " * 20, file=log) for _ in range(200)]) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("no end", end="", file=log)
    log.finish()
    lines = (tmp_path / "demo" / "log").read_text().splitlines()
    assert len(lines) == 801
    assert all(line.startswith("1970-01-01T00:00:00.500Z ") for line in lines)
    assert all(len(set(line.split()[1:])) == 1 for line in lines[:-1])
    assert lines[-1].endswith(" no end")


def test_the_log_is_for_its_user_alone(open_log: Open, tmp_path: Path) -> None:
    log = open_log(bytes_max=100)
    print("x" * 200, file=log)
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "demo").iterdir()} == {
        "log": 0o600, "log.1": 0o600,
    }  # fmt: skip


def test_two_files_of_the_bound_are_all_that_it_takes_whoever_writes(open_log: Open, tmp_path: Path) -> None:
    log = open_log(bytes_max=10_000)
    for n in range(3000):
        print(f"line {n}", file=log)
        sizes = [path.stat().st_size for path in (tmp_path / "demo").iterdir()]
        assert sum(sizes) <= 2 * 10_000 + 200
    # C code and children write past us; whoever looks next empties it all the same.
    subprocess.run(["head", "-c", "50000", "/dev/zero"], stdout=log.fileno(), check=True)
    log.check()
    assert (tmp_path / "demo" / "log").stat().st_size == 0
    subprocess.run(["echo", "goes on"], stdout=log.fileno(), check=True)
    assert (tmp_path / "demo" / "log").read_text() == "goes on\n"


def test_a_follower_gets_every_line_once_over_many_rotations(open_log: Open, tmp_path: Path) -> None:
    log = open_log(bytes_max=5_000)
    for n in range(100):
        print(n, file=log)
    follower = Follower(tmp_path / "demo")
    got = [follower.read()]
    for n in range(100, 5_000):
        print(n, file=log)
        if n % 50 == 0:  # more often than it is emptied
            got.append(follower.read())
    got.append(follower.read())
    assert [int(line) for line in b"".join(got).split()] == list(range(5_000))


def test_a_follower_beside_a_writer_gets_every_line_once(open_log: Open, tmp_path: Path) -> None:
    log = open_log(bytes_max=200_000)
    follower = Follower(tmp_path / "demo")
    got = [follower.read()]
    done = threading.Event()

    def write() -> None:
        for n in range(40_000):
            print(n, file=log)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not done.is_set():
        got.append(follower.read())
    thread.join()
    got.append(follower.read())
    numbers = [int(line) for line in b"".join(got).split()]
    assert numbers == list(range(40_000))


def test_a_reader_that_was_stopped_does_not_lift_the_bound(open_log: Open, tmp_path: Path) -> None:
    import fcntl

    log = open_log(bytes_max=1_000)
    fd = os.open(tmp_path / "demo" / "log", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    while (tmp_path / "demo" / "log").stat().st_size < 1_900:
        print("a line", file=log)
        assert not (tmp_path / "demo" / "log.1").exists()  # in the middle of a reading nothing is put aside
    for n in range(1_000):
        print(f"line {n}", file=log)
        assert (tmp_path / "demo" / "log").stat().st_size <= 2_000
    os.close(fd)


def test_a_deleted_log_and_a_full_disk_end_nothing(open_log: Open, tmp_path: Path) -> None:
    log = open_log(bytes_max=1_000)
    (tmp_path / "demo" / "log").unlink()
    for n in range(1_000):
        print(n, file=log)
    full = os.open("/dev/full", os.O_RDWR)
    lossy = LogFile(full, stamped=False, watched=False)
    for _ in range(3):
        print("lost", file=lossy)
    assert lossy._lost == 3
    os.dup2(log.fileno(), full)
    print("found", file=lossy)
    os.close(full)


def test_a_new_run_puts_the_log_of_the_last_aside_and_one_without_log_drops_it(tmp_path: Path) -> None:
    run = tmp_path / "demo"
    run.mkdir()
    for text in (b"first\n", b"second\n", b"third\n"):
        path, fd = new_log(tmp_path, "demo")
        os.write(fd, text)
        settle(path, run)
        os.close(fd)
        assert [entry.name for entry in tmp_path.iterdir()] == ["demo"]
    assert Follower(run).read() == b"second\nthird\n"
    settle(None, run)
    assert list(run.iterdir()) == []
    assert Follower(run).read() == b""


def test_logs_of_starts_that_were_killed_go_after_a_while(tmp_path: Path) -> None:
    for age_s, stays in ((10, True), (4000, False)):
        left = tmp_path / f".demo.{age_s}999999.log"
        left.write_text("")
        os.utime(left, (left.stat().st_mtime - age_s,) * 2)
        path, fd = new_log(tmp_path, "demo")
        os.close(fd)
        assert left.exists() == stays
        path.unlink()
