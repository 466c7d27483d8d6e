"""What code_atlas measures: which files belong to a tree, and the numbers of one file.

Rules of this file: no agents and no messages here; paths are bytes relative to the root, because a file name on Linux
is bytes and need not be text; every function gives the same answer however often, and wherever, it is called.
The definitions stand in README.md; `own_count.py` counts the same things with code of its own.
"""

from __future__ import annotations

import ast
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator

import msgspec

CHUNK_BYTES = 128 * 1024
"""Source handed to an analyser at once: some 40 ms of work, so a kill costs little, and a message next to nothing."""
CHUNK_FILES = 64
"""Bounds a chunk of tiny files."""

OK, UNPARSABLE, UNREADABLE = 0, 1, 2

_DECISIONS = (
    ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert, ast.match_case,
    ast.comprehension,
)  # fmt: skip


class FileRow(msgspec.Struct, array_like=True, frozen=True):
    """The numbers of one file; travels and is stored as a bare list."""

    path: bytes
    status: int = OK
    size_bytes: int = 0
    lines: int = 0
    functions: int = 0
    classes: int = 0
    imports: int = 0
    complexity: int = 0


def python_files(
    root: bytes,
    after: bytes = b"",
    on_error: Callable[[OSError], None] | None = None,
    skip: Collection[bytes] = (),
) -> Iterator[tuple[bytes, int]]:
    """Yield (path, size in bytes) of each `*.py` below `root`, in the order of the paths' components.

    Starts behind the path `after`; directories that lie wholly before it are not read, so going on is cheap.
    Symbolic links, to files or directories, are not followed and not counted; neither is what is no regular file.
    Directories whose own name is in `skip` are left out, wherever they lie.
    A directory that cannot be read is told to `on_error` and left out.
    """
    pending = [_entries(root, b"", after.split(b"/") if after else [], on_error)]
    while pending:
        step = next(pending[-1], None)
        if step is None:
            pending.pop()
            continue
        entry, path, rest = step
        if entry.is_dir(follow_symlinks=False):
            if entry.name in skip:
                continue
            pending.append(_entries(entry.path, path + b"/", rest, on_error))
        elif path != after and entry.name.endswith(b".py") and entry.is_file(follow_symlinks=False):
            yield path, _size_bytes(entry)


def _entries(
    directory: bytes, prefix: bytes, after: list[bytes], on_error: Callable[[OSError], None] | None
) -> Iterator[tuple[os.DirEntry[bytes], bytes, list[bytes]]]:
    """The entries of one directory from component `after[0]` on: (entry, path, what of `after` holds below it)."""
    try:
        with os.scandir(directory) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        if on_error is not None:
            on_error(error)
        return
    first = after[0] if after else b""
    for entry in entries:
        if entry.name >= first:
            yield entry, prefix + entry.name, after[1:] if entry.name == first else []


def _size_bytes(entry: os.DirEntry[bytes]) -> int:
    """0 for a file that has just vanished: whoever reads it will say so."""
    try:
        return entry.stat(follow_symlinks=False).st_size
    except OSError:
        return 0


def next_chunk(files: Iterator[tuple[bytes, int]]) -> list[bytes]:
    """Take files until the chunk is full; at least one while there are any, so an empty chunk is the end."""
    chunk: list[bytes] = []
    size_bytes = 0
    for path, file_bytes in files:
        chunk.append(path)
        size_bytes += file_bytes
        if size_bytes >= CHUNK_BYTES or len(chunk) >= CHUNK_FILES:
            break
    return chunk


def measure_file(root: bytes, path: bytes) -> FileRow:
    """Read and measure one file. CPU-bound, about 4 MB of source per second."""
    try:
        with open(os.path.join(root, path), "rb") as file:
            data = file.read()
    except OSError:
        return FileRow(path, UNREADABLE)
    return measure_source(path, data)


def measure_source(path: bytes, data: bytes) -> FileRow:
    """Measure source code that is already in memory."""
    size_bytes, lines = len(data), len(data.splitlines())
    try:
        tree = ast.parse(data)
    except Exception:  # noqa: BLE001 - the definition of unparsable: ast.parse raises, whatever it is
        return FileRow(path, UNPARSABLE, size_bytes, lines)
    kinds: Counter[type] = Counter()
    decisions = 0
    for node in ast.walk(tree):
        kinds[type(node)] += 1
        if isinstance(node, ast.BoolOp):
            decisions += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            decisions += len(node.ifs)
    functions = kinds[ast.FunctionDef] + kinds[ast.AsyncFunctionDef]
    return FileRow(
        path=path,
        size_bytes=size_bytes,
        lines=lines,
        functions=functions,
        classes=kinds[ast.ClassDef],
        imports=kinds[ast.Import] + kinds[ast.ImportFrom],
        complexity=1 + functions + decisions + sum(kinds[kind] for kind in _DECISIONS),
    )
