"""ZeroMQ between the hosts of a system: a proxy in a process of its own, and links that lose nothing over it.

The protocol is written down in PROTOCOL.md. `wire`, `lanes`, `peers` and `machine` decide and know no socket; `link`
and `proxy` do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from civitas_shm.bridge.link import LinkSettings

    from .link import ZmqLink

__all__ = ["link"]


def link(settings: LinkSettings) -> ZmqLink:
    """A link of type zmq, not yet opened. ConfigurationError: no pyzmq, or settings that cannot be."""
    try:
        import zmq  # noqa: F401 - whether it is there
    except ImportError as error:
        from civitas_shm.errors import ConfigurationError

        raise ConfigurationError(
            f"zmq: the package pyzmq cannot be imported ({error}): pip install 'civitas-shm[zmq]'."
        ) from error
    from .link import ZmqLink

    return ZmqLink(settings)
