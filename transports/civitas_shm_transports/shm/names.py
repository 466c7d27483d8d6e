"""Segments by name: made, removed, found, and whether anybody uses them.

The one place that knows posix_ipc, which has no wheels for Python 3.14 and later. On Linux a POSIX shared memory object
is a file of /dev/shm (shm_open(3)), so without posix_ipc it is opened there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = [
    "SHM",
    "groups_by_name",
    "in_use",
    "is_locked",
    "open_named",
    "opened_segments",
    "owners",
    "remove_named",
    "run_directory_of",
    "segment_owner",
]

SHM: Final = Path("/dev/shm")
"""Where the kernel shows POSIX shared memory."""

try:
    import posix_ipc  # type: ignore[import-not-found, unused-ignore]  # it ships no types
except ImportError:  # Python 3.14 and later
    posix_ipc = None


def open_named(name: str, *, create: bool, read_only: bool = False) -> int:
    """A descriptor of the segment, close-on-exec, mode 0600. FileExistsError or FileNotFoundError as for files."""
    if read_only:
        return os.open(f"/dev/shm/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    if posix_ipc is None:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT | os.O_EXCL if create else 0)
        return os.open(f"/dev/shm/{name}", flags, 0o600)
    try:
        segment = posix_ipc.SharedMemory(f"/{name}", flags=posix_ipc.O_CREX if create else 0, mode=0o600)
    except posix_ipc.ExistentialError as error:
        kind = FileExistsError if create else FileNotFoundError
        raise kind(errno.EEXIST if create else errno.ENOENT, str(error), name) from error
    os.set_inheritable(segment.fd, False)
    fd: int = segment.fd
    return fd


def remove_named(name: str) -> None:
    """Remove it if it is there. Mappings of it stay valid."""
    try:
        os.unlink(f"/dev/shm/{name}")
    except FileNotFoundError:
        return


_SEGMENT_NAME: Final = re.compile(r"civitas-(\d+)-(.+)-([0-9a-f]{8})-[a-z]+\d*")
"""uid, name of the run, first digits of its id; what follows is the kind, of any layout version. A name that itself
ends in 8 hex digits is not mistaken: no kind begins with a digit, and `.+` takes what it can."""


def segment_owner(name: str) -> str | None:
    """The name of the run that a segment of this name belongs to; None: it is none."""
    match = _SEGMENT_NAME.fullmatch(name)
    return match[2] if match else None


def owners() -> dict[int, dict[tuple[str, str], list[str]]]:
    """uid in the name -> (name of the run, first digits of its id) -> its segments in /dev/shm."""
    found: dict[int, dict[tuple[str, str], list[str]]] = {}
    for entry in sorted(os.listdir(SHM)) if SHM.is_dir() else []:
        if match := _SEGMENT_NAME.fullmatch(entry):
            found.setdefault(int(match[1]), {}).setdefault((match[2], match[3]), []).append(entry)
    return found


def groups_by_name() -> dict[tuple[str, str], list[str]]:
    """Those of this user."""
    return owners().get(os.getuid(), {})


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock of that file; False where there is none. Changes nothing, makes nothing;
    OSError when it may not look."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def in_use(segments: list[str], opened: dict[str, set[int]] | None = None) -> bool:
    """Whether any process has one of these open: by the lock that every host takes (`Segments.hold`), and, for hosts
    of older versions, by what this user's processes have open (`opened`, if that was looked up already). When in doubt
    they are in use.
    """
    try:
        if any(is_locked(SHM / name) for name in segments):
            return True
    except OSError:
        return True
    opened = opened_segments() if opened is None else opened
    return any(name in opened for name in segments)


def opened_segments() -> dict[str, set[int]]:
    """Segment -> the processes of this user that have it open or mapped. Reads all of /proc: some milliseconds."""
    found: dict[str, set[int]] = {}
    for process in os.listdir("/proc"):
        if process.isdigit():
            for path in _opened_by(process):
                if path.startswith(f"{SHM}/civitas-"):
                    found.setdefault(path.removeprefix(f"{SHM}/"), set()).add(int(process))
    return found


def run_directory_of(pid: int, name: str) -> Path | None:
    """Where the run of that name lies whose host is that process: it holds the lock in its directory open."""
    for path in _opened_by(str(pid)):
        if path.endswith(f"/{name}/lock"):
            return Path(path).parent
    return None


def _opened_by(pid: str) -> Iterator[str]:
    """Paths; none of a process that has ended or belongs to another user, who cannot have opened ours."""
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                yield os.readlink(f"/proc/{pid}/fd/{fd}")
            except FileNotFoundError:
                continue
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
            for line in maps:
                if "/dev/shm/" in line:
                    yield line.split(maxsplit=5)[-1].rstrip()
    except OSError:
        return
