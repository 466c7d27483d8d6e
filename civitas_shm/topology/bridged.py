"""The bridge in a topology: what `bridge:` and `transport: {type: nats}` come down to, and the agent that it becomes.

Rules of this file: pure; who the host is (id, epoch, key) is said by the caller. The bridge is a child of the root,
below a supervisor of its own: however often it dies, no other child is restarted for it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

from ..errors import ConfigurationError
from ..transport import BRIDGE
from .model import AgentSpec, BridgeSpec, SupervisorSpec, TopologySpec, TransportSpec

__all__ = ["LINKS", "asked_for", "bridge_of", "nats_at", "nats_url_problem", "with_bridge"]

LINKS: Final = ("nats", "zmq")
"""Words of `bridge: {type}`; as `transport: {type}` they mean shared memory here and this bridge to others."""

_CLASS: Final = "civitas_shm.bridging.agent.Bridge"
_SUPERVISOR: Final = "_bridges"
_OUTBOX: Final = 10_000


def asked_for(spec: TopologySpec, transport: str) -> TopologySpec:
    """The topology with that transport in place of its own: `--transport`. A bridge of that type keeps its settings."""
    if transport not in LINKS:
        return replace(spec, transport=replace(spec.transport, type=transport), bridge=None)
    bridge = spec.bridge if spec.bridge is not None and spec.bridge.type == transport else BridgeSpec(transport)
    return replace(spec, transport=replace(spec.transport, type="shm"), bridge=replace(bridge, groups=True))


def bridge_of(
    transport: str | TransportSpec, bridge: BridgeSpec | None, addresses: dict[str, Any]
) -> tuple[TransportSpec, BridgeSpec | None]:
    """What a program has said, in the words of a topology: `transport="nats", nats_servers=...`.

    TypeError: no such keyword. ConfigurationError: what this version cannot do, or what says two things.
    """
    given = TransportSpec(transport) if isinstance(transport, str) else transport
    for name in addresses:
        if name not in _ADDRESSES:
            raise TypeError(f"Runtime() has no argument {name!r}")
    if given.type in LINKS:
        if bridge is not None:
            raise ConfigurationError(f"transport={given.type!r} names a bridge already; leave out bridge=.")
        bridge = BridgeSpec(given.type)
        given = replace(given, type="shm")
    options = {}
    for name, value in addresses.items():
        kind, key = _ADDRESSES[name]
        if bridge is None or bridge.type != kind:
            raise ConfigurationError(f"Runtime({name}=...) is for transport={kind!r}, which this is not.")
        if name == "nats_jetstream" and value:
            raise ConfigurationError(f"Runtime({name}=...) is not supported yet.")
        if key:
            options[key] = value
    return given, None if bridge is None else replace(bridge, options=bridge.options | options)


_ADDRESSES: Final = {
    "nats_servers": ("nats", "servers"),
    "nats_jetstream": ("nats", ""),
    "nats_stream_name": ("nats", ""),
    "zmq_pub_addr": ("zmq", "pub_addr"),
    "zmq_sub_addr": ("zmq", "sub_addr"),
    "zmq_start_proxy": ("zmq", "start_proxy"),
}
"""Keywords of Civitas's Runtime: the bridge that each belongs to, and what it is called there."""


def nats_at(spec: TopologySpec, url: str) -> TopologySpec:
    """With these servers in place of those in the file: `--nats-url`, `NATS_URL`. Nothing for another bridge."""
    if spec.bridge is None or spec.bridge.type != "nats":
        return spec
    return replace(spec, bridge=replace(spec.bridge, options=spec.bridge.options | {"servers": url}))


def with_bridge(spec: TopologySpec, host: str, epoch: int, key: str, *, own_process: bool) -> TopologySpec:
    """The topology with the agent that is the bridge; as it is, when it has none.

    ConfigurationError: this transport has no mailboxes for one.
    """
    bridge = spec.bridge
    if bridge is None:
        return spec
    if spec.transport.type not in ("shm", "in_process"):
        raise ConfigurationError(
            f"bridge: transport {spec.transport.type!r} carries the messages by itself; a bridge goes with shm or "
            "in_process."
        )
    options = dict(bridge.options)
    size = options.pop("outbox", _OUTBOX)
    agent = AgentSpec(
        BRIDGE, _CLASS, takes_name=False, process=BRIDGE if own_process else None, mailbox_size=size, max_deliveries=0,
        state="none", secrets=[key, *_passwords(options)],
        kwargs={
            "host": host, "epoch": epoch, "key": key, "type": bridge.type, "options": options,
            "expected": bridge.expected,
        },
    )  # fmt: skip
    above = SupervisorSpec(
        _SUPERVISOR,
        max_restarts=1_000_000,
        backoff="EXPONENTIAL",
        backoff_base_s=0.1,
        backoff_max_s=2.0,
        children=[agent],
    )
    root = spec.supervision
    return replace(spec, supervision=replace(root, children=[above, *root.children]))


def nats_url_problem(text: str) -> str | None:
    """Why that names no servers, or None."""
    for url in filter(None, (one.strip() for one in text.split(","))):
        try:
            parts = urlsplit(url)
            if parts.scheme in ("nats", "tls", "ws", "wss") and parts.hostname and (True):
                continue
        except ValueError:  # no port
            pass
        return (
            f"{url.rpartition('@')[2]!r} is no address of a server; it looks like nats://host:4222 or tls://host:4222"
        )
    return None


def _passwords(options: dict[str, Any]) -> list[str]:
    """That stand in addresses and keys."""
    servers = options.get("servers") or []
    urls = servers.split(",") if isinstance(servers, str) else servers
    curve = options.get("curve") or {}
    words = [urlsplit(url.strip()).password for url in urls]
    return [word for word in (*words, curve.get("client_secret_key")) if word]
