"""`logs`: what a detached run has printed, from the end backwards, and on as it comes.

Rules of this file: reading takes a shared lock for as long as one reading lasts, so that it sees a whole rotation or
none, and never keeps the run waiting.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import rich_click as click

from ..errors import RunNotFound
from .found import choose

__all__ = ["Follower", "command"]

_LOOK_S: Final = 0.1


@click.command("logs")
@click.argument("run", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on as it comes, until the run has ended.")
@click.option("-n", "--lines", type=click.IntRange(0), metavar="N", help="Only the last N lines of what is there.")
def command(run: str | None, follow: bool, lines: int | None) -> None:
    """Print what a detached run (`run -d`) has printed. RUN may be left out when there is exactly one with a log."""
    from ..transport import load_transport

    transport = load_transport("shm")
    assert transport.find_runs is not None
    found = [one for one in transport.find_runs() if one.has_log or one.name == run]
    chosen = choose(found, run, "run with a log")
    if not chosen.has_log:
        raise RunNotFound(f"{chosen.name} was not started with --detach: its output went where it was started.")
    follower = Follower(chosen.path)
    _print(_last(follower.read(), lines))
    while follow:
        lives = follower.writer_lives()
        _print(follower.read())  # after the look: what was printed before its end is in it
        if not lives:
            break
        time.sleep(_LOOK_S)


def _last(text: bytes, lines: int | None) -> bytes:
    return text if lines is None else b"".join(deque(text.splitlines(keepends=True), maxlen=lines))


def _print(text: bytes) -> None:
    if text:
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()


class Follower:
    """Reads a log and the part of it that was put aside; each `read` gives what has come since the last."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._at = 0
        self._before: tuple[int, int] | None = None
        """Which `log.1` there was at the last reading, as (inode, time of change): another one is a rotation."""
        self._began = False

    def writer_lives(self) -> bool:
        """Whether the program that writes the log lives: by its record lock."""
        import fcntl  # here and below: Windows has none, and its help shows this command too

        try:
            fd = os.open(self._directory / "log", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 1)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def read(self) -> bytes:
        """All that is new; empty when there is nothing, or no log any more."""
        import fcntl

        try:
            fd = os.open(self._directory / "log", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return b""
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            return b"".join(self._read(fd))
        finally:
            os.close(fd)

    def _read(self, fd: int) -> Iterator[bytes]:
        before = self._identity()
        if not self._began:
            yield self._rest_of_before(0)
        elif before != self._before or os.fstat(fd).st_size < self._at:
            yield self._rest_of_before(self._at)
            self._at = 0
        self._began, self._before = True, before
        while data := os.pread(fd, 1 << 20, self._at):
            self._at += len(data)
            yield data

    def _rest_of_before(self, at: int) -> bytes:
        try:
            with open(self._directory / "log.1", "rb") as file:
                file.seek(at)
                return file.read()
        except FileNotFoundError:
            return b"" if at == 0 else b"[log] lines are missing here: they came faster than they were read\n"

    def _identity(self) -> tuple[int, int] | None:
        try:
            stat = os.stat(self._directory / "log.1")
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_mtime_ns
