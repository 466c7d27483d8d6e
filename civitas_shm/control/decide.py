"""A request and the state of a run -> what is to be done: pure.

Rules of this file:
- a stop that somebody has asked for is not asked for again: two people who type `stop` do not become a kill, unlike the
  second Ctrl-C of one; `now` always counts;
- who may ask: processes of the run's own user, and root.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..topology.model import Drain
from .protocol import (
    Connect,
    DeadDrop,
    DeadList,
    DeadReplay,
    DeadShow,
    DelaysCancel,
    DelaysList,
    Refusal,
    Request,
    ResumeAgent,
    States,
    Status,
    StopRun,
    SuspendAgent,
    Topology,
)

__all__ = ["Answer", "Decision", "HandOver", "Later", "Letter", "Steer", "Stop", "decide", "may_ask"]


@dataclass(frozen=True, slots=True)
class Answer:
    """Reply, do nothing."""

    what: Literal["status", "topology", "states", "stopping already"]
    salt: str = ""
    """Of the topology."""
    agent: str = ""
    """Whose state."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the run, reply that it stops."""

    now: bool
    drain: Drain | None


@dataclass(frozen=True, slots=True)
class Letter:
    """Look into the dead letters, or change them; reply what came of it."""

    request: DeadList | DeadShow | DeadReplay | DeadDrop


@dataclass(frozen=True, slots=True)
class Later:
    """Look at the messages that wait for their time, or take some back; reply what came of it."""

    request: DelaysList | DelaysCancel


@dataclass(frozen=True, slots=True)
class HandOver:
    """The connection is that of a client: the program that started the run serves it."""


@dataclass(frozen=True, slots=True)
class Steer:
    """Suspend or resume an agent; reply that it is begun."""

    request: SuspendAgent | ResumeAgent


Decision = Answer | Stop | Letter | Later | HandOver | Steer | Refusal


def may_ask(peer_uid: int, own_uid: int) -> bool:
    """Whether a process of that user gets answers."""
    return peer_uid in (own_uid, 0)


def decide(request: Request, state: Literal["starting", "running", "stopping"]) -> Decision:
    """What a request means for a run in that state."""
    match request:
        case Status():
            return Answer("status")
        case Topology(salt=salt):
            return Answer("topology", salt)
        case States(agent=agent):
            return Answer("states", agent=agent)
        case StopRun(now=now, drain=drain):
            if now and drain is not None:
                return Refusal(kind="malformed", text="a stop `now` drains nothing; give one of them")
            if state == "stopping" and not now:
                return Answer("stopping already")
            return Stop(now, drain)
        case DeadReplay() if state != "running":
            return Refusal(kind="busy", text=f"the run is {state}; letters are replayed while it runs")
        case DeadList() | DeadShow() | DeadReplay() | DeadDrop():
            return Letter(request)
        case DelaysList() | DelaysCancel() if state == "starting":
            return Refusal(kind="busy", text="the run is starting; its delayed messages are read first")
        case DelaysList() | DelaysCancel():
            return Later(request)
        case Connect() if state != "running":
            return Refusal(kind="busy", text=f"the run is {state}; it takes clients while it runs")
        case Connect():
            return HandOver()
        case SuspendAgent() | ResumeAgent() if state != "running":
            return Refusal(kind="busy", text=f"the run is {state}; agents are suspended and resumed while it runs")
        case SuspendAgent() | ResumeAgent():
            return Steer(request)
