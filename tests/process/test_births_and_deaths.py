"""How processes of a run are born and die (native/birth.h, native/keeper.h): who is whose child, and what is left.

Everything is told by a program of its own that plays the host, because it has to be a subreaper.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import psutil
import pytest

from civitas_shm import AgentProcess, Runtime, Supervisor

pytest.importorskip("civitas_shm_transports.shm", reason="needs Linux and the compiled part")

HOST = '''
import ctypes, os, platform, resource, select, signal, sys, time
from civitas_shm.host import kernel
from civitas_shm_transports.shm import _shm

kernel.become_subreaper()

def name(pid):
    return open(f"/proc/{pid}/comm").read().strip()

def keepers_of(pid):
    return [int(child) for child in open(f"/proc/{pid}/task/{pid}/children").read().split()]

def until(condition):
    for _ in range(10_000):
        if condition():
            return True
        time.sleep(0.001)
    raise AssertionError("it did not come")

def gone():
    """Reap whoever became ours; whether nobody is left."""
    try:
        while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | 0x40000000):
            pass
    except ChildProcessError:
        return True
    return False

def process():
    """(pid, pid of its keeper), both asleep."""
    tell, told = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(told, str(_shm.keep_memory()).encode())
        while True:
            signal.pause()
    keeper = int(os.read(tell, 20))
    os.close(tell), os.close(told)
    until(lambda: name(keeper) == "civ-keeper")
    until(lambda: not os.listdir(f"/proc/{keeper}/fd"))
    return pid, keeper

def same(kind, a, b):
    """Whether two processes share their memory (1) or their descriptors (2)."""
    return ctypes.CDLL(None).syscall({"x86_64": 312, "aarch64": 272}[platform.machine()], a, b, kind, 0, 0) == 0

'''


def play(program: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", HOST + program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_keeper_has_the_memory_and_nothing_else_of_its_process() -> None:
    never = (1 << signal.SIGKILL - 1) + (1 << signal.SIGSTOP - 1)
    awaited = 1 << signal.SIGUSR1 - 1
    assert play(
        """
pid, keeper = process()
print(keepers_of(pid) == [keeper], same(1, pid, keeper), same(2, pid, keeper))
status = open(f"/proc/{keeper}/status").read()
blocked = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")), 16)
print(f"{blocked & 0x7FFFFFFF:x}")
os.kill(keeper, signal.SIGTERM)
os.kill(keeper, signal.SIGUSR1)  # as the death of its process does, which has not died
time.sleep(0.05)
print(name(keeper))
os.kill(pid, signal.SIGKILL)
until(gone)
"""
    ) == ["True", "True", "False", f"{0x7FFFFFFF - awaited - never:x}", "civ-keeper"]


@pytest.mark.parametrize("first", ["process", "keeper"])
def test_whoever_of_the_two_dies_first_the_other_is_no_worse_for_it(first: str) -> None:
    said = play(
        f"""
pid, keeper = process()
first, other = (pid, keeper) if {first!r} == "process" else (keeper, pid)
os.kill(first, signal.SIGKILL)
pidfd = os.pidfd_open(other)
if first == pid:
    until(gone)
    print("gone")
else:
    time.sleep(0.05)
    print(open(f"/proc/{{other}}/stat").read().rpartition(") ")[2][0])
    os.kill(other, signal.SIGKILL)
    until(gone)
"""
    )
    assert said == (["gone"] if first == "process" else ["S"])


def test_a_process_is_dead_while_its_memory_is_still_there() -> None:
    """The point of it: what takes the kernel long is not waited for. Its keeper is stopped, to be seen at that."""
    assert play(
        """
pid, keeper = process()
os.kill(keeper, signal.SIGSTOP)
os.kill(pid, signal.SIGKILL)
pidfd = os.pidfd_open(pid)
select.select([pidfd], [], [])
print(os.waitid(os.P_PIDFD, pidfd, os.WEXITED).si_status)
pages = int(open(f"/proc/{keeper}/statm").read().split()[1])
parent = int(open(f"/proc/{keeper}/stat").read().rpartition(") ")[2].split()[1])
print(pages > 1000, parent == os.getpid())
os.kill(keeper, signal.SIGKILL)  # as the host does with what a worker leaves
until(gone)
"""
    ) == ["9", "True", "True"]


def test_no_keeper_outlives_a_process_that_ends_at_once() -> None:
    """Its parent's death may come before it has asked to be told."""
    assert play(
        """
for _ in range(100):
    if not os.fork():
        _shm.keep_memory()
        os._exit(0)
until(gone)
print("gone")
"""
    ) == ["gone"]


def test_a_process_that_was_forked_away_is_a_child_of_the_parent_and_alone_in_its_memory() -> None:
    assert play(
        """
tell, told = os.pipe()
host = os.getpid()
server = os.fork()
if not server:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for number in range(3):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        is_new, between = _shm.fork_away()
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
        if is_new:
            kernel.wait_for_parent(between, host)
            number += 10
            os.write(told, f"{number} {os.getpid()} {os.getppid()};".encode())
            os._exit(number)
        until(lambda: not os.path.exists(f"/proc/{between}"))
    os.write(told, b"server;")
    while True:
        signal.pause()
text = ""
while text.count(";") < 4:
    text += os.read(tell, 1000).decode()
for said in sorted(text.split(";")[:-1]):
    if said != "server":
        number, pid, parent = map(int, said.split())
        print(number, parent == host, os.waitpid(pid, 0)[1] >> 8 == number)
os.kill(server, signal.SIGKILL)
until(gone)
"""
    ) == ["10", "True", "True", "11", "True", "True", "12", "True", "True"]


def test_a_fork_that_fails_is_an_error_and_leaves_nothing() -> None:
    assert play(
        """
if os.getuid() == 0:
    os.setresuid(65534, 65534, 65534)  # limits on processes are not for root
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
try:
    print(_shm.fork_away())
except OSError as error:
    print(error.errno == 11)
print(gone(), _shm.keep_memory())
"""
    ) == ["True", "True", "0"]


def test_host_and_workers_of_a_run_have_each_a_keeper_and_none_is_left() -> None:
    def keepers() -> dict[str, psutil.Process]:
        below = psutil.Process().children(recursive=True)
        return {child.parent().name(): child for child in below if child.name() == "civ-keeper"}

    async def test() -> list[psutil.Process]:
        runtime = Runtime(Supervisor("root", [AgentProcess("idle", process="w")]), transport="shm")
        await runtime.start()
        try:
            while not {"civ-host", "civ-w"} <= keepers().keys():
                await asyncio.sleep(0.01)
            return list(keepers().values())
        finally:
            await runtime.stop()

    assert psutil.wait_procs(asyncio.run(asyncio.wait_for(test(), 30)), timeout=0)[1] == []
