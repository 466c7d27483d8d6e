"""Lines: split, tagged, counted when lost, and shown."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import threading
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from civitas_shm.host import logs
from civitas_shm.host.logs import (
    AgentStream,
    LineSplitter,
    OutputReader,
    OutputSink,
    RecordHandler,
    as_json,
    as_text,
    output_pair,
)
from civitas_shm.host.protocol import Line
from civitas_shm.line_stream import LINE_CHARS_MAX


class Put:
    """A sink that keeps."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, str]] = []

    def put(self, stream: str, text: str, agent: str, level: str = "", logger: str = "") -> None:
        self.lines.append((stream, text, agent))


def stream(sink: Put, agent: Any) -> AgentStream:
    return AgentStream("stdout", 1, sink, agent)  # type: ignore[arg-type]


# --- splitting ----------------------------------------------------------------------------------------------------


@given(st.text(alphabet=st.characters(blacklist_categories=["Cs"], blacklist_characters="\r\n")), st.integers(1, 9))
def test_lines_are_the_same_however_the_bytes_are_cut(text: str, cut: int) -> None:
    data = f"{text}\nsecond\nlast".encode()
    splitter = LineSplitter()
    lines = [line for start in range(0, len(data), cut) for line in splitter.feed(data[start : start + cut])]
    assert [*lines, *splitter.finish()] == [text, "second", "last"]


def test_what_is_no_text_is_shown_and_what_has_no_end_is_cut() -> None:
    assert LineSplitter().feed(b"\xff\xfe\n") == ["\\xff\\xfe"]
    splitter = LineSplitter()
    endless = b"x" * (LINE_CHARS_MAX * 2 + 5)
    assert [len(line) for line in splitter.feed(endless)] == [LINE_CHARS_MAX] * 2
    assert splitter.finish() == ["x" * 5]


# --- in the worker ------------------------------------------------------------------------------------------------


def test_two_agents_and_two_threads_never_share_a_line() -> None:
    sink, agent = Put(), ["a"]
    out = stream(sink, lambda: agent[0])
    out.write("one ")
    agent[0] = "b"
    out.write("two ")
    thread = threading.Thread(target=lambda: out.write("three\n"))
    thread.start()
    thread.join()
    out.write("end\n")
    agent[0] = "a"
    out.finish()
    assert sink.lines == [("stdout", "three", "b"), ("stdout", "two end", "b"), ("stdout", "one ", "a")]


def test_a_stream_is_enough_of_a_file_for_those_who_ask() -> None:
    out = stream(Put(), str)
    assert isinstance(out, io.TextIOBase)
    assert (out.fileno(), out.encoding, out.isatty(), out.writable()) == (1, "utf-8", False, True)
    with pytest.raises(TypeError, match="must be str, not bytes"):
        out.write(b"bytes")  # type: ignore[arg-type]


def test_a_host_that_does_not_read_costs_one_wait_and_the_loss_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "HOST_WAIT_S", 0.01)
    there, here = output_pair()
    sink = OutputSink(here)
    waits = []
    monkeypatch.setattr(sink, "_wait", lambda: waits.append(1))
    for _ in range(1000):
        sink.put("stdout", "x" * 1000, "a")
    assert len(waits) == 1
    decoder = msgspec.msgpack.Decoder(Line)
    there.setblocking(False)

    def read_all() -> list[Line]:
        lines = []
        try:
            while True:
                lines.append(decoder.decode(there.recv(1 << 20)))
        except BlockingIOError:
            return lines

    arrived = len(read_all())
    sink.put("stdout", "again", "a")
    notice, last = read_all()
    assert notice.text == f"{1000 - arrived} lines of this process were lost: the host did not read them in time"
    assert last.text == "again"
    there.close()
    here.close()


def test_a_sink_whose_host_is_gone_is_silent() -> None:
    there, here = output_pair()
    there.close()
    OutputSink(here).put("stdout", "text", "a")
    here.close()


def test_a_long_line_arrives_in_parts_and_whole() -> None:
    there, here = output_pair()
    text = "é" * (LINE_CHARS_MAX + 3)
    OutputSink(here).put("stdout", text, "a")
    parts = [msgspec.msgpack.decode(there.recv(1 << 20), type=Line).text for _ in range(2)]
    assert "".join(parts) == text
    there.close()
    here.close()


def test_log_records_keep_to_their_agents_level_and_bring_their_traceback() -> None:
    sink = Put()
    handler = RecordHandler(sink, lambda: "current")  # type: ignore[arg-type]
    handler.set_levels(logging.WARNING, {"chatty": logging.DEBUG})

    def record(level: int, text: str, *args: Any, **extra: Any) -> None:
        made = logging.LogRecord(extra.pop("logger", "lib"), level, "", 0, text, args, extra.pop("exc_info", None))
        made.__dict__.update(extra)
        handler.emit(made)

    record(logging.INFO, "dropped")
    record(logging.WARNING, "kept %d", 1)
    record(logging.DEBUG, "kept too", agent="chatty")
    record(logging.DEBUG, "in on_start", logger="civitas_shm.agent.chatty")
    try:
        raise ValueError("why")
    except ValueError as error:
        record(logging.ERROR, "failed", exc_info=(type(error), error, error.__traceback__))
    assert sink.lines[:3] == [
        ("log", "kept 1", "current"),
        ("log", "kept too", "chatty"),
        ("log", "in on_start", "chatty"),
    ]
    assert sink.lines[3][1].startswith("failed\nTraceback")
    assert sink.lines[3][1].endswith("ValueError: why")


# --- in the host --------------------------------------------------------------------------------------------------


def test_a_reader_hands_over_the_last_words_keeps_the_tail_and_closes_everything() -> None:
    async def test() -> None:
        there, here = output_pair()
        out, err = os.pipe(), os.pipe()
        lines: list[Line] = []
        reader = OutputReader(asyncio.get_running_loop(), there, out[0], err[0], lines.append)
        reader.process, reader.pid = "w1", 77
        sink = OutputSink(here)
        sink.put("stdout", "said", "a")
        sink.put("log", "logged", "a", "ERROR")
        here.send(b"no record at all")
        for n in range(60):
            os.write(err[1], b"trace %d\n" % n)
        os.write(out[1], b"unfinished")
        for fd in (out[1], err[1]):
            os.close(fd)
        here.close()
        reader.close()
        reader.close()
        assert {(line.process, line.pid) for line in lines} == {("w1", 77)}
        assert [line.text for line in lines[:2]] == ["said", "logged"]
        assert "16 bytes on the output socket are no record" in lines[2].text
        assert lines[3].text == "unfinished"
        assert list(reader.tail) == [f"trace {n}" for n in range(10, 60)]
        for fd in (out[0], err[0]):
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)

    asyncio.run(test())


# --- shown --------------------------------------------------------------------------------------------------------


def test_a_line_is_shown_with_process_agent_and_level_and_each_part_can_be_grepped() -> None:
    assert as_text(Line(0.0, "w1", 1, "stdout", "hello", "planner")) == "[w1 planner] hello"
    assert as_text(Line(0.0, "w1", 1, "stderr", "raw")) == "[w1] raw"
    assert as_text(Line(0.0, "w1", 1, "log", "a\nb", "p", "ERROR")) == "[w1 p] ERROR: a\n[w1 p] b"


def test_a_line_as_json_is_one_object_on_one_line_without_empty_fields() -> None:
    text = as_json(Line(1.5, "w1", 7, "log", "a\nb", "p", "INFO", "lib"))
    assert "\n" not in text
    assert json.loads(text) == {
        "time": 1.5, "process": "w1", "pid": 7, "stream": "log", "text": "a\nb", "agent": "p", "level": "INFO",
        "logger": "lib",
    }  # fmt: skip
    assert "agent" not in json.loads(as_json(Line(0.0, "w1", 7, "stdout", "x")))
