"""Where the agents of a run live: the process of each child, the mailbox of each agent, and who reads it.

Rules of this file: notes, and the calls to the memory that keep them true; when an agent comes or goes is decided in
the tree. What was declared has its process from the placement, what was spawned has it from here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from ..errors import CivitasError
from ..placement import Placement, PlannedProcess
from ..supervision import Tree
from ..supervision.state import ChildStatus
from ..topology.model import AgentSpec
from ..transport import Buried, MailboxSpec, RunMemory

__all__ = ["Homes", "Keep"]

Keep = Callable[[Buried], object]
"""What becomes of messages that nobody will read."""


class Homes:
    """One run's."""

    def __init__(self, placement: Placement, memory: RunMemory, tree: Callable[[], Tree]) -> None:
        self._placement = placement
        self._memory = memory
        self._tree = tree
        self.specs: dict[str, AgentSpec] = {agent.name: agent for agent in placement.spec.supervision.agents()}
        self._declared = {child: process for process in placement.processes for child in process.agents}
        self._spawned: dict[str, PlannedProcess] = {}
        """Process of each agent that was spawned."""
        self._mailboxes: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._closed: set[str] = set()
        """Agents whose last child was given up."""

    # --- questions ----------------------------------------------------------------------------------------------------

    def process_of(self, child: str) -> PlannedProcess:
        """The process that a child of the tree runs in."""
        return self._spawned.get(child) or self._declared[child]

    def agent_of(self, mailbox: int) -> str:
        """The name of a mailbox's agent."""
        return self._names.get(mailbox, f"mailbox {mailbox}")

    def mailbox_of(self, agent: str) -> int | None:
        """Where its messages wait; None when it is gone."""
        return None if agent in self._closed else self._mailboxes.get(agent)

    def limits(self) -> dict[int, int]:
        """`max_deliveries` by mailbox."""
        return {mailbox: self.specs[agent].max_deliveries for agent, mailbox in self._mailboxes.items()}

    def _readers(self, agent: str, without: str = "") -> list[int]:
        if agent in self._spawned:
            return [self._spawned[agent].slot]
        children = [child for child in self._tree().children.values() if child.agent == agent]
        alive = [child for child in children if child.key != without and child.status is not ChildStatus.GONE]
        return [self.process_of(child.key).slot for child in alive]

    # --- what was declared --------------------------------------------------------------------------------------------

    def open_mailbox(self, agent: str) -> int:
        """Its mailbox: made, or another one where the last was closed; read by its children."""
        known = self.mailbox_of(agent)
        if known is not None:
            return known
        spec = self.specs[agent]
        mailbox = self._memory.add_mailbox(
            MailboxSpec(agent, spec.mailbox_size, overflow=spec.overflow, replicas=spec.replicas)
        )
        self._mailboxes[agent] = mailbox
        self._names[mailbox] = agent
        self._closed.discard(agent)
        self._memory.set_readers(mailbox, self._readers(agent))
        return mailbox

    def begin_life(self, agent: str, incarnation: int) -> int:
        """A child of it is about to be started. Its mailbox."""
        mailbox = self.open_mailbox(agent)
        self._memory.begin_life(mailbox, incarnation)
        return mailbox

    def give_up(self, agent: str, child: str, keep: Keep) -> bool:
        """A child does not come back: the mailbox gets a reader less. True: it was the last one, so it is closed.

        `keep` gets what waited there.
        """
        slots = self._readers(agent, without=child)
        if slots:
            self._memory.set_readers(self._mailboxes[agent], slots)
            return False
        self._closed.add(agent)
        self._memory.close_mailbox(self._mailboxes[agent], keep)
        return True

    # --- what is spawned ----------------------------------------------------------------------------------------------

    def move_in(self, agent: AgentSpec) -> None:
        """Choose a process for an agent that is being spawned, and make its mailbox. CivitasError: it cannot be."""
        loads = Counter(self.process_of(child).name for child in self._tree().children)
        process = self._placement.process_for(agent, loads)
        self.specs[agent.name] = agent
        self._spawned[agent.name] = process
        try:
            self.open_mailbox(agent.name)
        except CivitasError:
            del self.specs[agent.name], self._spawned[agent.name]
            raise

    def move_out(self, agent: str, keep: Keep) -> None:
        """It is gone for good; `keep` gets what waited for it."""
        self._memory.close_mailbox(self._mailboxes.pop(agent), keep)
        del self.specs[agent], self._spawned[agent]
