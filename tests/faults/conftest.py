"""Real runs for these tests, made as in tests/process."""

from __future__ import annotations

from ..process.conftest import start_run

__all__ = ["start_run"]
