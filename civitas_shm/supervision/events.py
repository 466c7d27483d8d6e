"""The words between the supervision tree and its drivers: events in, actions out.

Rules of this file: frozen values, no behaviour. Times are seconds of the monotonic clock; `…_at_s` and `deadline_s`
are points in time, never spans.

What a driver promises (the tree's guarantees rest on it):
- an event that says a child has ended is sent only when no code of that incarnation runs any more (fencing);
- every StartChild is answered by ChildReady or by an end of that incarnation, every StopChild by an end of it: the
  driver holds the start-up deadline (AgentSpec.start_timeout_s) and kills what does not stop by `deadline_s`;
- the death of a process is one ProcessDied with all children that were in it, not one event for each;
- actions are performed in their order, and what comes of them is sent as later events, never from inside `step`.

What a driver may do: send an event twice, late, or for a child that is long gone, whose name another bears by now.
That changes nothing. (AddChild and RemoveChild are wishes, not news: they mean whoever bears the name when they come.)
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from ..topology.model import AgentSpec, Drain

__all__ = [
    "Action",
    "AddChild",
    "CancelTimer",
    "ChildExited",
    "ChildFailed",
    "ChildReady",
    "ChildRemoved",
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
    "Timer",
]

Removal = Literal["despawned", "clean_exit", "crashed", "restarts_exhausted", "given_up"]
"""Why a dynamic child is gone: it was told to; ended well; crashed and is not restarted; crashed too often; or its
supervisor is not restarted."""

# --- events -------------------------------------------------------------------------------------------------------


class Start(Struct, frozen=True):
    """Bring the tree up."""


class ChildReady(Struct, frozen=True):
    """`on_start` has returned; the child takes messages."""

    child: str
    incarnation: int


class ChildFailed(Struct, frozen=True):
    """The child is gone: a handler's crash was escalated, its start failed, or its start-up deadline passed."""

    child: str
    incarnation: int
    reason: str
    """One sentence for people: type and text of the exception, exit code, signal."""
    counts: bool = True
    """False where it fell over a death that does not count, see ProcessDied: then neither does this."""


class ChildExited(Struct, frozen=True):
    """The child is gone without a crash: it was told to stop, said STOP, or came to a clean end."""

    child: str
    incarnation: int
    normal: bool = True
    """False is as ChildFailed."""
    stop_action: bool = True
    """It said ErrorAction.STOP, so nobody restarts it. False: a clean end of another kind (SystemExit(0))."""


class ProcessDied(Struct, frozen=True):
    """An OS process is gone, and with it these children: one event, counted once against each supervisor concerned."""

    process: str
    children: tuple[tuple[str, int], ...]
    """(child, incarnation) of all that were in it, starting and stopping ones too."""
    counts: bool = True
    """False for deaths that we caused ourselves (chaos, stop, deploy, death of the host): no budget, no backoff."""
    reason: str = ""


class Timer(Struct, frozen=True):
    """The time of a SetTimer has come."""

    id: int


class StopRequested(Struct, frozen=True):
    """Bring the tree down, for good."""


class AddChild(Struct, frozen=True):
    """Spawn this agent below a dynamic supervisor. What `dynamic.refusal` refuses, changes nothing."""

    supervisor: str
    agent: AgentSpec
    spawner: str = ""
    """Name of the agent that wants it; empty: the program."""


class RemoveChild(Struct, frozen=True):
    """Stop a dynamic supervisor's child, for good. It has ended when ChildRemoved says so."""

    child: str
    drain: Drain | None = None
    """None: as in any stop."""
    timeout_s: float | None = None
    """None: the child's own shutdown timeout."""


Event = Start | ChildReady | ChildFailed | ChildExited | ProcessDied | Timer | AddChild | RemoveChild | StopRequested

# --- actions ------------------------------------------------------------------------------------------------------


class StartChild(Struct, frozen=True):
    """Build a fresh object of the agent and start it; if its process is not there, start that first."""

    child: str
    incarnation: int
    """One more than its last; name it in every event about this life of the child. A spawned child's first one is above
    all that have ever been of its name."""


class StopChild(Struct, frozen=True):
    """Ask the child to stop (also in the middle of its start); end it by force at the deadline."""

    child: str
    incarnation: int
    deadline_s: float
    drain: Drain | None = None
    """What becomes of its waiting messages, where RemoveChild said so."""


class SetTimer(Struct, frozen=True):
    """Send Timer(id) at that time. The children wait out their backoff until then."""

    id: int
    at_s: float
    children: tuple[str, ...]
    """Children or supervisors that will be started then; for reports."""


class CancelTimer(Struct, frozen=True):
    """The timer is not wanted any more. A Timer that comes nevertheless changes nothing."""

    id: int


class GiveUpChild(Struct, frozen=True):
    """The child has ended and will not be restarted for its own sake: close its mailbox if no other replica lives.

    A restart of its whole group or supervisor may start it again all the same; its mailbox is then made anew.
    """

    child: str
    incarnation: int
    reason: str


class ChildRemoved(Struct, frozen=True):
    """A dynamic supervisor's child is no part of the tree any more: close its mailbox; its name is free again."""

    child: str
    incarnation: int
    spawner: str
    why: Removal
    reason: str


class Escalated(Struct, frozen=True):
    """For reports: a supervisor has used up its restarts; its children are being stopped, its parent will decide."""

    supervisor: str
    child: str
    """The child whose failure was one too many (a supervisor below, perhaps)."""
    reason: str


class ShutDown(Struct, frozen=True):
    """For reports: a supervisor's significant children have ended, so it stops the others and ends well."""

    supervisor: str
    child: str
    """The significant child that was the last straw (a supervisor below, perhaps)."""
    reason: str


class Running(Struct, frozen=True):
    """Every child has been started and is ready, for the first time. Sent once."""


class Failed(Struct, frozen=True):
    """The root gave up and everything is down. Final: the run fails (exit code 1)."""

    reason: str
    supervisor: str
    """Where it began: the lowest supervisor whose budget was exhausted."""
    child: str


class Stopped(Struct, frozen=True):
    """Everything is down, as requested or because the root shut down. Final: the run has ended well (exit code 0)."""


Action = (
    StartChild
    | StopChild
    | SetTimer
    | CancelTimer
    | GiveUpChild
    | ChildRemoved
    | Escalated
    | ShutDown
    | Running
    | Failed
    | Stopped
)
