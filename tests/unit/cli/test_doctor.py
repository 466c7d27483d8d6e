"""Each verdict of `doctor`, from values; and that this very machine can be read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from civitas_shm.cli.app import app
from civitas_shm.cli.doctor import Machine, examine, read_machine
from civitas_shm.runs import RunFound

GIB = 1 << 30
WELL = Machine(
    system="Linux",
    python=(3, 11),
    python_text="3.11.7",
    native_error=None,
    shm_total_bytes=GIB,
    shm_free_bytes=GIB,
    pidfd=True,
    cores=(0, 1),
    cores_online=2,
    files_soft=1024,
    files_hard=4096,
    memory_max_bytes=None,
    memory_used_bytes=None,
    pids_max=None,
    pids_used=None,
    cpu_quota_cores=None,
)


def test_a_machine_that_is_well_has_only_ok() -> None:
    assert {finding.verdict for finding in examine(WELL)} == {"ok"}


@pytest.mark.parametrize(
    ("check", "change", "verdict", "text", "remedy"),
    [
        (
            "system",
            {"system": "Darwin"},
            "fail",
            "Darwin: agents in shared memory need Linux",
            "--transport in_process",
        ),
        (
            "python",
            {"python": (3, 10), "python_text": "3.10.1"},
            "fail",
            "Python 3.10.1; 3.11 is the oldest",
            "-m venv",
        ),
        ("native", {"native_error": "no _shm"}, "fail", "cannot be loaded: no _shm", "pip install"),
        ("shm", {"shm_total_bytes": None, "shm_free_bytes": None}, "fail", "/dev/shm is not there", "sudo mount"),
        (
            "shm",
            {"shm_free_bytes": 1 << 20},
            "fail",
            "1.0 MiB free of 1.0 GiB; a small run takes 32 MiB",
            "--shm-size",
        ),
        ("pidfd", {"pidfd": False}, "fail", "pidfd_open is refused", "seccomp"),
        ("cores", {"cores": (3,)}, "note", "1 of 2 cores may be used: 3", ""),
        ("files", {"files_soft": 64}, "fail", "open files: 64 per process; 256 are needed", "ulimit -n 4096"),
        ("files", {"files_soft": 64, "files_hard": 64}, "fail", "open files: 64", "--ulimit nofile"),
        ("files", {"files_soft": None}, "ok", "without limit", ""),
        (
            "cgroup memory",
            {"memory_max_bytes": GIB, "memory_used_bytes": GIB},
            "fail",
            "0 B free of 1.0 GiB",
            "--memory",
        ),
        ("cgroup memory", {"memory_max_bytes": GIB, "memory_used_bytes": 0}, "ok", "1.0 GiB free", ""),
        ("cgroup of workers", {}, "ok", "the kernel keeps memory_limit_mb", ""),
        (
            "cgroup of workers",
            {"no_groups": "no cgroup v2 is mounted here"},
            "note",
            "memory_limit_mb is looked at once a second, and what workers start is found by its marks: no cgroup v2 is",
            "",
        ),
        ("cgroup of workers", {"no_memory_groups": "none"}, "note", "what a worker starts dies with it: none", ""),
        ("cgroup pids", {"pids_max": 40, "pids_used": 39}, "fail", "1 free of 40", "--pids-limit"),
        ("cgroup pids", {"pids_max": 400, "pids_used": 9}, "ok", "391 free of 400", ""),
        ("cgroup cpu", {"cpu_quota_cores": 1.5}, "note", "a quota of 1.5 cores over 2 cores", "--cpuset-cpus"),
        ("cgroup cpu", {"cpu_quota_cores": 2.0}, "ok", "no quota below", ""),
    ],
)
def test_each_check_says_what_is_wrong_and_the_line_to_paste(
    check: str, change: dict[str, Any], verdict: str, text: str, remedy: str
) -> None:
    findings = {finding.check: finding for finding in examine(replace(WELL, **change))}
    finding = findings.pop(check)
    assert finding.verdict == verdict
    assert text in finding.text
    assert remedy in finding.remedy
    assert {other.verdict for other in findings.values()} == {"ok"}


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
def test_a_failed_check_is_exit_code_1(json_flag: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("civitas_shm.cli.doctor.read_machine", lambda: replace(WELL, pidfd=False))
    result = CliRunner().invoke(app, ["doctor", *json_flag])
    assert result.exit_code == 1
    assert "pidfd_open is refused" in result.stdout


def test_json_has_every_check_and_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("civitas_shm.cli.doctor.read_machine", lambda: WELL)
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0
    plain = json.loads(result.stdout)
    assert plain["ok"] is True
    assert [check["check"] for check in plain["checks"]] == [finding.check for finding in examine(WELL)]


def test_the_tightest_cgroup_around_counts(tmp_path: Path) -> None:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/outer/inner\n")
    root = tmp_path / "cgroup"
    limits = {"": "max", "outer": "1000", "outer/inner": "5000"}
    for group, limit in limits.items():
        (root / group).mkdir(parents=True, exist_ok=True)
        (root / group / "memory.max").write_text(f"{limit}\n")
        (root / group / "memory.current").write_text("400\n")
        (root / group / "cpu.max").write_text("150000 100000\n" if group == "outer" else "max 100000\n")
    machine = read_machine(tmp_path / "proc", root, tmp_path / "nowhere")
    assert (machine.memory_max_bytes, machine.memory_used_bytes) == (1000, 400)
    assert machine.cpu_quota_cores == 1.5
    assert machine.pids_max is None
    assert machine.shm_total_bytes is None


def test_what_is_left_of_runs_is_explained_with_the_way_out() -> None:
    path = Path("/run/atlas")
    runs = (
        RunFound("web", "a1", None, 1 << 20, path, "live", None),
        RunFound("atlas", "b2", 17, 5 << 20, path, "dead", 2),
        RunFound("letters", "b3", 0, 0, path, "dead", 1),
        RunFound("void", "c3", 0, 1 << 20, path, "empty"),
        RunFound("old", "", None, 0, path, "unreadable", None, "it was made by civitas_shm 9.9 with layout version 77"),
        RunFound("lost", "d4", None, 1 << 20, Path("/dev/shm"), "orphan", None, "no run directory in /x speaks of it"),
        RunFound("theirs", "e5", None, 1 << 20, Path("/dev/shm"), "foreign", None, uid=1000),
        RunFound("job", "", 0, 2048, path, "ended", has_log=True),
    )
    found = [finding for finding in examine(replace(WELL, runs=runs)) if finding.check == "runs"]
    assert [finding.verdict for finding in found] == ["ok"] + ["note"] * 6  # none of it makes a run fail
    assert found[0].text == "1 run alive: web; 1 log of ended ones, 2.0 KiB"
    text = {finding.text.split()[1].rstrip(":"): finding for finding in found[1:]}
    assert "dead, with 17 messages waiting and 2 dead letters (5.0 MiB, /run/atlas)" in text["atlas"].text
    assert "run --name atlas --resume" in text["atlas"].remedy
    assert "gc atlas --yes" in text["atlas"].remedy
    assert "dead, with 1 dead letter (" in text["letters"].text
    assert text["void"].remedy == "civitas-shm gc void --empty"
    assert "layout version 77" in text["old"].text
    assert "no run directory" in text["lost"].text
    assert "of user 1000" in text["theirs"].text
    assert text["theirs"].remedy == ""


def test_this_machine_can_be_read() -> None:
    machine = read_machine()
    assert machine.cores
    assert {finding.check for finding in examine(machine)} == {finding.check for finding in examine(WELL)}
