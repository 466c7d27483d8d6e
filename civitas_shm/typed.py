"""Payloads that are objects: msgspec Structs, dataclasses and pydantic models, which arrive as what they were.

    @payload_type
    class Order(msgspec.Struct):
        sku: str
        count: int = 1

    class Shop(AgentProcess):
        async def handle(self, message: Message[Order]) -> Message | None: ...

    await self.send("shop", Order("tea"))

Guarantees:
- what travels is the fields and the *name* of the type (`module:qualname`); the receiving process looks it up among the
  types that its own code has declared, and imports nothing for it;
- a type is declared by `payload_type`, for the whole process, or by the annotation of a `handle` that runs there;
- an annotated `handle` gets what its annotation says or nothing: `Message[Order]` gets Orders, also from a sender of
  plain dicts with these fields (the command line, other languages); `Message[Order | Cancel]` gets these two by their
  names; with `dict` among them plain dicts are handed over as they are;
- what does not fit is refused before the handler: the message goes to the dead letters with the reason, and its asker
  gets AgentError at once.

Not promised: that a Struct or a dataclass which breaks its own annotations is refused by the sender (neither checks its
fields when it is made); the receiver does. Fields arrive as annotated; where that is Any, a tuple arrives as a list.
pydantic is not imported here; a model brings it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable
from typing import Any, ClassVar, Final, Protocol, TypeVar

import msgspec

from .errors import ConfigurationError, DeserializationError, MessageValidationError

__all__ = [
    "Payload", "body_of", "build", "expected", "is_typed", "pack", "payload_type", "plain", "type_name", "wanted",
]  # fmt: skip

T = TypeVar("T")


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


class _Model(Protocol):
    """A pydantic model."""

    def model_dump(self) -> dict[str, Any]: ...


Payload = dict[str, Any] | msgspec.Struct | _Dataclass | _Model
"""What may be sent."""

_SCRIPTS: Final = ("__main__", "__civitas_main__")
"""A script has one name where it runs and another one where its classes are needed (`loading`)."""


def type_name(cls: type) -> str:
    """The name that travels; the same in every process."""
    module = cls.__module__
    if module in _SCRIPTS:
        spec = getattr(sys.modules.get(module), "__spec__", None)
        module = "__main__" if spec is None or spec.name in _SCRIPTS else spec.name
    return f"{module}:{cls.__qualname__}"


# --- one type ---------------------------------------------------------------------------------------------------------


class _Kind:
    """How values of one declared type are built."""

    def __init__(self, cls: type) -> None:
        self.name = type_name(cls)
        self._cls = cls
        self._model = _is_model(cls)
        if self._model:
            return
        if not (issubclass(cls, msgspec.Struct) or dataclasses.is_dataclass(cls)):
            raise ConfigurationError(
                f"{self.name} is no type of payload: a payload is a msgspec.Struct, a dataclass, a pydantic model, "
                "or a dict."
            )
        try:
            self._decoder = msgspec.msgpack.Decoder(cls)
        except (TypeError, NameError) as error:
            raise ConfigurationError(f"{self.name} cannot be a payload: {error}.") from error

    def from_bytes(self, body: memoryview) -> Any:
        try:
            return self._validated(msgspec.msgpack.decode(body)) if self._model else self._decoder.decode(body)
        except Exception as error:
            raise self._misfit(error) from error

    def from_fields(self, fields: dict[str, Any]) -> Any:
        """Of a plain dict, which any sender may have sent."""
        try:
            return self._validated(fields) if self._model else msgspec.convert(fields, self._cls)
        except Exception as error:
            raise self._misfit(error) from error

    def _validated(self, fields: dict[str, Any]) -> Any:
        # Not strict: what msgpack has no word for has travelled as text. Field names, as `_fields` has sent them.
        return self._cls.model_validate(fields, strict=False, by_name=True)  # type: ignore[attr-defined]

    def _misfit(self, error: Exception) -> DeserializationError:
        return DeserializationError(f"the payload is no {self.name}: {error}")


def _is_model(cls: type) -> bool:
    return hasattr(cls, "model_validate") and hasattr(cls, "model_dump")


def is_typed(value: Any) -> bool:
    """Whether it is an object that can be a payload."""
    cls = type(value)
    return isinstance(value, msgspec.Struct) or _is_model(cls) or dataclasses.is_dataclass(cls)


# --- declaring --------------------------------------------------------------------------------------------------------

_declared: Final[dict[str, _Kind]] = {}
"""By name: what this process builds. A later class of the same name replaces the earlier one."""


def payload_type(cls: type[T]) -> type[T]:
    """Declare a type of payloads for this process; a class decorator. ConfigurationError: it cannot be one."""
    kind = _Kind(cls)
    _declared[kind.name] = kind
    return cls


def expected(handle: Callable[..., Any], message_class: type) -> Callable[[bytes], Any] | None:
    """The decoder of an annotated `handle`, whose types it declares; None: it says nothing about payloads."""
    wanted = _annotation(handle)
    args = [] if wanted is None else _payload_types(wanted, message_class)
    if Any in args:
        return None
    dicts = any(arg is dict or typing.get_origin(arg) is dict for arg in args)
    classes = [arg for arg in args if arg is not dict and isinstance(arg, type) and typing.get_origin(arg) is None]
    if not classes:
        return None
    for cls in classes:
        payload_type(cls)
    return _Expected([_declared[type_name(cls)] for cls in classes], dicts).decode


@functools.lru_cache(maxsize=256)
def wanted(reply_type: Any) -> Callable[[bytes], Any]:
    """The decoder of whoever says with a question what the reply shall be: a type of payloads, or a union of such.

    Nothing is declared by it. A plain dict with the fields of the type fits too, if only one type is wanted and no
    dict. The module of a type does not count, only the class's own name does: the program that asks may have a class
    of its own. ConfigurationError: it cannot be one.
    """
    union = typing.get_origin(reply_type) in (typing.Union, types.UnionType)
    args = list(typing.get_args(reply_type)) if union else [reply_type]
    dicts = [arg for arg in args if arg is dict or typing.get_origin(arg) is dict]
    kinds = []
    for arg in args:
        if arg not in dicts:
            if not isinstance(arg, type):
                raise ConfigurationError(f"reply_type has {arg!r}, which is no class of payloads.")
            kinds.append(_Kind(arg))
    return _Wanted(kinds, bool(dicts)).decode


def _annotation(handle: Callable[..., Any]) -> Any:
    function = inspect.unwrap(handle)
    function = getattr(function, "__func__", function)
    for name, annotation in getattr(function, "__annotations__", {}).items():
        if name == "return":
            break
        if not isinstance(annotation, str):
            return annotation
        if "[" not in annotation:
            return None
        try:
            return eval(annotation, function.__globals__)  # noqa: S307 - the author's own annotation
        except Exception as error:
            raise ConfigurationError(
                f"{function.__qualname__} takes {annotation}, which cannot be resolved where it runs: {error}. "
                "Import its types at the top level of the module, not under TYPE_CHECKING."
            ) from error
    return None


def _payload_types(annotation: Any, message_class: type) -> list[Any]:
    """The T of `Message[T]`, one by one; also of a union of such."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return [each for one in typing.get_args(annotation) for each in _payload_types(one, message_class)]
    if not (isinstance(origin, type) and issubclass(origin, message_class)):
        return []
    (payload,) = typing.get_args(annotation)
    if typing.get_origin(payload) in (typing.Union, types.UnionType):
        return list(typing.get_args(payload))
    return [payload]


class _Expected:
    """What one `handle` takes."""

    def __init__(self, kinds: list[_Kind], dicts: bool) -> None:
        self._kinds = {kind.name: kind for kind in kinds}
        self._dicts = dicts
        self._only = kinds[0] if len(kinds) == 1 and not dicts else None

    def decode(self, data: bytes) -> Any:
        """The payload. DeserializationError says what came, and what is taken."""
        from .serializer import decode_dict, typed_body

        body = typed_body(data)
        if body is not None:
            name, fields = body
            kind = self.kind_of(name)
            if kind is None:
                raise DeserializationError(f"the payload is a {name}; {self}")
            return kind.from_bytes(fields)
        payload = decode_dict(data)
        if self._dicts:
            return payload
        if self._only is None:
            raise DeserializationError(f"the payload is a dict; {self}")
        return self._only.from_fields(payload)

    def kind_of(self, name: str) -> _Kind | None:
        """By the name that has travelled."""
        return self._kinds.get(name)

    def __str__(self) -> str:
        names = [*self._kinds, *(["dict"] if self._dicts else [])]
        return f"the handler is annotated to take {' or '.join(names)}"


class _Wanted(_Expected):
    """What somebody who asks takes."""

    def __init__(self, kinds: list[_Kind], dicts: bool) -> None:
        super().__init__(kinds, dicts)
        self._kinds = {_own_name(kind.name): kind for kind in kinds}

    def kind_of(self, name: str) -> _Kind | None:
        return self._kinds.get(_own_name(name))

    def __str__(self) -> str:
        return f"reply_type wants {' or '.join([*self._kinds, *(['dict'] if self._dicts else [])])}"


def _own_name(name: str) -> str:
    return name.rpartition(":")[2].rpartition(".")[2]


# --- bytes ------------------------------------------------------------------------------------------------------------

_encode: Final = msgspec.msgpack.Encoder().encode
_decode_name: Final = msgspec.msgpack.Decoder(str).decode
_NAME_MAX: Final = 500
"""Characters of a name: more than an import path has."""


def pack(value: Any) -> bytes:
    """Name and fields of a typed payload. MessageValidationError when they cannot be sent."""
    name = type_name(type(value))
    if len(name) > _NAME_MAX:
        raise MessageValidationError(f"payload: the name of {name[:40]}… is longer than {_NAME_MAX} characters.")
    try:
        head = _encode(name)
        return len(head).to_bytes(2, "little") + head + _encode(_fields(value))
    except Exception as error:
        raise MessageValidationError(f"payload: a {name} cannot be sent: {error}.") from error


def _fields(value: Any) -> Any:
    """What the encoder takes."""
    return value.model_dump(round_trip=True, by_alias=False) if _is_model(type(value)) else value


def body_of(data: memoryview) -> tuple[str, memoryview]:
    """What `pack` made, in two; ValueError when it is not that."""
    size = int.from_bytes(data[:2], "little")
    name = _decode_name(data[2 : 2 + size])
    return name, data[2 + size :]


def build(name: str, fields: memoryview) -> Any:
    """The object, of a type that this process has declared; else DeserializationError."""
    kind = _declared.get(name)
    if kind is None:
        raise DeserializationError(
            f"the payload is a {name}, which nothing in this process has declared; put @payload_type before the class "
            "and import it here, or annotate the handler: handle(self, message: Message[...]). A client may say "
            "reply_type=... where it asks"
        )
    return kind.from_bytes(fields)


def plain(value: Any) -> Any:
    """A typed payload as dicts, lists and scalars: for people, and for where no type can travel."""
    return msgspec.msgpack.decode(_encode(_fields(value)))
