"""The types of a topology's keys: text, numbers, durations, names, each with what it accepts and what it says.

Rules of this file:
- strict: text is not a number, a number is not text;
- the one exception: text that `${VAR}` was put into is read like the scalar that stands there then (`Variable`);
- a value that is refused gets a sentence of its own where pydantic's would not help.

Imported by `schema` only, because of pydantic.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, WithJsonSchema

from .model import LOG_LEVELS
from .names import NAME_MAX, name_problem
from .yaml12 import resolve

__all__ = [
    "PROCESSES_MAX",
    "REPLICAS_MAX",
    "AsText",
    "BackoffWord",
    "Devices",
    "EmptyMapping",
    "Flag",
    "FreeList",
    "FreeMapping",
    "Level",
    "Name",
    "Number",
    "PoolSize",
    "RestartMode",
    "RunName",
    "Seconds",
    "StrategyWord",
    "Text",
    "TextList",
    "TextMapping",
    "Time",
    "Url",
    "Variable",
    "Whole",
    "class_path_problem",
    "run_name_problem",
    "seconds",
]

PROCESSES_MAX = 126
"""The memory of a run has 128 process slots; host and caller take two, each standby another one (`placement`)."""
REPLICAS_MAX = 64
"""A mailbox has places for 64 messages in hand, one for each of its readers."""
_RUN_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?\Z")
_CLASS_PATH = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+\Z")


class Variable(str):
    """Text that `${VAR}` was put into: it may still turn out to be a number where one is wanted."""


def _typed(value: Any) -> Any:
    return resolve(value) if isinstance(value, Variable) else value


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, Variable) else value


def _free(value: Any) -> Any:
    """User's own data: `Variable` becomes plain text everywhere inside."""
    if isinstance(value, dict):
        return {key: _free(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_free(item) for item in value]
    return _text(value)


def _empty_mapping(value: Any) -> Any:
    """`config:` with nothing behind it is an empty mapping, as everybody means it."""
    return {} if value is None else _free(value)


def class_path_problem(value: str) -> str | None:
    """Why a text cannot be the import path of a class, or None when it can."""
    if _CLASS_PATH.match(value):
        return None
    return f"{value!r} is no import path; it needs the form module.Class or package.module.Class"


def run_name_problem(value: str) -> str | None:
    """Why a text cannot name a run, or None when it can: it becomes part of file names."""
    if _RUN_NAME.match(value):
        return None
    return f"{value!r} cannot name a run; it needs a-z, 0-9 and '-' only, at most 64, no '-' at the ends"


def _refuse(problem_of: Callable[[str], str | None]) -> AfterValidator:
    """A `..._problem` function as a validator."""

    def validate(value: str) -> str:
        problem = problem_of(value)
        if problem is not None:
            raise ValueError(problem)
        return value

    return AfterValidator(validate)


def _level(value: str) -> str:
    if value.upper() not in LOG_LEVELS:
        raise ValueError(f"{value!r} is no level; allowed: {', '.join(LOG_LEVELS)}")
    return value.upper()


def _restart(value: Any) -> Any:
    return "temporary" if value == "never" else value  # `never` is Civitas's word for OTP's `temporary`


def _pool_size(value: Any) -> int | str:
    if value == "auto" or (type(value) is int and 1 <= value <= PROCESSES_MAX):
        return value  # type: ignore[no-any-return]
    raise ValueError(f"should be auto or a whole number from 1 to {PROCESSES_MAX}, not {value!r}")


def _url(value: str) -> str:
    if not re.match(r"https?://[^/\s]+", value):
        raise ValueError(f"{value!r} is no address of a service; it begins with https:// or http://")
    return value


def _redis_url(value: str) -> str:
    if not re.match(r"(?:rediss?|unix)://\S+\Z", value):  # not quoted: passwords stand in addresses
        raise ValueError("this is no address of a Redis server; it begins with redis://, rediss:// or unix://")
    return value


def _state(value: Any) -> Any:
    if value in ("sqlite", "redis", "encrypted"):
        raise ValueError(
            f"{value!r} is a store, which all agents share: name it once, in plugins: {{state: {{type: {value}}}}}, "
            "and write state: store here, or nothing"
        )
    return value


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def _distinct(value: list[int]) -> list[int]:
    if len(set(value)) != len(value):
        raise ValueError(f"{value!r} names a number twice")
    return value


def _either_case(words: tuple[str, ...]) -> WithJsonSchema:
    """For editors: as it is written mostly; the loader takes any case."""
    return WithJsonSchema({"enum": [*words, *(word.lower() for word in words)]})


Whole = Annotated[int, BeforeValidator(_typed)]
Number = Annotated[float, BeforeValidator(_typed)]
Flag = Annotated[bool, BeforeValidator(_typed)]
Text = Annotated[str, BeforeValidator(_text)]
Name = Annotated[
    Text,
    _refuse(name_problem),
    WithJsonSchema({"type": "string", "maxLength": NAME_MAX, "pattern": "^[A-Za-z0-9][A-Za-z0-9_.:@-]*$"}),
]
RunName = Annotated[
    Text,
    _refuse(run_name_problem),
    WithJsonSchema({"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$"}),
]
Level = Annotated[Text, AfterValidator(_level), _either_case(LOG_LEVELS)]
FreeMapping = Annotated[dict[str, Any], BeforeValidator(_empty_mapping)]
FreeList = Annotated[list[Any], BeforeValidator(_free)]
TextList = Annotated[list[str], BeforeValidator(_free)]
TextMapping = Annotated[dict[str, str], BeforeValidator(_empty_mapping)]
Seconds = Annotated[Number, Field(gt=0, le=1_000_000)]
"""Up to eleven days; what is longer is a unit mistaken for another."""
Time = Annotated[Number, Field(ge=0, le=1_000_000)]
"""As Seconds, or 0."""
Devices = Annotated[
    list[Annotated[Whole, Field(ge=0, lt=4096)]],
    AfterValidator(_distinct),
    Field(json_schema_extra={"uniqueItems": True}),
]
Url = Annotated[Text, AfterValidator(_url), WithJsonSchema({"type": "string", "pattern": "^https?://[^/\\s]+"})]

RedisUrl = Annotated[
    Text, AfterValidator(_redis_url), WithJsonSchema({"type": "string", "pattern": "^(rediss?|unix)://\\S+$"})
]
StateWord = Annotated[Literal["none", "in_memory", "store", "shm"], BeforeValidator(_state), BeforeValidator(_text)]

StrategyWord = Annotated[
    Literal["ONE_FOR_ONE", "ONE_FOR_ALL", "REST_FOR_ONE"],
    BeforeValidator(_upper),
    BeforeValidator(_text),
    _either_case(("ONE_FOR_ONE", "ONE_FOR_ALL", "REST_FOR_ONE")),
]
BackoffWord = Annotated[
    Literal["CONSTANT", "LINEAR", "EXPONENTIAL"],
    BeforeValidator(_upper),
    BeforeValidator(_text),
    _either_case(("CONSTANT", "LINEAR", "EXPONENTIAL")),
]
RestartMode = Annotated[
    Literal["permanent", "transient", "temporary"],
    BeforeValidator(_restart),
    BeforeValidator(_text),
    WithJsonSchema({"enum": ["permanent", "transient", "temporary", "never"]}),
]
PoolSize = Annotated[
    Any,
    AfterValidator(_pool_size),
    BeforeValidator(_typed),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": PROCESSES_MAX}]}),
]
EmptyMapping = BeforeValidator(_empty_mapping)
AsText = BeforeValidator(_text)
"""For a Literal: one word of a few."""


def seconds(name: str, default: float | None) -> Any:
    """A duration under our name (`x_s`) and under Civitas's (`x`)."""
    return Field(default, validation_alias=AliasChoices(f"{name}_s", name))
