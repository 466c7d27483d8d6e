"""`--set AGENT.KEY=VALUE`: what the value means, which agent is meant, and what is said when it fits nowhere."""

from __future__ import annotations

import pytest

from civitas_shm.errors import TopologyError
from civitas_shm.topology import overrides
from civitas_shm.topology.load import load_topology_text

TOPOLOGY = """\
supervision:
  children:
    - agent: {name: walker, type: agents.Walker, config: {path: /, nested: {list: [1]}}}
    - supervisor:
        name: inner
        children:
          - agent: {name: report, type: agents.Report}
"""


def agent_yaml(keys: str) -> str:
    return f"supervision:\n  children:\n    - agent: {{{keys}}}\n"


def config_after(*settings: str, name: str = "a") -> dict[str, object]:
    spec = load_topology_text(agent_yaml(f"name: {name}, type: m.A, config: {{p: 1, deep: {{x: 1}}}}"), "t", settings)
    return spec.supervision.agents()[0].config


@pytest.mark.parametrize(
    ("value", "meaning"),
    [
        ("/usr/lib", "/usr/lib"),
        ("/a: b #c", "/a: b #c"),
        ("3", 3),
        ("012", 12),
        ("no", "no"),
        ("true", True),
        ("", None),
        ("'3'", "3"),
        ('"a\\tb"', "a\tb"),
        ("[1, x]", [1, "x"]),
        ("{a: {b: 2}}", {"a": {"b": 2}}),
        ("a=b", "a=b"),
        ("*.py", "*.py"),
        ("${HOME}", "${HOME}"),
    ],
)
def test_the_value_of_an_override_means_what_it_means_in_the_file(value: str, meaning: object) -> None:
    assert config_after(f"a.p={value}") == {"p": meaning, "deep": {"x": 1}}


def test_overrides_reach_into_mappings_and_make_them() -> None:
    assert config_after("a.deep.x=2", "a.deep.y=3", "a.new.z=4") == {"p": 1, "deep": {"x": 2, "y": 3}, "new": {"z": 4}}


def test_an_agent_with_dots_in_its_name_can_be_overridden() -> None:
    assert config_after("a.b.p=2", name="a.b")["p"] == 2


def test_an_agent_below_an_inner_supervisor_can_be_overridden() -> None:
    spec = load_topology_text(TOPOLOGY, "t.yaml", ["report.out=/x"])
    assert spec.supervision.agents()[-1].config == {"out": "/x"}


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("walkr.p=1", "--set walkr.p: there is no agent 'walkr'; did you mean 'walker'?"),
        ("walker", "--set: 'walker' has not the form AGENT.KEY=VALUE, for example walker.path=/usr/lib"),
        ("walker=1", "--set: 'walker=1' has not the form AGENT.KEY=VALUE, for example walker.path=/usr/lib"),
        ("walker.path.x=1", "--set walker.path.x: 'path' in the config of 'walker' is no mapping, so nothing can be "),
        ("walker.p=[1", "--set: the value '[1' cannot be read: not valid YAML"),
    ],
)
def test_an_override_that_fits_nowhere_is_a_problem(override: str, problem: str) -> None:
    with pytest.raises(TopologyError) as caught:
        load_topology_text(TOPOLOGY, "t.yaml", [override])
    (only,) = caught.value.problems
    assert only.startswith(problem)


def test_of_two_agents_whose_names_fit_the_longer_is_meant() -> None:
    text = "supervision:\n  children:\n  - {name: a, type: m.A}\n  - {name: a.b, type: m.B}\n"
    configs = {a.name: a.config for a in load_topology_text(text, "t", ["a.b.p=1", "a.c.p=2"]).supervision.agents()}
    assert configs == {"a": {"c": {"p": 2}}, "a.b": {"p": 1}}


def test_the_topology_that_overrides_are_applied_to_stays_as_it_is() -> None:
    spec = load_topology_text(TOPOLOGY)
    changed, problems = overrides.apply(spec, [overrides.parse("walker.nested.list=[]")])
    assert problems == []
    assert changed.supervision.agents()[0].config["nested"] == {"list": []}
    assert spec == load_topology_text(TOPOLOGY)
