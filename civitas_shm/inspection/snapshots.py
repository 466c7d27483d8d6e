"""From a scene to the rows that are shown: `snapshot.RuntimeSnapshot`, the one thing that `top` and the screen of
`run` draw.

Rules of this file: pure; what is not known is None and never 0; a failing agent is told by `why`, not by a second rule
here.
"""

from __future__ import annotations

from ..chart import ChartProcess
from ..snapshot import AgentSnapshot, ProcessSnapshot, RuntimeSnapshot, SupervisorSnapshot
from ..transport import SLOT_HOST, SLOT_MAIN, quantile_us
from .scene import Scene
from .why import find

__all__ = ["snapshot_of"]

_STATES = {"T": "stopped", "t": "traced", "Z": "dead", "D": "kernel wait"}


def snapshot_of(scene: Scene) -> RuntimeSnapshot:
    """The run as it is, with rates over the time between its two readings."""
    now, chart = scene.now, scene.now.chart
    began_s = chart.since_s if chart is not None else 0.0
    if now.removed:
        state = "removed"
    elif not now.alive:
        state = "dead"
    else:
        state = chart.state if chart is not None else "starting"
    return RuntimeSnapshot(
        name=now.name,
        transport="shm",
        uptime_s=max(0.0, now.time_s - began_s) if began_s else 0.0,
        shared_bytes=now.shared_bytes,
        processes=tuple(_process(scene, slot) for slot in _slots(scene)),
        agents=tuple(_agent(scene, agent) for agent in scene.agents()),
        supervisors=tuple(
            SupervisorSnapshot(
                one.name,
                one.parent,
                one.strategy,
                one.state,
                one.restarts_in_window,
                one.max_restarts,
                one.window_s,
                one.dynamic,
            )
            for one in scene.supervisors.values()
        ),
        state=state,
        time_s=now.time_s,
        dead_letters=now.dead_letters,
        letters=now.letters,
        events=now.events,
    )


def _slots(scene: Scene) -> list[int]:
    """The host's, then those of the plan, then what only memory knows of."""
    planned = [process.slot for process in scene.processes.values()]
    return list(dict.fromkeys([SLOT_HOST, *planned, *scene.slots]))


def _process(scene: Scene, slot: int) -> ProcessSnapshot:
    view, sample, share = scene.slot(slot), scene.sample(slot), scene.cpu_share(slot)
    name = scene.process_name(slot)
    planned = scene.processes.get(name, ChartProcess(name, slot))
    alive = view is not None and view.alive
    state = "running" if alive else "dead"
    if not alive and scene.now.alive and slot not in (SLOT_HOST, SLOT_MAIN) and planned.state != "running":
        state = planned.state  # it waits for its backoff, or has not begun
    if alive and sample is not None:
        state = _STATES.get(sample.state, state)
    if state == "running" and scene.does_not_answer(slot):
        state = "blocked loop"
    return ProcessSnapshot(
        name=name,
        pid=scene.pid(slot) or None,
        cpus=tuple(planned.cpus),
        cpu_percent=None if share is None else 100 * share,
        rss_bytes=None if sample is None else sample.rss_bytes,
        state=state,
        restarts=planned.restarts,
        slot=slot,
        threads=None if sample is None else sample.threads,
        core=None if sample is None else sample.core,
        lag_s=None if slot == SLOT_HOST else scene.lag_s(slot),
        arena_bytes=None if view is None else view.arena_bytes,
        arena_most_bytes=None if view is None else view.arena_most_bytes,
    )


def _agent(scene: Scene, agent: str) -> AgentSnapshot:
    stats, children = scene.stats.get(agent), scene.children.get(agent, [])
    found = find(scene, agent)
    names = [scene.process_name(slot) for slot in scene.slots_of(agent)] or [child.process for child in children]
    lags = [lag for slot in scene.slots_of(agent) if (lag := scene.lag_s(slot)) is not None]
    hand = None if stats is None else scene.hand(stats)
    histogram = () if stats is None else scene.histogram(stats)
    return AgentSnapshot(
        name=agent,
        process=",".join(dict.fromkeys(names)),
        queue=0 if stats is None else stats.waiting,
        handled=0 if stats is None else stats.handled,
        rate_per_s=None if stats is None else scene.rate(stats, "handled"),
        handler_p50_us=quantile_us(histogram, 0.5),
        handler_p99_us=quantile_us(histogram, 0.99),
        restarts=sum(child.restarts for child in children),
        state=_state([child.state for child in children], closed=stats is not None and stats.closed),
        supervisor=children[0].supervisor if children else "",
        dropped=0 if stats is None else stats.dropped,
        capacity=None if stats is None else stats.capacity,
        in_hand=None if stats is None else stats.in_hand,
        in_handler_s=None if stats is None else scene.busy_s(stats),
        message="" if hand is None else hand.type,
        sender="" if hand is None else hand.sender,
        sent_per_s=None if stats is None else scene.rate(stats, "sent"),
        in_bytes_per_s=None if stats is None else scene.rate(stats, "bytes_in"),
        redelivered=0 if stats is None else stats.redelivered,
        garbage=0 if stats is None else stats.garbage,
        overflow="" if stats is None else stats.overflow,
        lag_s=max(lags, default=None),
        kind=found.kind,
        doing=found.word,
        why=found.text,
    )


def _state(states: list[str], *, closed: bool) -> str:
    for state in ("starting", "stopping", "waiting", "ready", "down", "gone"):
        if state in states:
            return "running" if state == "ready" else state
    return "gone" if closed else "unknown"
