"""Tracebacks for the people who write agents: their frames, not ours.

Rule of this file: if every frame is ours, none is removed, because then the fault is ours too.
"""

from __future__ import annotations

import os
import traceback
from typing import Final

from .redaction import redacted

__all__ = ["error_text", "format_exception"]

_OURS: Final = (
    os.path.dirname(os.path.abspath(__file__)) + os.sep,
    os.sep + "civitas_shm_transports" + os.sep,
)
"""This package by its directory; the transports by name, because this layer cannot import them to ask."""


def format_exception(error: BaseException) -> str:
    """As `traceback.format_exception`, with causes and groups, without our own frames and without secrets."""
    report = traceback.TracebackException.from_exception(error)
    _strip(report, set())
    return redacted("".join(report.format()).rstrip("\n"))


def error_text(error: BaseException) -> str:
    """`str(error)` without what this process keeps secret."""
    return redacted(str(error))


def _strip(report: traceback.TracebackException | None, seen: set[int]) -> None:
    if report is None or id(report) in seen:
        return
    seen.add(id(report))
    theirs = [frame for frame in report.stack if not _is_ours(frame.filename)]
    if theirs:
        report.stack = traceback.StackSummary.from_list(theirs)
    _strip(report.__cause__, seen)
    _strip(report.__context__, seen)
    for nested in report.exceptions or ():
        _strip(nested, seen)


def _is_ours(filename: str) -> bool:
    return filename.startswith(_OURS[0]) or _OURS[1] in filename
