"""What a service manager is told: sd_notify(3), in the words of its protocol.

Rules of this file:
- without NOTIFY_SOCKET nothing is done; a manager that does not read costs nothing and blocks nobody;
- a ping is sent from the loop that it vouches for, and only when `progress` has moved since the last one: a loop that
  is blocked, or that turns without doing its work, is silent, and the manager ends the service;
- while a run starts or stops, the manager's own deadline is put off for as long as there is progress: the deadlines of
  the topology count, not the manager's 90 s;
- the variables are taken out of the environment: what agents start must not speak for the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, MutableMapping
from typing import Final, Literal

import msgspec

__all__ = ["ServiceReports", "ServiceSettings", "take_service_settings"]

STATUS_S: Final = 5.0
"""How often the status line is looked at; it is sent when it has changed."""

PINGS_PER_WATCHDOG: Final = 3
"""sd_watchdog_enabled(3) advises half of the time; a third survives one ping that comes late."""


class ServiceSettings(msgspec.Struct, frozen=True):
    """What the manager wants."""

    address: str
    """Path of its datagram socket; an abstract one begins with @."""
    watchdog_s: float | None = None
    """It ends a service that has been silent for so long."""


def take_service_settings(environ: MutableMapping[str, str], pid: int) -> ServiceSettings | None:
    """From the environment, and out of it. None: there is no manager, or it does not mean this process."""
    address = environ.pop("NOTIFY_SOCKET", "")
    watchdog = environ.pop("WATCHDOG_USEC", "")
    meant = environ.pop("WATCHDOG_PID", "")
    if address[:1] not in ("/", "@") or len(address) < 2:
        return None
    watchdog_s = None
    if watchdog.isdigit() and int(watchdog) > 0 and meant in ("", str(pid)):
        watchdog_s = int(watchdog) / 1e6
    return ServiceSettings(address, watchdog_s)


class ServiceReports:
    """Reports of one run, from construction to `close`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: ServiceSettings,
        *,
        status: Callable[[], str],
        progress: Callable[[], int],
    ) -> None:
        """`status`: one line; `progress`: a number that grows as long as the work goes on."""
        self._loop = loop
        self._settings = settings
        self._status = status
        self._progress = progress
        self._state: Literal["starting", "ready", "stopping"] = "starting"
        self._told = ""
        self._seen = -1
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        watchdog_s = settings.watchdog_s
        self._interval_s = STATUS_S if watchdog_s is None else min(STATUS_S, watchdog_s / PINGS_PER_WATCHDOG)
        self._timer = loop.call_later(self._interval_s, self._tick)

    def ready(self) -> None:
        """Every agent takes messages."""
        if self._state == "starting":
            self._state = "ready"
            self._send("READY=1", *self._status_line())

    def stopping(self) -> None:
        """The run ends. Idempotent."""
        if self._state != "stopping":
            self._state = "stopping"
            self._send("STOPPING=1", *self._status_line())

    def close(self) -> None:
        """Idempotent."""
        self._timer.cancel()
        self._sock.close()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._interval_s, self._tick)
        words = self._status_line()
        seen = self._progress()
        if seen != self._seen:
            self._seen = seen
            if self._settings.watchdog_s is not None:
                words.append("WATCHDOG=1")
            if self._state != "ready":
                words.append(f"EXTEND_TIMEOUT_USEC={int(4 * self._interval_s * 1e6)}")
        if words:
            self._send(*words)

    def _status_line(self) -> list[str]:
        status = self._status().replace("\n", " ")
        if status == self._told:
            return []
        self._told = status
        return [f"STATUS={status}"]

    def _send(self, *words: str) -> None:
        address = self._settings.address
        if address.startswith("@"):
            address = "\0" + address[1:]
        # Its queue is full, it was stopped, it is gone: the service goes on, and a ping that is missed is missed.
        with contextlib.suppress(OSError):
            self._sock.sendto("\n".join(words).encode(), address)
