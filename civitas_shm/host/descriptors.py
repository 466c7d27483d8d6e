"""Whether the host and the caller may open as many files as a run needs: asked before anything is made.

Rules of this file: what can be had without asking (the host's own soft limit, up to the hard one) is taken; the rest is
an error with limit, value and the way out. After this check nobody runs out in the middle, whatever agents do: their
processes have tables of their own. Should it happen all the same (somebody lowers the limit, the machine as a whole has
none left), it is an `exhausted` error with an `account`, and what can wait is tried again.
"""

from __future__ import annotations

import errno
import os
import resource
from typing import Final

from ..errors import ConfigurationError

__all__ = ["MARGIN", "account", "check", "exhausted", "needed"]

MARGIN: Final = 48
"""Standard streams, the loop, event file, control socket and its clients, dead letters; what is open for a moment."""

PER_PROCESS: Final = 7
"""In the host: control and output socket, two pipes, pidfd; and both ends of two of them while it is being born."""


def needed(slots: int, processes: int) -> tuple[int, int]:
    """(descriptors of the host, of the caller) for a run with so many slots and workers, standbys included."""
    memory = 4 + 2 * slots  # directory, cells, mail, locks; arena and doorbell of each slot
    return 2 * memory + PER_PROCESS * processes + MARGIN, memory + MARGIN // 2


def check(slots: int, processes: int, caller_pid: int) -> None:
    """ConfigurationError if host or caller would run out."""
    host, caller = needed(slots, processes)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < host:
        if hard != resource.RLIM_INFINITY and hard < host:
            raise ConfigurationError(_text("the host process", hard, host, "hard limit", slots))
        resource.setrlimit(resource.RLIMIT_NOFILE, (host, hard))
    limit, _ = resource.prlimit(caller_pid, resource.RLIMIT_NOFILE)
    open_now = len(os.listdir(f"/proc/{caller_pid}/fd"))
    if limit != resource.RLIM_INFINITY and limit < open_now + caller:
        who = f"the caller, which has {open_now} open,"
        raise ConfigurationError(_text(who, limit, open_now + caller, "limit", slots))


def exhausted(error: OSError) -> bool:
    """Whether an operation failed for want of descriptors, this process's or the machine's."""
    return error.errno in (errno.EMFILE, errno.ENFILE)


def account(error: OSError) -> str:
    """The sentence for such an error, without a full stop."""
    if error.errno == errno.ENFILE:
        return "the machine has no file descriptor left (fs.file-max)"
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        f"{error.strerror}: the host process may have {soft} file descriptors, and has them. Somebody has "
        f"lowered its limit; raise it (prlimit --pid {os.getpid()} --nofile={max(1024, 2 * soft)}), or run again with "
        "--resume"
    )


def _text(who: str, limit: int, wanted: int, kind: str, slots: int) -> str:
    return (
        f"Too few file descriptors: {who} may have {limit} ({kind}), a run with {slots} process slots needs {wanted}. "
        f"Raise it (`ulimit -n {max(1024, wanted)}`; docker run --ulimit nofile=65536; LimitNOFILE= of the service), "
        "or lower `--workers`."
    )
