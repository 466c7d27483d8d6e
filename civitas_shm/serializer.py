"""Payloads to bytes and back: msgpack, with a check at the sender that says which field cannot be sent.

Rules of this file:
- what is accepted arrives equal: dict, list, tuple, str, int (64 bit), float (NaN too), bool, None, bytes, datetime;
  bytearray and memoryview arrive as bytes, an aware datetime with its offset but without the name of its zone;
- anything else is refused at the sender, by exact type: a value that arrives as something similar is a silent bug;
- a payload may also be an object of a declared type (`typed`); inside of a payload there are none;
- decoding trusts nothing and raises DeserializationError only; no pickle.

Tuples and datetimes travel as the msgpack extension types below; the rest is plain msgpack that any reader understands.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from . import typed
from .errors import DeserializationError, MessageValidationError

if TYPE_CHECKING:
    from .formats import JsonSerializer, MsgpackSerializer, Serializer

__all__ = [
    "DEPTH_MAX",
    "Encoded",
    "JsonSerializer",
    "MsgpackSerializer",
    "Serializer",
    "decode",
    "decode_dict",
    "decode_plain",
    "encode",
    "typed_body",
]

EXT_TUPLE: Final = 1
"""Extension payload: the elements, as a msgpack array."""
EXT_DATETIME: Final = 2
"""Extension payload: ISO 8601 text with offset if the datetime is aware (msgpack's own timestamp would lose both)."""
EXT_TYPED: Final = 3
"""The whole of a payload, never a part: name of its type and fields, as `typed.pack` has them."""

DEPTH_MAX: Final = 100
"""Levels of nesting. Below what the encoder's and every reader's recursion allows, so that the limit has one place."""

_STEPS_SHOWN: Final = 12
"""Of a path in an error text: a list that contains itself has a path of DEPTH_MAX steps."""

_INT_MIN: Final = -(1 << 63)
_INT_MAX: Final = (1 << 64) - 1

_SCALARS: Final = frozenset({str, int, float, bool, type(None), bytes})
_KEYS: Final = frozenset({str, int})


class Encoded:
    """A payload that another process has encoded, to be passed on as it is; who makes one has looked at the bytes."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


def encode(payload: typed.Payload | Encoded, root: str = "payload") -> bytes:
    """The bytes of a payload; MessageValidationError names the field that cannot be sent by its path from `root`."""
    if type(payload) is not dict:
        if type(payload) is Encoded:
            return payload.data
        if root == "payload" and typed.is_typed(payload):
            return _encode(msgspec.msgpack.Ext(EXT_TYPED, typed.pack(payload)))
        raise MessageValidationError(f"{root} must be a dict; {_name(payload)} cannot be sent.")
    # The common payload is flat. A plain loop: for a handful of fields it is faster than any set operation.
    for key, value in payload.items():
        if type(key) is not str or type(value) not in _SCALARS:
            break
    else:
        try:
            return _encode(payload)
        except (OverflowError, UnicodeEncodeError):
            pass  # the walk below says which field
    return _bytes(_guarded(payload, root, strict=False), payload, root)


def decode(data: bytes) -> Any:
    """The payload that `encode` made. Bytes from anywhere are safe to give; DeserializationError says what is wrong.

    A dict, or an object of a type that this process has declared.
    """
    try:
        payload = _decode(data)
    except Exception as error:
        if data[:1] in _EXT_HEADS and (body := typed_body(data)) is not None:
            return typed.build(*body)
        raise DeserializationError(f"{len(data)} bytes are not a payload: {type(error).__name__}: {error}") from error
    if type(payload) is not dict:
        raise DeserializationError(f"{len(data)} bytes are not a payload: {type(payload).__name__}, not dict")
    return payload


def decode_dict(data: bytes) -> dict[str, Any]:
    """As `decode`, of a payload that must be a dict."""
    payload = decode(data)
    if type(payload) is not dict:
        raise DeserializationError(f"{len(data)} bytes are not a dict but an object of a declared type")
    return payload


def decode_plain(data: bytes) -> Any:
    """As `decode`, for people: a typed payload comes as its fields, whether its type is known here or not."""
    body = typed_body(data)
    try:
        return decode(data) if body is None else msgspec.msgpack.decode(body[1])
    except msgspec.DecodeError as error:
        raise DeserializationError(f"{len(data)} bytes are not a payload: {error}") from error


def typed_body(data: bytes) -> tuple[str, memoryview] | None:
    """Name and fields of a typed payload; None: it is none. DeserializationError when it is damaged."""
    if data[:1] not in _EXT_HEADS:
        return None
    try:
        ext = _decode_ext(data)
        if ext.code != EXT_TYPED:
            return None
        return typed.body_of(memoryview(ext.data))
    except Exception as error:
        raise DeserializationError(f"{len(data)} bytes are not a payload: {type(error).__name__}: {error}") from error


# --- the walk: checks every type, and wraps what msgpack has no type for ------------------------------------------
#
# Values that have the right type and still cannot be encoded (a large int, a lone surrogate) are the encoder's finding;
# only then a second, strict walk looks for the field. The path is put together while a refusal unwinds.


class _Refused(Exception):
    """A value cannot be sent: why, and the way to it from the inside out."""

    def __init__(self, why: str) -> None:
        self.why = why
        self.way: list[str | int] = []


def _bytes(ready: Any, payload: Any, root: str) -> bytes:
    try:
        return _encoder.encode(ready)
    except (OverflowError, UnicodeEncodeError):
        _guarded(payload, root, strict=True)
        raise  # not reached while the strict walk knows every reason the encoder has


def _guarded(payload: Any, root: str, *, strict: bool) -> Any:
    try:
        return _wrapped(payload, 0, strict)
    except _Refused as refused:
        steps = [_step(key) for key in reversed(refused.way)]
        path = root + "".join(steps[:_STEPS_SHOWN]) + ("…" if len(steps) > _STEPS_SHOWN else "")
        raise MessageValidationError(f"{path}: {refused.why}.") from None
    except (OverflowError, UnicodeEncodeError):
        _guarded(payload, root, strict=True)  # inside of a tuple, which is encoded on its own
        raise


def _wrapped(value: Any, depth: int, strict: bool) -> Any:
    """`value` in the encoder's words; itself where nothing has to be wrapped."""
    kind = type(value)
    if kind in _SCALARS:
        if strict:
            _check_scalar(value)
        return value
    if depth > DEPTH_MAX:
        raise _Refused(f"nests deeper than {DEPTH_MAX} levels, or contains itself")
    if kind is dict:
        return _wrapped_dict(value, depth, strict)
    if kind is list:
        return _wrapped_items(value, depth, strict)
    if kind is tuple:
        return msgspec.msgpack.Ext(EXT_TUPLE, _encoder.encode(_wrapped_items(value, depth, strict)))
    if kind is datetime:
        return msgspec.msgpack.Ext(EXT_DATETIME, value.isoformat().encode())
    if kind is bytearray:
        return value
    if kind is memoryview:
        return value.tobytes()
    raise _Refused(f"{_name(value)} cannot be sent; {_remedy(value)}")


def _wrapped_dict(value: dict[Any, Any], depth: int, strict: bool) -> dict[str | int, Any]:
    wrapped = {}
    for key, item in value.items():
        if type(key) not in _KEYS:
            raise _Refused(f"{_name(key)} cannot be a key ({key!r:.80}); keys are str or int")
        try:
            if strict:
                _check_scalar(key)
            wrapped[key] = item if type(item) in _SCALARS and not strict else _wrapped(item, depth + 1, strict)
        except _Refused as refused:
            refused.way.append(key)
            raise
    return wrapped


def _wrapped_items(values: list[Any] | tuple[Any, ...], depth: int, strict: bool) -> list[Any]:
    wrapped: list[Any] = []
    for item in values:
        try:
            wrapped.append(item if type(item) in _SCALARS and not strict else _wrapped(item, depth + 1, strict))
        except _Refused as refused:
            refused.way.append(len(wrapped))
            raise
    return wrapped


def _check_scalar(value: Any) -> None:
    if type(value) is int and not _INT_MIN <= value <= _INT_MAX:
        raise _Refused(f"an int of {value.bit_length()} bits cannot be sent; the limit is 64 bits; send it as text")
    if type(value) is str:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _Refused(
                f"the text has a lone surrogate at position {error.start} and cannot be sent; "
                "send bytes (os.fsencode of a file name)"
            ) from None


def _step(key: str | int) -> str:
    if type(key) is str and key.isidentifier():
        return f".{key}"
    return f"[{key!r:.80}]"


def _name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _remedy(value: Any) -> str:
    if isinstance(value, (set, frozenset)):
        return "send a list"
    for plain in (str, int, float, bytes, dict, list, tuple):
        if isinstance(value, plain):
            return f"send {plain.__name__}(value)"
    if typed.is_typed(value):
        return "an object can be a whole payload, not a part of one; send msgspec.to_builtins(value) or a dict"
    return "a payload holds dict, list, tuple, str, int, float, bool, None, bytes and datetime"


# --- back ---------------------------------------------------------------------------------------------------------


def _extension(code: int, data: memoryview) -> Any:
    if code == EXT_TUPLE:
        items = _decoder.decode(data)
        if type(items) is not list:
            raise ValueError(f"the extension for a tuple holds {type(items).__name__}")
        return tuple(items)
    if code == EXT_DATETIME:
        return datetime.fromisoformat(str(data, "ascii"))
    raise ValueError(f"unknown extension type {code}")


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(ext_hook=_extension)
_encode: Final = _encoder.encode
_decode: Final = _decoder.decode
_decode_ext: Final = msgspec.msgpack.Decoder(msgspec.msgpack.Ext).decode
_EXT_HEADS: Final = frozenset(bytes([head]) for head in (0xC7, 0xC8, 0xC9, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8))
"""First bytes of a msgpack extension."""


if not TYPE_CHECKING:  # Civitas has these names here; `formats` needs this module

    def __getattr__(name: str) -> Any:
        if name not in ("JsonSerializer", "MsgpackSerializer", "Serializer"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import formats

        return getattr(formats, name)
