"""The `plugins:` block: which plug-ins there are, and the configuration of those that are known here.

    plugins:
      models:
        - type: anthropic                     # built in: every key below config is checked
          config: {default_model: claude-sonnet-4-6}
        - name: local
          type: mypackage.models.Local        # import path, or the name of an entry point: config is the class's own
      tools:
        - type: myapp.tools.Search
      state: {type: sqlite, config: {db_path: /data/state.db}}     # one, for all agents with state: store

Rules of this file: nothing is imported to look at a plug-in; whether its class fits is the loader's question, asked
where it is built.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

from . import schema
from .check import Checker, value_text
from .keytypes import class_path_problem
from .model import BUILTIN_PLUGINS, PLUGIN_HINTS, PluginSpec, PluginsSpec
from .suggest import did_you_mean
from .yaml12 import Path

__all__ = ["PluginReader"]


_CONFIGS: Final[dict[tuple[str, str], type[schema.Block]]] = {
    ("model", "anthropic"): schema.ModelConfig,
    ("model", "openai"): schema.ModelConfig,
    ("state", "in_memory"): schema.InMemoryConfig,
    ("state", "sqlite"): schema.SQLiteConfig,
    ("state", "redis"): schema.RedisConfig,
    ("state", "encrypted"): schema.EncryptedConfig,
}
"""By kind and built-in word: the keys of its `config:`."""


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
            state=None if block.state is None else self._store(block.state, (*path, "state")),
        )

    def exporters(self, data: Any, path: Path) -> list[dict[str, Any]]:
        """Those of an eval agent, as its constructor takes them."""
        return [{"type": one.type, "config": one.config} for one in self._list("eval_exporter", data, path)]

    def _store(self, data: Any, path: Path) -> PluginSpec | None:
        """A store of states; `state: sqlite` is short for `state: {type: sqlite}`."""
        short = isinstance(data, str)
        return self._one("state", {"type": str(data)} if short else data, path, at=path if short else (*path, "type"))

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

    def _one(self, kind: str, data: Any, path: Path, at: Path | None = None) -> PluginSpec | None:
        """`at`: where the type stands."""
        at = (*path, "type") if at is None else at
        block: schema.Plugin | schema.Store | None
        if kind == "state":
            block = self._checker.block(schema.Store, data, path)
        else:
            block = self._checker.block(schema.Plugin, data, path)
        if block is None:
            return None
        config = block.config
        if block.type in BUILTIN_PLUGINS[kind]:
            config = self._known_config(kind, block.type, data.get("config"), (*path, "config"))
        elif "." in block.type:
            problem = class_path_problem(block.type)
            if problem is not None:
                self._checker.at_value(at, problem)
        elif block.type not in self._others(kind):
            self._unknown(kind, block.type, at)
        return PluginSpec(block.type, config, getattr(block, "name", None) or "")

    def _unknown(self, kind: str, word: str, path: Path) -> None:
        hint = PLUGIN_HINTS.get((kind, word))
        if hint is not None:
            self._checker.at_value(path, f"{word!r} is not built in; {hint}")
            return
        known = [*BUILTIN_PLUGINS[kind], *self._others(kind)]
        tail = did_you_mean(word, known) or "; write the import path of a class, package.module.Class"
        self._checker.at_value(path, f"the {kind} plug-in {word!r} is unknown{tail}")

    def _known_config(self, kind: str, word: str, data: Any, path: Path) -> dict[str, Any]:
        """What was given, checked; what was not stays out, so that the class's own defaults hold."""
        block = self._checker.block(_CONFIGS[kind, word], data, path)
        if block is None:
            return {}
        given = block.model_dump(include=block.model_fields_set)
        if "prices" in given:
            given["prices"] = self._prices(given["prices"], (*path, "prices"))
        if isinstance(block, schema.EncryptedConfig):
            inner = self._store(block.inner, (*path, "inner"))
            given["inner"] = None if inner is None else {"type": inner.type, "config": inner.config}
            if "keys" in given:
                given["keys"] = self._keys(block, path)
        return given

    def _keys(self, block: schema.EncryptedConfig, path: Path) -> dict[str, Any]:
        """Each a text or `{file: ...}`; their values are shown nowhere."""
        keys: dict[str, Any] = {}
        for key_id, key in (block.keys or {}).items():
            where = (*path, "keys", key_id)
            if isinstance(key, dict):
                file = self._checker.block(schema.KeyFile, key, where)
                keys[key_id] = {} if file is None else {"file": file.file}
            elif isinstance(key, str) and key:
                keys[key_id] = key
            else:
                self._checker.at_value(where, 'should be a key as text, "${STATE_KEY}" for example, or {file: path}')
        if block.keys is not None and not block.keys:
            self._checker.at_value((*path, "keys"), "should have a key, the one that encrypts first")
        if block.current_key_id is not None and block.current_key_id not in (block.keys or {}):
            hint = did_you_mean(block.current_key_id, list(block.keys or {}))
            self._checker.at_value((*path, "current_key_id"), f"there is no key {block.current_key_id!r}{hint}")
        return keys

    def _prices(self, data: Any, path: Path) -> dict[str, Any]:
        prices: dict[str, Any] = {}
        for model, price in (self._checker.mapping(data, path) or {}).items():
            block = self._checker.block(schema.Price, price, (*path, model))
            if block is not None:
                prices[str(model)] = block.model_dump()
        return prices
