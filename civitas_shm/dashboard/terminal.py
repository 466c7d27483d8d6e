"""Keys from a terminal, and frames onto it, by ANSI sequences that every terminal of the last thirty years knows.

Rules of this file: whatever happens, the terminal is given back as it was: mode, cursor, screen. A frame is written as
a whole, line over line, so nothing flickers; a frame that says the same as the last one is not written. Colours are
left out with NO_COLOR, and nothing is said by colour alone.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TextIO

from .views import Line

__all__ = ["Frames", "decode_keys", "raw", "read_keys", "styled"]

_STYLES: Final = {"title": "1", "head": "2", "plain": "", "alarm": "33", "dim": "2"}

_SEQUENCES: Final = {
    b"\x1b[A": "up", b"\x1b[B": "down", b"\x1b[C": "right", b"\x1b[D": "left", b"\x1bOA": "up", b"\x1bOB": "down",
    b"\x1bOC": "right", b"\x1bOD": "left", b"\x1b[5~": "page-up", b"\x1b[6~": "page-down", b"\x1b[H": "g", b"\x1b[F":
"G", }  # fmt: skip
_SINGLE: Final = {b"\t": "tab", b"\r": "enter", b"\n": "enter", b"\x7f": "backspace", b"\x08": "backspace",
                  b"\x03": "ctrl-c", b"\x1b": "esc"}  # fmt: skip


def styled(line: Line, *, color: bool) -> str:
    """The line as a terminal wants it."""
    code = _STYLES[line.style] if color else {"title": "1", "alarm": "1"}.get(line.style, "")
    return f"\x1b[{code}m{line.text}\x1b[0m" if code and line.text else line.text


def decode_keys(data: bytes) -> list[str]:
    """Names of keys: a character, or `up`, `esc`, `enter`, …; what is not known is left out."""
    keys = []
    while data:
        for sequence, name in _SEQUENCES.items():
            if data.startswith(sequence):
                keys.append(name)
                data = data[len(sequence) :]
                break
        else:
            first = data[:1]
            if first in _SINGLE:
                if first == b"\x1b" and data[1:2] in (b"[", b"O"):  # a sequence that is not known
                    return keys
                keys.append(_SINGLE[first])
                data = data[1:]
                continue
            size = next(n for bound, n in ((0x80, 1), (0xE0, 2), (0xF0, 3), (0x100, 4)) if first[0] < bound)
            text = data[:size].decode(errors="ignore")
            keys += [text] if text and text.isprintable() else []
            data = data[size:]
    return keys


def read_keys(fd: int, timeout_s: float) -> list[str]:
    """Keys that were pressed, as soon as there are some; none after the timeout."""
    try:
        if not select.select([fd], [], [], max(0.0, timeout_s))[0]:
            return []
        data = os.read(fd, 1024)
    except InterruptedError:
        return []
    return decode_keys(data) if data else ["q"]  # the terminal is gone


@contextmanager
def raw(fd: int, out: TextIO) -> Iterator[None]:
    """Keys come one by one and unseen, on a screen of its own; afterwards everything is as it was."""
    import termios
    import tty

    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        mode = termios.tcgetattr(fd)
        mode[3] &= ~termios.ISIG  # ctrl-c is a key
        termios.tcsetattr(fd, termios.TCSANOW, mode)
        out.write("\x1b[?1049h\x1b[?25l")
        out.flush()
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSANOW, before)
        out.write("\x1b[?25h\x1b[?1049l")
        out.flush()


class Frames:
    """Writes frames over one another."""

    def __init__(self, out: TextIO = sys.stdout, *, color: bool = True) -> None:
        self._out = out
        self._color = color
        self._last: Sequence[Line] | None = None

    def show(self, lines: Sequence[Line]) -> None:
        """Nothing when it is the last one again."""
        if lines == self._last:
            return
        self._last = list(lines)
        text = "\n".join(f"{styled(line, color=self._color)}\x1b[K" for line in lines)
        self._out.write(f"\x1b[H{text}\x1b[J")
        self._out.flush()
