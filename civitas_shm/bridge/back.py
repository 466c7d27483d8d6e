"""The way back to whoever waits for an answer: what a question carries to another host, and its answer brings back.

Rules of this file: all that an answer needs is in it, so the bridge remembers no question and may die meanwhile; a
keyed digest covers it, so only what was asked here can be answered; pure.
"""

from __future__ import annotations

import hmac
import struct
from hashlib import blake2b
from typing import Final

from ..messages import FLAG_ASK, FLAGS_AT, HEADER, Cause

__all__ = ["Backs"]

_FIELDS: Final = struct.Struct("<QIQ16s8s")
"""correlation · asker's mailbox · deadline_ns (CLOCK_MONOTONIC of the asker's host) · trace · span"""
_DIGEST_BYTES: Final = 8

_SENDER_AT: Final = 48
_CORRELATION_AT: Final = 56
_TRACE_AT: Final = 80
_SENDER: Final = struct.Struct("<I")
_CORRELATION_AND_DEADLINE: Final = struct.Struct("<QQ")
_IDENTITY: Final = struct.Struct("<16s8s")


class Backs:
    """Makes and reads them; `key` is the host's secret, the same in each life of its bridge."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, header: bytes) -> bytes:
        """For the question with that header; empty when nobody waits."""
        correlation, deadline_ns = _CORRELATION_AND_DEADLINE.unpack_from(header, _CORRELATION_AT)
        if not header[FLAGS_AT] & FLAG_ASK or not correlation:
            return b""
        (sender,) = _SENDER.unpack_from(header, _SENDER_AT)
        fields = _FIELDS.pack(correlation, sender, deadline_ns, *_IDENTITY.unpack_from(header, _TRACE_AT))
        return fields + self._digest(fields)

    def cause(self, back: bytes) -> Cause | None:
        """The header to answer by; None: no question of this host."""
        fields = back[: _FIELDS.size]
        if len(back) != _FIELDS.size + _DIGEST_BYTES or not hmac.compare_digest(
            back[_FIELDS.size :], self._digest(fields)
        ):
            return None
        correlation, sender, deadline_ns, trace, span = _FIELDS.unpack(fields)
        header = bytearray(HEADER.size)
        header[FLAGS_AT] = FLAG_ASK
        _SENDER.pack_into(header, _SENDER_AT, sender)
        _CORRELATION_AND_DEADLINE.pack_into(header, _CORRELATION_AT, correlation, deadline_ns)
        _IDENTITY.pack_into(header, _TRACE_AT, trace, span)
        return bytes(header)

    def _digest(self, fields: bytes) -> bytes:
        return blake2b(fields, key=self._key, digest_size=_DIGEST_BYTES).digest()
