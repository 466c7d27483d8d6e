"""What the machine says about processes from outside: cpu, memory, state. psutil, sampled; nobody is asked.

Rules of this file: a process that is gone has no sample; numbers are for people and for memory limits, never for
deciding whether somebody lives (pidfds do that).
"""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from .descriptors import exhausted

__all__ = ["Probes", "Sample"]

_STATES = {psutil.STATUS_STOPPED: "stopped", psutil.STATUS_TRACING_STOP: "stopped", psutil.STATUS_ZOMBIE: "dead"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading of one process."""

    cpu_percent: float
    """Of one core, since the last sample; 0 at the first."""
    rss_bytes: int
    private_bytes: int
    """Without shared memory, which belongs to the run and not to a process."""
    state: str
    """`running`, `stopped` (SIGSTOP, a debugger), `dead`."""


class Probes:
    """Samples processes by pid; keeps what psutil needs to tell a rate."""

    def __init__(self) -> None:
        self._processes: dict[int, psutil.Process] = {}

    def sample(self, pids: set[int]) -> dict[int, Sample]:
        """Read all of these; forget all others."""
        self._processes = {pid: process for pid, process in self._processes.items() if pid in pids}
        samples: dict[int, Sample] = {}
        for pid in pids:
            try:
                process = self._processes.get(pid) or self._processes.setdefault(pid, psutil.Process(pid))
                with process.oneshot():
                    memory = process.memory_info()
                    samples[pid] = Sample(
                        cpu_percent=process.cpu_percent(),
                        rss_bytes=memory.rss,
                        private_bytes=memory.rss - memory.shared,
                        state=_STATES.get(process.status(), "running"),
                    )
            except psutil.NoSuchProcess:  # between its death and its pidfd's event
                self._processes.pop(pid, None)
            except OSError as error:
                if not exhausted(error):
                    raise
                break  # numbers are for people, and they can wait
        return samples
