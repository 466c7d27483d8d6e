"""What may name an agent, a supervisor or a process: asked by the topology and by whoever spawns."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["NAME_MAX", "name_problem"]

NAME_MAX: Final = 100
"""Characters of an agent's, process's or supervisor's name: it stands in directory records, log lines and tables."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@-]*\Z")


def name_problem(value: str) -> str | None:
    """Why a text cannot name an agent, a supervisor or a process, or None when it can."""
    if value.startswith("_"):
        return f"{value!r} begins with '_'; such names are reserved for the runtime"
    if len(value) > NAME_MAX:
        return f"the name has {len(value)} characters; the limit is {NAME_MAX}"
    if not _NAME.match(value):
        return f"{value!r} is no name; it needs letters, digits and _ . : @ - only, a letter or digit first"
    return None
