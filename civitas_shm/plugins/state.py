"""Stores of state, under the name that Civitas gives them; what is promised stands in `civitas_shm.state`."""

from __future__ import annotations

from ..state import InMemoryStateStore, StateStore

__all__ = ["InMemoryStateStore", "StateStore"]
