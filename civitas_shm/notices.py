"""What the runtime itself tells an agent: types and encoding of messages that no agent can send.

Rules of this file: a notice begins with a byte that no payload begins with, so the hot loop of a `Seat` asks no
question about it: decoding fails, and only then somebody looks for a notice. Agents cannot forge one: their payloads
are encoded by `serializer`, and the types are the runtime's (`messages.is_system_type`).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from .messages import CORRECTION, HALT

__all__ = [
    "CHILD_TERMINATED",
    "CORRECTION",
    "DOWN",
    "HALT",
    "NOTICES",
    "decode_notice",
    "encode_fields",
    "encode_notice",
]

DOWN: Final = "_agency.down"
"""{name, reason}: a monitored agent has ended. Calls `on_down`."""
CHILD_TERMINATED: Final = "_agency.child_terminated"
"""{name, reason}: an agent that the receiver has spawned is gone for good. Calls `on_child_terminated`."""

NOTICES: Final = frozenset([DOWN, CHILD_TERMINATED, CORRECTION, HALT])

_MARK: Final = b"\xc1"
"""The one byte that MessagePack never uses."""


def encode_notice(name: str, reason: str) -> bytes:
    """Of DOWN and CHILD_TERMINATED."""
    return encode_fields({"name": name, "reason": reason})


def encode_fields(fields: dict[str, Any]) -> bytes:
    """Of any notice. The values must be what a payload may be made of."""
    return _MARK + msgspec.msgpack.encode(fields)


def decode_notice(kind: str, data: bytes) -> dict[str, Any] | None:
    """Its fields, or None when it is no notice. Bytes from anywhere are safe to give."""
    if kind not in NOTICES or data[:1] != _MARK:
        return None
    try:
        fields: dict[str, Any] = msgspec.msgpack.decode(data[1:], type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError):  # the latter: of a key that is no text
        return None
    named = kind not in (DOWN, CHILD_TERMINATED) or all(type(fields.get(key)) is str for key in ("name", "reason"))
    return fields if named else None
