"""code_atlas: a walker finds the files of a tree, replicated analysers measure them, a report adds up.

Any process may be killed at any instruction and the totals stay exact, because the rules of this file are:
- whatever is handled twice has the effect of once: the walker goes by a cursor in its state and ignores what lies
  behind it; an analyser keeps nothing; the report stores rows under the number of their chunk, so a double replaces
  its equal;
- the walker and the report are declared `state: shm`: their state is committed together with the release of the
  message, so it never claims work whose message may come back, and never forgets work whose message is gone;
- what leaves the system (file, table, end of the run) may happen twice and replaces itself.

    walker ──chunk──▶ analyser (pulled by N processes) ──rows──▶ report
       └────────────────────────────end──────────────────────────▶┘
"""

from __future__ import annotations

import asyncio
import json
import os
import sysconfig
import warnings
from typing import Any

import msgspec
from measure import OK, UNPARSABLE, UNREADABLE, FileRow, measure_file, next_chunk, python_files

from civitas_shm import AgentProcess, ErrorAction, MailboxFull, Message

TABLE_ROWS = 10
PATH_WIDTH = 32
"""Characters of a path in the table; its end is what tells files apart."""


class Walker(AgentProcess):
    """Names every file once, in chunks with running numbers; waits when the analysers' mailbox is full.

    State: `chunk` (number of the next one), `after` (path of the last file in the one before), `files` (named so far),
    `done`. The next turn follows from it alone.
    """

    async def on_start(self) -> None:
        path = os.path.abspath(os.path.expanduser(self.config.get("path") or sysconfig.get_path("stdlib")))
        if not os.path.isdir(path):
            raise NotADirectoryError(f"walker.path: {path!r} is not a directory; set it with --set walker.path=DIR")
        self._root = os.fsencode(path)
        self._skip = [os.fsencode(name) for name in self.config.get("skip") or []]
        if not self.state:
            self.state.update(chunk=0, after=b"", files=0, done=False)
        if not self.state["done"]:
            # After a restart this doubles the message that is still there; the second one lies behind the cursor.
            await self.send(self.name, {"chunk": self.state["chunk"]}, message_type="walk")

    async def handle(self, message: Message) -> None:
        state = self.state
        if state["done"] or message.payload["chunk"] < state["chunk"]:
            return
        # One chunk a turn: a turn that waits for many lives longer than a process under --chaos, and would come back
        # for ever with all its chunks sent again.
        number = state["chunk"]
        chunk = next_chunk(python_files(self._root, state["after"], self._unreadable_directory, self._skip))
        if not chunk:
            end = {"root": self._root, "skip": self._skip, "chunks": number, "files": state["files"]}
            await self.send("report", end, message_type="end")
            state["done"] = True
            return
        await self.send("analyser", {"chunk": number, "root": self._root, "files": chunk}, message_type="chunk")
        await self.send(self.name, {"chunk": number + 1}, message_type="walk")
        state.update(chunk=number + 1, after=chunk[-1], files=state["files"] + len(chunk))

    async def on_error(self, error: Exception, message: Message) -> ErrorAction:
        """Analysers that made no room for 30 s are busy with giant files: start the turn again."""
        return ErrorAction.RETRY if isinstance(error, MailboxFull) else ErrorAction.ESCALATE

    def _unreadable_directory(self, error: OSError) -> None:
        self.log.warning("left out %r: %s", error.filename, error.strerror)


class Analyser(AgentProcess):
    """Measures the files of one chunk: CPU-bound, and the same answer for the same chunk."""

    async def on_start(self) -> None:
        # ast.parse warns about escapes and comparisons in the code it reads; that code is not ours to mend.
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)

    async def handle(self, message: Message) -> None:
        root, chunk, files = (message.payload[key] for key in ("root", "chunk", "files"))
        # In a thread, so that the walker and the report, which may live in the same process, are not kept waiting.
        rows = await asyncio.to_thread(_measure_files, root, files)
        await self.send("report", {"chunk": chunk, "rows": msgspec.msgpack.encode(rows)}, message_type="rows")


def _measure_files(root: bytes, files: list[bytes]) -> list[FileRow]:
    return [measure_file(root, path) for path in files]


class Report(AgentProcess):
    """Collects the rows; when all chunks are there, writes JSON, draws the table and ends the run.

    State: `chunks` (number -> rows, packed) and `end` (what the walker told, or None). The rows stay packed because the
    whole state is encoded at each commit: thousands of files are then a copy of some hundred byte strings.
    """

    async def on_start(self) -> None:
        self._out = os.path.abspath(os.path.expanduser(self.config.get("out") or "code_atlas.json"))
        if not os.access(os.path.dirname(self._out), os.W_OK | os.X_OK) or os.path.isdir(self._out):
            raise PermissionError(f"report.out: cannot write {self._out!r}; set another one with --set report.out=FILE")
        if not self.state:
            self.state.update(chunks={}, end=None)
        await self._finish_when_complete()  # killed between the last commit and the end of the run

    async def handle(self, message: Message) -> None:
        if message.type == "end":
            self.state["end"] = message.payload
        else:
            self.state["chunks"][message.payload["chunk"]] = message.payload["rows"]
        await self._finish_when_complete()

    async def _finish_when_complete(self) -> None:
        end, chunks = self.state["end"], self.state["chunks"]
        if end is None or len(chunks) < end["chunks"]:
            return
        rows = [row for number in range(end["chunks"]) for row in _unpack(chunks[number])]
        report = summary(os.fsdecode(end["root"]), [os.fsdecode(name) for name in end["skip"]], rows)
        try:
            write_json(self._out, report)
        except OSError as error:
            self.log.error("cannot write %r: %s", self._out, error.strerror)
            await self.stop_runtime(1)
            return
        draw(report, self._out)
        await self.stop_runtime(0)


_decoder = msgspec.msgpack.Decoder(list[FileRow])


def _unpack(packed: bytes) -> list[FileRow]:
    return _decoder.decode(packed)


def summary(root: str, skip: list[str], rows: list[FileRow]) -> dict[str, Any]:
    """The report: exact totals, and the numbers of each file. A file that cannot be read is listed and not counted."""
    read = [row for row in rows if row.status != UNREADABLE]
    return {
        "root": root,
        "skip": skip,
        "files": len(read),
        "bytes": sum(row.size_bytes for row in read),
        "lines": sum(row.lines for row in read),
        "functions": sum(row.functions for row in read),
        "classes": sum(row.classes for row in read),
        "imports": sum(row.imports for row in read),
        "complexity": sum(row.complexity for row in read),
        "unparsable": sum(row.status == UNPARSABLE for row in read),
        "unreadable": [os.fsdecode(row.path) for row in rows if row.status == UNREADABLE],
        "per_file": [
            {
                "path": os.fsdecode(row.path),
                "bytes": row.size_bytes,
                "lines": row.lines,
                "functions": row.functions,
                "classes": row.classes,
                "imports": row.imports,
                "complexity": row.complexity,
                "unparsable": int(row.status != OK),
            }
            for row in read
        ],
    }


def write_json(path: str, report: dict[str, Any]) -> None:
    """Replace `path` in one step: a reader sees the old file or the whole new one, whenever we are killed.

    Bytes of a name that are no UTF-8 appear as Python's surrogate escapes: `os.fsencode` gives them back.
    """
    part = f"{path}.part"
    with open(part, "w", encoding="ascii") as file:
        json.dump(report, file, indent=1)
        file.write("\n")
    os.replace(part, path)


def draw(report: dict[str, Any], out: str) -> None:
    """The table on the terminal: totals, and the files with the highest complexity."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    title = Text(f"{report['files']:,} Python files below {_printable(report['root'])}")
    if report["skip"]:
        title.append(f", without {', '.join(map(_printable, report['skip']))}")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("most complex")
    columns = ("lines", "functions", "classes", "imports", "complexity")
    for column in columns:
        table.add_column(column, justify="right")
    for row in sorted(report["per_file"], key=lambda row: (-row["complexity"], row["path"]))[:TABLE_ROWS]:
        path = _printable(row["path"])
        shown = path if len(path) <= PATH_WIDTH else "…" + path[1 - PATH_WIDTH :]
        table.add_row(Text(shown), *(f"{row[column]:,}" for column in columns))
    table.add_section()
    table.add_row("all files", *(f"{report[column]:,}" for column in columns), style="bold")
    # Wide enough for any numbers; the table takes what it needs. A worker's output is a pipe, whose width nobody knows.
    console = Console(width=160, highlight=False)
    console.print(table)
    console.print(
        f"{report['bytes']:,} bytes; {report['unparsable']:,} unparsable, {len(report['unreadable']):,} unreadable"
    )
    console.print(Text(f"written to {_printable(out)}"))


def _printable(path: str) -> str:
    """A path as one line of text: what cannot be shown is escaped."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
