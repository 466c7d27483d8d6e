"""Addresses of a ZeroMQ proxy, looked at: what they may be, and which of them are beyond this machine.

Rules of this file: pure; nothing is resolved, so a name other than `localhost` counts as beyond.
"""

from __future__ import annotations

import ipaddress
from typing import Any, Final

__all__ = ["PUB_ADDR", "SUB_ADDR", "address_problem"]

PUB_ADDR: Final = "tcp://127.0.0.1:5559"
SUB_ADDR: Final = "tcp://127.0.0.1:5560"
"""The seed's: 5559 is where links send to, 5560 where they are sent from."""


def address_problem(address: Any, with_keys: bool) -> str | None:
    """Why no proxy may be there, with the way out; None: one may. `with_keys`: CURVE is on."""
    scheme, _, rest = address.partition("://") if isinstance(address, str) else ("", "", "")
    if scheme == "ipc" and rest:
        return None
    host, _, port = rest.rpartition(":")
    if scheme != "tcp" or not host or not (port.isdecimal() and 0 < int(port) < 65536):
        return f"{address!r} is no address of a proxy; it looks like tcp://HOST:PORT or ipc://PATH"
    if not with_keys and not _is_loopback(host):
        return (
            f"{address!r} is beyond this machine, where nothing is encrypted and anybody could send to your agents; "
            "say curve: {directory: PATH} (keys are made there; copy all but server_secret_key to the other machines), "
            "or use 127.0.0.1"
        )
    return None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
