"""AgentHandle: what a program gets where it asks for the object of an agent that lives in another process.

    runtime.get_agent("planner").status            # over any transport
    runtime.get_agent("planner").state             # in one process only: AttributeError says where it lives

Rules of this file: a handle reads and never changes anything; what it reads is what this process knows just now, which
for `status`, `process` and `restarts` is the host's last reading, at most a second old. Exact at once is what
`civitas.supervision.status` answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from .process import ProcessStatus
from .registry import RoutingEntry, RunRegistry
from .snapshot import AgentSnapshot
from .supervision import STATUS_OF
from .supervision.state import ChildStatus

__all__ = ["AgentHandle", "status_of"]

_WORDS: Final[Mapping[str, str]] = {status.value: word for status, word in STATUS_OF.items()}


def status_of(state: str) -> ProcessStatus:
    """The word of a snapshot as Civitas has it; one that is not known yet: INITIALIZING."""
    if state == "running":
        return ProcessStatus.RUNNING
    word = _WORDS.get(state, state.upper())
    return ProcessStatus[word] if word in ProcessStatus.__members__ else ProcessStatus.INITIALIZING


class AgentHandle:
    """An agent of this run, by name."""

    __slots__ = ("_reading", "_registry", "name")

    def __init__(self, name: str, registry: RunRegistry, reading: Callable[[str], AgentSnapshot | None]) -> None:
        self.name = name
        self._registry = registry
        self._reading = reading

    @property
    def status(self) -> ProcessStatus:
        """STOPPED when it is gone for good."""
        if not self._registry.has(self.name):
            return ProcessStatus.STOPPED
        reading = self._reading(self.name)
        return status_of(ChildStatus.DOWN.value if reading is None else reading.state)

    @property
    def process(self) -> str:
        """Name of its process, of several with commas; empty while that is not known."""
        reading = self._reading(self.name)
        return "" if reading is None else reading.process

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        reading = self._reading(self.name)
        return 0 if reading is None else reading.restarts

    @property
    def capabilities(self) -> list[str]:
        """As the agent has them."""
        return list(self._entry.capabilities)

    @property
    def capability_metadata(self) -> dict[str, Any]:
        """As the agent has it."""
        return self._entry.capability_metadata

    @property
    def _entry(self) -> RoutingEntry:
        return self._registry.lookup(self.name) or RoutingEntry(self.name, self.name, False)

    def __getattr__(self, attribute: str) -> NoReturn:
        raise AttributeError(
            f"agent {self.name!r} lives in another process, and its {attribute!r} with it. Ask the agent for it, or "
            'run in one process (transport="in_process").'
        )

    def __repr__(self) -> str:
        return f"<AgentHandle {self.name!r} {self.status.value}>"
