"""Why an agent does what it does, or does nothing: a pure decision over what was read.

| first that holds | kind |
|---|---|
| its run is dead | `run_dead` |
| it ended for good, or waits for its restart, or starts, or stops | `dead` `restarting` `starting` `stopping` |
| no process stands behind it | `dead` |
| its process is stopped (T), traced (t), in the kernel (D) | `stopped` `traced` `disk_wait` |
| its handler waits in a circle of agents | `deadlock` |
| the loop of its process does not turn, and its own handler holds it | `blocked` |
| … and another agent's does | `blocked_by` |
| its handler waits for a reply; for room in a full mailbox | `waits_reply` `waits_room` |
| it is suspended | `suspended` |
| its handler runs | `handling` |
| messages wait and it takes them | `working` |
| none of these | `idle` |

Rules of this file: no I/O, no clock; a sentence says only what the evidence beside it shows; what cannot be told from
outside is said to be so. A deadlock that was broken in the last minute is said beside whatever is true now.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from ..transport import SLOT_HOST, MailboxStats
from .readings import Hand
from .scene import Scene

__all__ = ["KINDS", "RECENT_S", "Finding", "ago_text", "find", "for_text"]

KINDS: Final = (
    "run_dead",
    "dead",
    "restarting",
    "starting",
    "stopping",
    "stopped",
    "traced",
    "disk_wait",
    "deadlock",
    "blocked",
    "blocked_by",
    "waits_reply",
    "waits_room",
    "suspended",
    "handling",
    "working",
    "idle",
)

RECENT_S: Final = 60.0
"""How long a broken deadlock, a death or a failure is worth a word."""

COMPUTES: Final = 0.5
"""Of a core: a process that uses more is computing, whatever it waits for beside."""

LONG_S: Final = 1.0
"""The host asks a loop whether it turns when a handler has run for so long."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is so, in one word, one line, one paragraph, and what shows it."""

    agent: str
    kind: str
    word: str
    """For a column: `waits for b`, `in handler`."""
    text: str
    """The paragraph."""
    evidence: dict[str, Any] = field(default_factory=dict)
    chain: tuple[str, ...] = ()
    """Who waits for whom, beginning with this one; of a circle the first name comes again at the end."""
    pid: int = 0
    """Of a process whose stack would tell more; 0: there is nothing to see."""

    @property
    def healthy(self) -> bool:
        """Nobody need look at it."""
        return self.kind in ("idle", "working", "handling", "waits_reply", "waits_room", "starting", "stopping")


def find(scene: Scene, agent: str) -> Finding:
    """KeyError when no agent of that name is known."""
    if agent not in scene.stats and agent not in scene.children:
        raise KeyError(agent)
    found = _find(scene, agent)
    said, recent = [found.text], []
    for sentence, event in _recent(scene, agent, found):
        said.append(sentence)
        recent.append(event)
    evidence = _evidence(scene, agent) | found.evidence | ({"recent": recent} if recent else {})
    return Finding(agent, found.kind, found.word, " ".join(said), evidence, found.chain, found.pid)


def _find(scene: Scene, agent: str) -> Finding:
    stats = scene.stats.get(agent)
    if not scene.now.alive:
        return _of_dead_run(scene, agent, stats)
    if (found := _from_the_tree(scene, agent)) is not None or stats is None:
        return found or Finding(agent, "starting", "no mailbox yet", f"{agent} has no mailbox yet: the run begins.")
    slots = scene.slots_of(agent)
    if len(slots) <= 1:
        slot = slots[0] if slots else -1
        return _in_process(scene, agent, stats, slot)
    # Replicas share cell and mailbox: one that hangs leaves the others to go on, so it is told beside them.
    ill = [found for slot in slots if not (found := _in_process(scene, agent, stats, slot)).healthy]
    if ill:
        return ill[0]
    return _of_its_mailbox(scene, agent, stats, f" ({len(slots)} replicas)", replicas=len(slots))


# --- the run, the tree ------------------------------------------------------------------------------------------------


def _of_dead_run(scene: Scene, agent: str, stats: MailboxStats | None) -> Finding:
    waiting = stats.waiting if stats is not None else 0
    hand = scene.hand(stats) if stats is not None else None
    end = "removed" if scene.now.removed else "dead"
    said = [f"{agent} does not run: the run {scene.now.name!r} is {end}; its host is gone."]
    if hand is not None and hand.where == "running":
        said.append(f"It had {_message(scene, hand)} in hand when its process died.")
    if waiting or hand is not None:
        said.append(f"{_count(waiting)} in its mailbox; run --resume goes on with them.")
    last = scene.last_event("run_stopped", "run_stopping", "process_died", "supervisor_gave_up", "agent_given_up")
    if last is not None and last.get("cause"):
        said.append(
            f"The last that was noted: {last['event']} {ago_text(scene.now.time_s - last['time'])}: {last['cause']}."
        )
    return Finding(agent, "run_dead", "run is dead", " ".join(said), {"last_event": last} if last else {})


def _from_the_tree(scene: Scene, agent: str) -> Finding | None:
    """What its supervisor knows; None: it should run."""
    children = scene.children.get(agent, [])
    if not children:
        stats = scene.stats.get(agent)
        if stats is not None and stats.closed:
            text = f"{agent} is gone for good: its mailbox is closed, and no supervisor has a child of that name."
            return Finding(agent, "dead", "gone", text)
        return None
    states = {child.state for child in children}
    if "ready" in states:
        return None
    cause, event = _cause(scene, agent)
    why = f" {cause}." if cause else ""
    supervisor = children[0].supervisor
    if states & {"starting", "stopping"}:
        kind = "starting" if "starting" in states else "stopping"
        word = (
            "its on_start runs, or its process begins"
            if kind == "starting"
            else "its on_stop runs, or its last handler"
        )
        return Finding(agent, kind, kind, f"{agent} is {kind}: {word}.{why if kind == 'starting' else ''}")
    evidence = {"cause": event} if event else {}
    if "waiting" in states:
        text = f"{agent} is down and waits out its backoff; its supervisor {supervisor!r} starts it again.{why}"
        return Finding(agent, "restarting", "waits for restart", text, evidence)
    given_up = _who_gave_up(scene, supervisor)
    if given_up:
        one = scene.supervisors[given_up]
        limit = f"more than {one.max_restarts} restarts within {one.window_s:g} s"
        what = f"its supervisor {given_up!r} has given up ({limit})"
        return Finding(agent, "dead", "dead, given up", f"{agent} is dead: {what}.{why}", evidence)
    ending = _who_ends(scene, supervisor)
    if ending and "gone" not in states:
        text = f"{agent} is down: its supervisor {ending!r} is ending, and stops what is below it.{why}"
        return Finding(agent, "dead", "down", text, evidence)
    if "gone" in states:
        return Finding(agent, "dead", "dead", f"{agent} is dead, and is not started again.{why}", evidence)
    return Finding(
        agent, "dead", "down", f"{agent} is down; its supervisor {supervisor!r} has not started it.{why}", evidence
    )


def _who_gave_up(scene: Scene, supervisor: str) -> str:
    """The supervisor above an agent that has given up, the highest one."""
    found = ""
    while (one := scene.supervisors.get(supervisor)) is not None:
        if one.state == "gone":
            found = one.name
        supervisor = one.parent
    return found


def _who_ends(scene: Scene, supervisor: str) -> str:
    """The supervisor above an agent that takes its children down for good, if there is one."""
    while (one := scene.supervisors.get(supervisor)) is not None:
        if one.state in ("stopping", "halted"):
            return one.name
        supervisor = one.parent
    return ""


def _cause(scene: Scene, agent: str) -> tuple[str, dict[str, Any] | None]:
    """Why it fell last, as its run has noted it."""
    processes = {child.process for child in scene.children.get(agent, [])}
    for event in reversed(scene.now.events):
        cause, when = str(event.get("cause", "")).rstrip("."), ago_text(scene.now.time_s - float(event["time"]))
        if event["event"] == "agent_failed" and event.get("agent") == agent:
            return f"Its handler failed {when}: {cause}", event
        if event["event"] == "process_died" and event.get("process") in processes:
            return f"Its process {event['process']!r} (pid {event.get('pid')}) died {when}: {cause}", event
    return "", None


# --- its process ------------------------------------------------------------------------------------------------------


def _in_process(scene: Scene, agent: str, stats: MailboxStats, slot: int) -> Finding:
    view, sample = scene.slot(slot), scene.sample(slot)
    process = scene.process_name(slot) if slot >= 0 else ""
    if slot < 0 or view is None or not view.alive:
        cause, event = _cause(scene, agent)
        text = f"{agent} has no process just now" + (f": {process!r} is dead" if process else "") + "."
        return Finding(
            agent, "dead", "no process", f"{text} {cause}." if cause else text, {"cause": event} if event else {}
        )
    if sample is not None and sample.state in "Tt":
        return _of_stopped(scene, agent, stats, slot)
    own = scene.wait(stats)
    circle = _circle(scene, agent) if own is not None else ()
    if circle:
        return _of_circle(scene, agent, circle)
    silent = scene.does_not_answer(slot)
    if sample is not None and sample.state == "D" and (silent or scene.busy_s(stats)):
        where = f"its process {process!r} (pid {sample.pid}) waits in the kernel (state D)"
        text = f"{agent} is in its handler, and {where}: for"
        return Finding(
            agent, "disk_wait", "in the kernel", f"{text} a disk or a network file system, mostly.", pid=sample.pid
        )
    if silent:
        return _of_blocked(scene, agent, stats, slot)
    return _of_its_mailbox(scene, agent, stats, "")


def _of_stopped(scene: Scene, agent: str, stats: MailboxStats, slot: int) -> Finding:
    sample = scene.sample(slot)
    assert sample is not None
    process = scene.process_name(slot)
    if sample.traced:
        text = (
            f"{agent} stands still: a debugger traces its process {process!r} (pid {sample.pid}). No watchdog ends it."
        )
        return Finding(agent, "traced", "traced", text)
    limit_s = scene.now.chart.stopped_timeout_s if scene.now.chart is not None else 0.0
    where = f"its process {process!r} (pid {sample.pid}) is stopped (SIGSTOP, state T)"
    said = f"{agent} stands still: {where}. `kill -CONT {sample.pid}` lets it go on"
    said += f"; else the host kills it after {limit_s:g} s (watch.stopped_timeout_s)." if limit_s else "."
    hand = scene.hand(stats)
    if hand is not None:
        said += f" It has {_message(scene, hand)} in hand."
    return Finding(agent, "stopped", "stopped (SIGSTOP)", said)


def _of_blocked(scene: Scene, agent: str, stats: MailboxStats, slot: int) -> Finding:
    process, pid = scene.process_name(slot), scene.pid(slot)
    share = scene.cpu_share(slot)
    if share is None:
        how = "whether it computes cannot be told from one reading"
    elif share >= COMPUTES or scene.wants_core(slot):
        how = f"it computes ({share:.0%} of a core): an endless loop, or long work that belongs into a thread"
    else:
        how = (
            f"it uses no core ({share:.0%}): a blocking call (time.sleep, a socket, a lock), or C code that sleeps "
            "while it holds the GIL"
        )
    evidence = {"cpu_share": share, "loop_answers": False}
    blockers = scene.blockers(slot)
    busy_s = scene.busy_s(stats)
    if agent in blockers[:1] and busy_s is not None:
        hand = scene.hand(stats)
        text = (
            f"{agent} has been in its handler for {for_text(busy_s)}{_on(scene, hand)}, and does not give the event "
            f"loop of its process {process!r} (pid {pid}) back: {how}."
        )
        return Finding(agent, "blocked", "blocks its loop", text, evidence, pid=pid)
    if not blockers:
        text = f"The event loop of its process {process!r} (pid {pid}) does not turn, and no handler runs there: {how}."
        return Finding(agent, "blocked_by", "loop blocked", text, evidence, pid=pid)
    first = blockers[0]
    for_s = scene.busy_s(scene.stats[first]) or 0.0
    text = (
        f"{agent} cannot go on: {first!r}, in the same process {process!r} (pid {pid}), has been in its handler for "
        f"{for_text(for_s)}{_on(scene, scene.hand(scene.stats[first]))} and does not give their event loop back: {how}."
        f" {_count(stats.waiting)}."
    )
    return Finding(
        agent, "blocked_by", f"blocked by {first}", text, evidence | {"blocked_by": first}, (agent, first), pid
    )


# --- whom it waits for ------------------------------------------------------------------------------------------------


def _chain(scene: Scene, agent: str) -> list[str]:
    """Who waits for whom from here on; of a circle the first name that comes again is the last one."""
    names = [agent]
    while (stats := scene.stats.get(names[-1])) is not None and (wait := scene.wait(stats)) is not None:
        names.append(scene.name(wait.target))
        if names[-1] in names[:-1]:
            break
    return names


def _circle(scene: Scene, agent: str) -> tuple[str, ...]:
    """The circle that an agent is in itself, if all of it overlap in one instant; else nothing."""
    names = _chain(scene, agent)
    if len(names) < 2 or names[-1] != agent:
        return ()
    waits = [scene.wait(scene.stats[name]) for name in names[:-1]]
    since = [wait.since_ns for wait in waits if wait is not None]
    seen = [wait.seen_ns for wait in waits if wait is not None]
    return tuple(names) if since and max(since) <= min(seen) else ()


def _of_circle(scene: Scene, agent: str, names: tuple[str, ...]) -> Finding:
    steps = [_waits(scene, name) for name in names[:-1]]
    text = (
        f"{agent} is in a deadlock: {'; '.join(steps)}. None of them can go on. The host ends the youngest of these "
        "waits with a DeadlockError, mostly within a second."
    )
    return Finding(agent, "deadlock", f"deadlock with {names[1]}", text, {"circle": list(names)}, names)


def _waits(scene: Scene, name: str) -> str:
    """`a has waited for 3 s for a reply of b to 'go_on'`."""
    stats = scene.stats[name]
    wait = scene.wait(stats)
    assert wait is not None
    target, for_s = scene.name(wait.target), for_text(scene.for_s(wait))
    if wait.kind == "room":
        there = scene.stats.get(target)
        full = f" ({there.waiting:,} of {there.capacity:,} wait there)" if there is not None else ""
        return f"{name} has waited for {for_s} for room in the mailbox of {target}{full}"
    return f"{name} has waited for {for_s} for the reply of {target} to {wait.type!r}"


def _of_its_mailbox(scene: Scene, agent: str, stats: MailboxStats, who: str, replicas: int = 1) -> Finding:
    busy_s, hand, wait = scene.busy_s(stats), scene.hand(stats), scene.wait(stats)
    if wait is not None and busy_s is not None and scene.is_fresh(wait):
        return _of_waiting(scene, agent, wait.kind)
    if stats.suspended_since_s:
        for_s = max(0.0, scene.now.time_s - stats.suspended_since_s)
        text = f"{agent} has been suspended for {for_text(for_s)}; `resume` lets it go on. {_count(stats.waiting)}."
        return Finding(agent, "suspended", "suspended", text)
    if busy_s is not None:
        turns = "" if replicas > 1 else _turns(busy_s)
        also = f" {_count(stats.waiting)}." if stats.waiting else ""
        text = f"{agent}{who} has been in its handler for {for_text(busy_s)}{_on(scene, hand)}.{turns}{also}"
        slots = scene.slots_of(agent)
        return Finding(agent, "handling", "in handler", text, pid=scene.pid(slots[0]) if len(slots) == 1 else 0)
    if stats.waiting:
        rate = scene.rate(stats, "handled")
        speed = "" if rate is None else f"; it handles {rate:,.0f} a second"
        text = f"{agent}{who} is between two messages. {_count(stats.waiting)}{speed}."
        return Finding(agent, "working", "takes messages", text)
    return Finding(agent, "idle", "idle", f"{agent}{who} is idle: no handler runs, and no message waits.")


def _of_waiting(scene: Scene, agent: str, kind: str) -> Finding:
    names = _chain(scene, agent)
    stats = scene.stats[agent]
    links = names[:-1]
    steps = [_waits(scene, name) for name in links]
    text = steps[0] + _in_handler_on(scene, scene.hand(stats)) + "".join(f"; {step}" for step in steps[1:]) + "."
    last = names[-1]
    if last in links:
        text += f" That ends in a circle of {', '.join(names[names.index(last) : -1])}."
    elif last in scene.stats:
        text += " And there: " + _find(scene, last).text
    word = f"waits for {names[1]}" if kind == "ask" else f"no room in {names[1]}"
    return Finding(agent, "waits_reply" if kind == "ask" else "waits_room", word, text, {"waits": steps}, tuple(names))


# --- words ------------------------------------------------------------------------------------------------------------


def _turns(busy_s: float) -> str:
    if busy_s < 2 * LONG_S:
        return ""
    return " Its event loop turns, so it awaits something that is no agent: a timer, a socket, a thread, a subprocess."


def _message(scene: Scene, hand: Hand) -> str:
    again = f", handed over for the {hand.deliveries}. time" if hand.deliveries > 1 else ""
    return f"message {hand.id[:12]} of type {hand.type!r} from {hand.sender}{again}"


def _on(scene: Scene, hand: Hand | None) -> str:
    return f" on {_message(scene, hand)}" if hand is not None else ""


def _in_handler_on(scene: Scene, hand: Hand | None) -> str:
    return f" (in its handler of {_message(scene, hand)})" if hand is not None else ""


def _count(waiting: int) -> str:
    return (
        "No message waits"
        if not waiting
        else f"{waiting:,} message{'s' if waiting != 1 else ''} wait{'s' if waiting == 1 else ''}"
    )


def for_text(seconds: float) -> str:
    """`0.3 s`, `42 s`, `12 min`, `3.5 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def ago_text(seconds: float) -> str:
    """The same, of a moment."""
    return f"{for_text(max(0.0, seconds))} ago"


# --- beside -----------------------------------------------------------------------------------------------------------


def _recent(scene: Scene, agent: str, found: Finding) -> list[tuple[str, dict[str, Any]]]:
    """What of the last minute is worth a word whatever is true now: (sentence, event)."""
    said: list[tuple[str, dict[str, Any]]] = []
    deadlocked = False
    host = scene.sample(SLOT_HOST)
    if scene.now.alive and host is not None and host.state in "Tt":
        text = f"The host of the run (pid {host.pid}) is stopped, so nobody watches, restarts, or ends a deadlock."
        said.append((text, {"event": "host_stopped", "time": scene.now.time_s, "cause": f"state {host.state}"}))
    for event in reversed(scene.now.events):
        age_s = scene.now.time_s - float(event["time"])
        if age_s > RECENT_S:
            break
        when, cause = ago_text(age_s), str(event.get("cause", "")).rstrip(".")
        if event["event"] == "deadlock" and not deadlocked and agent in event.get("agents", []):
            who = "its own wait" if event.get("agent") == agent else f"the wait of {event.get('agent')}"
            said.append((f"It was in a deadlock, which was broken {when} by ending {who}: {cause}.", event))
            deadlocked = True
        elif (
            event["event"] == "agent_failed"
            and event.get("agent") == agent
            and found.kind not in ("dead", "restarting")
        ):
            said.append((f"It failed {when} and was started again: {cause}.", event))
    return said[:3]


def _evidence(scene: Scene, agent: str) -> dict[str, Any]:
    """The numbers, whatever they mean."""
    stats = scene.stats.get(agent)
    slots = scene.slots_of(agent)
    shown: dict[str, Any] = {"processes": []}
    for slot in slots:
        sample, view = scene.sample(slot), scene.slot(slot)
        share = scene.cpu_share(slot)
        shown["processes"].append(
            {
                "name": scene.process_name(slot),
                "pid": scene.pid(slot) or None,
                "state": sample.state if sample is not None else None,
                "cpu_share": None if share is None else round(share, 3),
                "asleep": view.parked if view is not None else None,
                "loop_answers": None if view is None or not view.alive else not scene.does_not_answer(slot),
            }
        )
    if stats is not None:
        busy_s, hand = scene.busy_s(stats), scene.hand(stats)
        shown |= {
            "waiting": stats.waiting,
            "capacity": stats.capacity,
            "in_hand": stats.in_hand,
            "handled": stats.handled,
            "in_handler_s": None if busy_s is None else round(busy_s, 3),
        }
        if hand is not None:
            names = {"id": hand.id, "type": hand.type, "sender": hand.sender}
            shown["message"] = names | {"delivery": hand.deliveries, "where": hand.where}
    return shown
