"""What is different between two topologies, as data: what a rolling deploy will do, and `topology diff` prints.

    changes = diff(show(before, salt), show(after, salt))
    Change("changed", "agent", "walker", "config.path", "/usr", "/opt")

Rules of this file:
- pure, over the plain data of `shown.show`: secrets are compared, and never seen;
- agents, supervisors, processes and plug-ins are the same thing when they bear the same name; one that stands below
  another supervisor has moved, and is neither removed nor added. The root is the root whatever its name is;
- what makes no difference is none: the order of keys and of children (but below REST_FOR_ONE, where it says who is
  restarted), the order in a set (cores, devices, capabilities, who may spawn), a default that is written out;
- the result is in the order in which it would be done: removed, moved, changed, added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from .model import AgentSpec, PluginSpec, ProcessSpec, SupervisorSpec

__all__ = ["Change", "diff"]

Kind = Literal["removed", "moved", "changed", "added"]
What = Literal["agent", "supervisor", "process", "model", "tool", "setting"]

_ORDER: Final = ("removed", "moved", "changed", "added")
_SETS: Final = frozenset(["capabilities", "cpus", "gpu", "spawner_allowlist"])
_FREE: Final = frozenset(["config", "kwargs", "capability_metadata", "credentials", "env", "options", "agents"])
"""Mappings that are compared key by key."""
_DEFAULTS: Final[dict[str, Any]] = {
    "agent": AgentSpec("", ""),
    "supervisor": SupervisorSpec(),
    "process": ProcessSpec(""),
    "model": PluginSpec(""),
    "tool": PluginSpec(""),
}


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `moved`: `before` and `after` are names of supervisors; added and removed: settings by key."""

    kind: Kind
    what: What
    name: str
    """Of the agent, supervisor, process or plug-in; of a setting, its block."""
    key: str = ""
    """Of what has changed: `replicas`, `config.path`."""
    before: Any = None
    after: Any = None


@dataclass(frozen=True, slots=True)
class _Node:
    what: What
    settings: dict[str, Any]
    parent: str = ""
    """Name of the supervisor above, of either topology; the root's is the same word in both."""
    children: tuple[str, ...] = ()


_ROOT: Final = ""


def diff(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """All differences, from `before` to `after`."""
    changes = [*_nodes(_tree(before), _tree(after)), *_blocks(before, after)]
    return sorted(changes, key=lambda change: _ORDER.index(change.kind))


# --- agents, supervisors, processes, plug-ins -------------------------------------------------------------------------


def _tree(plain: Mapping[str, Any]) -> dict[tuple[str, str], _Node]:
    """By kind and name; the root under a name that no other has."""
    found: dict[tuple[str, str], _Node] = {}

    def walk(supervisor: Mapping[str, Any], key: str, parent: str) -> None:
        names = []
        for child in supervisor["children"]:
            names.append(child["name"])
            if "children" in child:
                walk(child, child["name"], key)
            else:
                found["agent", child["name"]] = _Node("agent", _flat(child, "name"), key)
        settings = _flat(supervisor, *(["children"] if key == _ROOT else ["children", "name"]))
        found["supervisor", key] = _Node("supervisor", settings, parent, tuple(names))

    walk(plain["supervision"], _ROOT, "-")
    for process in plain["processes"]:
        found["process", process["name"]] = _Node("process", _flat(process, "name"))
    for kind, what in (("models", "model"), ("tools", "tool")):
        for plugin in plain["plugins"][kind]:
            label = plugin["name"] or plugin["type"]
            found[what, label] = _Node("model" if what == "model" else "tool", _flat(plugin, "name"))
    return found


def _nodes(before: dict[tuple[str, str], _Node], after: dict[tuple[str, str], _Node]) -> Iterator[Change]:
    shown = {_ROOT: _root_name(before)}, {_ROOT: _root_name(after)}
    for key, node in before.items():
        name = shown[0].get(key[1], key[1])
        if key not in after:
            yield Change("removed", node.what, name, before=_given(node, shown[0]))
            continue
        other = after[key]
        if node.parent != other.parent:
            above = [names.get(one.parent, one.parent) for names, one in zip(shown, (node, other), strict=True)]
            yield Change("moved", node.what, name, before=above[0], after=above[1])
        for setting in sorted(node.settings.keys() | other.settings.keys()):
            was, now = node.settings.get(setting), other.settings.get(setting)
            if was != now:
                yield Change("changed", node.what, name, setting, was, now)
        if node.settings.get("strategy") == other.settings.get("strategy") == "REST_FOR_ONE":
            was, now = ([one for one in x.children if one in y.children] for x, y in ((node, other), (other, node)))
            if was != now:
                yield Change("changed", node.what, name, "order of children", was, now)
    for key, node in after.items():
        if key not in before:
            yield Change("added", node.what, shown[1].get(key[1], key[1]), after=_given(node, shown[1]))


def _root_name(tree: dict[tuple[str, str], _Node]) -> str:
    return str(tree["supervisor", _ROOT].settings["name"])


def _given(node: _Node, names: Mapping[str, str]) -> dict[str, Any]:
    """What is said of it beyond the defaults, and where it stands."""
    plain = _DEFAULTS[node.what]
    defaults = _flat({key: getattr(plain, key) for key in plain.__dataclass_fields__})
    said = {key: value for key, value in node.settings.items() if key not in defaults or value != defaults[key]}
    return said | (
        {"supervisor": names.get(node.parent, node.parent)}
        if node.what in ("agent", "supervisor") and node.parent != "-"
        else {}
    )


# --- blocks of single settings ---------------------------------------------------------------------------------------


def _blocks(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    for block in ("pool", "transport", "stop", "watch", "logging"):
        was, now = _flat(before[block]), _flat(after[block])
        for key in sorted(was.keys() | now.keys()):
            if was.get(key) != now.get(key):
                yield Change("changed", "setting", block, key, was.get(key), now.get(key))
    first = [
        next((one["name"] or one["type"] for one in plain["plugins"]["models"]), None) for plain in (before, after)
    ]
    if first[0] != first[1]:
        yield Change("changed", "setting", "plugins", "the first of models, self.llm", *first)
    known = {"name", "supervision", "processes", "plugins", "pool", "transport", "stop", "watch", "logging"}
    for block in sorted((before.keys() | after.keys()) - known):
        if before.get(block) != after.get(block):
            yield Change("changed", "setting", block, "", before.get(block), after.get(block))
    for kind in sorted((before["plugins"].keys() | after["plugins"].keys()) - {"models", "tools"}):
        if before["plugins"].get(kind) != after["plugins"].get(kind):
            yield Change("changed", "setting", "plugins", kind, before["plugins"].get(kind), after["plugins"].get(kind))


def _flat(plain: Mapping[str, Any], *without: str) -> dict[str, Any]:
    """Settings by key; users' own mappings and nested blocks key by key, sets in order."""
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        if key in without:
            continue
        if key in _SETS and isinstance(value, list):
            flat[key] = sorted(value)
        elif key in _FREE and isinstance(value, Mapping):
            flat |= dict(_leaves(value, key))
        elif key == "dynamic" and isinstance(value, Mapping):
            flat |= _flat(value)
        else:
            flat[key] = value
    return flat


def _leaves(value: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping) and item and item.keys() != {"hidden"}:
            yield from _leaves(item, f"{path}.{key}")
        else:
            yield f"{path}.{key}", item
