"""What the runtime itself tells an agent: types and encoding of the messages in the control lane.

Rules of this file: a notice begins with a byte that no payload begins with, so the hot loop of a `Seat` asks no
question about it: decoding fails, and only then somebody looks for a notice. Agents cannot forge one: their payloads
are encoded by `serializer`, and the types are the runtime's.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

__all__ = ["CHILD_TERMINATED", "DOWN", "decode_notice", "encode_notice"]

DOWN: Final = "_agency.down"
"""{name, reason}: a monitored agent has ended. Calls `on_down`."""
CHILD_TERMINATED: Final = "_agency.child_terminated"
"""{name, reason}: an agent that the receiver has spawned is gone for good. Calls `on_child_terminated`."""

_MARK: Final = b"\xc1"
"""The one byte that MessagePack never uses."""


def encode_notice(name: str, reason: str) -> bytes:
    return _MARK + msgspec.msgpack.encode((name, reason))


def decode_notice(kind: str, data: bytes) -> tuple[str, str] | None:
    """(name, reason), or None when it is no notice. Bytes from anywhere are safe to give."""
    if kind not in (DOWN, CHILD_TERMINATED) or data[:1] != _MARK:
        return None
    try:
        fields: Any = msgspec.msgpack.decode(data[1:], type=tuple[str, str])
    except msgspec.MsgspecError:
        return None
    return (fields[0], fields[1])
