"""`doctor`: whether this machine can run agents in shared memory, and the line to paste where it cannot.

Rules of this file: every check is a pure function of values that were read before, so that each verdict has a test;
`read_machine` alone looks at the machine. A check fails only where a run would fail; what merely costs speed is a note.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import rich_click as click

from ..dashboard.words import bytes_text, cpus_text
from ..runs import RunFound
from .found import count, state_text, way_out
from .options import cores

__all__ = ["Finding", "Machine", "command", "examine", "read_machine"]

SHM_FREE_MIN_BYTES: Final = 32 << 20
"""A small run takes about 1 MiB per process; a container's default of 64 MiB is enough, an almost full one is not."""
FILES_MIN: Final = 256
"""Per process: three descriptors per worker in the host (pidfd, pipes), a dozen for the rest, 60 workers at most."""
PIDS_MIN: Final = 32
"""Processes and threads that a small run needs."""
PYTHON_MIN: Final = (3, 11)

Verdict = Literal["ok", "note", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result."""

    check: str
    verdict: Verdict
    text: str
    remedy: str = ""
    """The line to paste; never empty for a failure."""


@dataclass(frozen=True, slots=True)
class Machine:
    """All that the checks look at. None: not known here, or without limit."""

    system: str
    python: tuple[int, int]
    python_text: str
    native_error: str | None
    shm_total_bytes: int | None
    shm_free_bytes: int | None
    pidfd: bool
    cores: tuple[int, ...]
    cores_online: int
    files_soft: int | None
    files_hard: int | None
    memory_max_bytes: int | None
    memory_used_bytes: int | None
    pids_max: int | None
    pids_used: int | None
    cpu_quota_cores: float | None
    no_groups: str = ""
    """Why workers get no cgroup of their own; empty when they do."""
    no_memory_groups: str = ""
    """Why these have no memory limit; empty when they have."""
    runs: tuple[RunFound, ...] = ()


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Check whether this machine can run agents in shared memory. Exit code 1 when a check fails."""
    findings = examine(read_machine())
    failed = any(finding.verdict == "fail" for finding in findings)
    if as_json:
        click.echo(json.dumps({"ok": not failed, "checks": [asdict(finding) for finding in findings]}, indent=2))
    else:
        _show(findings)
    ctx.exit(1 if failed else 0)


def _show(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    styles = {"ok": "green", "note": "yellow", "fail": "red"}
    for finding in findings:
        console.print(Text(f"{finding.verdict:>4}  ", style=styles[finding.verdict]) + Text(finding.text, style=""))
        if finding.remedy:
            console.print(Text(f"      {finding.remedy}"))


# --- verdicts -------------------------------------------------------------------------------------------------------


def examine(machine: Machine) -> list[Finding]:
    """All checks, in the order in which a failure would make later ones pointless."""
    return [*(check(machine) for check in _CHECKS), *_runs(machine)]


def _system(machine: Machine) -> Finding:
    if machine.system == "Linux":
        return Finding("system", "ok", "Linux")
    text = f"{machine.system}: agents in shared memory need Linux"
    return Finding("system", "fail", text, "civitas-shm run --transport in_process")


def _python(machine: Machine) -> Finding:
    if machine.python >= PYTHON_MIN:
        return Finding("python", "ok", f"Python {machine.python_text}")
    wanted = ".".join(map(str, PYTHON_MIN))
    text = f"Python {machine.python_text}; {wanted} is the oldest that works"
    return Finding("python", "fail", text, f"python{wanted} -m venv .venv && .venv/bin/pip install civitas-shm")


def _native(machine: Machine) -> Finding:
    if machine.native_error is None:
        return Finding("native", "ok", "the compiled part is there")
    remedy = "pip install --force-reinstall --no-deps civitas-shm"
    return Finding("native", "fail", f"the compiled part cannot be loaded: {machine.native_error}", remedy)


def _shm(machine: Machine) -> Finding:
    total, free = machine.shm_total_bytes, machine.shm_free_bytes
    if total is None or free is None:
        remedy = "sudo mount -t tmpfs -o size=1g,mode=1777 tmpfs /dev/shm"
        return Finding("shm", "fail", "/dev/shm is not there", remedy)
    sizes = f"/dev/shm: {bytes_text(free)} free of {bytes_text(total)}"
    if free >= SHM_FREE_MIN_BYTES:
        return Finding("shm", "ok", sizes)
    text = f"{sizes}; a small run takes {bytes_text(SHM_FREE_MIN_BYTES)}"
    remedy = "sudo mount -o remount,size=1g /dev/shm    (in a container: docker run --shm-size=1g; dead runs: gc --yes)"
    return Finding("shm", "fail", text, remedy)


def _pidfd(machine: Machine) -> Finding:
    if machine.pidfd:
        return Finding("pidfd", "ok", "processes can be watched (pidfd)")
    text = "pidfd_open is refused; it needs Linux 5.3 and, in a container, a seccomp profile that knows it"
    return Finding("pidfd", "fail", text, "docker run --security-opt seccomp=unconfined ...    (or a newer docker)")


def _cores(machine: Machine) -> Finding:
    allowed = f"{len(machine.cores)} of {machine.cores_online} cores may be used: {cpus_text(machine.cores)}"
    if len(machine.cores) > 1:
        return Finding("cores", "ok", allowed)
    return Finding("cores", "note", f"{allowed}; all processes share it, and none waits by spinning")


def _files(machine: Machine) -> Finding:
    soft, hard = machine.files_soft, machine.files_hard
    if soft is None or soft >= FILES_MIN:
        limit = "without limit" if soft is None else f"{soft:,} per process"
        return Finding("files", "ok", f"open files: {limit}")
    text = f"open files: {soft:,} per process; {FILES_MIN} are needed"
    if hard is None or hard >= FILES_MIN:
        return Finding("files", "fail", text, f"ulimit -n {FILES_MIN if hard is None else min(hard, 65_536)}")
    return Finding("files", "fail", text, "docker run --ulimit nofile=65536 ...    (or LimitNOFILE= of the service)")


def _memory(machine: Machine) -> Finding:
    limit, used = machine.memory_max_bytes, machine.memory_used_bytes
    if limit is None:
        return Finding("cgroup memory", "ok", "memory: no cgroup limit")
    free = limit - (used or 0)
    text = f"memory: {bytes_text(max(free, 0))} free of {bytes_text(limit)} in this cgroup, shared memory included"
    if free >= 4 * SHM_FREE_MIN_BYTES:
        return Finding("cgroup memory", "ok", text)
    return Finding("cgroup memory", "fail", text, "docker run --memory=1g ...    (Kubernetes: resources.limits.memory)")


def _pids(machine: Machine) -> Finding:
    if machine.pids_max is None:
        return Finding("cgroup pids", "ok", "processes: no cgroup limit")
    free = machine.pids_max - (machine.pids_used or 0)
    text = f"processes: {max(free, 0):,} free of {machine.pids_max:,} in this cgroup"
    if free >= PIDS_MIN:
        return Finding("cgroup pids", "ok", text)
    return Finding("cgroup pids", "fail", f"{text}; a small run needs {PIDS_MIN}", "docker run --pids-limit=512 ...")


def _quota(machine: Machine) -> Finding:
    quota = machine.cpu_quota_cores
    if quota is None or quota >= len(machine.cores):
        return Finding("cgroup cpu", "ok", "cpu: no quota below the cores")
    text = (
        f"cpu: a quota of {quota:g} cores over {len(machine.cores)} cores; pinned processes will be stopped for parts "
        "of every 100 ms"
    )
    return Finding("cgroup cpu", "note", text, "docker run --cpuset-cpus=0-1 ...    (cores instead of a quota)")


def _groups(machine: Machine) -> Finding:
    """What a run does without costs seconds, not messages, so it is a note."""
    if not machine.no_groups and not machine.no_memory_groups:
        text = "cgroups: each worker gets one of its own, and the kernel keeps memory_limit_mb"
        return Finding("cgroup of workers", "ok", text)
    why = machine.no_groups or machine.no_memory_groups
    kills = "what workers start is found by its marks" if machine.no_groups else "what a worker starts dies with it"
    text = f"cgroups: memory_limit_mb is looked at once a second, and {kills}: {why}"
    return Finding("cgroup of workers", "note", text)


def _runs(machine: Machine) -> list[Finding]:
    """What there is of runs. None of it makes a run fail, but that of its own name."""
    live = [run.name for run in machine.runs if run.state == "live"]
    ended = [run for run in machine.runs if run.state == "ended"]
    text = f"{count(len(live), 'run')} alive: {', '.join(live)}" if live else "no run is alive"
    if ended:
        text += f"; {count(len(ended), 'log')} of ended ones, {bytes_text(sum(run.size_bytes for run in ended))}"
    findings = [Finding("runs", "ok", text)]
    for run in machine.runs:
        if run.state in ("live", "ended"):
            continue
        found = f"run {run.name}: {state_text(run)} ({bytes_text(run.size_bytes)}, {run.path})"
        findings.append(Finding("runs", "note", found, way_out(run)))
    return findings


_CHECKS: Final[tuple[Callable[[Machine], Finding], ...]] = (
    _system,
    _python,
    _native,
    _shm,
    _pidfd,
    _cores,
    _files,
    _memory,
    _groups,
    _pids,
    _quota,
)


# --- reading --------------------------------------------------------------------------------------------------------


def read_machine(
    proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup"), shm: Path = Path("/dev/shm")
) -> Machine:
    """This machine, as the checks want to know it."""
    from ..host import cgroups

    place = cgroups.find_place(proc=proc)
    files_soft, files_hard = _file_limits()
    total, free = _room(shm)
    groups = _cgroups(proc, cgroup)
    memory_max_bytes, memory_used_bytes = _tightest(groups, "memory.max", "memory.current")
    pids_max, pids_used = _tightest(groups, "pids.max", "pids.current")
    return Machine(
        system=platform.system(),
        python=sys.version_info[:2],
        python_text=platform.python_version(),
        native_error=_native_error(),
        shm_total_bytes=total,
        shm_free_bytes=free,
        pidfd=_has_pidfd(),
        cores=tuple(cores()),
        cores_online=os.cpu_count() or 1,
        files_soft=files_soft,
        files_hard=files_hard,
        memory_max_bytes=memory_max_bytes,
        memory_used_bytes=memory_used_bytes,
        pids_max=pids_max,
        pids_used=pids_used,
        no_groups=place if isinstance(place, str) else "",
        no_memory_groups="" if isinstance(place, str) else place.no_memory,
        runs=_found_runs(),
        cpu_quota_cores=min((q for group in groups if (q := _cpu_quota(group / "cpu.max")) is not None), default=None),
    )


def _native_error() -> str | None:
    from ..errors import TransportUnavailable
    from ..transport import load_transport

    try:
        load_transport("shm")
    except TransportUnavailable as error:
        return str(error.__cause__ or error)
    return None


def _found_runs() -> tuple[RunFound, ...]:
    """None where the transport cannot be had: then there can be no run."""
    from ..errors import TransportUnavailable
    from ..transport import load_transport

    try:
        transport = load_transport("shm")
    except TransportUnavailable:
        return ()
    return tuple(transport.find_runs()) if transport.find_runs is not None else ()


def _has_pidfd() -> bool:
    opener = getattr(os, "pidfd_open", None)
    if opener is None:
        return False
    try:
        os.close(opener(os.getpid()))
    except OSError:
        return False
    return True


def _room(directory: Path) -> tuple[int | None, int | None]:
    if not hasattr(os, "statvfs") or not directory.is_dir():
        return None, None
    room = os.statvfs(directory)
    return room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize


def _file_limits() -> tuple[int | None, int | None]:
    """Soft and hard limit of open files; None for no limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None, None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (None if soft == resource.RLIM_INFINITY else soft, None if hard == resource.RLIM_INFINITY else hard)


def _cgroups(proc: Path, root: Path) -> list[Path]:
    """This process's cgroup (version 2) and those around it, for a limit of any of them holds."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    own = next((line.removeprefix("0::").strip("/") for line in lines if line.startswith("0::")), "")
    group = root / own
    if not group.is_dir():  # in a container the path is the host's, and only the own group is mounted
        group = root
    return [group, *(parent for parent in group.parents if parent.is_relative_to(root))]


def _tightest(groups: list[Path], limit_file: str, used_file: str) -> tuple[int | None, int | None]:
    """Limit and use of the group that has the least left."""
    pairs = [
        (limit, _number(group / used_file)) for group in groups if (limit := _number(group / limit_file)) is not None
    ]
    return min(pairs, key=lambda pair: pair[0] - (pair[1] or 0), default=(None, None))


def _number(file: Path) -> int | None:
    """A cgroup's number; None for `max`, and where the file is not there (cgroup version 1, no controller)."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _cpu_quota(file: Path) -> float | None:
    try:
        quota, _, period = file.read_text().strip().partition(" ")
    except OSError:
        return None
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None
