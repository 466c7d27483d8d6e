"""How a client finds a run and gets a connection to it. Blocking; the client with a loop does it in a thread.

The way: the control socket in the run's directory, where the host looks who it is (`control.server`); on `Connect` the
host hands the connection itself to the program that started the run, which answers and serves it from then on.

Rules of this file: every step has a deadline; a run that is not there, one that does not answer and one that is full
are three different errors; who starts, resumes or ends just now is tried again until the deadline.
"""

from __future__ import annotations

import os
import socket
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..control.client import ControlClient
from ..control.protocol import Connect, Connected, Refusal
from ..errors import CivitasError, RunNotAnswering, RunNotFound, TooManyClients
from ..transport import TransportModule, load_transport

__all__ = ["CONNECT_TIMEOUT_S", "Line", "dial"]

CONNECT_TIMEOUT_S: Final = 10.0
"""How long a run that is there may take to let a client in: it may be starting."""

_TRY_AGAIN_S: Final = 0.02


_lines: Final[weakref.WeakSet[Line]] = weakref.WeakSet()


def _let_go_in_child() -> None:
    """A forked child has copies of its parent's connections, which would keep these open when the parent is gone. Their
    numbers stay taken, by nothing: whoever still has one in hand closes that."""
    lines = [line for line in _lines if line.sock.fileno() >= 0]
    if lines:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for line in lines:
            os.dup2(null, line.sock.fileno(), inheritable=False)
        os.close(null)


os.register_at_fork(after_in_child=_let_go_in_child)


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Line:
    """A connection that was made."""

    sock: socket.socket
    run: str
    pid: int
    """Of the program that started the run, which serves the connection."""


def dial(name: str | None, timeout_s: float, wait_s: float) -> Line:
    """A connection to the run of that name (None: the only one there is).

    RunNotFound when there is no such run within `wait_s`; RunNotAnswering when it does not let us in within
    `timeout_s`; TooManyClients when others have all connections.
    """
    transport = load_transport("shm")
    began_s = time.monotonic()
    while True:
        try:
            return _try(transport, _directory(transport, name), timeout_s)
        except RunNotFound:
            if time.monotonic() - began_s >= wait_s:
                raise
        except _NotNow as busy:
            if time.monotonic() - began_s >= max(timeout_s, wait_s):
                raise RunNotAnswering(f"The run {name!r} takes no client: {busy}.") from None
        time.sleep(_TRY_AGAIN_S)


class _NotNow(CivitasError):
    """It starts or stops just now. Private to this file."""


def _try(transport: TransportModule, directory: Path, timeout_s: float) -> Line:
    assert transport.is_held is not None
    with ControlClient(directory, transport.is_held, timeout_s) as control:
        try:
            answer = control.reply(Connect())
        except RunNotAnswering as silent:
            if not transport.is_held(directory):
                raise RunNotFound(f"The run {directory.name!r} ended before it let us in.") from None
            raise RunNotAnswering(
                f"{silent} Or the program that started the run does not: it serves clients on its event loop, which "
                "must not be blocked."
            ) from None
        match answer:
            case Connected(run=run, pid=pid):
                line = Line(control.detach(), run, pid)
                _lines.add(line)
                return line
            case Refusal(kind="clients", text=text):
                raise TooManyClients(f"{text}.")
            case Refusal(kind="busy", text=text):
                raise _NotNow(text)
            case Refusal(text=text):
                raise RunNotAnswering(f"The host of run {directory.name!r} refused: {text}.")
        raise RunNotAnswering(f"The host of run {directory.name!r} answered {type(answer).__name__} to a client.")


def _directory(transport: TransportModule, name: str | None) -> Path:
    """Where the run is: by its name, else by looking at all there are."""
    assert transport.find_runs is not None
    assert transport.is_held is not None
    assert transport.run_directory is not None
    if name is not None:
        directory = transport.run_directory(name)
        if transport.is_held(directory):
            return directory
    live = [run for run in transport.find_runs() if run.state == "live"]
    if name is None:
        here = [run for run in live if not run.elsewhere]
        if len(here) == 1:
            return here[0].path
        names = ", ".join(run.name for run in here)
        raise RunNotFound(f"Which run is meant? There are {len(here)}: {names}." if here else "No run is alive.")
    for run in live:
        if run.name == name:
            return run.path
    known = f"; there is {', '.join(run.name for run in live)}" if live else ""
    raise RunNotFound(f"There is no live run named {name!r}{known}. `civitas-shm ps --all` lists what there is.")
