"""The keys of a topology as a JSON Schema, for editors, and as a table, for docs/topology.md: both from `schema`.

    # yaml-language-server: $schema=./topology.schema.json

Rules of this file: nothing is written down twice: types, bounds and defaults are the models', what a key means is the
line below it in `schema`; how mappings nest is said here, because `build` puts them together, and a test compares the
two on every topology there is. An editor sees one key at a time: what only shows across keys (names, circles, what a
variable holds) is the loader's.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any, Final, NamedTuple

from . import schema
from .build import NODES_NOT_YET
from .model import BUILTIN_PLUGINS

__all__ = ["BLOCKS", "Key", "json_schema", "keys"]

BLOCKS: Final[tuple[tuple[str, type[schema.Block]], ...]] = (
    ("The top level", schema.Top),
    ("`supervision`, and `supervisor` below", schema.Supervisor),
    ("`agent`", schema.Agent),
    ("`type: dynamic_supervisor`", schema.DynamicSupervisor),
    ("`type: eval_agent`: as `agent`, and", schema.EvalAgent),
    ("`processes`: one of them", schema.Process),
    ("`pool`", schema.Pool),
    ("`transport`", schema.Transport),
    ("`bridge`", schema.NatsBridge),
    ("`bridge`: `tls`", schema.NatsTls),
    ("`bridge` over ZeroMQ", schema.ZmqBridge),
    ("`bridge`: `curve`", schema.ZmqCurve),
    ("`stop`", schema.Stop),
    ("`watch`", schema.Watch),
    ("`logging`", schema.Logging),
    ("`plugins`", schema.Plugins),
    ("`plugins`: one of `models` or `tools`", schema.Plugin),
    ("`config` of a built-in model", schema.ModelConfig),
    ("`config` of a built-in model: one of `prices`", schema.Price),
    ("`plugins.state`", schema.Store),
    ("`config` of the store `sqlite`", schema.SQLiteConfig),
    ("`config` of the store `redis`", schema.RedisConfig),
    ("`config` of the store `encrypted`", schema.EncryptedConfig),
    ("`config` of the store `encrypted`: one of `keys` that is a mapping", schema.KeyFile),
)
"""What a reader sees, in this order, under these words."""

_STORES: Final = {
    "in_memory": "InMemoryConfig",
    "sqlite": "SQLiteConfig",
    "redis": "RedisConfig",
    "encrypted": "EncryptedConfig",
}
"""Of a built-in store, the block of its config."""

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_VARIABLE: Final = {"type": "string", "pattern": r"\$\{"}
"""Stands where a number or a word is wanted."""

_OWN_LINK: Final = {
    "type": "object",
    "properties": {"type": {"type": "string", "pattern": r"\."}},
    "required": ["type"],
}
"""A link of one's own: its keys are its affair."""

_BOUNDS: Final = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}
"""pydantic's own words, which come through where a validator stands before a bound."""


class Key(NamedTuple):
    """One key of one block."""

    names: list[str]
    default: Any
    """`REQUIRED`, or what holds when it is left out."""
    meaning: str
    schema: dict[str, Any]
    inherited: bool
    """From another block, which has it first."""


REQUIRED: Final = object()


def keys(block: type[schema.Block]) -> Iterator[Key]:
    """All keys of a block, in the order of the source."""
    properties = block.model_json_schema(by_alias=True)["properties"]
    meanings = _meanings()
    for name, info in block.model_fields.items():
        names = block.keys_of(name)
        default = REQUIRED if info.is_required() else info.get_default(call_default_factory=True)
        owner = next(one for one in block.__mro__ if name in inspect.get_annotations(one))
        found = dict(properties[next(key for key in names if key in properties)])
        found.pop("title", None)
        yield Key(names, default, meanings.get((owner.__name__, name), ""), found, owner is not block)


def json_schema() -> dict[str, Any]:
    """The whole, as plain data."""
    blocks = {block.__name__: _object(block) for _, block in BLOCKS}
    blocks["Quotas"] = _object(schema.Quotas)
    blocks["InMemoryConfig"] = _object(schema.InMemoryConfig)
    _put_together(blocks)
    for name in ("NatsBridge", "ZmqBridge"):
        properties = {**blocks["Transport"]["properties"], **blocks[name]["properties"]}
        blocks[f"TransportAnd{name}"] = {**blocks[name], "properties": properties}
    blocks["Child"] = _child()
    blocks["ModuleClass"] = _module_class(blocks["Agent"])
    top = blocks.pop("Top")
    return {
        "$schema": _DIALECT,
        "title": "topology of civitas_shm",
        **top,
        "oneOf": [{"required": ["supervision"]}, {"required": ["supervisor"]}],
        "$defs": blocks,
    }


def _object(block: type[schema.Block]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required: list[str] = []
    twins: list[dict[str, Any]] = []
    for key in keys(block):
        for name in key.names:
            properties[name] = _or_variable(key.schema) | ({"description": key.meaning} if key.meaning else {})
            if key.default not in (REQUIRED, None) and "default" not in properties[name]:
                properties[name]["default"] = key.default
        if key.default is REQUIRED:
            required += key.names
        if len(key.names) > 1:
            twins.append({"not": {"required": key.names}})
    made: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    made |= {"required": required} if required else {}
    return made | ({"allOf": twins} if twins else {})


def _or_variable(plain: dict[str, Any]) -> dict[str, Any]:
    """What is no free text may be a variable as well."""
    kept = {key: value for key, value in plain.items() if key == "default" and value is not None}
    rest = {_BOUNDS.get(key, key): value for key, value in plain.items() if key not in ("default", "title")}
    if not rest:
        return kept
    if "items" in rest and isinstance(rest["items"], dict):
        rest["items"] = _or_variable(rest["items"])
    if isinstance(rest.get("additionalProperties"), dict):
        rest["additionalProperties"] = _or_variable(rest["additionalProperties"])
    kind = rest.get("type")
    if kind == "object":  # nothing behind the key is an empty mapping
        return kept | {"anyOf": [rest, {"type": "null"}]}
    if kind == "array" or (kind == "string" and not rest.keys() & {"pattern", "enum"}) or "const" in rest:
        return kept | rest
    if "anyOf" in rest:
        return kept | rest | {"anyOf": [*(_bounded(one) for one in rest["anyOf"]), _VARIABLE]}
    return kept | {"anyOf": [rest, _VARIABLE]}


def _bounded(plain: dict[str, Any]) -> dict[str, Any]:
    return {_BOUNDS.get(key, key): value for key, value in plain.items()}


def _put_together(blocks: dict[str, dict[str, Any]]) -> None:
    """Which mapping stands where: what `build` does."""
    word = {"type": "string"}
    nests: dict[tuple[str, str], dict[str, Any]] = {
        ("Top", "supervision"): _ref("Supervisor"),
        ("Top", "supervisor"): _ref("Supervisor"),
        ("Top", "transport"): {
            "anyOf": [
                word, _ref("TransportAndNatsBridge"), _ref("TransportAndZmqBridge"),
                *_ref("Transport", null=True)["anyOf"],
            ]
        },
        ("Top", "bridge"): {"anyOf": [word, _OWN_LINK, _ref("ZmqBridge"), *_ref("NatsBridge", null=True)["anyOf"]]},
        ("NatsBridge", "servers"): {"anyOf": [word, {"type": "array", "items": word}]},
        ("NatsBridge", "tls"): {"anyOf": [{"type": "boolean"}, *_ref("NatsTls", null=True)["anyOf"]]},
        ("ZmqBridge", "curve"): _ref("ZmqCurve", null=True),
        ("Top", "processes"): {"type": ["object", "null"], "additionalProperties": _ref("Process", null=True)},
        ("Top", "plugins"): _ref("Plugins", null=True),
        ("Supervisor", "children"): {"type": "array", "items": _ref("Child"), "minItems": 1},
        ("DynamicSupervisor", "config"): _ref("Quotas", null=True),
        ("EvalAgent", "exporters"): {"type": ["array", "null"], "items": _ref("Plugin")},
        ("ModelConfig", "prices"): {"type": ["object", "null"], "additionalProperties": _ref("Price")},
        ("Plugins", "state"): {"anyOf": [word, *_ref("Store", null=True)["anyOf"]]},
        ("EncryptedConfig", "inner"): {"anyOf": [word, _ref("Store")]},
        ("EncryptedConfig", "keys"): {
            "type": ["object", "null"], "additionalProperties": {"anyOf": [word, _ref("KeyFile")]}, "minProperties": 1,
        },
    }  # fmt: skip
    nests |= {("Top", name.lower()): _ref(name, null=True) for name in ("Pool", "Stop", "Watch", "Logging")}
    nests |= {("Plugins", kind): {"type": ["array", "null"], "items": _ref("Plugin")} for kind in ("models", "tools")}
    for (block, key), nested in nests.items():
        blocks[block]["properties"][key] |= nested
    blocks["Supervisor"]["required"] = ["children"]
    blocks["Plugin"] |= {
        "if": {"properties": {"type": {"enum": list(BUILTIN_PLUGINS["model"])}}, "required": ["type"]},
        "then": {"properties": {"config": _ref("ModelConfig", null=True)}},
    }
    blocks["Store"]["allOf"] = [
        {
            "if": {"properties": {"type": {"const": word}}, "required": ["type"]},
            "then": {"properties": {"config": _ref(config, null=config != "EncryptedConfig")}},
        }
        for word, config in _STORES.items()
    ]
    blocks["Store"]["allOf"].append(
        {"if": {"properties": {"type": {"const": "encrypted"}}, "required": ["type"]}, "then": {"required": ["config"]}}
    )


def _child() -> dict[str, Any]:
    """`- agent: {...}`, `- supervisor: {...}`, and the three flat forms."""
    wrapped = {"agent": _ref("Agent"), "supervisor": {**_ref("Supervisor"), "required": ["name"]}}
    types: dict[str, Any] = {
        "DynamicSupervisor": {"const": "dynamic_supervisor"},
        "EvalAgent": {"const": "eval_agent"},
        "ModuleClass": {"enum": ["agent", "gen_server"]},
    }
    flat: dict[str, Any] = {
        "allOf": [_ref("Agent"), {"properties": {"type": {"not": {"enum": sorted(NODES_NOT_YET)}}}}]
    }
    for name, kind in reversed(types.items()):
        flat = {"if": {"properties": {"type": kind}, "required": ["type"]}, "then": _ref(name), "else": flat}
    chosen: dict[str, Any] = flat
    for key, below in wrapped.items():
        alone = {"properties": {key: below}, "additionalProperties": False}
        chosen = {"if": {"required": [key]}, "then": alone, "else": chosen}
    return {"type": "object", **chosen}


def _module_class(agent: dict[str, Any]) -> dict[str, Any]:
    text = {"type": "string", "minLength": 1}
    return {
        **agent,
        "properties": {
            **agent["properties"],
            "type": {"enum": ["agent", "gen_server"], "description": "The class is given by `module` and `class`."},
            "module": {**text, "description": "The module of the class."},
            "class": {**text, "description": "Its name there."},
        },
        "required": ["name", "type", "module", "class"],
    }


def _ref(name: str, *, null: bool = False) -> dict[str, Any]:
    ref = {"$ref": f"#/$defs/{name}"}
    return {"anyOf": [ref, {"type": "null"}]} if null else ref


@cache
def _meanings() -> dict[tuple[str, str], str]:
    """(class, key) -> the text below the key in the source of `schema`. Read here only: nobody else pays for it."""
    found: dict[tuple[str, str], str] = {}
    for node in ast.parse(inspect.getsource(schema)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for statement, below in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found[node.name, statement.target.id] = " ".join(str(below.value.value).split())
    return found
