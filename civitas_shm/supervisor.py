"""Supervisor: what a program writes to say who starts, restarts and stops whom.

It is a declaration, made of objects: `spec_of` turns it into the same plain values that a topology file gives. What
supervision does is decided in `supervision.tree` and performed by a driver; nothing runs here.

Rules of this file: wrong arguments are ValueError at construction; what only another process makes impossible (a class
it cannot import, an argument that cannot be handed over) is an error when the specification is made for one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from enum import Enum
from typing import Any, Final, Protocol, TypeVar

from .errors import CivitasError, ConfigurationError
from .loading import class_path
from .placement import MAIN
from .process import AgentProcess
from .supervision.policy import significance_problem
from .topology.model import AgentSpec, DynamicSpec, SupervisorSpec

__all__ = [
    "AutoShutdown",
    "BackoffPolicy",
    "CrashCallback",
    "DynamicSupervisor",
    "HeartbeatTimeout",
    "RestartMode",
    "RestartStrategy",
    "Supervisor",
    "check_portable",
    "spec_of",
]

CrashCallback = Callable[[str, BaseException], Any]
"""`callback(agent, error)`, plain or `async def`."""
ReplacedCallback = Callable[[str, Any], Any]
"""`callback(name, agent)`: the new object, or a handle where it lives in another process."""

E = TypeVar("E", bound=Enum)
N = TypeVar("N", int, float)


class RestartStrategy(Enum):
    """Who is restarted with a child that fell."""

    ONE_FOR_ONE = "ONE_FOR_ONE"
    ONE_FOR_ALL = "ONE_FOR_ALL"
    REST_FOR_ONE = "REST_FOR_ONE"


class BackoffPolicy(Enum):
    """How the wait before a restart grows with the restarts in the window; the first one never waits."""

    CONSTANT = "CONSTANT"
    LINEAR = "LINEAR"
    EXPONENTIAL = "EXPONENTIAL"


class RestartMode(Enum):
    """What becomes of a child that ended by itself; Civitas's `never` is `temporary`."""

    permanent = "permanent"
    transient = "transient"
    temporary = "temporary"
    never = temporary


class HeartbeatTimeout(CivitasError):
    """The process of an agent did not answer any more, and was ended for it: what crash callbacks get then."""

    def __init__(self, agent_name: str, missed: int, text: str = "") -> None:
        self.agent_name = agent_name
        self.missed = missed
        """Probes that were not answered, at least."""
        super().__init__(text or f"{agent_name!r} has missed {missed} heartbeats")


class AutoShutdown(Enum):
    """When the end of significant children, which are not restarted, ends their supervisor."""

    never = "never"
    any_significant = "any_significant"
    all_significant = "all_significant"


class _Runtime(Protocol):
    """What a declaration needs of the Runtime that it is given to."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def dynamic_agents(self, supervisor: str) -> list[Any]: ...


class Supervisor:
    """Starts its children in order, restarts those that crash, stops them in reverse order.

    More than `max_restarts` within `restart_window` seconds: it gives up, and its own supervisor decides; the root's
    giving up ends the run. `auto_shutdown`: the end of one (or all) of its significant children ends it well; at the
    root, the run with exit code 0. `restart`, `significant`: what its own supervisor does with it then.
    """

    def __init__(
        self,
        name: str,
        children: Iterable[AgentProcess | Supervisor] | None = None,
        strategy: str | RestartStrategy = "ONE_FOR_ONE",
        max_restarts: int = 3,
        restart_window: float = 60.0,
        backoff: str | BackoffPolicy = "CONSTANT",
        backoff_base: float = 1.0,
        backoff_max: float = 60.0,
        *,
        backoff_reset: float | None = None,
        auto_shutdown: str | AutoShutdown = "never",
        restart: str | RestartMode = "permanent",
        significant: bool = False,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError(f"a supervisor's name must be a text that is not empty, not {name!r}")
        self.name = name
        self.children: list[AgentProcess | Supervisor] = list(children or ())
        self.strategy = _member(RestartStrategy, strategy, f"strategy of supervisor {name!r}")
        self.max_restarts = _at_least(0, max_restarts, f"max_restarts of supervisor {name!r}")
        self.restart_window = _at_least(0, restart_window, f"restart_window of supervisor {name!r}")
        self.backoff = _member(BackoffPolicy, backoff, f"backoff of supervisor {name!r}")
        self.backoff_base = _at_least(0, backoff_base, f"backoff_base of supervisor {name!r}")
        self.backoff_max = _at_least(0, backoff_max, f"backoff_max of supervisor {name!r}")
        self.backoff_reset = backoff_reset
        self.auto_shutdown = _member(AutoShutdown, auto_shutdown, f"auto_shutdown of supervisor {name!r}")
        self.restart = _restart_mode(restart, f"restart of supervisor {name!r}")
        self.significant = significant
        self.crash_callbacks: list[CrashCallback] = []
        self.child_replaced_callbacks: list[ReplacedCallback] = []
        self._runtime: _Runtime | None = None
        if backoff_reset is not None and not backoff_reset > 0:
            raise ValueError(f"backoff_reset of supervisor {name!r} is {backoff_reset!r}; it must be more than 0")
        if restart_window == 0:
            raise ValueError(f"restart_window of supervisor {name!r} is 0; it must be more")
        for child in self.children:
            if not isinstance(child, (AgentProcess, Supervisor)):
                raise ValueError(
                    f"a child of supervisor {name!r} is {child!r}; children are agents and supervisors (objects, not "
                    "classes)"
                )
            if not hasattr(child, "name"):
                raise ValueError(f"{type(child).__qualname__}.__init__ does not call super().__init__(name)")
            mode = _restart_mode(child.restart, f"restart of {child.name!r}")
            problem = significance_problem(child.significant, mode.value, self.auto_shutdown.value)
            if problem is not None:
                raise ValueError(f"{child.name!r} below supervisor {name!r}: {problem}")
        names = [supervisor.name for supervisor in self.all_supervisors()]
        names += [agent.name for agent in self.all_agents()]
        twice = sorted(one for one, count in Counter(names).items() if count > 1)
        if twice:
            raise ValueError(f"below supervisor {name!r} these names are used more than once: {', '.join(twice)}")

    # --- what happens -------------------------------------------------------------------------------------------------

    def add_crash_callback(self, callback: CrashCallback) -> None:
        """Call `callback(name, error)` in the program whenever an agent of this supervisor falls, over any transport.

        `error` as in `Runtime.on_crash`. What the callback raises is logged.
        """
        self.crash_callbacks.append(callback)

    def add_child_replaced_callback(self, callback: ReplacedCallback) -> None:
        """Call `callback(name, agent)` in the program when an agent of this supervisor has been started again.

        `agent` is what `Runtime.get_agent` gives. Called when its `on_start` has returned.
        """
        self.child_replaced_callbacks.append(callback)

    def add_remote_child(
        self,
        name: str,
        heartbeat_interval: float = 5.0,
        heartbeat_timeout: float = 2.0,
        missed_heartbeats_threshold: int = 3,
    ) -> None:
        """Refused: an agent of another process is an ordinary child here, and every process is watched."""
        raise ConfigurationError(
            f"{name!r} needs no add_remote_child: give the agent itself to supervisor {self.name!r} and say in which "
            "process it shall run (process=...). The host watches every process; handle_timeout limits a handler."
        )

    def _belongs_to(self, runtime: _Runtime) -> None:
        """For `Runtime`."""
        self._runtime = runtime

    async def start(self) -> None:
        """Start the run that this supervisor is declared in."""
        await self._its_runtime("start").start()

    async def stop(self) -> None:
        """Stop the run that this supervisor is declared in."""
        await self._its_runtime("stop").stop()

    def _its_runtime(self, what: str) -> _Runtime:
        if self._runtime is None:
            raise RuntimeError(f"supervisor {self.name!r} cannot {what}: it belongs to no Runtime yet")
        return self._runtime

    # --- what is declared ---------------------------------------------------------------------------------------------

    def all_agents(self) -> list[AgentProcess]:
        """All agents below, in start order."""
        found: list[AgentProcess] = []
        for child in self.children:
            found.extend(child.all_agents() if isinstance(child, Supervisor) else [child])
        return found

    def all_supervisors(self) -> list[Supervisor]:
        """This one and all below, parents first."""
        found = [self]
        for child in self.children:
            if isinstance(child, Supervisor):
                found.extend(child.all_supervisors())
        return found

    def __repr__(self) -> str:
        return f"<Supervisor {self.name!r} {self.strategy.value}, {len(self.children)} children>"


class DynamicSupervisor(Supervisor):
    """Its children are spawned while the run lasts: `AgentProcess.spawn`, `Runtime.spawn`; each restarted by itself.

    `restart` is that of the children; each may be restarted `max_restarts` times within `restart_window` seconds, then
    it is gone and its spawner hears of it (`on_child_terminated`). Quotas: None is no limit; `max_children_per_class`
    by class or import path; `spawner_allowlist`: names of the agents that may spawn here, the program always may.
    """

    def __init__(
        self,
        name: str,
        max_children: int | None = None,
        max_total_spawns: int | None = None,
        restart: str | RestartMode = "transient",
        max_restarts: int = 3,
        restart_window: float = 60.0,
        *,
        backoff: str | BackoffPolicy = "CONSTANT",
        backoff_base: float = 1.0,
        backoff_max: float = 60.0,
        max_children_per_class: Mapping[type[AgentProcess] | str, int] | None = None,
        max_children_per_spawner: int | None = None,
        max_total_spawns_per_spawner: int | None = None,
        spawner_allowlist: Iterable[str] | None = None,
        **agent_kwargs: Any,
    ) -> None:
        """`agent_kwargs`: what Civitas takes for the agent that a dynamic supervisor is there (`mailbox_size`, …);
        here it has no mailbox, so they mean nothing."""
        super().__init__(
            name,
            max_restarts=max_restarts,
            restart_window=restart_window,
            backoff=backoff,
            backoff_base=backoff_base,
            backoff_max=backoff_max,
        )
        for key in agent_kwargs:
            if key not in _AGENT_KWARGS:
                raise TypeError(f"{type(self).__qualname__}() has no argument {key!r}")
        self.child_restart = _restart_mode(restart, f"restart of dynamic supervisor {name!r}")
        quotas = {
            "max_children": max_children,
            "max_total_spawns": max_total_spawns,
            "max_children_per_spawner": max_children_per_spawner,
            "max_total_spawns_per_spawner": max_total_spawns_per_spawner,
            **{f"max_children_per_class[{kind}]": most for kind, most in (max_children_per_class or {}).items()},
        }
        for quota, most in quotas.items():
            if most is not None:
                _at_least(0, most, f"{quota} of dynamic supervisor {name!r}")
        self.max_children = max_children
        self.max_total_spawns = max_total_spawns
        self.max_children_per_class = dict(max_children_per_class or {})
        self.max_children_per_spawner = max_children_per_spawner
        self.max_total_spawns_per_spawner = max_total_spawns_per_spawner
        self.spawner_allowlist = None if spawner_allowlist is None else list(spawner_allowlist)
        self.current_spawner: str | None = None
        """While `on_spawn_requested` runs: the agent that wants to spawn; empty: the program. Else None."""

    async def on_spawn_requested(self, agent_class: type[AgentProcess], name: str, config: dict[str, Any]) -> bool:
        """Whether this agent may be spawned here; `current_spawner` says who wants it. False: SpawnError there.

        A subclass overrides it, plain or `async def`. It is asked after the quotas and the allowlist, one spawn at a
        time, in the program's own process, over any transport: the host runs no code of users. What it raises refuses
        the spawn. Agents that a resumed run brings back are not judged again.
        """
        return True

    def all_dynamic_agents(self) -> list[Any]:
        """Its agents that are there just now, as `Runtime.get_agent` gives them. Empty without a run."""
        return [] if self._runtime is None else self._runtime.dynamic_agents(self.name)

    def dynamic_spec(self) -> DynamicSpec:
        """The quotas as plain values."""
        return DynamicSpec(
            max_children=self.max_children,
            max_total_spawns=self.max_total_spawns,
            max_children_per_class={
                kind if isinstance(kind, str) else class_path(kind): most
                for kind, most in self.max_children_per_class.items()
            },
            max_children_per_spawner=self.max_children_per_spawner,
            max_total_spawns_per_spawner=self.max_total_spawns_per_spawner,
            spawner_allowlist=self.spawner_allowlist,
            restart=self.child_restart.value,
            asks=type(self).on_spawn_requested is not DynamicSupervisor.on_spawn_requested,
        )

    def __repr__(self) -> str:
        return f"<DynamicSupervisor {self.name!r}>"


_AGENT_KWARGS: Final = ("mailbox_size", "max_retries", "shutdown_timeout", "handle_timeout")


def _member(kind: type[E], value: str | E, what: str) -> E:
    word = value.casefold() if isinstance(value, str) else value  # as in a topology, upper and lower case are one
    try:
        return next(one for one in kind if one is value or one.value.casefold() == word)
    except StopIteration:
        raise ValueError(f"{what} is {value!r}; it must be {', '.join(one.value for one in kind)}") from None


def _restart_mode(value: str | RestartMode, what: str) -> RestartMode:
    return RestartMode.temporary if value == "never" else _member(RestartMode, value, what)


def _at_least(least: int, value: N, what: str) -> N:
    if not value >= least:
        raise ValueError(f"{what} is {value!r}; it must be {least} or more")
    return value


# --- as plain values ----------------------------------------------------------------------------------------------


def spec_of(supervisor: Supervisor, *, portable: bool) -> SupervisorSpec:
    """The declaration as plain values; `portable`: other processes must be able to build every agent from it."""
    return SupervisorSpec(
        name=supervisor.name,
        strategy=supervisor.strategy.value,
        max_restarts=supervisor.max_restarts,
        restart_window_s=supervisor.restart_window,
        backoff=supervisor.backoff.value,
        backoff_base_s=supervisor.backoff_base,
        backoff_max_s=supervisor.backoff_max,
        backoff_reset_s=supervisor.backoff_reset,
        auto_shutdown=supervisor.auto_shutdown.value,
        restart=supervisor.restart.value,
        significant=supervisor.significant,
        children=[
            spec_of(child, portable=portable) if isinstance(child, Supervisor) else _agent_spec(child, portable)
            for child in supervisor.children
        ],
        dynamic=supervisor.dynamic_spec() if isinstance(supervisor, DynamicSupervisor) else None,
    )


def _agent_spec(agent: AgentProcess, portable: bool) -> AgentSpec:
    cls = type(agent)
    args, kwargs = list(agent.birth.args), dict(agent.birth.kwargs)
    takes_name = bool(args) and args[0] == agent.name
    if takes_name:
        del args[0]
    if portable and agent.process == MAIN:
        # It runs in the program itself, which has the object: nobody else builds it.
        return replace(_agent_spec(agent, False), args=[], kwargs={}, config={})
    if portable:
        for what, value in (("args", args), ("kwargs", kwargs), ("config", agent.config)):
            check_portable(value, f"{what} of agent {agent.name!r}")
    return AgentSpec(
        name=agent.name,
        type=class_path(cls) if portable else f"{cls.__module__}.{cls.__qualname__}",
        args=args,
        takes_name=takes_name,
        kwargs=kwargs,
        config=agent.config,
        process=agent.process,
        replicas=agent.replicas,
        mailbox_size=agent.mailbox_size,
        overflow=agent.overflow,
        max_retries=agent.max_retries,
        delivery=agent.delivery,
        max_deliveries=agent.max_deliveries,
        on_crash=agent.on_crash,
        restart=_restart_mode(agent.restart, f"restart of agent {agent.name!r}").value,
        significant=agent.significant,
        shutdown_timeout_s=agent.shutdown_timeout,
        handle_timeout_s=agent.handle_timeout,
        state=agent.state_storage,
        capabilities=list(agent.capabilities),
        capability_metadata=dict(agent.capability_metadata),
    )


_PORTABLE: Final = (str, int, float, bool, type(None))


def check_portable(value: Any, path: str) -> None:
    """What JSON has: constructor calls are shown, logged and handed over as plain data, and must come back equal."""
    if type(value) in _PORTABLE:
        return
    if type(value) is list:
        for number, item in enumerate(value):
            check_portable(item, f"{path}[{number}]")
    elif type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise ConfigurationError(f"{path}: the key {key!r} is {type(key).__name__}; it must be str.")
            check_portable(item, f"{path}.{key}")
    else:
        raise ConfigurationError(
            f"{path}: {type(value).__qualname__} cannot be handed to another process, which builds the agent from its "
            'constructor call. Use str, int, float, bool, None, list or dict, or transport="in_process".'
        )
