"""The status of one supervisor, as Civitas shows it: what `civitas.supervision.status` is answered with.

Rules of this file: reads a tree; words and keys are Civitas's (`ProcessStatus`), so that its tools read it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from .policy import in_window
from .state import ChildStatus, Phase, Tree, restart_count

__all__ = ["STATUS_OF", "status_of_supervisor"]

STATUS_OF: Final = {
    ChildStatus.DOWN: "INITIALIZING",
    ChildStatus.STARTING: "INITIALIZING",
    ChildStatus.READY: "RUNNING",
    ChildStatus.STOPPING: "STOPPING",
    ChildStatus.WAITING: "CRASHED",
    ChildStatus.GONE: "STOPPED",
}
"""One word of `ProcessStatus` for each status of a child."""

SUSPENDED: Final = "SUSPENDED"
RUNNING: Final = "RUNNING"

_PHASES: Final = {
    Phase.DOWN: "INITIALIZING",
    Phase.UP: "RUNNING",
    Phase.CLEARING: "STOPPING",
    Phase.HOLDING: "CRASHED",
    Phase.HALTED: "STOPPING",
    Phase.STOPPING: "STOPPING",
    Phase.WAITING: "CRASHED",
    Phase.GONE: "STOPPED",
}


def status_of_supervisor(
    tree: Tree, name: str, now_s: float, suspended: Callable[[str], bool] = lambda agent: False
) -> dict[str, Any] | None:
    """Its limits, its budget and its children in start order; None when there is no such supervisor.

    A replica is a child of its own, `name#0`. `crashes_in_window` of a dynamic supervisor is that of all its children,
    each of which has a budget of its own. `suspended`: whether an agent takes no messages, which its memory knows.
    """
    supervisor = tree.supervisors.get(name)
    if supervisor is None:
        return None
    spec = supervisor.spec
    children: list[dict[str, Any]] = []
    counted = [supervisor.counted]
    for key in (key for group in supervisor.groups for key in group):
        below, child = tree.supervisors.get(key), tree.children.get(key)
        if below is not None:
            restarts = max(0, below.starts - 1)
            children.append(
                {"name": key, "kind": "supervisor", "status": _PHASES[below.phase], "restart_count": restarts}
            )
        elif child is not None:
            status = STATUS_OF[child.status]
            if child.dynamic is not None:
                counted.append(child.dynamic.counted)
            children.append(
                {
                    "name": key,
                    "kind": "agent",
                    "status": SUSPENDED if status == RUNNING and suspended(child.agent) else status,
                    "restart_count": restart_count(tree, key),
                }
            )
    return {
        "name": name,
        "strategy": spec.strategy,
        "max_restarts": spec.max_restarts,
        "restart_window": spec.restart_window_s,
        "crashes_in_window": sum(len(in_window(each, now_s, spec.restart_window_s)) for each in counted),
        "children": children,
    }
