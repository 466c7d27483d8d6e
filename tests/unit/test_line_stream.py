"""Whole lines, apart for each writer; nothing waits without a bound."""

from __future__ import annotations

import pytest

from civitas_shm.line_stream import LINE_CHARS_MAX, LineStream


class Kept(LineStream):
    """Keeps what it is handed."""

    def __init__(self) -> None:
        super().__init__(1)
        self.writer = "a"
        self.lines: list[tuple[str, str]] = []

    def who(self) -> str:
        return self.writer

    def put(self, lines: list[str], who: str) -> None:
        self.lines += [(who, line) for line in lines]


def test_two_writers_never_share_a_line() -> None:
    stream = Kept()
    for writer, text in (("a", "one"), ("b", "two\nthr"), ("a", " more\n"), ("b", "ee")):
        stream.writer = writer
        assert stream.write(text) == len(text)
    assert stream.lines == [("b", "two"), ("a", "one more")]
    stream.finish()
    assert stream.lines[2:] == [("b", "three")]
    stream.finish()
    assert len(stream.lines) == 3


def test_what_never_ends_its_line_is_handed_on_in_parts() -> None:
    stream = Kept()
    for _ in range(LINE_CHARS_MAX + 1):
        stream.write("x")
    assert [len(line) for _, line in stream.lines] == [LINE_CHARS_MAX + 1]
    stream.write("\n")
    assert stream.lines[1:] == [("a", "")]


def test_only_text_can_be_written() -> None:
    with pytest.raises(TypeError, match="must be str, not bytes"):
        Kept().write(b"x")  # type: ignore[arg-type]
