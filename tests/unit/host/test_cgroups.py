"""Cgroups of workers on a tree of plain files that behaves like the kernel's, where it matters."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from civitas_shm.host import cgroups, strays
from civitas_shm.host.cgroups import Groups, Place, find_place, sweep

FILES = ("cgroup.procs", "cgroup.subtree_control", "cgroup.kill")
MEMORY_FILES = ("memory.max", "memory.swap.max", "memory.oom.group", "memory.events")
MOUNT = "30 23 0:26 {root} {point} rw,nosuid - cgroup2 cgroup2 rw\n"


class Kernel:
    """A hierarchy below `root`: groups have their files when they are made, and go only when nobody is in them."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.make(root, "memory pids")
        mkdir, rmdir = Path.mkdir, Path.rmdir

        def made(path: Path, *args: object, **options: object) -> None:
            mkdir(path)
            if path.is_relative_to(root):
                self.fill(path, (path.parent / "cgroup.subtree_control").read_text().replace("+", ""))

        def removed(path: Path) -> None:
            if path.is_relative_to(root):
                if (path / "cgroup.kill").read_text() == "1":
                    (path / "cgroup.procs").write_text("")
                if (path / "cgroup.procs").read_text() or any(below.is_dir() for below in path.iterdir()):
                    raise OSError(16, "Device or resource busy")
                for file in path.iterdir():
                    file.unlink()
            rmdir(path)

        monkeypatch.setattr(Path, "mkdir", made)
        monkeypatch.setattr(Path, "rmdir", removed)

    def fill(self, group: Path, controllers: str) -> None:
        for name in (*FILES, *(MEMORY_FILES if "memory" in controllers else ())):
            (group / name).touch()
        (group / "cgroup.controllers").write_text(controllers)

    def make(self, group: Path, controllers: str) -> Path:
        os.makedirs(group, exist_ok=True)
        self.fill(group, controllers)
        return group

    def proc(self, own: str, root: str = "/") -> Path:
        """A /proc whose process is in that group."""
        folder = self.root.parent / "proc"
        os.makedirs(folder / "self", exist_ok=True)
        (folder / "self/mountinfo").write_text(
            "1 1 0:1 / / rw - ext4 /dev/vda rw\n" + MOUNT.format(root=root, point=self.root)
        )
        (folder / "self/cgroup").write_text(f"4:memory:/old\n0::{own}\n")
        return folder


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path / "cgroup", monkeypatch)


def only(*groups: Path) -> Callable[[Path], bool]:
    return lambda group: group in groups


# --- where ------------------------------------------------------------------------------------------------------------


def test_a_group_that_was_delegated_is_the_place_also_from_the_subgroup_that_systemd_makes_in_it(
    kernel: Kernel,
) -> None:
    unit = kernel.make(kernel.root / "system.slice/atlas.service", "memory pids")
    kernel.make(unit / "main", "")
    for own in ("/system.slice/atlas.service/main", "/system.slice/atlas.service"):
        assert find_place({}, kernel.proc(own), only(unit)) == Place(unit, "")
    assert find_place({}, kernel.proc("/container/system.slice/atlas.service", "/container"), only(unit)) == Place(
        unit, ""
    )


def test_where_nobody_gave_us_a_group_none_is_made_and_it_says_why(kernel: Kernel, tmp_path: Path) -> None:
    session = kernel.make(kernel.root / "session.scope", "memory")
    assert find_place({}, tmp_path / "nothing", only()) == "no cgroup v2 is mounted here"
    text = find_place({}, kernel.proc("/session.scope"), only())
    assert text == f"this process's cgroup ({session}) was not given to it; {cgroups.REMEDY}"
    text = find_place({}, kernel.proc("/elsewhere", "/container"), only())
    assert text == "this process's cgroup lies outside of what is mounted here"
    assert not list(kernel.root.rglob("civitas*"))


def test_a_place_is_taken_by_name_if_it_is_one_and_ours(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = kernel.make(kernel.root / "ours", "memory")
    assert find_place({cgroups.PLACE_VARIABLE: str(ours)}) == Place(ours, "")
    assert find_place({cgroups.PLACE_VARIABLE: str(tmp_path)}) == f"{tmp_path} is no cgroup v2"
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "cgroup.procs")
    assert find_place({cgroups.PLACE_VARIABLE: str(ours)}) == f"{ours} cannot be written by this user"


def test_a_place_without_the_memory_controller_or_with_processes_of_its_own_has_no_limits(kernel: Kernel) -> None:
    bare = kernel.make(kernel.root / "bare", "pids")
    busy = kernel.make(kernel.root / "busy", "memory")
    (busy / "cgroup.procs").write_text("17\n")
    for group, why in ((bare, "has no memory controller"), (busy, "has processes itself")):
        place = find_place({cgroups.PLACE_VARIABLE: str(group)})
        assert isinstance(place, Place)
        assert why in place.no_memory
    (busy / "cgroup.subtree_control").write_text("memory")  # it was handed down before they came
    assert find_place({cgroups.PLACE_VARIABLE: str(busy)}) == Place(busy, "")


# --- groups -----------------------------------------------------------------------------------------------------------


def test_a_worker_is_put_there_limited_and_asked_what_it_died_of(kernel: Kernel) -> None:
    groups = Groups.open(Place(kernel.root, ""), "atlas.7.99.4")
    assert groups is not None
    group = groups.make()
    assert group is not None
    assert group.path == kernel.root / "civitas.atlas.7.99.4/1"
    assert group.put(4711)
    assert (group.path / "cgroup.procs").read_text() == "4711"
    assert group.holds(4711)
    assert not group.holds(471)
    assert not group.reached_its_limit()
    assert group.limit(576 << 20)
    read = {name: (group.path / name).read_text() for name in MEMORY_FILES[:3]}
    assert read == {"memory.max": str(576 << 20), "memory.swap.max": "0", "memory.oom.group": "1"}
    assert (group.oom_kills(), group.reached_its_limit()) == (0, False)
    (group.path / "memory.events").write_text("low 0\nhigh 0\nmax 40\noom 0\noom_kill 2\noom_group_kill 1\n")
    assert (group.oom_kills(), group.reached_its_limit()) == (2, False), "of the machine's limit, not of its own"
    (group.path / "memory.events").write_text("low 0\nhigh 0\nmax 40\noom 1\noom_kill 2\noom_group_kill 1\n")
    assert (group.oom_kills(), group.reached_its_limit()) == (2, True)
    groups.end(group)
    assert group.path.exists(), "its successor comes first"
    groups.tend()
    assert not group.path.exists()
    assert groups.close()
    assert not (kernel.root / "civitas.atlas.7.99.4").exists()


def test_without_the_controller_there_are_groups_without_limits(kernel: Kernel) -> None:
    groups = Groups.open(Place(kernel.make(kernel.root / "bare", "pids"), "it has none"), "atlas.7.99.4")
    assert groups is not None
    group = groups.make()
    assert group is not None
    assert not group.limit(1 << 30)
    assert (group.memory, group.memory_max_bytes, group.oom_kills()) == (False, 0, 0)


def test_what_still_dies_is_removed_at_a_later_call(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = Groups.open(Place(kernel.root, ""), "atlas.7.99.4")
    assert groups is not None
    slow = groups.make()
    assert slow is not None
    slow.put(4711)
    real, dying = cgroups._removed, True
    monkeypatch.setattr(cgroups, "_removed", lambda path: False if dying and path == slow.path else real(path))
    groups.end(slow)
    assert not groups.close()
    assert slow.path.exists()
    dying = False
    assert groups.close()
    assert not slow.path.exists()


def test_a_kernel_that_refuses_everything_costs_nothing_but_the_groups(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = Groups.open(Place(kernel.root, ""), "atlas.7.99.4")
    assert groups is not None

    def refuses(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuses)
    assert groups.make() is None
    assert Groups.open(Place(kernel.root, ""), "other.7.99.4") is None


def test_a_sweep_ends_what_dead_hosts_left_and_nothing_of_the_living(kernel: Kernel) -> None:
    place = Place(kernel.root, "")
    for host in ("dead.7.99.4", "alive.8.99.4"):
        groups = Groups.open(place, host)
        assert groups is not None
        group = groups.make()
        assert group is not None
        group.put(4711)
    kernel.make(kernel.root / "somebody.else", "")
    dead = kernel.root / "civitas.dead.7.99.4"
    (dead / "1/cgroup.kill").write_text("1")  # as the kernel does for all below
    assert sweep(place, lambda host: host.startswith("alive")) == ["dead.7.99.4"]
    assert sorted(path.name for path in kernel.root.iterdir() if path.is_dir()) == [
        "civitas.alive.8.99.4",
        "somebody.else",
    ]


def test_a_host_is_known_by_pid_and_start_and_what_cannot_be_told_lives() -> None:
    me = strays.host_id("a.run.with.dots")
    assert me.startswith("a.run.with.dots.")
    assert strays.lives(me)
    name, pid, ticks, namespace = me.rsplit(".", 3)
    assert not strays.lives(f"{name}.{pid}.{int(ticks) - 1}.{namespace}")
    assert not strays.lives(f"{name}.0.{ticks}.{namespace}")
    assert strays.lives(f"{name}.{pid}.1.0"), "of another pid namespace"
    assert strays.lives("no.host")
