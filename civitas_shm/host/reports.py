"""Sentences about deaths, failures and ends: pure, from values to text.

Rules of this file: every report says what, where, why, and what was in hand; causes are the kernel's words (signal
name, exit code) with what is known about who did it. Nothing here reads a clock, a process or memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .kernel import Exit

__all__ = ["Death", "cause_of", "death_report", "ended_sentence", "failure_report", "waiting_sentence"]


@dataclass(frozen=True, slots=True)
class Death:
    """Everything known about the end of one process."""

    process: str
    pid: int
    cause: str
    in_hand: list[dict[str, Any]] = field(default_factory=list)
    """As `events.in_hand_plain` gives it."""
    tail: list[str] = field(default_factory=list)


def cause_of(
    exit_: Exit | None, killed_because: str, out_of_memory: bool, limit_mb: int = 0, wanted_mb: int | None = None
) -> str:
    """Why a process ended. `out_of_memory`: the kernel's count of such kills has grown since the last death;
    `limit_mb`: because its cgroup reached that, of which `wanted_mb` is what the topology says."""
    if exit_ is None:
        return killed_because or "it ended before it was started"
    if killed_because:
        return f"{exit_} ({killed_because})"
    if exit_.signal == 9 and out_of_memory and limit_mb:
        return (
            f"SIGKILL (out of memory: killed by the kernel, because it and what it has started took {limit_mb} MiB; "
            f"memory_limit_mb of its process is {wanted_mb}, the rest was for its messages)"
        )
    if exit_.signal == 9 and out_of_memory:
        return "SIGKILL (out of memory: killed by the kernel)"
    return str(exit_)


def death_report(death: Death) -> str:
    """Several lines for the end of a run: cause, message in hand, last words."""
    lines = [f"process {death.process} (pid {death.pid}) died: {death.cause}"]
    lines += [f"  in hand: {_message(entry)}" for entry in death.in_hand]
    if death.tail:
        lines += [f"  its last {len(death.tail)} lines:", *(f"    {line}" for line in death.tail)]
    else:
        lines.append("  it wrote nothing to stderr")
    return "\n".join(lines)


def failure_report(event: Mapping[str, Any], process: str) -> str:
    """Several lines for an agent that crashed; `event` is an AgentFailed as plain values."""
    lines = [
        f"agent {event['agent']} in process {process} failed in {event['during']}: {event['type']}: {event['text']}"
    ]
    if event.get("message"):
        lines.append(f"  in hand: {_message(event['message'])}")
    if event.get("traceback"):
        lines += [f"    {line}" for line in str(event["traceback"]).splitlines()]
    return "\n".join(lines)


def _message(entry: Mapping[str, Any]) -> str:
    to = f" to {entry['agent']!r}" if entry.get("agent") else ""
    return f"message {entry['id']} of type {entry['type']!r} from {entry['sender']!r}{to}, delivery {entry['delivery']}"


def ended_sentence(run: str, exit_code: int, waiting: Mapping[str, int]) -> str:
    """What those are told who still wait for something when a run has been stopped, or ask for it later."""
    return f"The run {run!r} was stopped and has ended (exit code {exit_code}). {waiting_sentence(waiting)}".rstrip()


def waiting_sentence(waiting: Mapping[str, int]) -> str:
    """`17 messages wait (planner 12, critic 5): run --resume goes on with them, run --fresh drops them`; or nothing."""
    total = sum(waiting.values())
    if not total:
        return ""
    most: Sequence[tuple[str, int]] = sorted(waiting.items(), key=lambda item: (-item[1], item[0]))
    names = ", ".join(f"{name} {count}" for name, count in most[:5]) + (", …" if len(most) > 5 else "")
    one = total == 1
    return (
        f"{total} message{'' if one else 's'} wait{'s' if one else ''} ({names}): `run --resume` goes on with "
        f"{'it' if one else 'them'}, `run --fresh` drops {'it' if one else 'them'}."
    )
