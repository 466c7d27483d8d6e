"""Output of processes: every line reaches the user, with process and agent.

Three ways lead from a worker to the host:
- `OutputSink`, a socket of whole records: what Python code prints or logs, tagged with the agent that did it;
- two pipes as descriptors 1 and 2: what C code, children and `faulthandler` write, tagged with the process alone.

Rules of this file:
- a host that does not read (stopped, starved) costs a printing worker HOST_WAIT_S once; then records are dropped and
  counted until it reads again. Descriptors 1 and 2 stay ordinary pipes, because programs that users start do not
  expect anything else of theirs: only there a write waits for a stopped host;
- a line is at most LINE_CHARS_MAX long; longer ones arrive in parts;
- nothing a worker sends is trusted: process and pid of a line are set by the host.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import select
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from ..line_stream import LINE_CHARS_MAX, LineStream
from ..redaction import redacted
from .protocol import Line

__all__ = ["LineSplitter", "OutputReader", "OutputSink", "as_json", "as_text", "TakenOutput", "output_pair"]

HOST_WAIT_S: Final = 1.0
"""How long a line may wait for a host that does not read."""

TAIL_LINES: Final = 50
"""Lines of stderr and log that are kept per process for the report of its death."""

AGENT_LOGGER: Final = "civitas_shm.agent."
"""What the names of agents' loggers (`self.log`) begin with."""

_READ_BYTES: Final = 1 << 16
_RECORD_BYTES_MAX: Final = 256 << 10
_RECORDS_PER_TURN: Final = 64
"""Records that the host reads from one process before it looks at the others."""
_LAST_READS: Final = 64
"""Reads of what a dead process has left; more than its buffers hold, so that a grandchild that goes on writing cannot
keep the host here."""

CurrentAgent = Callable[[], str]


def output_pair() -> tuple[socket.socket, socket.socket]:
    """The socket of records: a record arrives whole or not at all, whatever kills its writer."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


# --- in the worker --------------------------------------------------------------------------------------------------


class OutputSink:
    """Where records go. Any thread; no lock, because one send is one record."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._encode = msgspec.msgpack.Encoder().encode
        self._lost = 0

    def put(self, stream: str, text: str, agent: str, level: str = "", logger: str = "") -> None:
        """Send one line (or a log record of several lines); in parts when it is long."""
        for start in range(0, max(len(text), 1), LINE_CHARS_MAX):
            self._send(Line(time.time(), "", 0, stream, text[start : start + LINE_CHARS_MAX], agent, level, logger))

    def _send(self, line: Line) -> None:
        if self._lost:
            notice = f"{self._lost} lines of this process were lost: the host did not read them in time"
            if not self._try_send(Line(line.time_s, "", 0, "stderr", notice, "", "WARNING")):
                self._lost += 1
                return
            self._lost = 0
        if not self._try_send(line) and not (self._wait() and self._try_send(line)):
            self._lost += 1

    def _try_send(self, line: Line) -> bool:
        try:
            self._sock.send(self._encode(line))
        except BlockingIOError:
            return False
        except ConnectionError:  # the host is gone, and this process is about to be: nobody is left to be told
            return True
        return True

    def _wait(self) -> bool:
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT)
        return bool(poll.poll(HOST_WAIT_S * 1000))


class AgentStream(LineStream):
    """`sys.stdout` or `sys.stderr` of a worker: whole lines, each with the agent that wrote it."""

    def __init__(self, name: str, fd: int, sink: OutputSink, agent: CurrentAgent) -> None:
        super().__init__(fd)
        self._name = name
        self._sink = sink
        self._agent = agent

    @property
    def name(self) -> str:
        return f"<{self._name}>"

    def who(self) -> str:
        return self._agent()

    def put(self, lines: list[str], who: str) -> None:
        for line in lines:
            self._sink.put(self._name, line, who)


class RecordHandler(logging.Handler):
    """Log records as records: level, logger and agent stay fields until somebody reads them."""

    def __init__(self, sink: OutputSink, agent: CurrentAgent) -> None:
        super().__init__()
        self._sink = sink
        self._agent = agent
        self.set_levels(logging.WARNING, {})

    def set_levels(self, level: int, levels: dict[str, int]) -> None:
        """The lowest that is told, and that of some agents."""
        self._level = level
        self._levels = levels

    def emit(self, record: logging.LogRecord) -> None:
        # An agent's own logger knows its name in every hook; other loggers are told apart by the handler that runs.
        _, _, own = record.name.partition(AGENT_LOGGER)
        agent = str(getattr(record, "agent", "") or own or self._agent())
        if record.levelno < self._levels.get(agent, self._level):
            return
        try:
            text = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                text += "\n" + "".join(traceback.format_exception(record.exc_info[1])).rstrip("\n")
            if record.stack_info:
                text += "\n" + record.stack_info
        except (TypeError, ValueError, KeyError):  # arguments that do not fit the text: logging has a way to say so
            self.handleError(record)
            return
        self._sink.put("log", redacted(text), agent, record.levelname, record.name)


class TakenOutput:
    """From its making on prints, logging and fatal errors of this process go to the host."""

    def __init__(self, sock: socket.socket, agent: CurrentAgent) -> None:
        sink = OutputSink(sock)
        self._out, self._err = AgentStream("stdout", 1, sink, agent), AgentStream("stderr", 2, sink, agent)
        sys.stdout, sys.stderr = self._out, self._err
        faulthandler.enable(file=2, all_threads=True)
        self._records = RecordHandler(sink, agent)
        logging.getLogger().addHandler(self._records)
        logging.captureWarnings(True)

    def set_levels(self, level: str, levels: dict[str, str]) -> None:
        """Of everybody, and of agents by name; before it, WARNING."""
        by_name = logging.getLevelNamesMapping()
        default = by_name[level.upper()]
        by_agent = {name: by_name[text.upper()] for name, text in levels.items()}
        self._records.set_levels(default, by_agent)
        logging.getLogger().setLevel(min([default, *by_agent.values()]))

    def finish(self) -> None:
        """At the end of the process: what was printed without a newline."""
        self._out.finish()
        self._err.finish()


# --- in the host ----------------------------------------------------------------------------------------------------


class LineSplitter:
    """Bytes in, lines out (sans-IO); what is no UTF-8 is shown with backslashes."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        *lines, rest = (self._rest + data).split(b"\n")
        while len(rest) > LINE_CHARS_MAX:
            lines.append(rest[:LINE_CHARS_MAX])
            rest = rest[LINE_CHARS_MAX:]
        self._rest = rest
        return [line.decode("utf-8", "backslashreplace").removesuffix("\r") for line in lines]

    def finish(self) -> list[str]:
        """What came after the last newline."""
        rest, self._rest = self._rest, b""
        return [rest.decode("utf-8", "backslashreplace")] if rest else []


class OutputReader:
    """The host's ends of one process's three ways: reads on the loop, keeps the tail, owns the descriptors."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        records: socket.socket,
        stdout_fd: int,
        stderr_fd: int,
        on_line: Callable[[Line], None],
    ) -> None:
        self.process = "standby"
        self.pid = 0
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._loop = loop
        self._records = records
        self._pipes = {stdout_fd: ("stdout", LineSplitter()), stderr_fd: ("stderr", LineSplitter())}
        self._on_line = on_line
        self._decoder = msgspec.msgpack.Decoder(Line)
        records.setblocking(False)
        loop.add_reader(records.fileno(), self._read_records)
        for fd in self._pipes:
            os.set_blocking(fd, False)
            loop.add_reader(fd, self._read_pipe, fd)

    def close(self) -> None:
        """Read what a dead process has left, then close. A grandchild that still writes gets EPIPE. Idempotent."""
        if self._records.fileno() < 0:
            return
        for _ in range(_LAST_READS):
            if not self._read_records():
                break
        for fd, (stream, splitter) in self._pipes.items():
            for _ in range(_LAST_READS):
                if not self._read_pipe(fd):
                    break
            for text in splitter.finish():
                self._say(stream, text)
            self._loop.remove_reader(fd)
            os.close(fd)
        self._loop.remove_reader(self._records.fileno())
        self._records.close()

    def _read_records(self) -> bool:
        """Whether there may be more."""
        for _ in range(_RECORDS_PER_TURN):
            try:
                data = self._records.recv(_RECORD_BYTES_MAX)
            except BlockingIOError:
                return False
            except ConnectionError:
                data = b""
            if not data:
                self._loop.remove_reader(self._records.fileno())
                return False
            try:
                line = self._decoder.decode(data)
            except msgspec.MsgspecError as error:  # user code found the socket; it harms only its own output
                self._say("stderr", f"{len(data)} bytes on the output socket are no record: {error}")
                continue
            self._emit(msgspec.structs.replace(line, process=self.process, pid=self.pid))
        return True

    def _read_pipe(self, fd: int) -> bool:
        stream, splitter = self._pipes[fd]
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(fd)
            return False
        for text in splitter.feed(data):
            self._say(stream, text)
        return True

    def _say(self, stream: str, text: str) -> None:
        self._emit(Line(time.time(), self.process, self.pid, stream, text))

    def _emit(self, line: Line) -> None:
        text = redacted(line.text)
        if text is not line.text:  # the process has printed a key
            line = msgspec.structs.replace(line, text=text)
        if line.stream != "stdout":
            self.tail.extend(line.text.split("\n"))
        self._on_line(line)


# --- for people and programs ----------------------------------------------------------------------------------------


def as_text(line: Line) -> str:
    """`[process agent] text`; the tag is repeated on each line of a record, so that `grep` finds all of it."""
    tag = f"[{line.process} {line.agent}] " if line.agent else f"[{line.process}] "
    level = f"{line.level}: " if line.level and line.level != "INFO" else ""
    return "\n".join(tag + part for part in (level + line.text).split("\n"))


def as_json(line: Line) -> str:
    """One JSON object on one line; empty fields are left out."""
    plain: dict[str, Any] = msgspec.to_builtins(line)
    plain["time"] = plain.pop("time_s")
    return msgspec.json.encode({key: value for key, value in plain.items() if value != ""}).decode()
