"""The link over NATS: core subjects, queue groups, "no responders". docs/bridge.md has what users need to know."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from civitas_shm.bridge.link import Link, LinkSettings

__all__ = ["link"]


def link(settings: LinkSettings) -> Link:
    """What `civitas_shm.transport.load_link` asks for. ConfigurationError: nats-py is not installed."""
    from .connection import NatsLink

    return NatsLink(settings)
