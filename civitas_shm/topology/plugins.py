"""The `plugins:` block: which plug-ins there are, and the configuration of those that are known here.

    plugins:
      models:
        - type: anthropic                     # built in: every key below config is checked
          config: {default_model: claude-sonnet-4-6}
        - name: local
          type: mypackage.models.Local        # import path, or the name of an entry point: config is the class's own
      tools:
        - type: myapp.tools.Search

Rules of this file: nothing is imported to look at a plug-in; whether its class fits is the loader's question, asked
where it is built.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from . import schema
from .check import Checker, value_text
from .keytypes import class_path_problem
from .model import BUILTIN_PLUGINS, PLUGIN_HINTS, PluginSpec, PluginsSpec
from .suggest import did_you_mean
from .yaml12 import Path

__all__ = ["PluginReader"]


class PluginReader:
    """Reads one block; problems go to the checker."""

    def __init__(self, checker: Checker, others: Callable[[str], Collection[str]]) -> None:
        self._checker = checker
        self._others = others
        """By kind: names of entry points."""

    def read(self, data: Any) -> PluginsSpec:
        """The whole block; with problems in the checker it is a fragment."""
        path: Path = ("plugins",)
        block = self._checker.block(schema.Plugins, data, path)
        if block is None:
            return PluginsSpec()
        return PluginsSpec(
            models=self._list("model", block.models, (*path, "models")),
            tools=self._list("tool", block.tools, (*path, "tools")),
        )

    def exporters(self, data: Any, path: Path) -> list[dict[str, Any]]:
        """Those of an eval agent, as its constructor takes them."""
        return [{"type": one.type, "config": one.config} for one in self._list("eval_exporter", data, path)]

    def _list(self, kind: str, data: Any, path: Path) -> list[PluginSpec]:
        if data is None:
            return []
        if not isinstance(data, list):
            self._checker.at_value(path, f"should be a list of plug-ins (- type: ...), not {value_text(data)}")
            return []
        found: list[PluginSpec] = []
        for index, item in enumerate(data):
            spec = self._one(kind, item, (*path, index))
            if spec is None:
                continue
            if spec.label in {other.label for other in found}:
                self._checker.at_value(
                    (*path, index), f"there is a {kind} {spec.label!r} already; give it a name: of its own"
                )
            found.append(spec)
        return found

    def _one(self, kind: str, data: Any, path: Path) -> PluginSpec | None:
        block = self._checker.block(schema.Plugin, data, path)
        if block is None:
            return None
        config = block.config
        if block.type in BUILTIN_PLUGINS[kind]:
            config = self._known_config(kind, data.get("config"), (*path, "config"))
        elif "." in block.type:
            problem = class_path_problem(block.type)
            if problem is not None:
                self._checker.at_value((*path, "type"), problem)
        elif block.type not in self._others(kind):
            self._unknown(kind, block.type, (*path, "type"))
        return PluginSpec(block.type, config, block.name or "")

    def _unknown(self, kind: str, word: str, path: Path) -> None:
        hint = PLUGIN_HINTS.get((kind, word))
        if hint is not None:
            self._checker.at_value(path, f"{word!r} is not built in; {hint}")
            return
        known = [*BUILTIN_PLUGINS[kind], *self._others(kind)]
        tail = did_you_mean(word, known) or "; write the import path of a class, package.module.Class"
        self._checker.at_value(path, f"the {kind} plug-in {word!r} is unknown{tail}")

    def _known_config(self, kind: str, data: Any, path: Path) -> dict[str, Any]:
        """What was given, checked; what was not stays out, so that the class's own defaults hold."""
        if kind != "model":
            return {}
        block = self._checker.block(schema.ModelConfig, data, path)
        if block is None:
            return {}
        given = block.model_dump(include=block.model_fields_set)
        if "prices" in given:
            given["prices"] = self._prices(block.prices, (*path, "prices"))
        return given

    def _prices(self, data: Any, path: Path) -> dict[str, Any]:
        prices: dict[str, Any] = {}
        for model, price in (self._checker.mapping(data, path) or {}).items():
            block = self._checker.block(schema.Price, price, (*path, model))
            if block is not None:
                prices[str(model)] = block.model_dump()
        return prices
