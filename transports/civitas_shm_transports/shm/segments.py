"""Where a run's memory lives: run directory, locks, segments by name or without one, and what to do with what is left.

Rules of this file:
- `flock` on the run directory's `lock` says whether the owner (the host) lives; its inode is compared after locking,
  because somebody may have removed the directory in between. Never a pid: pids come again;
- a record lock on byte *slot* of `slots` says whether the process of that slot lives; it is released at death and not
  inherited by fork. A dead host's run is touched only when all of them can be had;
- names and sizes go into `run.json` before the segments are made and stay until after they are removed, so whatever
  dies in between leaves something that the next `run` or `gc` can clean;
- a `run.json` that cannot be understood (damaged, another layout version) is never taken for an absent one: messages
  may wait in what it speaks of.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from civitas_shm import __version__
from civitas_shm.errors import ConfigurationError, RunAlive, SharedMemoryFull, TransportUnavailable
from civitas_shm.letters import DIRECTORY as LETTERS
from civitas_shm.runs import LOGS
from civitas_shm.transport import MemoryPlan

from . import _shm
from .names import SHM, groups_by_name, in_use, is_locked, open_named, remove_named
from .room import room_text

__all__ = [
    "KIND_ARENA", "KIND_CELLS", "KIND_DIRECTORY", "KIND_MAIL", "RunDirectory", "RunFiles", "Segments",
    "UnreadableRun", "is_held", "runs_directory",
]  # fmt: skip

KIND_DIRECTORY: Final = 1
KIND_CELLS: Final = 2
KIND_MAIL: Final = 3
KIND_ARENA: Final = 4

ARENA_HEAD_BYTES: Final = 16 << 10
"""Header and map of extents: what an arena takes before its first message."""
START_BYTES: Final = 16 << 20
"""What a run should find free in /dev/shm at its start; with less, its segments are files in the run directory."""

LOCK_TRIES: Final = 200
LOCK_TRY_S: Final = 0.01
"""Who looks whether a run lives holds a shared lock for a moment; whoever wants the run tries again meanwhile."""

Place = Literal["shm", "files", "memfd"]


class UnreadableRun(ValueError):
    """What an earlier run left cannot be understood; the text says why, without a full stop."""


def runs_directory() -> Path:
    """Where this user's run directories are: in $CIVITAS_SHM_DIR, else $XDG_RUNTIME_DIR, else the temporary one."""
    chosen = os.environ.get("CIVITAS_SHM_DIR")
    if chosen:
        return Path(chosen)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        return Path(runtime) / "civitas_shm"
    return Path(tempfile.gettempdir()) / f"civitas_shm-{os.getuid()}"


@dataclass(frozen=True, slots=True)
class RunFiles:
    """What `run.json` says: enough to find, map and remove everything of a run."""

    name: str
    run_id: str
    """32 hex digits."""
    place: Place
    prefix: str
    """Segment names begin with it."""
    slots: int
    mailboxes: int
    arena_bytes: int
    mailbox_bytes: int
    layout: int
    created_s: float
    made_by: str = ""
    """Version of civitas_shm."""

    def segments(self) -> list[tuple[str, int, int, int]]:
        """(name, kind, size in bytes, owner slot) of each, in the order of `RunMemory.fds()` without the lock file."""
        directory, cells = _shm.sizes(self.slots, self.mailboxes)
        return [
            (f"{self.prefix}-dir", KIND_DIRECTORY, directory, 0),
            (f"{self.prefix}-cells", KIND_CELLS, cells, 0),
            (f"{self.prefix}-mail", KIND_MAIL, self.mailbox_bytes, 0),
            *((f"{self.prefix}-arena{slot}", KIND_ARENA, self.arena_bytes, slot) for slot in range(self.slots)),
        ]


class RunDirectory:
    """The locked directory of one run. Held by the host for life; whoever holds it may remove or adopt the run."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self._lock_fd = lock_fd
        self._slots_fd = -1

    @classmethod
    def take(cls, path: Path) -> RunDirectory:
        """Lock `path`, making it if need be. RunAlive when another process holds it."""
        _private_directory(path.parent)
        for _ in range(100):
            path.mkdir(mode=0o700, exist_ok=True)
            try:
                fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except FileNotFoundError:
                continue  # removed by the owner that has just ended
            if not _lock(fd):
                os.close(fd)
                raise RunAlive(
                    f"A run named {path.name!r} is alive ({path}). Give this one another --name, or stop the other "
                    f"(civitas-shm stop {path.name})."
                )
            try:
                if os.stat(path / "lock").st_ino == os.fstat(fd).st_ino:
                    return cls(path, fd)
            except FileNotFoundError:
                pass
            os.close(fd)
        raise RunAlive(f"{path} is made and removed by others faster than it can be locked.")

    def files(self) -> RunFiles | None:
        """What an earlier run left here, or None. UnreadableRun when there is something that cannot be understood."""
        try:
            text = (self.path / "run.json").read_bytes()
        except FileNotFoundError:
            if self.is_made():
                raise UnreadableRun("its run.json is missing") from None
            return None
        return _understood(text, self.path.name)

    def write(self, files: RunFiles) -> None:
        """Note what is about to be made."""
        new = self.path / "run.json.new"
        new.write_text(json.dumps(asdict(files)))
        os.replace(new, self.path / "run.json")

    def mark_made(self) -> None:
        """From here on there may be messages: what is left of the run is never swept without being told to."""
        (self.path / "made").touch(mode=0o600)

    def is_made(self) -> bool:
        return (self.path / "made").exists()

    def may_hold_messages(self) -> bool:
        """Of a run that cannot be understood: whether there is any sign that it ever had some."""
        return self.is_made() or any(name == self.path.name for name, _ in groups_by_name())

    def open_slot_locks(self) -> int:
        """The file of record locks, one byte a slot."""
        return os.open(self.path / "slots", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def wait_for_the_dead(self, slots: int = 0, patience_s: float = 2.0) -> None:
        """Return once no process of an earlier host lives; RunAlive when one still does after `patience_s`.

        They are killed by the kernel when their host dies, which takes a few milliseconds. `slots` 0: however many.
        Their locks stay with this process until `let_slots_go`, by when the slots must be marked as nobody's: one that
        was just spawned and has no lock yet gets it then, looks at its slot, and ends (`_shm.Port`).
        """
        self._slots_fd = fd = self.open_slot_locks()
        until = time.monotonic() + patience_s
        while True:
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, slots)
                return
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                if time.monotonic() > until:
                    raise RunAlive(
                        f"Processes of the dead run {self.path.name!r} still live; they hold locks of "
                        f"{self.path / 'slots'}."
                    ) from None
                time.sleep(0.002)

    def let_slots_go(self) -> None:
        """The locks that `wait_for_the_dead` has taken."""
        if self._slots_fd >= 0:
            os.close(self._slots_fd)
            self._slots_fd = -1

    def remove(self, files: RunFiles | None) -> None:
        """Remove segments, then the directory; the lock goes last, with this process's hold on it.

        Log and dead letters stay, and the directory with them: `drop_rest` is for who does not want that.
        """
        # First the mark: from here on what is left is a rest that anybody may sweep, wherever this is killed.
        (self.path / "made").unlink(missing_ok=True)
        if files is not None and files.place == "shm":
            for name, _, _, _ in files.segments():
                remove_named(name)
        try:
            entries = [entry for entry in os.scandir(self.path) if entry.name not in ("lock", *LOGS, LETTERS)]
        except FileNotFoundError:  # somebody has removed it by hand
            entries = []
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.path)
        # Not earlier: who finds the lock gone makes a new one, and writes beside it.
        (self.path / "lock").unlink(missing_ok=True)
        try:
            self.path.rmdir()
        except OSError:
            pass  # a log or letters stay, or somebody else has begun there
        self.release()

    def remove_unread(self) -> None:
        """As `remove`, for what cannot be understood: segments are found by their names.

        Those that a process has open belong to a run of the same name under another CIVITAS_SHM_DIR, and stay.
        """
        for (name, _), segments in groups_by_name().items():
            if name == self.path.name and not in_use(segments):
                for segment in segments:
                    remove_named(segment)
        self.remove(None)

    def drop_logs(self) -> None:
        """Of an earlier run."""
        for name in LOGS:
            (self.path / name).unlink(missing_ok=True)

    def drop_rest(self) -> None:
        """What outlives a run that ended in order: its log and its dead letters."""
        self.drop_logs()
        shutil.rmtree(self.path / LETTERS, ignore_errors=True)

    def release(self) -> None:
        """Let go of all locks; what is in the directory stays."""
        self.let_slots_go()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


class Segments:
    """The open segments of a run: descriptors, in the order of `RunFiles.segments()`."""

    def __init__(self, files: RunFiles, fds: list[int]) -> None:
        self.files = files
        self.fds = fds

    @classmethod
    def create(cls, files: RunFiles, directory: Path) -> Segments:
        """Make and format all; after a failure none is left."""
        made = cls(files, [])
        run_id = bytes.fromhex(files.run_id)
        try:
            for name, kind, size, owner in files.segments():
                fd = _open(files.place, directory, name, create=True)
                made.fds.append(fd)
                os.ftruncate(fd, size)
                back = {KIND_ARENA: ARENA_HEAD_BYTES, KIND_MAIL: 4096}.get(kind, size)
                _shm.format(fd, kind, run_id, files.slots, files.mailboxes, owner, back)
        except OSError as error:
            made.close()
            if files.place == "shm":
                for name, _, _, _ in files.segments():
                    remove_named(name)
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                raise SharedMemoryFull(_no_room(files, directory)) from error
            raise
        return made

    @classmethod
    def open(cls, files: RunFiles, directory: Path, *, read_only: bool = False) -> Segments:
        """Open an earlier run's; ValueError with the reason when one is missing or damaged."""
        opened = cls(files, [])
        try:
            for name, kind, size, _ in files.segments():
                fd = _open(files.place, directory, name, create=False, read_only=read_only)
                opened.fds.append(fd)
                seen = _shm.inspect(fd, kind)
                if isinstance(seen, str):
                    versions = _versions(fd) if "layout version" in seen else ""
                    raise ValueError(f"segment {name} is refused: {seen}{versions}")
                if seen[2].hex() != files.run_id or os.fstat(fd).st_size != size:
                    raise ValueError(f"segment {name} is not the one that run.json describes")
        except FileNotFoundError as error:
            opened.close()
            raise ValueError(f"a segment is missing: {error.filename}") from error
        except ValueError:
            opened.close()
            raise
        return opened

    @staticmethod
    def remains(files: RunFiles, directory: Path) -> bool:
        """Whether any segment of that run is there; after a reboot, say, none is."""
        base = {"shm": Path("/dev/shm"), "files": directory}.get(files.place)
        return base is not None and any((base / name).exists() for name, _, _, _ in files.segments())

    def hold(self) -> None:
        """Mark them as in use for as long as any process has them open: for `in_use`, where no run directory tells.

        The lock belongs to the open file description, which workers inherit.
        """
        if self.files.place == "shm":
            try:
                fcntl.flock(self.fds[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass  # a forked child of a dead worker has it open, which says the same

    def used_bytes(self) -> int:
        """Memory that the kernel has really given."""
        return sum(os.fstat(fd).st_blocks * 512 for fd in self.fds)

    def close(self) -> None:
        """Close the descriptors; the segments stay."""
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


# --- what is there, without changing it -------------------------------------------------------------------------------


def is_held(path: Path) -> bool:
    """Whether a run directory's owner lives; as `is_locked`."""
    return is_locked(path / "lock")


# --- reading and choosing ---------------------------------------------------------------------------------------------


def _lock(fd: int) -> bool:
    """The owner's lock; False when another owner has it. Who merely looks is waited for."""
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            pass
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(fd, fcntl.LOCK_UN)
        time.sleep(LOCK_TRY_S)
    return False


def _understood(text: bytes, name: str) -> RunFiles:
    """`run.json` of the run of that name; UnreadableRun with the reason."""
    try:
        plain: Any = json.loads(text)
    except ValueError:
        raise UnreadableRun(f"its run.json ({len(text):,} bytes) is damaged") from None
    layout = plain.get("layout") if isinstance(plain, dict) else None
    if not isinstance(layout, int):
        raise UnreadableRun("its run.json is damaged: it names no layout version")
    if layout != _shm.LAYOUT_VERSION:
        maker = plain.get("made_by") or "of an unknown version"
        raise UnreadableRun(
            f"it was made by civitas_shm {maker} with layout version {layout}; this is civitas_shm {__version__} "
            f"with layout version {_shm.LAYOUT_VERSION}"
        )
    try:
        files = msgspec.convert(plain, RunFiles)
    except msgspec.ValidationError as error:
        raise UnreadableRun(f"its run.json is damaged: {error}") from None
    if (
        not re.fullmatch("[0-9a-f]{32}", files.run_id)
        or files.prefix != _prefix(name, files.run_id)
        or files.name != name
        or not 3 <= files.slots <= _shm.SLOTS_MAX
        or not 0 < files.mailboxes <= _shm.MAILBOXES_MAX
    ):
        raise UnreadableRun("its run.json is damaged: its values do not fit each other")
    return files


def _prefix(name: str, run_id: str) -> str:
    return f"civitas-{os.getuid()}-{name}-{run_id[:8]}"


def _versions(fd: int) -> str:
    """Both layout versions, where they differ: native/layout.h has it as a u32 behind the magic of 8 bytes."""
    version = int.from_bytes(os.pread(fd, 4, 8), "little")
    return f" (its layout version is {version}; this is civitas_shm {__version__} with {_shm.LAYOUT_VERSION})"


def new_run_files(name: str, plan: MemoryPlan) -> RunFiles:
    """Choose id, place and names for a run that is about to be made."""
    run_id = os.urandom(16).hex()
    place: Place = "memfd" if plan.kind == "memfd" else "shm" if _shm_has_room() else "files"
    if not 3 <= plan.slots <= _shm.SLOTS_MAX:
        raise TransportUnavailable(f"A run has 3 to {_shm.SLOTS_MAX} process slots, not {plan.slots}.")
    if plan.arena_bytes > _shm.ARENA_MAX:
        raise ConfigurationError(
            f"transport.arena_mb is at most {_shm.ARENA_MAX >> 20:,}, not {plan.arena_bytes >> 20:,}."
        )
    return RunFiles(
        name=name,
        run_id=run_id,
        place=place,
        prefix=_prefix(name, run_id),
        slots=plan.slots,
        mailboxes=max(min(plan.mailboxes + plan.slots + 1, _shm.MAILBOXES_MAX), plan.slots + 1),
        arena_bytes=-(-max(plan.arena_bytes, 4 << 20) // (1 << 20)) * (1 << 20),
        mailbox_bytes=-(-plan.mailbox_bytes // (1 << 20)) * (1 << 20),
        layout=_shm.LAYOUT_VERSION,
        created_s=time.time(),
        made_by=__version__,
    )


def _shm_has_room() -> bool:
    try:
        stat = os.statvfs("/dev/shm")
    except OSError:
        return False
    return stat.f_bavail * stat.f_frsize >= START_BYTES


def _no_room(files: RunFiles, directory: Path) -> str:
    if files.place == "memfd":
        return "The kernel gave no memory for the run's segments (memory limit of the container?)."
    return f"There is too little room to begin: {room_text(SHM if files.place == 'shm' else directory)}"


def _open(place: Place, directory: Path, name: str, *, create: bool, read_only: bool = False) -> int:
    if place == "memfd":
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        os.fchmod(fd, 0o600)
        return fd
    if place == "shm":
        return open_named(name, create=create, read_only=read_only)
    flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NOFOLLOW
    flags |= os.O_CREAT | os.O_EXCL if create else 0
    return os.open(directory / name, flags, 0o600)


def _private_directory(path: Path) -> None:
    """Ours alone: 0700, owned by this user, no link; anything else is refused."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    stat = path.lstat()
    if stat.st_uid != os.getuid() or stat.st_mode & 0o077:
        if stat.st_uid == os.getuid() and not path.is_symlink():
            path.chmod(0o700)
            return
        raise TransportUnavailable(
            f"{path} must be a directory that belongs to this user alone (mode 0700). Set CIVITAS_SHM_DIR to one."
        )
