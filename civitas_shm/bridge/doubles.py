"""Which messages of a host have come before. Pure.

Guarantee: of one host's last REMEMBERED messages none is committed twice by this bridge. What it knows is gone with it:
a repetition after its death comes again.
"""

from __future__ import annotations

from typing import Final, Literal

__all__ = ["REMEMBERED", "Doubles"]

REMEMBERED: Final = 65_536
"""Of each host: a thousand times what its bridge may have on its way at once. About 8 MiB for a host that says so
much."""
HOSTS_MAX: Final = 256
"""Hosts that are remembered: ids are made up for each run, and nobody says when one has gone for good."""


class Doubles:
    """What has come, by host; an entry is `held` until it is `taken`."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._hosts: dict[str, dict[bytes, bool]] = {}

    def known(self, host: str, id: bytes) -> Literal["", "held", "taken"]:
        """Whether it has come before, and what became of it."""
        taken = self._hosts.get(host, {}).get(id)
        return "" if taken is None else "taken" if taken else "held"

    def hold(self, host: str, id: bytes) -> None:
        """It has come, and waits."""
        self._of(host)[id] = False

    def take(self, host: str, id: bytes) -> None:
        """It is committed."""
        ids = self._of(host)
        ids[id] = True
        if len(ids) > self._remembered:
            oldest = next(iter(ids))
            taken = ids.pop(oldest)
            if not taken:  # it still waits: it may not be forgotten, and there are few of them
                ids[oldest] = False

    def forget(self, host: str, id: bytes) -> None:
        """It was refused: a repetition is looked at anew."""
        self._hosts.get(host, {}).pop(id, None)

    def _of(self, host: str) -> dict[bytes, bool]:
        ids = self._hosts.get(host)
        if ids is None:
            if len(self._hosts) >= HOSTS_MAX:
                self._hosts.pop(next(iter(self._hosts)))
            ids = self._hosts[host] = {}
        return ids
