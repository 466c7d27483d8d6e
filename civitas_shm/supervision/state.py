"""The state of a supervision tree: plain frozen values, how they begin, and what may be asked of them.

Rules of this file: no transition lives here (they are all in `tree`); a Tree is never changed, `step` makes a new one;
children and supervisors are named, and one name means one thing in the whole tree. All values are msgspec's: one with a
field changed takes 0.2 µs, a frozen dataclass 6, and that was half the time of a step.

A child is an agent. An agent with `replicas: N`, N > 1, is N children `name#0` … `name#N-1` in one group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from enum import Enum
from typing import Literal

from msgspec import Struct, field
from msgspec.structs import replace

from ..errors import ConfigurationError
from ..topology.model import AgentSpec, SupervisorSpec
from .policy import Counted, Restart, in_window, significance_problem

__all__ = [
    "ChildReport",
    "ChildState",
    "ChildStatus",
    "Fall",
    "Phase",
    "SupervisorReport",
    "SupervisorState",
    "TimerTarget",
    "Tree",
    "child_keys",
    "is_settled",
    "report_children",
    "report_supervisors",
    "restart_count",
    "restarts_in_window",
    "running_children",
]


class ChildStatus(Enum):
    """Where a child is in its life. Something of it runs in STARTING, READY and STOPPING only."""

    DOWN = "down"
    """Not started yet, or taken down; its supervisor starts it when its turn comes."""
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    WAITING = "waiting"
    """Fell, and waits out its backoff."""
    GONE = "gone"
    """Ended, and is not restarted for its own sake."""


class Phase(Enum):
    """What a supervisor is doing."""

    DOWN = "down"
    UP = "up"
    """Starting its children in order, or all are started; single children are restarted."""
    CLEARING = "clearing"
    """Taking down what falls with a child (ONE_FOR_ALL, REST_FOR_ONE)."""
    HOLDING = "holding"
    """That is down; waiting out the backoff before it is started again."""
    HALTED = "halted"
    """Something above is being taken down: starts nothing any more, and waits for its own turn to stop."""
    STOPPING = "stopping"
    WAITING = "waiting"
    """Down because it gave up; its parent restarts it after a backoff."""
    GONE = "gone"
    """Ended, and is not restarted for its own sake; all below it is gone too."""


class Fall(Struct, frozen=True):
    """Why a restart is needed."""

    cause: int
    """Number of the event."""
    counts: bool
    reason: str
    supervisor: str
    """Where it began."""
    child: str


class DynamicChild(Struct, frozen=True):
    """What a spawned child has beside the others: its own restart window, and an end."""

    type: str
    """Import path of its class."""
    spawner: str
    counted: tuple[Counted, ...] = ()
    removing: bool = False
    """RemoveChild came: it leaves the tree when it has ended."""


class ChildState(Struct, frozen=True):
    """One child."""

    key: str
    agent: str
    replica: int
    supervisor: str
    group: int
    """Index in the supervisor's `groups`."""
    restart: Restart
    shutdown_timeout_s: float
    significant: bool = False
    status: ChildStatus = ChildStatus.DOWN
    incarnation: int = 0
    """Of the last start; `before` = never started."""
    dynamic: DynamicChild | None = None
    """Not None: it was spawned."""
    before: int = 0
    """Up to here incarnations belong to lives before this child was in the tree (see `Tree.departed`)."""

    @property
    def lives(self) -> bool:
        """Whether something of it runs somewhere."""
        return self.status in (ChildStatus.STARTING, ChildStatus.READY, ChildStatus.STOPPING)


class SupervisorState(Struct, frozen=True):
    """One supervisor."""

    spec: SupervisorSpec
    parent: str | None
    group: int
    groups: tuple[tuple[str, ...], ...]
    """Names of children and supervisors in start order; what is in one group starts and stops together."""
    phase: Phase = Phase.DOWN
    ready: bool = False
    """All of it has been up since its last start: what comes after it may start."""
    frontier: int = 0
    """UP: the group that is being started, those before it have been ready. Else: groups from here on are down."""
    scope: int = 0
    """CLEARING, HOLDING: groups from this one on fall. STOPPING: 0."""
    hold_until_s: float = 0.0
    """CLEARING, HOLDING: when the fallen groups may start again."""
    counted: tuple[Counted, ...] = ()
    """Restarts that were in the window when the last one was added."""
    up_since_s: float | None = None
    """When all its children came to be up together, if they are; kept only where `backoff_reset_s` is set."""
    series: int = 0
    """The cause that the present series of restarts began with (policy: **Backoff**)."""
    escalation: Fall | None = None
    """STOPPING because the budget is used up."""
    shutdown: Fall | None = None
    """STOPPING because its significant children have ended."""
    spawned: Mapping[str, int] = field(default_factory=dict)
    """A dynamic one: spawns since the beginning, by spawner where the quota has a limit for each."""
    starts: int = 0
    """How often it was started; more than once: restarted."""

    @property
    def name(self) -> str:
        return self.spec.name


class TimerTarget(Struct, frozen=True):
    """What a timer is for: these children restart (ONE_FOR_ONE), or, when empty, the supervisor's fallen groups."""

    supervisor: str
    names: tuple[str, ...]


class Tree(Struct, frozen=True):
    """The whole state; see `tree.step`."""

    root: str
    children: Mapping[str, ChildState]
    """In start order, depth first; those that were spawned, by their spawn, behind all others."""
    supervisors: Mapping[str, SupervisorState]
    """A parent stands before its children."""
    seed: int
    """Of the jitter."""
    timers: Mapping[int, TimerTarget] = field(default_factory=dict)
    next_timer: int = 1
    next_cause: int = 1
    departed: int = 0
    """No child that has left the tree had a higher incarnation; who is spawned goes on from it. So a name and an
    incarnation mean one life for ever, however often the name is used again, and one number remembers them all."""
    outcome: Literal["stopped", "failed"] | None = None
    """Final when not None."""

    @classmethod
    def from_spec(cls, spec: SupervisorSpec, seed: int = 0, departed: int = 0) -> Tree:
        """The tree before its start. ConfigurationError when names clash or a limit is impossible.

        `departed`: the highest incarnation of an earlier tree of the same run, which this one goes on from.
        """
        children: dict[str, ChildState] = {}
        supervisors: dict[str, SupervisorState] = {}
        if spec.significant:
            raise ConfigurationError(f"supervisor {spec.name!r}: the root cannot be significant: nothing is above it.")
        _plant(spec, None, 0, children, supervisors)
        _refuse_clashes(spec)
        if departed:
            children = {key: replace(child, incarnation=departed, before=departed) for key, child in children.items()}
        return cls(root=spec.name, children=children, supervisors=supervisors, seed=seed, departed=departed)


def child_keys(agent: AgentSpec) -> tuple[str, ...]:
    """The names of an agent's children in the tree: its own, or `name#0` … when it has several replicas."""
    if agent.replicas == 1:
        return (agent.name,)
    return tuple(f"{agent.name}#{replica}" for replica in range(agent.replicas))


def _plant(
    spec: SupervisorSpec,
    parent: str | None,
    group: int,
    children: dict[str, ChildState],
    supervisors: dict[str, SupervisorState],
) -> None:
    _check_limits(spec)
    groups: tuple[tuple[str, ...], ...] = tuple(
        (c.name,) if isinstance(c, SupervisorSpec) else child_keys(c) for c in spec.children
    )
    if spec.dynamic is not None:
        groups = ((),)  # one group: what is spawned starts at once, and stops side by side
    supervisors[spec.name] = SupervisorState(spec=spec, parent=parent, group=group, groups=groups)
    for index, child in enumerate(spec.children):
        problem = significance_problem(child.significant, child.restart, spec.auto_shutdown)
        if problem is not None:
            raise ConfigurationError(f"{child.name!r} below supervisor {spec.name!r}: {problem}.")
        if isinstance(child, SupervisorSpec):
            _plant(child, spec.name, index, children, supervisors)
            continue
        if child.replicas < 1:
            raise ConfigurationError(f"agent {child.name!r}: replicas is {child.replicas}; at least 1 is needed.")
        for replica, key in enumerate(child_keys(child)):
            children[key] = ChildState(
                key, child.name, replica, spec.name, index, child.restart, child.shutdown_timeout_s, child.significant
            )


def _check_limits(spec: SupervisorSpec) -> None:
    where = f"supervisor {spec.name!r}"
    if spec.strategy not in ("ONE_FOR_ONE", "ONE_FOR_ALL", "REST_FOR_ONE"):
        raise ConfigurationError(
            f"{where}: strategy is {spec.strategy!r}; it must be ONE_FOR_ONE, ONE_FOR_ALL or REST_FOR_ONE."
        )
    if spec.dynamic is not None and (spec.strategy != "ONE_FOR_ONE" or spec.auto_shutdown != "never"):
        raise ConfigurationError(f"{where}: a dynamic supervisor is ONE_FOR_ONE and has no auto_shutdown.")
    if spec.dynamic is not None and spec.children:
        raise ConfigurationError(f"{where} is dynamic: its children are spawned, none can be declared.")
    if spec.backoff not in ("CONSTANT", "LINEAR", "EXPONENTIAL"):
        raise ConfigurationError(f"{where}: backoff is {spec.backoff!r}; it must be CONSTANT, LINEAR or EXPONENTIAL.")
    if spec.max_restarts < 0:
        raise ConfigurationError(f"{where}: max_restarts is {spec.max_restarts}; it must be 0 or more.")
    if not spec.restart_window_s > 0:
        raise ConfigurationError(f"{where}: restart_window is {spec.restart_window_s} s; it must be more than 0.")
    if not (spec.backoff_base_s >= 0 and spec.backoff_max_s >= 0):
        raise ConfigurationError(
            f"{where}: backoff_base is {spec.backoff_base_s} s and backoff_max {spec.backoff_max_s} s; "
            "neither may be negative."
        )
    if spec.backoff_reset_s is not None and not spec.backoff_reset_s > 0:
        raise ConfigurationError(f"{where}: backoff_reset is {spec.backoff_reset_s} s; it must be more than 0.")
    if spec.auto_shutdown not in ("never", "any_significant", "all_significant"):
        raise ConfigurationError(
            f"{where}: auto_shutdown is {spec.auto_shutdown!r}; it must be never, any_significant or all_significant."
        )
    if spec.restart not in ("permanent", "transient", "temporary"):
        raise ConfigurationError(f"{where}: restart is {spec.restart!r}; it must be permanent, transient or temporary.")


def _refuse_clashes(spec: SupervisorSpec) -> None:
    """One name, one thing: events and reports name children and supervisors by it."""

    def names(supervisor: SupervisorSpec) -> list[str]:
        found = [supervisor.name]
        for child in supervisor.children:
            found.extend(names(child) if isinstance(child, SupervisorSpec) else child_keys(child))
        return found

    twice = sorted(name for name, count in Counter(names(spec)).items() if count > 1)
    if twice:
        raise ConfigurationError(
            f"These names are used more than once: {', '.join(map(repr, twice))}. "
            "Agents (replicas as name#0, name#1, …) and supervisors need names of their own in one tree."
        )


# --- questions -----------------------------------------------------------------------------------------------------


class ChildReport(Struct, frozen=True):
    """One child, for people and tools."""

    name: str
    agent: str
    replica: int
    supervisor: str
    status: str
    incarnation: int
    restarts: int


class SupervisorReport(Struct, frozen=True):
    """One supervisor, for people and tools."""

    name: str
    parent: str | None
    strategy: str
    phase: str
    restarts_in_window: int
    max_restarts: int
    restart_window_s: float


def restart_count(tree: Tree, child: str) -> int:
    """How often the child was started again, for whatever reason, since it is in the tree."""
    state = tree.children[child]
    return max(state.incarnation - state.before - 1, 0)


def restarts_in_window(tree: Tree, now_s: float) -> dict[str, int]:
    """Per supervisor: how much of its budget is used just now."""
    return {
        name: len(in_window(supervisor.counted, now_s, supervisor.spec.restart_window_s))
        for name, supervisor in tree.supervisors.items()
    }


def running_children(tree: Tree) -> list[str]:
    """The children that are ready, in start order."""
    return [key for key, child in tree.children.items() if child.status is ChildStatus.READY]


def report_children(tree: Tree) -> list[ChildReport]:
    """All children, in start order."""
    return [
        ChildReport(
            name=child.key,
            agent=child.agent,
            replica=child.replica,
            supervisor=child.supervisor,
            status=child.status.value,
            incarnation=child.incarnation,
            restarts=restart_count(tree, child.key),
        )
        for child in tree.children.values()
    ]


def report_supervisors(tree: Tree, now_s: float) -> list[SupervisorReport]:
    """All supervisors, parents first."""
    used = restarts_in_window(tree, now_s)
    return [
        SupervisorReport(
            name=name,
            parent=supervisor.parent,
            strategy=supervisor.spec.strategy,
            phase=supervisor.phase.value,
            restarts_in_window=used[name],
            max_restarts=supervisor.spec.max_restarts,
            restart_window_s=supervisor.spec.restart_window_s,
        )
        for name, supervisor in tree.supervisors.items()
    ]


def is_settled(tree: Tree) -> bool:
    """Nothing is under way: all run (or are gone for good), or the tree has reached its end."""
    if tree.outcome is not None:
        return True
    return all(c.status in (ChildStatus.READY, ChildStatus.GONE) for c in tree.children.values()) and all(
        (s.phase is Phase.UP and s.ready) or s.phase is Phase.GONE for s in tree.supervisors.values()
    )
