"""Where implementations of the contracts are found: by name, built in or installed.

Rules of this file: the one place of the core that names a transport's module, and that only as text to import.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigurationError, TransportUnavailable
from ..runs import RunFound
from .port import Port
from .reader import RunReader

__all__ = [
    "BUILTIN_LINKS",
    "BUILTIN_TRANSPORTS",
    "TransportModule",
    "known_transports",
    "load_link",
    "load_transport",
    "new_addresses",
]

BUILTIN_TRANSPORTS: Final = {
    "in_process": "civitas_shm_transports.in_process",
    "shm": "civitas_shm_transports.shm",
}
"""Scheme -> module. A transport module has `transport() -> TransportModule`-like functions, see `load_transport`."""

BUILTIN_LINKS: Final = {
    "nats": "civitas_shm_transports.nats",
    "zmq": "civitas_shm_transports.zmq",
}
"""Type of a bridge -> module with `link(settings: bridge.link.LinkSettings) -> bridge.link.Link`."""


def load_link(settings: Any) -> Any:
    """The link of that type (`bridge.link`), not yet opened. Only in the process of the bridge.

    ConfigurationError: no such type, or settings that cannot be. MissingExtra, TransportUnavailable: not here.
    """
    path = BUILTIN_LINKS.get(settings.type, settings.type)
    if "." not in path:
        raise ConfigurationError(f"a bridge of type {settings.type!r} is unknown; known: {', '.join(BUILTIN_LINKS)}.")
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        raise ConfigurationError(f"a bridge of type {settings.type!r}: cannot import {path!r}: {error}") from error
    return module.link(settings)


def new_addresses(serializer: Any) -> Any:
    """The `addresses.Transport` of one process, with that serializer."""
    return importlib.import_module("civitas_shm_transports.addresses").InProcessTransport(serializer)


@dataclass(frozen=True, slots=True)
class TransportModule:
    """What a transport module offers to the runtime."""

    scheme: str
    multi_process: bool
    """True: agents run in worker processes under a host, which holds a RunMemory."""
    create: Callable[..., Any]
    """`create(name, plan, *, run_dir, fresh, resume) -> RunMemory` when multi_process, else `create() -> Port`."""
    attach: Callable[[dict[str, Any], list[int]], Port] | None = None
    """`attach(spec, fds) -> Port` in a worker; None unless multi_process."""
    approach: Callable[[list[int]], Callable[[dict[str, Any]], Port]] | None = None
    """`attach(spec, fds)` as `approach(fds)(spec)`, for a process that waits for its slot: the first step does what can
    be done without one, and nothing that anybody could notice. None: there is no such step."""
    stage: Callable[[str], AbstractContextManager[tuple[list[int], dict[str, Any], int]]] | None = None
    """A run of this process alone, with one mailbox, to rehearse in: descriptors and spec for `attach`, the mailbox."""
    limits: dict[str, int] = field(default_factory=dict)
    layout_version: int | None = None
    """Of the shared memory; processes of different ones cannot share a run. None: it has none."""
    find_runs: Callable[[], list[RunFound]] | None = None
    """Every run of this user and what is left of runs, live ones too; None unless runs outlive processes."""
    stale_runs: Callable[[], list[RunFound]] | None = None
    """Those of them that are dead: nobody holds them, so they may be resumed or removed."""
    remove_stale: Callable[[RunFound], None] | None = None
    """Remove one that is not live, with all that is in it; RunAlive when it has come to life again."""
    is_held: Callable[[Path], bool] | None = None
    """Whether the run with that directory lives: by its lock, changing nothing."""
    hold: Callable[[Path], AbstractContextManager[None]] | None = None
    """Keep a dead run from being started or removed by others meanwhile; RunAlive when it is not dead."""
    run_directory: Callable[[str], Path] | None = None
    """Where the run of a name has its directory: control socket, log. It need not be there."""
    look: Callable[[Path], RunReader] | None = None
    """Look into the run with that directory, alive or dead. RunNotFound when there is none to look into, and why."""
    fork_away: Callable[[], tuple[bool, int]] | None = None
    """Fork a process that will be a child of this one's parent, a subreaper; in a process with one thread. In both:
    whether this is the new one, and the pid of who forked it, its parent until that has ended. OSError: not made."""
    keep_memory: Callable[[], int] | None = None
    """Called once in the main thread of a worker or a host: from then on it is dead at once when it dies, however long
    the kernel takes to unmap its memory. The pid of the child that sees to that and ends with it; 0: there is none."""


def load_transport(scheme: str) -> TransportModule:
    """Import the transport of that name: a built-in one, or a dotted `package.module`.

    TransportUnavailable (exit code 5) when this system cannot have it; ConfigurationError when no such name exists.
    Entry points (group `civitas_shm.transports`) are scanned only for a name that is not built in, because the scan
    costs 30 ms at every worker start.
    """
    path = BUILTIN_TRANSPORTS.get(scheme)
    if path is None:
        path = scheme if "." in scheme else _entry_point(scheme)
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        if scheme in BUILTIN_TRANSPORTS:
            raise TransportUnavailable(
                f"transport {scheme!r} cannot be had here: {error}. Shared memory needs Linux and the compiled part of "
                "civitas-shm (pip install civitas-shm on Linux x86-64 or aarch64, or gcc for a source install). "
                "The same topology runs with --transport in_process."
            ) from error
        raise ConfigurationError(f"transport {scheme!r}: cannot import {path!r}: {error}") from error
    loaded = module.transport()
    if not isinstance(loaded, TransportModule):
        raise ConfigurationError(f"transport {scheme!r}: {path}.transport() returned {type(loaded).__name__}")
    return loaded


def known_transports() -> list[str]:
    """Words that `load_transport` takes here: built in, and of other distributions. A dotted path is one as well."""
    from importlib.metadata import entry_points

    return [*BUILTIN_TRANSPORTS, *(point.name for point in entry_points(group="civitas_shm.transports"))]


def _entry_point(scheme: str) -> str:
    from importlib.metadata import entry_points

    for point in entry_points(group="civitas_shm.transports"):
        if point.name == scheme:
            return point.value
    known = ", ".join(sorted(BUILTIN_TRANSPORTS))
    raise ConfigurationError(f"transport {scheme!r} is unknown; known here: {known}.")
