"""A text stream that hands on whole lines: what stands in for `sys.stdout` and `sys.stderr` where lines are kept apart.

Rule of this file: what has no newline yet waits, apart for each thread and writer, so that two never share a line; at
most LINE_CHARS_MAX of it, then that part is a line.
"""

from __future__ import annotations

import io
import threading
from typing import Final

__all__ = ["LINE_CHARS_MAX", "LineStream"]

LINE_CHARS_MAX: Final = 32 << 10
"""A record of four bytes per character still fits into a socket's send buffer (208 KiB by default)."""


class LineStream(io.TextIOBase):
    """The half of a stream that is the same for all; a subclass says who writes and what becomes of lines."""

    def __init__(self, fd: int) -> None:
        """`fd`: where bytes go that somebody writes to `buffer`, or as the descriptor; not closed with the stream."""
        self._fd = fd
        self._unfinished: dict[tuple[int, str], str] = {}
        self.buffer = open(fd, "wb", buffering=0, closefd=False)  # noqa: SIM115  (lives as long as the process)

    def who(self) -> str:
        """Who writes just now, beside the thread."""
        return ""

    def put(self, lines: list[str], who: str) -> None:
        """Take these lines, which have no newline any more."""
        raise NotImplementedError

    # --- what Python expects of a stream ------------------------------------------------------------------------------

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    def fileno(self) -> int:
        return self._fd

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        who = self.who()
        key = (threading.get_ident(), who)
        *lines, rest = (self._unfinished.pop(key, "") + text).split("\n")
        if len(rest) > LINE_CHARS_MAX:
            lines.append(rest)
        elif rest:
            self._unfinished[key] = rest
        if lines:
            self.put(lines, who)
        return len(text)

    def finish(self) -> None:
        """Hand on what has no newline: the process ends."""
        while self._unfinished:
            (_, who), text = self._unfinished.popitem()
            self.put([text], who)
