"""Stores of state, under the name that Civitas gives them; what is promised stands in `civitas_shm.state`.

The stores themselves: `sqlite_store`, `redis_store`, `encrypted_store`. This file imports none of them.
"""

from __future__ import annotations

from typing import Any

from ..state import FencedStateStore, InMemoryStateStore, StateStore
from ..topology.model import PluginSpec

__all__ = ["FencedStateStore", "InMemoryStateStore", "StateStore", "portable_store"]


def portable_store(store: Any) -> PluginSpec | None:
    """How another process builds the like of a store; None: it cannot, because only the object knows.

    A store says it by a method `plugin_spec()`. What is kept in memory is that process's own.
    """
    if isinstance(store, InMemoryStateStore):
        return PluginSpec("in_memory")
    say = getattr(store, "plugin_spec", None)
    return None if say is None else say()
