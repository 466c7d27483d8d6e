"""From a name to a plug-in: built-in words, entry points, import paths; and whether the class fits.

The order: a built-in word, then a word that an entry point has (groups `civitas_shm.models`, `.tools`, `.exporters`,
`.states`), then a dotted path. Built-in words come first, unlike in Civitas: no installed package takes the place of
`anthropic` unnoticed, with the key that goes there, and a worker does not pay 30 ms for a search that it does not need.

Rules of this file: whatever is wrong is a PluginError that says what, before the first message needs the plug-in; what
a constructor raises is told with its type and text, less every secret of its configuration.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from ..errors import PluginError
from ..redaction import redact, secret_values
from ..topology.model import BUILTIN_PLUGINS, PLUGIN_HINTS, PluginSpec, PluginsSpec
from ..topology.suggest import did_you_mean

__all__ = ["check_packages", "load_plugin", "load_plugins_from_config", "resolve_plugin_class"]


class _Method(NamedTuple):
    name: str
    example: str
    """As an error text shows it."""
    args: tuple[Any, ...] = ()
    """A call that has to be possible."""
    kwargs: Mapping[str, Any] = {}
    is_async: bool = True
    has_fixed_arguments: bool = True


_PROTOCOLS: Final[dict[str, tuple[_Method, ...]]] = {
    "model": (_Method("chat", "async chat(model, messages, tools=None)", ("m", []), {"tools": None}),),
    "tool": (_Method("execute", "async execute(**arguments)", has_fixed_arguments=False),),
    "exporter": (
        _Method("export", "export(spans)", ([],), is_async=False),
        _Method("shutdown", "shutdown()", is_async=False),
    ),
    "eval_exporter": (_Method("export", "export(event)", (None,), is_async=False),),
    "state": (
        _Method("get", "async get(agent_name)", ("a",)),
        _Method("set", "async set(agent_name, state)", ("a", {})),
        _Method("delete", "async delete(agent_name)", ("a",)),
        _Method("list_agents", "async list_agents()"),
        _Method("close", "async close()"),
    ),
}
_ATTRIBUTES: Final = {"tool": ("name", "schema")}
"""What an object must have; they may be set in the constructor, so the class is not asked."""


def resolve_plugin_class(kind: str, name: str) -> type[Any]:
    """The class of that name, imported and found to fit. PluginError otherwise."""
    if kind not in BUILTIN_PLUGINS:
        raise PluginError(kind, name, f"there is no such kind of plug-in{did_you_mean(kind, BUILTIN_PLUGINS)}")
    found = _import(kind, name, BUILTIN_PLUGINS[kind].get(name) or _elsewhere(kind, name))
    if not isinstance(found, type):
        raise PluginError(kind, name, f"it is {type(found).__name__}, not a class")
    problems = _problems(kind, found)
    if problems:
        where = f"{found.__module__}.{found.__qualname__}"
        raise PluginError(kind, name, f"{where} does not fit: {'; '.join(problems)}")
    return found


def load_plugin(kind: str, name: str, config: Mapping[str, Any] | None = None) -> Any:
    """A new plug-in, built here and now. PluginError when it cannot be."""
    cls = resolve_plugin_class(kind, name)
    given = dict(config or {})
    try:
        plugin = cls(**given)
    except PluginError:
        raise
    except Exception as error:  # noqa: BLE001 - somebody else's constructor
        keys = ", ".join(given) or "nothing"
        problem = f"{cls.__qualname__}({keys}) raised {type(error).__name__}: {error}"
    else:
        lacking = [attribute for attribute in _ATTRIBUTES.get(kind, ()) if not hasattr(plugin, attribute)]
        if not lacking:
            return plugin
        problem = f"the object has no {' and no '.join(lacking)}"
    raise PluginError(kind, name, redact(problem, secret_values(given)))


def load_plugins_from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """`{model_providers, tools, exporters, state_store}` of a `plugins:` block as data, all built here and now."""
    made: dict[str, Any] = {}
    for key, kind, block in (
        ("model_providers", "model", "models"), ("tools", "tool", "tools"), ("exporters", "exporter", "exporters"),
    ):  # fmt: skip
        made[key] = [load_plugin(kind, one["type"], one.get("config")) for one in config.get(block) or ()]
    state = config.get("state") or {"type": "in_memory"}
    return made | {"state_store": load_plugin("state", state["type"], state.get("config"))}


def check_packages(spec: PluginsSpec) -> list[str]:
    """A sentence for each built-in plug-in whose package is not installed. Imports no vendor's package."""
    problems = []
    for kind, plugins in (("model", spec.models), ("tool", spec.tools), ("state", _stores(spec.state))):
        for plugin in plugins:
            if plugin.type in BUILTIN_PLUGINS[kind] and (problem := _package_problem(kind, plugin)) is not None:
                problems.append(problem)
    return problems


def _stores(spec: PluginSpec | None) -> list[PluginSpec]:
    """A store and those within it."""
    if spec is None:
        return []
    inner = spec.config.get("inner")
    return [spec, *_stores(PluginSpec(inner["type"], inner.get("config") or {}) if isinstance(inner, dict) else None)]


def _package_problem(kind: str, plugin: PluginSpec) -> str | None:
    requires = getattr(resolve_plugin_class(kind, plugin.type), "requires", None)
    if requires is None or importlib.util.find_spec(requires[0]) is not None:
        return None
    reason = f"the package {requires[0]!r} is not installed: pip install {requires[1]}"
    return str(PluginError(kind, plugin.type, reason))


# --- from a name to a class ---------------------------------------------------------------------------------------


def _elsewhere(kind: str, name: str) -> str:
    """The import path of what is not built in."""
    if "." in name:
        return name
    from importlib.metadata import entry_points

    others = entry_points(group=f"civitas_shm.{kind}s")
    for point in others:
        if point.name == name:
            return point.value.replace(":", ".")
    hint = PLUGIN_HINTS.get((kind, name))
    if hint is not None:
        raise PluginError(kind, name, f"it is not built in; {hint}")
    known = [*BUILTIN_PLUGINS[kind], *(point.name for point in others)]
    raise PluginError(kind, name, f"it is unknown{did_you_mean(name, known) or '; write package.module.Class'}")


def _import(kind: str, name: str, path: str) -> Any:
    module_name, _, attribute = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if f"{module_name}.".startswith(f"{missing}."):
            raise PluginError(kind, name, f"there is no module {missing!r}") from None
        raise PluginError(kind, name, f"importing {module_name!r} needs {missing!r}: pip install {missing}") from None
    except Exception as error:  # the user's code
        raise PluginError(kind, name, f"importing {module_name!r} raised {type(error).__name__}: {error}") from error
    found = getattr(module, attribute, None)
    if found is None:
        classes = [one for one, value in vars(module).items() if isinstance(value, type)]
        raise PluginError(kind, name, f"{module_name!r} has no class {attribute!r}{did_you_mean(attribute, classes)}")
    return found


# --- whether it fits ----------------------------------------------------------------------------------------------


def _problems(kind: str, cls: type[Any]) -> list[str]:
    problems = []
    for wanted in _PROTOCOLS[kind]:
        method = getattr(cls, wanted.name, None)
        if not callable(method):
            problems.append(f"it has no {wanted.example}")
        elif wanted.is_async and not inspect.iscoroutinefunction(method):
            problems.append(f"{wanted.name} is not async; it should be {wanted.example}")
        elif wanted.has_fixed_arguments:
            try:
                inspect.signature(method).bind(None, *wanted.args, **wanted.kwargs)
            except TypeError as error:
                problems.append(f"{wanted.name} cannot be called as {wanted.example}: {error}")
    return problems
