"""What runs just now: context variables that all code of an agent shares, whatever tasks it starts.

Rules of this file: two variables and nothing else, so that everything may import it; only `seat` sets them.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

from .messages import Message

__all__ = ["AGENT", "HANDLED"]

HANDLED: Final[ContextVar[Message | None]] = ContextVar("civitas_shm.handled", default=None)
"""The message being handled. A context variable, so that tasks which a handler spawns keep its message."""

AGENT: Final[ContextVar[str]] = ContextVar("civitas_shm.agent", default="")
"""Whose code runs: set once in the context that all hooks of an agent share, so what they spawn has it too. Tags what
is printed and logged; empty outside of any agent."""
