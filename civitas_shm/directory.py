"""Names to mailboxes: exact names for send and ask, patterns for broadcast.

Rules of this file: the directory of the run is the only truth (nothing is kept here), and an unknown name is an error
at once, with the names that come close.
"""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase

from .errors import MessageRoutingError
from .transport import Port

__all__ = ["Directory"]


class Directory:
    """Looks names up in the directory that a Port shows."""

    def __init__(self, port: Port) -> None:
        self._port = port

    def lookup(self, name: str) -> int:
        """The mailbox of `name`; MessageRoutingError when no agent of that name exists in this run."""
        mailbox = self._port.resolve(name)
        if mailbox < 0:
            raise self._unknown(name)
        return mailbox

    def lookup_all(self, pattern: str) -> list[str]:
        """Names that match an `fnmatch` pattern, sorted; those that start with `_` only if the pattern does too."""
        hidden = pattern.startswith("_")
        return sorted(
            name for name in self._port.names() if fnmatchcase(name, pattern) and (hidden or not name.startswith("_"))
        )

    def has(self, name: str) -> bool:
        """Whether there is an agent of that name whose mailbox is open."""
        mailbox = self._port.resolve(name)
        return mailbox >= 0 and not self._port.stats(mailbox).closed

    def names(self) -> list[str]:
        """All of them."""
        return self._port.names()

    def _unknown(self, name: str) -> MessageRoutingError:
        names = self._port.names()
        close = difflib.get_close_matches(name, names, n=3)
        if close:
            hint = "; close: " + ", ".join(map(repr, close))
        elif names:
            hint = f"; {len(names)} others are there"
        else:
            hint = "; no agent is there"
        return MessageRoutingError(f"No agent is named {name!r}{hint}.")
