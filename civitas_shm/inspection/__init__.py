"""A run as anybody of the same user sees it from outside: read (`readings`), compared (`scene`), explained (`why`).

Rules of this package: what is read is frozen and can be kept in a file; what it means is decided by pure functions
over one or two readings, so a recorded run is explained as a live one is. Nothing here asks a process anything.
"""

from __future__ import annotations

from .readings import Hand, Looker, Reading
from .scene import Scene
from .snapshots import snapshot_of
from .why import Finding, find

__all__ = ["Finding", "Hand", "Looker", "Reading", "Scene", "find", "snapshot_of"]
