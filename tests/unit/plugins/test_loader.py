"""From a name to a plug-in: where it is looked for, and how what does not fit is told."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from civitas_shm.errors import ConfigurationError, PluginError
from civitas_shm.evalloop import EvalAgent
from civitas_shm.plugins.loader import check_packages, load_plugin, load_plugins_from_config, resolve_plugin_class
from civitas_shm.plugins.state import InMemoryStateStore, StateStore
from civitas_shm.topology import schema
from civitas_shm.topology.model import BUILTIN_PLUGINS, PLUGIN_HINTS, PluginSpec, PluginsSpec

HERE = """
class Good:
    def __init__(self, **config): self.config = config
    async def chat(self, model, messages, tools=None): ...
class NoChat: pass
class PlainChat:
    def chat(self, model, messages, tools=None): ...
class NarrowChat:
    async def chat(self, model): ...
class Breaks(Good):
    def __init__(self, api_key): raise RuntimeError(f"cannot log in with {api_key}")
class Search:
    name, schema = "search", {}
    async def execute(self, query): return query
class Nameless:
    async def execute(self, query): return query
class Console:
    def export(self, spans): ...
    def shutdown(self): ...
not_a_class = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"plugins_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(HERE)
    (tmp_path / "needs_more.py").write_text("import a_package_that_nobody_has")
    (tmp_path / "broken_here.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.mark.parametrize(("kind", "word"), [(kind, word) for kind, words in BUILTIN_PLUGINS.items() for word in words])
def test_every_built_in_word_is_a_class_that_fits(kind: str, word: str) -> None:
    assert resolve_plugin_class(kind, word).__module__.startswith("civitas_shm.")


@pytest.mark.parametrize("word", BUILTIN_PLUGINS["model"])
def test_the_keys_of_the_topology_are_the_arguments_of_the_constructor(word: str) -> None:
    parameters = inspect.signature(resolve_plugin_class("model", word)).parameters
    assert set(schema.ModelConfig.model_fields) == set(parameters)


def test_a_dotted_path_is_a_class_with_its_config(module: str) -> None:
    assert load_plugin("model", f"{module}.Good", {"a": 1}).config == {"a": 1}
    assert load_plugin("tool", f"{module}.Search").name == "search"
    assert resolve_plugin_class("exporter", f"{module}.Console").__name__ == "Console"


def test_an_entry_point_is_found_by_its_name_and_does_not_replace_a_built_in_word(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[civitas_shm.models]\nmine = {module}:Good\nanthropic = {module}:Good\n"
        f"[civitas_shm.tools]\nlook = {module}:Search\n"
    )
    importlib.invalidate_caches()
    assert resolve_plugin_class("model", "mine").__name__ == "Good"
    assert resolve_plugin_class("tool", "look").__name__ == "Search"
    assert resolve_plugin_class("model", "anthropic").__name__ == "AnthropicProvider"


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("model", "antropic", "it is unknown; did you mean 'anthropic'?"),
        ("model", "litellm", "it is not built in; name it by its path, civitas_shm.plugins.litellm.LiteLLMProvider"),
        ("modell", "x", "there is no such kind of plug-in; did you mean 'model'?"),
        ("model", "no.such.Class", "there is no module 'no'"),
        ("model", "needs_more.X", "importing 'needs_more' needs 'a_package_that_nobody_has': pip install"),
        ("model", "broken_here.X", "importing 'broken_here' raised ZeroDivisionError: division by zero"),
        ("model", "MODULE.Goode", "has no class 'Goode'; did you mean 'Good'?"),
        ("model", "MODULE.not_a_class", "it is int, not a class"),
        ("model", "MODULE.NoChat", "NoChat does not fit: it has no async chat(model, messages, tools=None)"),
        ("model", "MODULE.PlainChat", "PlainChat does not fit: chat is not async; it should be async chat(model,"),
        ("model", "MODULE.NarrowChat", "chat cannot be called as async chat(model, messages, tools=None): too many"),
        ("state", "MODULE.Good", "it has no async get(agent_name); it has no async set(agent_name, state);"),
        ("exporter", "MODULE.Good", "it has no export(spans); it has no shutdown()"),
    ],
)
def test_what_cannot_be_had_is_told(module: str, kind: str, name: str, text: str) -> None:
    with pytest.raises(PluginError) as caught:
        resolve_plugin_class(kind, name.replace("MODULE", module))
    assert text in str(caught.value)
    assert caught.value.plugin_type == kind
    assert caught.value.name == name.replace("MODULE", module)
    assert caught.value.reason in str(caught.value)
    assert isinstance(caught.value, ConfigurationError)


def test_an_object_without_what_only_objects_have_is_refused(module: str) -> None:
    with pytest.raises(PluginError, match="the object has no name and no schema"):
        load_plugin("tool", f"{module}.Nameless")


def test_a_constructor_that_raises_is_told_without_the_secret(module: str) -> None:
    with pytest.raises(
        PluginError, match=r"Breaks\(api_key\) raised RuntimeError: cannot log in with \*\*\*$"
    ) as caught:
        load_plugin("model", f"{module}.Breaks", {"api_key": "sk-very-secret"})
    assert "sk-very-secret" not in repr(caught.value) + str(caught.value.__cause__) + str(caught.value.__context__)


@pytest.mark.parametrize(
    ("word", "extra"), [("anthropic", '"civitas-shm[anthropic]"'), ("openai", '"civitas-shm[openai]"')]
)
def test_a_missing_package_names_the_extra(word: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, word, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for module in [name for name in sys.modules if name.startswith(f"{word}.")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(PluginError, match=rf"the package '{word}' is not installed: pip install .*{word}\]"):
        load_plugin("model", word)
    (problem,) = check_packages(PluginsSpec(models=[PluginSpec(word)]))
    assert problem.endswith(f"the package {word!r} is not installed: pip install {extra}")


def test_every_hint_is_for_a_word_that_is_not_built_in() -> None:
    assert not [word for kind, word in PLUGIN_HINTS if word in BUILTIN_PLUGINS[kind]]


def test_a_whole_block_at_once(module: str) -> None:
    made = load_plugins_from_config(
        {"models": [{"type": f"{module}.Good", "config": {"a": 1}}], "tools": [{"type": f"{module}.Search"}]}
    )
    assert [provider.config for provider in made["model_providers"]] == [{"a": 1}]
    assert [tool.name for tool in made["tools"]] == ["search"]
    assert made["exporters"] == []
    assert isinstance(made["state_store"], InMemoryStateStore)
    assert isinstance(made["state_store"], StateStore)


HEAVY = ("anthropic", "openai", "litellm", "httpx", "httpx2", "pydantic", "opentelemetry")


@pytest.mark.parametrize(
    "module", ["civitas_shm.process", "civitas_shm.host.worker", "civitas_shm.plugins.openai", "civitas_shm.runtime"]
)
def test_nobodys_package_is_imported_before_an_agent_asks(module: str) -> None:
    script = f"import sys, {module}; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_the_host_knows_no_plug_in_at_all() -> None:
    script = "import sys, civitas_shm.host.main; print(*sorted(m for m in sys.modules if 'plugins' in m))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_an_eval_agent_builds_its_exporters_where_it_runs(module: str) -> None:
    given = EvalAgent("e", exporters=[{"type": f"{module}.Console"}])
    assert type(given.exporters[0]).__name__ == "Console"
    with pytest.raises(PluginError, match="NoChat does not fit: it has no export"):
        EvalAgent("e", exporters=[{"type": f"{module}.NoChat"}])
