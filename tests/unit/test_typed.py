"""Typed payloads as bytes and back: which types, which errors, and that nothing is built that was not declared."""

from __future__ import annotations

import dataclasses
import sys
import types
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pydantic
import pytest

from civitas_shm.errors import ConfigurationError, DeserializationError, MessageValidationError
from civitas_shm.messages import Message
from civitas_shm.serializer import decode, decode_plain, encode
from civitas_shm.typed import expected, payload_type, type_name

MOMENT = datetime(2026, 11, 21, 19, 0, tzinfo=UTC)


@payload_type
class Order(msgspec.Struct):
    sku: str
    sizes: tuple[int, ...] = ()
    moment: datetime = MOMENT


@payload_type
@dataclasses.dataclass
class Point:
    x: float
    tags: set[str] = dataclasses.field(default_factory=set)
    inner: Order | None = None


@payload_type
class Invoice(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    number: int = pydantic.Field(alias="Nr")
    total: Decimal
    id: UUID
    raw: bytes = b"\xff\x00"
    moment: datetime = MOMENT


class Hidden(msgspec.Struct):
    n: int


INVOICE = Invoice(Nr=7, total=Decimal("1.10"), id=UUID(int=5))


@pytest.mark.parametrize(
    "value", [Order("tea", (1, 2)), Point(1.5, {"a"}, Order("x")), INVOICE], ids=["struct", "dataclass", "pydantic"]
)
def test_what_is_sent_arrives_as_that_type_and_equal(value: Any) -> None:
    again = decode(encode(value))
    assert type(again) is type(value)
    assert again == value


def test_a_type_that_was_not_declared_is_refused_with_the_way_out() -> None:
    with pytest.raises(DeserializationError, match=r":Hidden, which nothing .* declared; put @payload_type"):
        decode(encode(Hidden(1)))
    assert decode_plain(encode(Hidden(1))) == {"n": 1}


def test_no_name_from_the_wire_is_ever_imported() -> None:
    data = encode(Hidden(1)).replace(b"test_typed:Hidden", b"antigravity:Hidde")
    sys.modules.pop("antigravity", None)
    with pytest.raises(DeserializationError, match="antigravity"):
        decode(data)
    assert "antigravity" not in sys.modules


class Holder(msgspec.Struct):
    anything: Any


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Holder(print), "Encoding objects of type"),
        (Holder(1 << 70), "Holder cannot be sent"),
        (Holder("\ud800"), "surrogates"),
        ({"order": Order("tea")}, r"payload\.order: .*Order cannot be sent; an object can be a whole payload"),
        (Order, "payload must be a dict"),
        ("text", "payload must be a dict"),
    ],
)
def test_what_cannot_be_sent_is_refused_by_the_sender(value: Any, words: str) -> None:
    with pytest.raises(MessageValidationError, match=words):
        encode(value)


def test_fields_that_do_not_fit_are_refused_with_their_path() -> None:
    with pytest.raises(DeserializationError, match=r"no .*:Order: Expected `int`, got `str` - at `\$\.sizes\[1\]`"):
        decode(encode(Order("tea", (1, "two"))))  # type: ignore[arg-type]
    bad = INVOICE.model_copy(update={"total": "many"})
    with (
        pytest.warns(UserWarning, match="Pydantic"),
        pytest.raises(DeserializationError, match=r"Invoice: "),
    ):
        decode(encode(bad))


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_damaged_bytes_are_a_deserialization_error(cut: int) -> None:
    data = encode(Order("tea", (1, 2)))
    for broken in (data[:-cut], data[:cut], data[:3] + b"\xff" * cut + data[3 + cut :]):
        with pytest.raises(DeserializationError):
            decode(broken)


def test_no_state_and_no_part_of_a_payload_is_typed() -> None:
    with pytest.raises(MessageValidationError, match="state must be a dict"):
        encode(Order("tea"), "state")
    inside = b"\x81\xa1a" + encode(Order("tea"))
    with pytest.raises(DeserializationError, match="unknown extension type 3"):
        decode(inside)


@pytest.mark.parametrize("cls", [int, dict, type("Plain", (), {})])
def test_only_types_with_fields_can_be_declared(cls: type) -> None:
    with pytest.raises(ConfigurationError, match="is no type of payload"):
        payload_type(cls)


def test_a_struct_with_a_field_that_nobody_can_build_is_refused_where_it_is_declared() -> None:
    with pytest.raises(ConfigurationError, match="cannot be a payload"):
        payload_type(msgspec.defstruct("Odd", [("field", "NoSuchName")]))  # type: ignore[list-item]


def test_a_class_of_a_script_has_one_name_in_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for module in ("__main__", "__civitas_main__"):
        script = types.ModuleType(module)
        monkeypatch.setitem(sys.modules, module, script)
        names.add(type_name(msgspec.defstruct("Job", [], module=module)))
    assert names == {"__main__:Job"}
    main = types.ModuleType("__main__")
    main.__spec__ = types.SimpleNamespace(name="shop.main")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert type_name(msgspec.defstruct("Job", [], module="__main__")) == "shop.main:Job"


# --- what an annotated handler takes ----------------------------------------------------------------------------------


async def takes_order(message: Message[Order]) -> None: ...
async def takes_two(message: Message[Order | Point]) -> None: ...
async def takes_two_messages(message: Message[Order] | Message[Point]) -> None: ...
async def takes_order_or_dict(message: Message[Order | dict[str, Any]]) -> None: ...
async def takes_model(message: Message[Invoice]) -> None: ...
async def takes_anything(message: Message) -> None: ...
async def takes_dicts(message: Message[dict[str, Any]]) -> None: ...
async def takes_any(message: Message[Any]) -> None: ...
async def says_nothing(message): ...  # type: ignore[no-untyped-def]
async def takes_what_is_unknown(message: Message[NoSuchType]) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize("handle", [takes_anything, takes_any, takes_dicts, says_nothing])
def test_a_handler_that_says_nothing_of_types_costs_nothing(handle: Any) -> None:
    assert expected(handle, Message) is None


@pytest.mark.parametrize(
    ("handle", "sent", "got"),
    [
        (takes_order, Order("tea"), Order("tea")),
        (takes_order, {"sku": "tea", "sizes": [1, 2]}, Order("tea", (1, 2))),
        (takes_order, {"sku": "tea", "sizes": (1, 2), "moment": MOMENT}, Order("tea", (1, 2))),
        (takes_model, {"number": 7, "total": "1.10", "id": str(UUID(int=5))}, INVOICE),
        (takes_two, Point(1.0), Point(1.0)),
        (takes_two_messages, Order("tea"), Order("tea")),
        (takes_order_or_dict, {"sku": "tea"}, {"sku": "tea"}),
        (takes_order_or_dict, Order("tea"), Order("tea")),
    ],
)
def test_an_annotated_handler_gets_what_it_says(handle: Any, sent: Any, got: Any) -> None:
    build = expected(handle, Message)
    assert build is not None
    assert build(encode(sent)) == got


@pytest.mark.parametrize(
    ("handle", "sent", "words"),
    [
        (takes_order, Point(1.0), r"the payload is a .*:Point; the handler is annotated to take .*:Order$"),
        (takes_order, {"amount": 1}, "missing required field `sku`"),
        (takes_two, {"sku": "tea"}, "the payload is a dict; the handler is annotated to take .*Order or .*Point"),
        (takes_order_or_dict, Point(1.0), "Order or dict"),
    ],
)
def test_an_annotated_handler_gets_nothing_else(handle: Any, sent: Any, words: str) -> None:
    build = expected(handle, Message)
    assert build is not None
    with pytest.raises(DeserializationError, match=words):
        build(encode(sent))


def test_an_annotation_that_cannot_be_resolved_is_an_error_with_the_way_out() -> None:
    with pytest.raises(ConfigurationError, match=r"NoSuchType.*not under TYPE_CHECKING"):
        expected(takes_what_is_unknown, Message)


def test_the_dictionary_form_of_a_message_has_plain_fields() -> None:
    assert Message(payload=Point(1.0, {"a"})).to_dict()["payload"] == {"x": 1.0, "tags": ["a"], "inner": None}
