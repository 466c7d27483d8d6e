"""Mailboxes in shared memory. `transport()` is what the runtime asks for; importing this needs Linux and `_shm`."""

from __future__ import annotations

import sys

if sys.platform != "linux":
    raise ImportError(
        f"shared-memory mailboxes need Linux (eventfd, pidfd, futex-free wake-up), this is {sys.platform}"
    )

from civitas_shm.transport import TransportModule

from . import _shm
from .memory import create
from .reader import look
from .segments import is_held
from .stage import stage
from .survey import find_runs, hold, remove_stale, run_directory, stale_runs
from .transport import approach, attach

__all__ = ["find_runs", "remove_stale", "stale_runs", "transport"]


def transport() -> TransportModule:
    """The scheme `shm`."""
    return TransportModule(
        scheme="shm",
        multi_process=True,
        create=create,
        attach=attach,
        approach=approach,
        stage=stage,
        limits={"slots": _shm.SLOTS_MAX, "mailboxes": _shm.MAILBOXES_MAX, "layout": _shm.LAYOUT_VERSION},
        layout_version=_shm.LAYOUT_VERSION,
        find_runs=find_runs,
        stale_runs=stale_runs,
        remove_stale=remove_stale,
        is_held=is_held,
        hold=hold,
        look=look,
        run_directory=run_directory,
        fork_away=_shm.fork_away,
        keep_memory=_shm.keep_memory,
    )
