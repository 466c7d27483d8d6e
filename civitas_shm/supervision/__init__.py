"""Supervision as a decision: which child to start or stop, when, and when to give up.

Layer 1: no I/O, no clock, no asyncio. The in-process runtime, the host and the simulator drive the same code; a
driver reads `events` (what it must promise) and `tree` (what it gets), and asks `state` what to show.

    policy    who is restarted, who falls with it, how often: the clauses
    backoff   how long to wait before a restart
    events    the words between the tree and its drivers
    state     the tree's state, and questions to it
    status    one supervisor as Civitas shows it
    work      the copy of a tree that one step changes
    dynamic   whether a spawn is allowed, and where
    tree      step(tree, event, now_s) -> (tree, actions)
"""

from __future__ import annotations

from .dynamic import child_of, nearest_dynamic, refusal
from .events import (
    Action,
    AddChild,
    CancelTimer,
    ChildExited,
    ChildFailed,
    ChildReady,
    ChildRemoved,
    Escalated,
    Event,
    Failed,
    GiveUpChild,
    ProcessDied,
    Removal,
    RemoveChild,
    Running,
    SetTimer,
    ShutDown,
    Start,
    StartChild,
    StopChild,
    Stopped,
    StopRequested,
    Timer,
)
from .state import (
    ChildReport,
    SupervisorReport,
    child_keys,
    is_settled,
    report_children,
    report_supervisors,
    restart_count,
    restarts_in_window,
    running_children,
)
from .status import STATUS_OF, status_of_supervisor
from .tree import Tree, step

__all__ = [
    "STATUS_OF",
    "Action",
    "AddChild",
    "CancelTimer",
    "ChildExited",
    "ChildFailed",
    "ChildReady",
    "ChildRemoved",
    "ChildReport",
    "Escalated",
    "Event",
    "Failed",
    "GiveUpChild",
    "ProcessDied",
    "Removal",
    "RemoveChild",
    "Running",
    "SetTimer",
    "ShutDown",
    "Start",
    "StartChild",
    "StopChild",
    "StopRequested",
    "Stopped",
    "SupervisorReport",
    "Timer",
    "Tree",
    "child_keys",
    "is_settled",
    "child_of",
    "nearest_dynamic",
    "refusal",
    "report_children",
    "report_supervisors",
    "restart_count",
    "restarts_in_window",
    "running_children",
    "status_of_supervisor",
    "step",
]
