"""Keeps the chart of a run (`civitas_shm/chart.py`) true: what a look from outside cannot read in shared memory.

Rules of this file: written only when something in it has changed, and never for more than SHARE of the host's time,
however many agents there are and however often they fall; what cannot be written costs nobody anything but the names
in `top`.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict
from typing import Final

from .. import __version__
from ..chart import Chart, ChartChild, ChartProcess, ChartSupervisor, encode_chart, write_chart
from ..placement import MAIN
from ..supervision import Tree, report_children, report_supervisors
from ..transport import RunMemory
from .driver import Driver
from .seats import Seat

__all__ = ["Charting"]

SHARE: Final = 0.01

AGAIN_S: Final = 10.0
"""After it could not be written: the directory is full, or no descriptor is left."""


class Charting:
    """Of one run; `keep` is called a few times a second."""

    def __init__(self, driver: Driver, memory: RunMemory, caller_pid: int, since_s: float) -> None:
        self._driver = driver
        self._memory = memory
        self._caller_pid = caller_pid
        self._since_s = since_s
        self._tree: Tree | None = None
        self._rest: tuple[object, ...] = ()
        """What is written beside the tree, as it was written last."""
        self._rested_s = 0.0
        self._failed = False

    def keep(self, state: str) -> None:
        """Write it if it is not true any more."""
        began_s = time.monotonic()
        rest = (state, *(_seen(seat) for seat in self._driver.seats.values()))
        if began_s < self._rested_s or (self._driver.tree is self._tree and rest == self._rest):
            return
        self._tree, self._rest = self._driver.tree, rest
        try:
            write_chart(self._memory.run_dir, encode_chart(self._chart(state)))
        except OSError as error:
            if not self._failed:  # said once
                text = f"no chart can be kept there just now ({error.strerror}); top may know old names only."
                print(f"{self._memory.run_dir}: {text}", file=sys.stderr)
            self._failed, self._tree, self._rested_s = True, None, began_s + AGAIN_S
            return
        ended_s = time.monotonic()
        self._rested_s = ended_s + (ended_s - began_s) / SHARE

    def _chart(self, state: str) -> Chart:
        driver, tree = self._driver, self._driver.tree
        dynamic = {name for name, supervisor in tree.supervisors.items() if supervisor.spec.dynamic is not None}
        return Chart(
            name=self._memory.name,
            run_id=self._memory.run_id,
            version=__version__,
            state=state,
            host_pid=os.getpid(),
            main_pid=self._caller_pid,
            since_s=self._since_s,
            written_s=time.time(),
            stopped_timeout_s=driver.placement.spec.watch.stopped_timeout_s,
            processes=tuple(self._process(seat) for seat in driver.seats.values()),
            supervisors=tuple(
                ChartSupervisor(
                    one.name,
                    one.parent or "",
                    one.strategy,
                    one.phase,
                    one.restarts_in_window,
                    one.max_restarts,
                    one.restart_window_s,
                    one.name in dynamic,
                )
                for one in report_supervisors(tree, time.monotonic())
            ),
            children=tuple(
                ChartChild(
                    one.name,
                    one.agent,
                    one.supervisor,
                    driver.process_of(one.name),
                    one.status,
                    driver.restarts.get(one.name, 0),
                    one.incarnation,
                )
                for one in report_children(tree)
            ),
            counts=asdict(driver.counts),
        )

    def _process(self, seat: Seat) -> ChartProcess:
        if seat.name == MAIN:
            return ChartProcess(MAIN, seat.planned.slot, self._caller_pid)
        pid = seat.worker.pid if seat.worker else 0
        state = "running" if seat.ready else "starting" if seat.worker else "waiting"
        return ChartProcess(
            seat.name, seat.planned.slot, pid, tuple(seat.planned.cpus), state, seat.restarts, seat.verdict
        )


def _seen(seat: Seat) -> tuple[object, ...]:
    return seat.worker.pid if seat.worker else 0, seat.ready, seat.restarts, seat.verdict
