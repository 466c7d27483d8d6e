"""YAML text to plain data with a position for every key and value: strict, YAML 1.2, bounded.

Rules of this file:
- what a plain scalar means is the YAML 1.2 core schema: `no` and `1:30` are text, `012` is twelve, `0o14` too;
- nothing is dropped in silence: a key set twice, a merge key, an unknown tag, a second document are problems;
- every problem is collected; only broken syntax ends the reading, because nothing after it can be trusted;
- work is bounded whatever the text is: size, depth, and the number of values after aliases are followed.

libyaml is used for events only. Its own composer recurses in C, and its resolver and constructor are YAML 1.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import yaml
from yaml import events

__all__ = [
    "DEPTH_MAX",
    "SIZE_MAX_BYTES",
    "VALUES_MAX",
    "Document",
    "EnvironmentTag",
    "Mark",
    "Path",
    "Problem",
    "read",
    "resolve",
]

Path = tuple[str | int, ...]

SIZE_MAX_BYTES: Final = 4 << 20
"""A topology of 4,096 agents takes about 0.5 MiB; eight times that is a mistake (a data file), not a topology."""
DEPTH_MAX: Final = 100
"""Supervisors nest a few levels, three YAML levels each; below Python's recursion limit by a wide margin."""
VALUES_MAX: Final = 200_000
"""After aliases are followed: nine lines of nine aliases each ("billion laughs") stop here, after 0.2 s."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NOT_YAML = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_NULL = re.compile(r"(?:null|Null|NULL|~|)\Z")
_TRUE = re.compile(r"(?:true|True|TRUE)\Z")
_FALSE = re.compile(r"(?:false|False|FALSE)\Z")
_DECIMAL = re.compile(r"[-+]?[0-9]+\Z")
_OCTAL = re.compile(r"0o[0-7]+\Z")
_HEX = re.compile(r"0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_INFINITY = re.compile(r"[-+]?(?:\.inf|\.Inf|\.INF)\Z")
_NAN = re.compile(r"(?:\.nan|\.NaN|\.NAN)\Z")
_DIGITS_MAX = 19
"""Whole numbers fit 64 bits, because they travel as msgpack; so a longer digit run need not even be converted."""


class Mark(NamedTuple):
    """A place in the text, both from 1."""

    line: int
    column: int


class Problem(NamedTuple):
    """One thing that is wrong, and where."""

    mark: Mark
    path: Path
    text: str


@dataclass(slots=True)
class Document:
    """What was read. `data` is None when the syntax is broken or the text is empty."""

    data: Any = None
    values: dict[Path, Mark] = field(default_factory=dict)
    keys: dict[Path, Mark] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def mark(self, path: Path) -> Mark:
        """Where a value stands, or the nearest thing around it that stands in the text at all."""
        while path and path not in self.values:
            path = path[:-1]
        return self.values.get(path, Mark(1, 1))

    def key_mark(self, path: Path) -> Mark:
        """Where the key of a value stands."""
        return self.keys.get(path) or self.mark(path)


class EnvironmentTag(str):
    """Text behind the tag `!ENV`: a variable's name, or text with `${NAME}` in it."""


class _Broken(Exception):
    """Reading cannot go on."""

    def __init__(self, mark: Mark, text: str, path: Path = ()) -> None:
        super().__init__(text)
        self.problem = Problem(mark, path, text)


@dataclass(slots=True)
class _Node:
    mark: Mark


@dataclass(slots=True)
class _Scalar(_Node):
    text: str
    tag: str | None
    plain: bool


@dataclass(slots=True)
class _Sequence(_Node):
    items: list[_Node] = field(default_factory=list)


@dataclass(slots=True)
class _Mapping(_Node):
    items: list[_Node] = field(default_factory=list)
    """Keys and values in turn."""


def read(text: str) -> Document:
    """The text as data with positions. Never raises: what is wrong is in `problems`."""
    document = Document()
    try:
        _check_characters(text)
        root = _compose(text)
        if root is not None:
            _Expander(document).expand(root)
    except _Broken as broken:
        document.data = None
        document.problems.append(broken.problem)
    return document


def resolve(text: str) -> bool | int | float | str | None:
    """What a plain scalar means (YAML 1.2.2, 10.3.2, core schema). ValueError for a number that cannot be had."""
    if _NULL.match(text):
        return None
    if _TRUE.match(text):
        return True
    if _FALSE.match(text):
        return False
    for pattern, base in ((_DECIMAL, 10), (_OCTAL, 8), (_HEX, 16)):
        if pattern.match(text):
            return _whole(text, base)
    if _FLOAT.match(text):
        return float(text)
    if _INFINITY.match(text):
        return float(text.replace(".", ""))
    if _NAN.match(text):
        return float("nan")
    return text


def _whole(text: str, base: int) -> int:
    digits = text.lstrip("+-0") if base == 10 else text[2:].lstrip("0")
    number = int(text, base) if len(digits) <= (_DIGITS_MAX if base == 10 else 22) else None
    if number is None or not -(1 << 63) <= number < 1 << 63:
        raise ValueError("whole numbers fit 64 bits; put longer ones in quotes")
    return number


def _check_characters(text: str) -> None:
    if len(text) > SIZE_MAX_BYTES:
        raise _Broken(Mark(1, 1), f"the file has {len(text):,} characters; the limit is {SIZE_MAX_BYTES:,}")
    bad = _NOT_YAML.search(text)
    if bad is not None:
        before = text[: bad.start()]
        mark = Mark(before.count("\n") + 1, bad.start() - (before.rfind("\n") + 1) + 1)
        raise _Broken(mark, f"the character U+{ord(bad.group()):04X} is not allowed in YAML")


def _compose(text: str) -> _Node | None:
    """Events to nodes, with a stack of our own."""
    anchors: dict[str, _Node] = {}
    anchor_of: dict[int, str] = {}  # id of an open collection -> its anchor, complete only when it ends
    stack: list[_Sequence | _Mapping] = []
    root: _Node | None = None
    documents = 0
    for event in _events(text):
        mark = Mark(event.start_mark.line + 1, event.start_mark.column + 1)
        node: _Node
        if isinstance(event, events.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise _Broken(mark, "a second document (---) begins here; a topology is one document")
            if event.version is not None and tuple(event.version) < (1, 2):
                raise _Broken(mark, "the file asks for YAML 1.1; it is read as YAML 1.2, so remove the %YAML line")
            continue
        if isinstance(event, events.CollectionEndEvent):
            ended = stack.pop()
            if id(ended) in anchor_of:
                anchors[anchor_of.pop(id(ended))] = ended
            continue
        if isinstance(event, events.AliasEvent):
            if event.anchor in anchor_of.values():
                raise _Broken(mark, f"the alias *{event.anchor} stands inside of what it names")
            if event.anchor not in anchors:
                raise _Broken(mark, f"the alias *{event.anchor} has no anchor &{event.anchor} before it")
            node = anchors[event.anchor]
        elif isinstance(event, events.ScalarEvent):
            node = _Scalar(mark, event.value, event.tag, plain=bool(event.implicit[0]))
            if event.anchor:
                anchors[event.anchor] = node
        elif isinstance(event, (events.SequenceStartEvent, events.MappingStartEvent)):
            node = _collection(event, mark)
            if event.anchor:
                anchors.pop(event.anchor, None)
                anchor_of[id(node)] = event.anchor
        else:
            continue
        if stack:
            stack[-1].items.append(node)
        elif root is None:
            root = node
        if isinstance(event, events.CollectionStartEvent):
            assert isinstance(node, (_Sequence, _Mapping))
            stack.append(node)
            if len(stack) > DEPTH_MAX:
                raise _Broken(mark, f"the text nests deeper than {DEPTH_MAX} levels")
    return root


def _collection(event: Any, mark: Mark) -> _Sequence | _Mapping:
    sequence = isinstance(event, events.SequenceStartEvent)
    if event.tag not in (None, "!", f"tag:yaml.org,2002:{'seq' if sequence else 'map'}"):
        raise _Broken(mark, f"the tag {_tag_text(event.tag)} is not supported")
    return _Sequence(mark) if sequence else _Mapping(mark)


def _events(text: str) -> Iterator[Any]:
    try:
        yield from yaml.parse(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        mark = Mark(at.line + 1, at.column + 1) if at is not None else Mark(1, 1)
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise _Broken(mark, f"not valid YAML: {what}") from error
    except yaml.YAMLError as error:
        raise _Broken(Mark(1, 1), f"not valid YAML: {error}") from error


def _tag_text(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")


class _Expander:
    """Nodes to plain data, aliases followed, with marks by path."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.count = 0

    def expand(self, root: _Node) -> None:
        self.document.data = self._value(root, ())

    def _problem(self, mark: Mark, path: Path, text: str) -> None:
        self.document.problems.append(Problem(mark, path, text))

    def _value(self, node: _Node, path: Path) -> Any:
        self.count += 1
        if self.count > VALUES_MAX:
            raise _Broken(node.mark, f"more than {VALUES_MAX:,} values once aliases (*) are followed", path)
        if len(path) > DEPTH_MAX:
            raise _Broken(node.mark, f"nests deeper than {DEPTH_MAX} levels once aliases (*) are followed", path[:8])
        self.document.values[path] = node.mark
        if isinstance(node, _Scalar):
            return self._scalar(node, path)
        if isinstance(node, _Sequence):
            return [self._value(item, (*path, index)) for index, item in enumerate(node.items)]
        assert isinstance(node, _Mapping)
        return self._mapping(node, path)

    def _mapping(self, node: _Mapping, path: Path) -> dict[str | int, Any]:
        data: dict[str | int, Any] = {}
        for key_node, value_node in zip(node.items[::2], node.items[1::2], strict=True):
            key = self._key(key_node, path)
            if key is None:
                continue
            below = (*path, key)
            if key in data:
                first = self.document.keys[below].line
                self._problem(key_node.mark, below, f"the key {key!r} is set twice; first in line {first}")
                continue
            self.document.keys[below] = key_node.mark
            data[key] = self._value(value_node, below)
        return data

    def _key(self, node: _Node, path: Path) -> str | int | None:
        if not isinstance(node, _Scalar):
            self._problem(node.mark, path, "a key is a word or a whole number, not a list or a mapping")
            return None
        if node.plain and node.text == "<<":
            self._problem(node.mark, path, "merge keys (<<) are not in YAML 1.2; write the keys out")
            return None
        key = self._scalar(node, path)
        if isinstance(key, (bool, EnvironmentTag)) or not isinstance(key, (str, int)):
            self._problem(node.mark, path, f"a key is a word or a whole number, not {node.text!r}; put it in quotes")
            return None
        return key

    def _scalar(self, node: _Scalar, path: Path) -> Any:
        tag = node.tag
        if tag in (None, ""):
            if not node.plain:
                return node.text
        elif tag in ("!", "tag:yaml.org,2002:str"):
            return node.text
        elif tag == "!ENV":
            return EnvironmentTag(node.text)
        elif tag not in _SCALAR_TAGS:
            self._problem(node.mark, path, f"the tag {_tag_text(str(tag))} is not supported")
            return node.text
        try:
            value = resolve(node.text)
        except ValueError as error:
            self._problem(node.mark, path, str(error))
            return 0
        if tag is not None and tag in _SCALAR_TAGS and not isinstance(value, _SCALAR_TAGS[tag]):
            self._problem(node.mark, path, f"{node.text!r} is not what its tag {_tag_text(tag)} says")
        return value


_SCALAR_TAGS: Final[dict[str, tuple[type, ...]]] = {
    "tag:yaml.org,2002:int": (int,),
    "tag:yaml.org,2002:float": (float, int),
    "tag:yaml.org,2002:bool": (bool,),
    "tag:yaml.org,2002:null": (type(None),),
}
