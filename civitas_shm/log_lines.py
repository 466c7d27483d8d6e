"""Log lines of this process, and those that a host passes on, in one form on stderr.

Rule of this file: `sys.stderr` is looked up at each line, because a screen may stand in for it for a while.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any, cast

from .host.logs import OutputSink, RecordHandler, as_json, as_text
from .host.protocol import Line
from .process import AGENT
from .topology.model import LoggingSpec

__all__ = ["LogLines", "line_printer"]


def line_printer(form: str) -> Callable[[Line], None]:
    """A function that prints a line as `text` or `json`."""
    render = as_json if form == "json" else as_text

    def show(line: Line) -> None:
        print(render(line), file=sys.stderr)

    return show


class LogLines:
    """From construction to `remove`: what is logged in this process is printed as the lines of process `main`."""

    def __init__(self, spec: LoggingSpec) -> None:
        levels = logging.getLevelNamesMapping()
        by_agent = {name: levels[text.upper()] for name, text in spec.agents.items()}
        default = levels[spec.level.upper()]
        self._show = line_printer(spec.format)
        sink: Any = self  # it has the one operation of a sink that a handler uses
        self._handler = RecordHandler(cast(OutputSink, sink), AGENT.get)
        self._handler.set_levels(default, by_agent)
        self._root = logging.getLogger()
        self._level = self._root.level
        self._root.addHandler(self._handler)
        self._root.setLevel(min([default, *by_agent.values()]))

    def put(self, stream: str, text: str, agent: str, level: str = "", logger: str = "") -> None:
        self._show(Line(time.time(), "main", os.getpid(), stream, text, agent, level, logger))

    def remove(self) -> None:
        """Leave logging as it was. Idempotent."""
        if self._handler in self._root.handlers:
            self._root.removeHandler(self._handler)
            self._root.setLevel(self._level)
