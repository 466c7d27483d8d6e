"""The rows of the specification that a simulation puts to the test, by name.

Rules of this file: one name for each row of the tables in `supervision.tree` and `supervision.policy` (a row with
several cases has a name for each). `audit` counts how often each has fired; the test run demands each a hundred times,
because a property that is never put to the test proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["CLAUSES"]

CLAUSES: Final[Mapping[str, str]] = {
    # supervision.tree: events
    "nothing: unknown child": "an event about a child that the tree does not have",
    "nothing: old incarnation": "an event about an earlier life, or a life that has ended",
    "nothing: timer not set": "a Timer that was cancelled or has come already",
    "nothing: at its end": "any event after Stopped or Failed",
    "start": "Start: the first group starts",
    "start again": "a second Start changes nothing",
    "start: next group": "a group starts when all of the one before are ready or gone",
    "start: running": "the last group of the root is ready: Running",
    "ready: starting": "ChildReady of a child that is STARTING",
    "ready: stopping": "ChildReady that a stop overtook",
    "ended: stopping": "the end of a child that was told to stop",
    "ended: starting": "a child ends before it is ready",
    "ended: ready": "a child ends while it takes messages",
    "process: one child": "ProcessDied with one child in it that lived",
    "process: several": "ProcessDied with several children of one supervisor",
    "process: several supervisors": "ProcessDied with children of several supervisors: one cause",
    "process: uncounted": "ProcessDied with counts=False: restarted at once, not counted",
    "timer: children": "the backoff of children is over",
    "timer: groups": "the backoff of fallen groups is over",
    "stop: not started": "StopRequested before Start: Stopped",
    "stop: started": "StopRequested: nothing starts any more, groups stop in reverse order",
    "stop: going down": "StopRequested for a tree that is stopping already or has given up",
    "end: stopped": "everything is down, as requested",
    "end: failed": "the root gave up and everything is down",
    # supervision.tree: falls
    "fall: going down": "its supervisor, or one above, is going down: not counted, not restarted",
    "fall: clearing, temporary": "its group is being taken down: a temporary child is given up",
    "fall: clearing, other": "its group is being taken down: it starts again with its group",
    "fall: not restarted": "its restart type does not want it back: GiveUpChild",
    "fall: not restarted, supervisor": "…of a supervisor: all children below it are given up",
    "shutdown: any_significant": "a significant child has ended for good: ShutDown",
    "shutdown: all_significant": "the last significant child has ended for good: ShutDown",
    "shutdown: all_significant, others left": "a significant child has ended for good, others have not: nothing",
    "fall: gives up": "no restart left: Escalated",
    "fall: gives up, all down": "no restart left and nothing below lives: the supervisor falls in the same step",
    "fall: of a supervisor": "a supervisor that gave up or shut down falls in its parent",
    "fall: one_for_one": "ONE_FOR_ONE: it starts at once",
    "fall: one_for_one, later": "ONE_FOR_ONE: it starts after the backoff",
    "fall: one_for_one, together": "ONE_FOR_ONE: those that fell together start together",
    "fall: one_for_all": "ONE_FOR_ALL: every group falls",
    "fall: rest_for_one": "REST_FOR_ONE: the later groups fall",
    "fall: widens": "another fall while groups are being taken down or wait: a wider scope, the longer backoff",
    "stops in reverse": "a group is told to stop when all later ones are down",
    "clearing: over": "what had to fall is down and the backoff is over: it starts again in order",
    "clearing: waits": "what had to fall is down, the backoff is not over",
    "begins anew": "a restarted supervisor starts all its children, those that were gone too",
    # supervision.dynamic
    "spawn: starts": "AddChild below a dynamic supervisor that is up: it starts at once",
    "spawn: before start": "AddChild before Start: it starts with the tree",
    "spawn: refused": "AddChild beyond a quota, of a taken name, below what is going down or not dynamic: nothing",
    "despawn: stops": "RemoveChild of a child that lives: it is told to stop",
    "despawn: nothing": "RemoveChild of no child, a second time, or of a child that was declared: nothing",
    "dynamic: despawned": "it has ended after RemoveChild, or did not live",
    "dynamic: clean_exit": "it ended well and is not restarted",
    "dynamic: crashed": "it crashed and is not restarted",
    "dynamic: restarts_exhausted": "its own window is full: it is gone, and nothing escalates",
    "dynamic: restarted": "it fell and starts again, by a window of its own",
    "dynamic: given_up": "its supervisor is given up",
    # supervision.policy: Restart
    "restart: permanent failed": "restarted",
    "restart: permanent finished": "restarted",
    "restart: permanent stopped": "gone",
    "restart: transient failed": "restarted",
    "restart: transient finished": "gone",
    "restart: transient stopped": "gone",
    "restart: temporary failed": "gone",
    "restart: temporary finished": "gone",
    "restart: temporary stopped": "gone",
    # supervision.policy: Intensity; supervision.backoff
    "window: same cause": "one death is counted once",
    "window: exactly as old": "a restart that is exactly as old as the window still counts",
    "window: too old": "a restart that is older than the window does not count any more",
    "backoff: immediate": "the first restart in a window does not wait",
    "backoff: stable": "all its children were up together for long enough: the backoff begins anew",
    "backoff: CONSTANT": "min(base, max)",
    "backoff: LINEAR": "min(base * n, max)",
    "backoff: EXPONENTIAL": "below min(base * 2**(n-1), max)",
}
