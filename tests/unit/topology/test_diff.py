"""What is a difference between two topologies, and what is none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from civitas_shm.topology.diff import Change, diff
from civitas_shm.topology.load import load_topology_text
from civitas_shm.topology.shown import as_text, show

from .test_load import FULL, MINIMAL

BASE = """\
processes: {w: {cpus: [0, 1], env: {A: "1"}}}
supervision:
  strategy: ONE_FOR_ONE
  children:
    - agent: {name: a, type: m.A, process: w, config: {path: /usr, deep: {x: 1, y: 2}}, capabilities: [p, q]}
    - agent: {name: b, type: m.B}
    - supervisor:
        name: inner
        children:
          - agent: {name: c, type: m.C, credentials: {x: "${KEY}"}}
"""
ENVIRONMENT = {"KEY": "sk-canary-1"}


def changes(before: str, after: str, environment: dict[str, str] | None = None) -> list[Change]:
    a = show(load_topology_text(before, environment=ENVIRONMENT), "salt")
    b = show(load_topology_text(after, environment=environment or ENVIRONMENT), "salt")
    return diff(a, b)


def replaced(*pairs: tuple[str, str]) -> list[Change]:
    after = BASE
    for old, new in pairs:
        assert old in after
        after = after.replace(old, new)
    return changes(BASE, after)


def test_nothing_is_different_from_itself() -> None:
    assert changes(BASE, BASE) == []
    assert changes(FULL, FULL) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    - agent: {name: b, type: m.B}\n", "    - agent: {type: m.B, name: b, replicas: 1, restart: permanent}\n"),
        ("cpus: [0, 1]", "cpus: [1, 0]"),
        ("capabilities: [p, q]", "capabilities: [q, p]"),
        ("supervision:\n", "transport: in_process\npool: {size: auto}\nsupervisor:\n"),
        ("strategy: ONE_FOR_ONE", "strategy: one_for_one\n  max_restarts: 3\n  restart_window_s: 60"),
    ],
)
def test_order_and_defaults_make_no_difference(old: str, new: str) -> None:
    assert replaced((old, new)) == []


def test_the_order_of_children_counts_where_it_says_who_is_restarted() -> None:
    first, second = "    - agent: {name: b, type: m.B}\n", "    - supervisor:\n"
    moved = BASE.replace(first, "").rstrip() + "\n" + first
    assert changes(BASE, moved) == []
    rest = [text.replace("ONE_FOR_ONE", "REST_FOR_ONE") for text in (BASE, moved)]
    assert second in rest[1]
    (only,) = changes(*rest)
    assert only == Change(
        "changed", "supervisor", "root", "order of children", ["a", "b", "inner"], ["a", "inner", "b"]
    )


def test_settings_are_told_key_by_key() -> None:
    found = replaced(("path: /usr", "path: /opt"), ("y: 2", "z: 3"), ("name: b,", "name: b, replicas: 2,"))
    assert found == [
        Change("changed", "agent", "a", "config.deep.y", 2, None),
        Change("changed", "agent", "a", "config.deep.z", None, 3),
        Change("changed", "agent", "a", "config.path", "/usr", "/opt"),
        Change("changed", "agent", "b", "replicas", 1, 2),
    ]


def test_what_comes_goes_and_moves() -> None:
    found = replaced(
        ("    - agent: {name: b, type: m.B}\n", ""),
        (
            "          - agent: {name: c",
            "          - agent: {name: d, type: m.D, replicas: 3}\n          - agent: {name: c",
        ),
    )
    assert found == [
        Change("removed", "agent", "b", before={"type": "m.B", "supervisor": "root"}),
        Change("added", "agent", "d", after={"type": "m.D", "replicas": 3, "supervisor": "inner"}),
    ]
    (moved,) = replaced(
        ("    - agent: {name: b, type: m.B}\n", ""),
        ("          - agent: {name: c", "          - agent: {name: b, type: m.B}\n          - agent: {name: c"),
    )
    assert moved == Change("moved", "agent", "b", before="root", after="inner")


def test_the_root_is_the_root_whatever_its_name() -> None:
    (only,) = replaced(("supervision:\n", "supervision:\n  name: top\n"))
    assert only == Change("changed", "supervisor", "root", "name", "root", "top")


def test_processes_blocks_and_plug_ins() -> None:
    before = (
        MINIMAL + "plugins: {models: [{type: m.X}, {type: m.Y}], tools: [{type: m.T}]}\nprocesses: {w: {nice: 1}}\n"
    )
    after = (
        MINIMAL + "plugins: {models: [{type: m.Y, config: {a: 1}}]}\nstop: {drain: all}\nprocesses: {w: {nice: 2}}\n"
    )
    assert changes(before, after) == [
        Change("removed", "model", "m.X", before={"type": "m.X"}),
        Change("removed", "tool", "m.T", before={"type": "m.T"}),
        Change("changed", "process", "w", "nice", 1, 2),
        Change("changed", "model", "m.Y", "config.a", None, 1),
        Change("changed", "setting", "stop", "drain", "current", "all"),
        Change("changed", "setting", "plugins", "the first of models, self.llm", "m.X", "m.Y"),
    ]


def test_a_secret_that_has_changed_is_told_and_not_shown() -> None:
    (only,) = changes(BASE, BASE, {"KEY": "sk-canary-2"})
    assert (only.kind, only.name, only.key) == ("changed", "c", "credentials.x")
    assert as_text([only.before, only.after]) == ["***", "***"]
    assert "canary" not in repr(only)
    assert changes(BASE, BASE, dict(ENVIRONMENT)) == []


# --- what is shown --------------------------------------------------------------------------------------------------

SECRETS = """\
processes: {w: {env: {API_KEY: "canary-1-env", PATH: /bin}}}
transport: {type: my.own, options: {password: "canary-2-options"}}
plugins: {models: [{type: m.X, config: {api_key: "canary-3-plugin", max_tokens: "5"}}]}
supervision:
  children:
    - agent:
        name: a
        type: m.A
        credentials: {x: canary-4-credentials}
        kwargs: {nested: [{client_secret: canary-5-kwargs}]}
        args: ["${A_TOKEN}"]
        config: {url: "http://u:${A_TOKEN}@host", keys: {one: canary-7-keys}, token: 12345678, max_tokens: 9, key: true}
"""


def test_no_secret_is_shown_wherever_it_stands() -> None:
    spec = load_topology_text(SECRETS, environment={"A_TOKEN": "canary-6-variable"})
    shown = show(spec, "salt")
    for text in (json.dumps(shown), json.dumps(as_text(shown))):
        assert "canary" not in text
        assert "12345678" not in text
    (agent,) = as_text(shown)["supervision"]["children"]
    assert agent["config"] == {"url": "***", "keys": {"one": "***"}, "token": "***", "max_tokens": 9, "key": True}
    assert agent["args"] == ["***"]
    assert as_text(shown)["processes"][0]["env"] == {"API_KEY": "***", "PATH": "/bin"}
    assert not shown.keys() & {"secrets", "private_variables", "import_paths"}


def test_another_salt_makes_other_digests() -> None:
    spec = load_topology_text(SECRETS, environment={"A_TOKEN": "canary-6-variable"})
    assert show(spec, "one") != show(spec, "two")
    assert show(spec, "one") == show(spec, "one")


@given(st.permutations(["a", "b", "c"]), st.permutations(["a", "b", "c"]))
def test_any_two_trees_of_the_same_agents_differ_by_moves_alone(one: list[str], other: list[str]) -> None:
    def tree(names: list[str]) -> str:
        first, *rest = [f"{{name: {name}, type: m.A}}" for name in names]
        return f"supervision: {{children: [{first}, supervisor: {{name: s, children: [{', '.join(rest)}]}}]}}"

    found = changes(tree(one), tree(other))
    assert {change.kind for change in found} <= {"moved"}
    assert len(found) == (0 if one[0] == other[0] else 2)
