"""What a program sees of its run: agents, the tree, messages that wait, dead letters, readings.

Rules of this file: nothing here waits or changes anything; before the start it tells what was declared, after the end
what was seen last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import MessageRoutingError
from .handles import AgentHandle, status_of
from .letters import Letter
from .process import AgentProcess
from .registry import RunRegistry
from .snapshot import AgentSnapshot, RuntimeSnapshot
from .supervisor import Supervisor
from .topology.model import SupervisorSpec, TopologySpec

__all__ = ["Looking"]


class Looking:
    """Base of Runtime."""

    _run: Any
    _name: str
    _given: TopologySpec
    _from_objects: bool
    _supervisor: Supervisor

    if TYPE_CHECKING:

        def _started(self) -> Any: ...

    @property
    def registry(self) -> RunRegistry:
        """Who is there and what each can do, while the run lasts."""
        registry: RunRegistry = self._started().bus.registry
        return registry

    # --- agents -------------------------------------------------------------------------------------------------------

    def get_agent(self, name: str) -> AgentProcess | AgentHandle:
        """The object of an agent that lives in this process, of any other a handle with its name and status.

        MessageRoutingError: there is no such agent, or it was never started in a run that is over.
        """
        agent: AgentProcess | None = None
        if self._run is not None:
            agent = self._run.agent(name)
        elif self._from_objects:
            agent = next((one for one in self._supervisor.all_agents() if one.name == name), None)
        if agent is not None:
            return agent
        if self._run is not None and name in self._run.bus.roster:
            return self._handle(name)
        raise MessageRoutingError(f"No agent is named {name!r}; there are {', '.join(self.agent_names()) or 'none'}.")

    def _handle(self, name: str) -> AgentHandle:
        def reading(agent: str) -> AgentSnapshot | None:
            return next((one for one in self.snapshot().agents if one.name == agent), None)

        return AgentHandle(name, self.registry, reading)

    def all_agents(self) -> list[AgentProcess | AgentHandle]:
        """All agents as `get_agent` gives them, in the order of `agent_names`; before the start the program's own."""
        if self._run is None:
            return list(self._supervisor.all_agents()) if self._from_objects else []
        return [self._run.agent(name) or self._handle(name) for name in self.agent_names()]

    def agent_names(self) -> list[str]:
        """The names of all agents, in start order; behind them those that were spawned, while the run lasts."""
        if self._run is not None and self._run.alive:
            names: list[str] = self._run.agent_names()
            return names
        return [agent.name for agent in self._given.supervision.agents()]

    def dynamic_agents(self, supervisor: str) -> list[AgentProcess | AgentHandle]:
        """Those that were spawned below a dynamic supervisor and are not gone."""
        if self._run is None or not self._run.alive:
            return []
        names = [name for name, traits in self._run.bus.roster if traits.supervisor == supervisor]
        return [self._run.agent(name) or self._handle(name) for name in names]

    # --- the tree -----------------------------------------------------------------------------------------------------

    def print_tree(self) -> str:
        """The supervision tree as text, one line for each supervisor and agent, with what is known of its state.

        `[sup] name (STRATEGY)` and `[agent] name (STATUS)`; `dyn`: a dynamic supervisor, `srv`: a GenServer, `eval`: an
        EvalAgent. STATUS is a word of `ProcessStatus`.
        """
        kinds: dict[str, str] = {}
        if self._from_objects:
            kinds = {agent.name: agent._kind for agent in self._supervisor.all_agents()}
        if self._run is not None:
            kinds |= {name: traits.kind for name, traits in self._run.bus.roster}
        return "\n".join(_tree_lines(self._given.supervision, self.snapshot().agents, kinds))

    # --- messages and readings ----------------------------------------------------------------------------------------

    def waiting(self) -> dict[str, int]:
        """Messages that wait or are in hand, by agent. After the end: those that stay for `resume`."""
        return {} if self._run is None else dict(self._run.waiting())

    def dead_letters(self) -> list[Letter]:
        """Messages that no handler will finish, the newest first, without payloads. After the end: those that stay."""
        return [] if self._run is None else self._run.dead_letters()

    def snapshot(self) -> RuntimeSnapshot:
        """One reading of processes and agents; after the end, the last one."""
        if self._run is None:
            return RuntimeSnapshot(name=self._name, transport=self._given.transport.type)
        snapshot: RuntimeSnapshot = self._run.snapshot()
        return snapshot


def _tree_lines(spec: SupervisorSpec, agents: Sequence[AgentSnapshot], kinds: Mapping[str, str]) -> list[str]:
    """Of a dynamic supervisor: what is spawned below it just now."""
    states = {agent.name: agent.state for agent in agents}
    children: list[SupervisorSpec | str] = [c if isinstance(c, SupervisorSpec) else c.name for c in spec.children]
    if spec.dynamic is not None:
        children = [agent.name for agent in agents if agent.supervisor == spec.name]
    lines = [f"[{'sup' if spec.dynamic is None else 'dyn'}] {spec.name} ({spec.strategy})"]
    for number, child in enumerate(children, 1):
        branch, below = ("└── ", "    ") if number == len(children) else ("├── ", "│   ")
        if isinstance(child, SupervisorSpec):
            head, *rest = _tree_lines(child, agents, kinds)
        else:
            status = status_of(states.get(child, "down")).value
            head, rest = f"[{kinds.get(child, 'agent')}] {child} ({status})", []
        lines += [branch + head, *(below + line for line in rest)]
    return lines
