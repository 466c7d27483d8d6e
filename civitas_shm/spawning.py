"""From a class and a name to the specification that a dynamic supervisor is handed.

Rules of this file: nothing is built here (the process where the agent will live does that), so what a class says in its
attributes counts and what its constructor would set does not; what cannot be handed over is refused at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from .errors import CivitasError, SpawnError
from .loading import class_path
from .process import AgentProcess
from .supervisor import RestartMode, check_portable
from .topology.model import AgentSpec
from .topology.names import name_problem

__all__ = ["spawn_fields"]


def spawn_fields(
    agent_class: type[AgentProcess],
    name: str,
    config: Mapping[str, Any] | None,
    *,
    supervisor: str | None,
    wait: bool,
    process: str | None,
    restart: str | None,
    kwargs: Mapping[str, Any] | None,
    mailbox_size: int,
) -> dict[str, Any]:
    """The request `spawn`, as plain values. SpawnError when it can never be done."""
    if not (isinstance(agent_class, type) and issubclass(agent_class, AgentProcess)):
        raise SpawnError(f"{name!r} cannot be spawned: {agent_class!r} is no subclass of AgentProcess.")
    problem = name_problem(name) if isinstance(name, str) else f"a name must be str, not {type(name).__name__}"
    if problem is not None:
        raise SpawnError(f"{agent_class.__qualname__} cannot be spawned: {problem}.")
    if restart is not None and restart != "never" and restart not in RestartMode.__members__:
        raise SpawnError(f"{name!r} cannot be spawned: restart is {restart!r}; permanent, transient or temporary.")
    mode = None if restart is None else RestartMode[restart]
    settings, arguments = dict(config or {}), dict(kwargs or {})
    try:
        check_portable(settings, f"config of {name!r}")
        check_portable(arguments, f"kwargs of {name!r}")
        path = class_path(agent_class)
    except CivitasError as error:
        raise SpawnError(f"{name!r} cannot be spawned: {error}") from error
    spec = AgentSpec(
        name=name,
        type=path,
        kwargs=arguments,
        config=settings,
        process=process or agent_class.process,
        replicas=agent_class.replicas,
        mailbox_size=mailbox_size,
        overflow=agent_class.overflow,
        delivery=agent_class.delivery,
        max_deliveries=agent_class.max_deliveries,
        on_crash=agent_class.on_crash,
        restart="transient" if mode is None else mode.value,
        state=agent_class.state_storage,
        capabilities=list(agent_class.capabilities),
        capability_metadata=dict(agent_class.capability_metadata),
    )
    return {"spec": msgspec.to_builtins(spec), "supervisor": supervisor, "restart": restart, "wait": wait}
