"""The log of a detached run: a file that never grows beyond its bound, whoever writes into it.

Rules of this file:
- the file's descriptor is 1 and 2 of the program, and what it starts inherits it: so the file is emptied in place,
  after it was copied to `log.1`. Who follows it reads under a shared lock, and sees a whole rotation or none;
- a line that Python writes arrives whole, with the time in front unless it is JSON; what C code and children write goes
  into the file as it is;
- a record lock on the first byte says that the program lives that writes it: released at its death, not inherited, and
  given up by closing any descriptor of the file, so nothing here opens it a second time;
- a full disk costs lines, which are counted, and never ends the run.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from .line_stream import LineStream
from .runs import ABANDONED_S, LOGS

__all__ = ["LOG_BYTES_MAX", "LogFile", "new_log", "settle"]

LOG, LOG_BEFORE = LOGS

LOG_BYTES_MAX: Final = 8 << 20
"""Of each of the two files."""

LOOK_S: Final = 1.0
"""How often the size is looked at beside Python's own lines, for what C code and children write."""


def new_log(directory: Path, name: str) -> tuple[Path, int]:
    """A file for a run that has no directory yet, and its descriptor; `settle` moves it there."""
    for path in directory.glob(f".{name}.*.log"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_S:
                path.unlink()
    path = directory / f".{name}.{os.getpid()}.log"
    path.unlink(missing_ok=True)  # of an earlier process of this pid
    return path, os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def settle(path: Path | None, run_directory: Path) -> None:
    """In the host, which holds the directory: the new log takes its place, the one that was there becomes `log.1`.

    Without a new one, those of earlier runs go: they would be taken for this one's.
    """
    if path is None:
        for name in (LOG, LOG_BEFORE):
            (run_directory / name).unlink(missing_ok=True)
        return
    with contextlib.suppress(FileNotFoundError):
        os.replace(run_directory / LOG, run_directory / LOG_BEFORE)
    os.replace(path, run_directory / LOG)


class LogFile(LineStream):
    """`sys.stdout` and `sys.stderr` of a detached program."""

    def __init__(
        self,
        fd: int,
        *,
        stamped: bool,
        bytes_max: int = LOG_BYTES_MAX,
        now_s: Callable[[], float] = time.time,
        watched: bool = True,
    ) -> None:
        super().__init__(fd)
        self._stamped = stamped
        self._bytes_max = bytes_max
        self._now_s = now_s
        self._lock = threading.Lock()
        self._lost = 0
        with contextlib.suppress(OSError):  # it is only for followers, and not every file system has such locks
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        if watched:
            threading.Thread(target=self._watch, name="log size", daemon=True).start()

    def put(self, lines: list[str], who: str) -> None:
        stamp = self._stamp()
        self._put("".join(f"{stamp}{line}\n" for line in lines).encode("utf-8", "backslashreplace"))

    def check(self) -> None:
        """Empty the file if it is over its bound."""
        with self._lock:
            self._rotate_if_large()

    # --- parts --------------------------------------------------------------------------------------------------------

    def _stamp(self) -> str:
        if not self._stamped:
            return ""
        now = datetime.fromtimestamp(self._now_s(), UTC)
        return now.isoformat(timespec="milliseconds").replace("+00:00", "Z") + " "

    def _put(self, data: bytes) -> None:
        with self._lock:
            if self._lost:
                notice = f"{self._stamp()}[log] WARNING: {self._lost} writes were lost: the disk was full\n".encode()
                data = notice + data
            try:
                os.write(self._fd, data)  # appended in one piece: regular files are not written in parts but when full
            except OSError:
                self._lost += 1
                return
            self._lost = 0
            self._rotate_if_large()

    def _rotate_if_large(self) -> None:
        size = os.fstat(self._fd).st_size
        if size <= self._bytes_max:
            return
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if size <= 2 * self._bytes_max:
                return  # somebody reads just now; a reader that was stopped is not waited for
        try:
            self._keep_copy()
            os.ftruncate(self._fd, 0)
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _keep_copy(self) -> None:
        """As `log.1` beside it, wherever it has been moved; none when it has been deleted, or the disk is full."""
        path = Path(os.readlink(f"/proc/self/fd/{self._fd}"))
        if path.name != LOG:
            return  # it has not settled yet, or is deleted
        new = path.with_name(f"{LOG_BEFORE}.new")
        try:
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as copy:
                at = 0
                while data := os.pread(self._fd, 1 << 20, at):
                    at += copy.write(data)
            os.replace(new, path.with_name(LOG_BEFORE))
        except OSError:
            new.unlink(missing_ok=True)

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_S)
            self.check()
