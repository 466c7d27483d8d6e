"""The `plugins:` block: what it gives, and every problem at its place."""

from __future__ import annotations

import pytest

from civitas_shm.errors import TopologyError
from civitas_shm.topology.load import load_topology_text
from civitas_shm.topology.model import PluginSpec, PluginsSpec, TopologySpec

MINIMAL = "supervision: {children: [{type: m.A, name: a}]}\n"


def load(text: str, **environment: str) -> TopologySpec:
    return load_topology_text(MINIMAL + text, environment=environment)


def test_a_block_is_a_list_of_classes_with_their_arguments() -> None:
    spec = load(
        """
plugins:
  models:
    - type: anthropic
      config: {default_model: claude-sonnet-4-6, max_tokens: 8192, max_retries: 3, timeout: 60}
    - {name: local, type: openai, config: {base_url: "http://localhost:1/v1", api_key: "${KEY}"}}
    - {type: my.models.Own, config: {anything: [1, {goes: true}], key: "${KEY}"}}
  tools:
    - type: my.tools.Search
""",
        KEY="0123",
    )
    assert spec.plugins == PluginsSpec(
        models=[
            PluginSpec(
                "anthropic",
                {"default_model": "claude-sonnet-4-6", "max_tokens": 8192, "max_retries": 3, "timeout_s": 60.0},
            ),
            PluginSpec("openai", {"base_url": "http://localhost:1/v1", "api_key": "0123"}, "local"),
            PluginSpec("my.models.Own", {"anything": [1, {"goes": True}], "key": "0123"}),
        ],
        tools=[PluginSpec("my.tools.Search")],
    )
    assert TopologySpec.from_plain(spec.to_plain()) == spec


def test_nothing_is_nothing() -> None:
    assert load("plugins:\n").plugins == load("plugins: {models: , tools: []}").plugins == PluginsSpec()


def test_keys_of_an_agent_are_text_and_are_not_shown() -> None:
    text = 'supervision: {children: [{type: m.A, name: a, credentials: {anthropic: "${KEY}"}}]}'
    spec = load_topology_text(text, environment={"KEY": "1234567890"})
    assert spec.supervision.agents()[0].credentials == {"anthropic": "1234567890"}
    assert "1234567890" not in repr(spec)
    shown = repr(load("plugins: {models: [{type: openai, config: {api_key: sk-1234567890}}]}"))
    assert "openai" in shown
    assert "sk-1234567890" not in shown


TABLE = [
    ("plugins: 5", "2:10: plugins: should be a mapping"),
    ("plugins: {model: []}", "2:11: plugins.model: unknown key 'model'; did you mean 'models'?"),
    ("plugins: {state: [sqlite]}", "2:18: plugins.state: should be a mapping"),
    (
        "plugins: {state: sqllite}",
        "2:18: plugins.state: the state plug-in 'sqllite' is unknown; did you mean 'sqlite'?",
    ),
    ("plugins: {state: {type: postgres}}", "'postgres' is not built in; write a StateStore of your own"),
    ("plugins: {state: {type: sqlite, name: s}}", "2:33: plugins.state.name: unknown key 'name'"),
    ("plugins: {state: {type: sqlite, config: {path: s}}}", "2:42: plugins.state.config.path: unknown key 'path'; did"),
    ("plugins: {state: {type: sqlite, config: {patience: -1}}}", "plugins.state.config.patience: "),
    (
        "plugins: {state: {type: redis, config: {url: 'host:1?password=hidden'}}}",
        "this is no address of a Redis server",
    ),
    ("plugins: {state: encrypted}", "plugins.state.config: the key 'inner' is missing"),
    (
        "plugins: {state: {type: encrypted, config: {inner: redsi}}}",
        "2:52: plugins.state.config.inner: the state plug-in 'redsi' is unknown; did you mean 'redis'?",
    ),
    (
        "plugins: {state: {type: encrypted, config: {inner: sqlite, keys: {a: 5}}}}",
        "2:70: plugins.state.config.keys.a: should be a key as text",
    ),
    (
        "plugins: {state: {type: encrypted, config: {inner: sqlite, keys: {a: {fiel: x}}}}}",
        "plugins.state.config.keys.a.fiel: unknown key 'fiel'; did you mean 'file'?",
    ),
    ("plugins: {state: {type: encrypted, config: {inner: sqlite, keys: {}}}}", "config.keys: should have a key"),
    (
        "plugins: {state: {type: encrypted, config: {inner: sqlite, keys: {ab: x}, current_key_id: ac}}}",
        "config.current_key_id: there is no key 'ac'; allowed: ab",
    ),
    ("plugins: {exporters: []}", "2:11: plugins.exporters: 'exporters' is not supported yet; remove it"),
    ("plugins: {models: anthropic}", "2:19: plugins.models: should be a list of plug-ins (- type: ...), not the text"),
    ("plugins: {models: [anthropic]}", "2:20: plugins.models[0]: should be a mapping"),
    ("plugins: {models: [{}]}", "2:20: plugins.models[0]: the key 'type' is missing"),
    (
        "plugins: {models: [{type: antropic}]}",
        "2:27: plugins.models[0].type: the model plug-in 'antropic' is unknown; did",
    ),
    ("plugins: {models: [{type: gemini}]}", "'gemini' is not built in; use type: openai with base_url: https://"),
    ("plugins: {models: [{type: litellm}]}", "'litellm' is not built in; name it by its path, civitas_shm.plugins."),
    ("plugins: {models: [{type: a..b}]}", "2:27: plugins.models[0].type: 'a..b' is no import path"),
    (
        "plugins: {tools: [{type: search}]}",
        "2:26: plugins.tools[0].type: the tool plug-in 'search' is unknown; write the",
    ),
    (
        "plugins: {models: [{type: openai, confg: {}}]}",
        "2:35: plugins.models[0].confg: unknown key 'confg'; did you mean",
    ),
    (
        "plugins: {models: [{type: openai, config: {default_modle: m}}]}",
        "2:44: plugins.models[0].config.default_modle: unknown key 'default_modle'; did you mean 'default_model'?",
    ),
    (
        "plugins: {models: [{type: openai, config: {max_tokens: many}}]}",
        "2:56: plugins.models[0].config.max_tokens: should be a whole number, not the text 'many'",
    ),
    ("plugins: {models: [{type: openai, config: {max_retries: -1}}]}", "2:57: plugins.models[0].config.max_retries: "),
    (
        "plugins: {models: [{type: openai, config: {base_url: localhost}}]}",
        "2:54: plugins.models[0].config.base_url: 'localhost' is no address of a service",
    ),
    (
        "plugins: {models: [{type: openai, config: {prices: {m: {input: 1, ouput: 2}}}}]}",
        "2:67: plugins.models[0].config.prices.m.ouput: unknown key 'ouput'; did you mean 'output'?",
    ),
    (
        "plugins: {models: [{type: openai, config: {prices: {m: 3}}}]}",
        "plugins.models[0].config.prices.m: should be a map",
    ),
    (
        "plugins: {models: [{type: openai}, {type: openai}]}",
        "2:36: plugins.models[1]: there is a model 'openai' already; give it a name: of its own",
    ),
]


@pytest.mark.parametrize(("text", "problem"), TABLE, ids=[text for text, _ in TABLE])
def test_every_problem_stands_at_its_place(text: str, problem: str) -> None:
    with pytest.raises(TopologyError) as caught:
        load(text)
    assert any(problem in line for line in caught.value.problems), caught.value.problems
    assert all(line.startswith("<text>:") for line in caught.value.problems)


def test_all_problems_at_once() -> None:
    with pytest.raises(TopologyError) as caught:
        load("plugins: {models: [{type: antropic}, {type: openai, config: {x: 1, timeout: 0}}], tools: [5]}")
    assert len(caught.value.problems) == 4


def test_a_store_of_states_is_a_word_or_a_mapping() -> None:
    def state(text: str) -> PluginSpec | None:
        return load(f"plugins: {{state: {text}}}", KEY="a-key-of-somebody").plugins.state

    assert (state(""), state("sqlite")) == (None, PluginSpec("sqlite"))
    assert state("{type: sqlite, config: {db_path: /data/s.db, patience: 3}}") == PluginSpec(
        "sqlite", {"db_path": "/data/s.db", "patience_s": 3.0}
    )
    spec = load(
        """
plugins:
  state:
    type: encrypted
    config:
      inner: {type: redis, config: {url: "redis://:${KEY}@h/0", prefix: "shop:"}}
      keys: {new: "${KEY}", old: {file: /run/secrets/key}}
""",
        KEY="a-key-of-somebody",
    )
    inner = {"type": "redis", "config": {"url": "redis://:a-key-of-somebody@h/0", "prefix": "shop:"}}
    keys = {"new": "a-key-of-somebody", "old": {"file": "/run/secrets/key"}}
    assert spec.plugins.state == PluginSpec("encrypted", {"inner": inner, "keys": keys})
    assert "a-key-of-somebody" not in repr(spec)
    assert "a-key-of-somebody" in spec.secrets
    assert TopologySpec.from_plain(spec.to_plain()) == spec
    own = state("{type: my.stores.Own, config: {any: [1]}}")
    assert own == PluginSpec("my.stores.Own", {"any": [1]})


def test_where_an_agent_keeps_its_state() -> None:
    def problems(agent: str) -> str:
        with pytest.raises(TopologyError) as caught:
            load_topology_text(f"supervision: {{children: [{{type: m.A, name: a, {agent}}}]}}")
        return "\n".join(caught.value.problems)

    assert load("").supervision.agents()[0].state == "store"
    assert "name it once, in plugins: {state: {type: sqlite}}, and write state: store" in problems("state: sqlite")
    assert "state: store belongs to one reader" in problems("state: store, replicas: 2")
    text = "supervision: {children: [{type: m.A, name: a, replicas: 2}]}"
    assert load_topology_text(text).supervision.agents()[0].replicas == 2
