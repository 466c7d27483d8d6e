"""Whole messages to bytes and back, for a user's own transport: the `Serializer` of Civitas, as msgpack and as JSON.

Rules of this file: what `serializer.encode` takes arrives equal, in both formats; what it refuses is refused;
decoding trusts nothing and raises DeserializationError only. Shared memory needs none of this: its messages have a
binary header.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, Protocol, runtime_checkable

import msgspec

from .errors import DeserializationError, MessageValidationError
from .messages import Message
from .serializer import decode, decode_plain, encode

__all__ = ["JsonSerializer", "MsgpackSerializer", "Serializer"]


@runtime_checkable
class Serializer(Protocol):
    """Messages to bytes and back."""

    def serialize(self, message: Message) -> bytes:
        """The bytes of a message; MessageValidationError when its payload cannot be sent."""
        ...

    def deserialize(self, data: bytes) -> Message:
        """The message; DeserializationError when the bytes are none."""
        ...


class MsgpackSerializer:
    """One msgpack map of the message's fields; the payload as `send` encodes it, types of objects included."""

    def serialize(self, message: Message) -> bytes:
        """The bytes of a message; MessageValidationError when its payload cannot be sent."""
        return _encode_msgpack({**_fields(message), "payload": msgspec.Raw(encode(message.payload))})

    def deserialize(self, data: bytes) -> Message:
        """The message; DeserializationError when the bytes are none."""
        try:
            fields: dict[str, Any] = _decode_msgpack(data)
            payload = bytes(fields["payload"])
            plain = {name: msgspec.msgpack.decode(raw) for name, raw in fields.items() if name != "payload"}
        except Exception as error:
            raise DeserializationError(f"{len(data)} bytes are no message: {type(error).__name__}: {error}") from error
        return _message(plain, decode(payload), len(data))


class JsonSerializer:
    """One JSON object of the message's fields, for people and other languages to read.

    What JSON has no word for stands in an object with one key: `$bytes` (base64), `$tuple`, `$datetime`, `$float` (nan,
    inf, -inf), `$map` (pairs, where a key is an int), `$object` (a dict that looks like one of these itself). Payloads
    that are objects of a type go as their fields.
    """

    def serialize(self, message: Message) -> bytes:
        """The bytes of a message; MessageValidationError when its payload cannot be sent."""
        payload = decode_plain(encode(message.payload))  # checked, and nothing but plain values
        return json.dumps({**_fields(message), "payload": _to_json(payload)}, ensure_ascii=False).encode()

    def deserialize(self, data: bytes) -> Message:
        """The message; DeserializationError when the bytes are none."""
        try:
            fields = json.loads(data)
            payload = _from_json(fields.pop("payload"))
        except Exception as error:
            raise DeserializationError(f"{len(data)} bytes are no message: {type(error).__name__}: {error}") from error
        return _message(fields, payload, len(data))


_encode_msgpack: Final = msgspec.msgpack.Encoder().encode
_decode_msgpack: Final = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode


def _fields(message: Message) -> dict[str, Any]:
    fields = message.to_dict()
    del fields["payload"]
    return fields


def _message(fields: dict[str, Any], payload: Any, size_bytes: int) -> Message:
    version = fields.get("schema_version", 1)
    if version != 1:
        raise DeserializationError(f"a message of {size_bytes} bytes is of schema version {version}; this knows 1")
    if isinstance(payload, list | str | int | float | bytes | tuple | None):
        raise DeserializationError(f"{size_bytes} bytes are no message: their payload is {type(payload).__name__}")
    if not all(isinstance(fields.get(name), str) for name in ("type", "sender", "recipient")):
        raise DeserializationError(f"{size_bytes} bytes are no message: type, sender or recipient is not there")
    try:
        return Message.from_dict({**fields, "payload": payload})
    except Exception as error:
        raise DeserializationError(f"{size_bytes} bytes are no message: {error}") from error


def _to_json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode("ascii")}
    if isinstance(value, datetime):
        return {"$datetime": value.isoformat()}
    if isinstance(value, tuple):
        return {"$tuple": [_to_json(item) for item in value]}
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    if isinstance(value, dict):
        if any(not isinstance(key, str) for key in value):
            return {"$map": [[key, _to_json(item)] for key, item in value.items()]}
        fields = {key: _to_json(item) for key, item in value.items()}
        return {"$object": fields} if len(fields) == 1 and next(iter(fields)).startswith("$") else fields
    return value


_WORDS: Final[dict[str, Callable[[Any], Any]]] = {
    "$float": float,
    "$bytes": lambda text: base64.b64decode(text, validate=True),
    "$datetime": datetime.fromisoformat,
    "$tuple": lambda items: tuple(_from_json(item) for item in items),
    "$map": lambda pairs: {key: _from_json(item) for key, item in pairs},
    "$object": lambda fields: {key: _from_json(item) for key, item in fields.items()},
}


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((word, content),) = value.items()
        if word in _WORDS:
            return _WORDS[word](content)
        if word.startswith("$"):
            raise MessageValidationError(f"{word!r} is no word of this format")
    return {key: _from_json(item) for key, item in value.items()}
